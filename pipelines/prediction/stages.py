"""Stages that work side by side where cores are free: each takes what the one before has ready, some pieces ahead."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")

_LOOK_UP_S = 0.1
"""How often a stage that waits looks whether anybody still wants its pieces."""


class _End:
    """Behind the last piece: the error that ended the stage, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Generator[T], pieces: int, *, side_by_side: bool) -> Generator[T]:
    """The items in order: ``prefetched``, or in series with whoever uses them, each made when it is asked for."""
    return prefetched(items, pieces) if side_by_side else items


def prefetched(items: Iterator[T], pieces: int) -> Generator[T]:
    """The items in order, made in a thread of their own while earlier ones are used, up to ``pieces`` in advance.

    An error of ``items`` is raised here, after what came before it. When this iterator is closed, or its user fails,
    ``items`` is closed in its thread, and the thread has ended.
    """
    ready: Queue[T | _End] = Queue(pieces)
    unwanted = threading.Event()
    thread = threading.Thread(target=_make, args=(items, ready, unwanted), daemon=True)
    thread.start()
    try:
        while True:
            item = _next(ready)
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        unwanted.set()
        thread.join()


def _next(ready: Queue[T | _End]) -> T | _End:
    while True:
        try:
            # With a limit of time Ctrl-C comes through on every system.
            return ready.get(timeout=60.0)
        except Empty:
            continue


def _make(items: Iterator[T], ready: Queue[T | _End], unwanted: threading.Event) -> None:
    end = _End()
    try:
        for item in items:
            if not _handed_over(item, ready, unwanted):
                break
    except BaseException as error:
        end = _End(error)
    finally:
        if isinstance(items, Generator):
            items.close()
        _handed_over(end, ready, unwanted)


def _handed_over(item: T | _End, ready: Queue[T | _End], unwanted: threading.Event) -> bool:
    while not unwanted.is_set():
        try:
            ready.put(item, timeout=_LOOK_UP_S)
        except Full:
            continue
        return True
    return False
