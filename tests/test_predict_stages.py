"""Stages side by side or in series: order, errors, and threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator

import pytest

from efafnet.pipelines.prediction.stages import ahead, prefetched
from tests.waiting import LIMIT_S


def pieces(number: int, made: list[int]) -> Generator[int]:
    """0, 1, …, each noted in ``made`` when it is made."""
    for n in range(number):
        made.append(n)
        yield n


def test_pieces_come_in_order_and_no_more_than_wanted_are_made() -> None:
    made: list[int] = []
    stage = prefetched(pieces(10, made), 2)
    assert next(stage) == 0
    time.sleep(0.1)
    # One is in use, two are ready, and the next waits to be handed over.
    assert len(made) <= 4
    assert list(stage) == list(range(1, 10))


def test_two_stages_work_at_the_same_time() -> None:
    """Each stage waits for the other within one piece: in series neither could go on."""
    meeting = threading.Barrier(2, timeout=LIMIT_S)

    def first() -> Iterator[int]:
        for n in range(3):
            yield n
            meeting.wait()

    stage = prefetched(first(), 1)
    for _ in stage:
        meeting.wait()


def test_in_series_a_piece_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []
    threads = set(threading.enumerate())
    stage = ahead(pieces(3, made), 2, side_by_side=False)
    assert made == []
    assert (next(stage), made) == (0, [0])
    assert (next(stage), made) == (1, [0, 1])
    assert set(threading.enumerate()) <= threads


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def pieces() -> Iterator[int]:
        yield 1
        raise ValueError("the second is damaged")

    stage = prefetched(pieces(), 4)
    assert next(stage) == 1
    with pytest.raises(ValueError, match="the second is damaged"):
        next(stage)


def test_who_stops_early_ends_every_thread_and_closes_what_they_read() -> None:
    closed: list[str] = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append("numbers")

    def doubled(source: Iterator[int]) -> Iterator[int]:
        try:
            for n in source:
                yield 2 * n
        finally:
            source.close()  # type: ignore[attr-defined]
            closed.append("doubled")

    before = set(threading.enumerate())
    stage = prefetched(doubled(prefetched(numbers(), 1)), 1)
    assert next(stage) == 0
    stage.close()
    assert closed == ["numbers", "doubled"]
    assert set(threading.enumerate()) <= before
