"""A study that several commands search in: Optuna's journal in a file, each with a ledger of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines.search.config import SearchConfig
from efafnet.pipelines.search.earlier import open_study
from efafnet.pipelines.search.ledger import Ledger, Shared
from efafnet.pipelines.search.study_db import StudyFileError, StudyUnavailableError, open_storage
from efafnet.tune_spaces.reading import parse_space
from tests.waiting import LIMIT_S

SPACE = parse_space("search:\n  optimizer.lr: {float: [1e-4, 1e-2], log: true}\n", "rates.yaml")


def driver(place: Path, name: str, *, identity: str = "same", **changes: Any) -> Ledger:
    """The ledger of one command with a directory of its own."""
    (place / name).mkdir(exist_ok=True)
    settings: dict[str, Any] = {"trials": 30, "sampler": "random", "seed": 1, "startup": 2} | changes
    shared = Shared(f"journal:{place}/shared.journal", name, identity)
    return Ledger(place / name / "study.db", "s", SPACE, shared=shared, **settings)


def test_two_drivers_share_the_trials_of_one_study(tmp_path: Path) -> None:
    numbers: dict[str, list[int]] = {"a": [], "b": []}
    failures: list[BaseException] = []
    together = threading.Barrier(2)

    def drive(name: str) -> None:
        try:
            book = driver(tmp_path, name)
            while (assignment := book.next()) is not None:
                numbers[name].append(assignment.number)
                if len(numbers[name]) == 1:
                    together.wait(LIMIT_S)  # each has a trial before either goes on
                book.report(assignment.number, 100, assignment.number / 100)
                book.finish(assignment.number, "complete")
                time.sleep(0.001)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(name,)) for name in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    both = sorted([*numbers["a"], *numbers["b"]])
    assert both == list(range(len(both))), "no trial is handed out twice, and none is lost"
    assert 30 <= len(both) <= 31  # both may ask for the last one at the same moment
    assert all(numbers.values())
    seen = driver(tmp_path, "a")
    assert seen.remaining() == 0
    best = seen.best()
    assert best is not None
    assert best.number == both[-1]


def test_each_driver_goes_on_with_its_own_trials_only(tmp_path: Path) -> None:
    one, other = driver(tmp_path, "a"), driver(tmp_path, "b")
    given = [book.next() for book in (one, other, one)]
    assert [assignment.number for assignment in given if assignment] == [0, 1, 2]
    again = driver(tmp_path, "a")
    taken = [again.next() for _ in range(3)]
    assert [(each.number, each.attempt) for each in taken if each] == [(0, 2), (2, 2), (3, 1)]


def test_trials_are_judged_by_the_figures_of_all_drivers(tmp_path: Path) -> None:
    one, other = driver(tmp_path, "a"), driver(tmp_path, "b")
    one.next()
    other.next()
    one.report(0, 100, 0.75)
    other.report(1, 100, 0.5)
    assert other.curves == {0: {100: 0.75}, 1: {100: 0.5}}


def forgotten(place: Path) -> None:
    """A study that was removed beside trials."""
    (place / "shared.journal").unlink()
    (place / "a" / "trials" / "0000").mkdir(parents=True)
    driver(place, "a")


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda place: driver(place, "b", identity="other"), "another search named s, with other settings or data"),
        (lambda place: driver(place, "b", waits=True), "trials that wait go on only where their checkpoints are"),
        (forgotten, "is missing, but .*a/trials holds 1"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path: Path, misuse: Callable[[Path], Any], message: str) -> None:
    driver(tmp_path, "a").next()
    with pytest.raises(StudyFileError, match=message):
        misuse(tmp_path)


def test_a_later_search_learns_from_a_journal(tmp_path: Path) -> None:
    shared = Shared("journal", "a", "same")
    book = Ledger(tmp_path / "study.db", "s", SPACE, trials=2, sampler="random", seed=0, startup=1, shared=shared)
    book.next()
    book.report(0, 100, 0.5)
    book.finish(0, "complete")
    assert [trial.value for trial in open_study(tmp_path / "study.db").trials] == [0.5]
    assert not (tmp_path / "study.db").exists()


def test_a_journal_without_a_search_is_refused_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "study.journal").touch()
    with pytest.raises(StudyFileError, match=r"study\.journal holds 0 studies; a search's file holds one"):
        open_study(tmp_path / "study.db")


def test_a_database_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StudyUnavailableError, match=r"search\.storage=nosuch://somewhere/studies does not answer"):
        open_storage(tmp_path / "study.db", "nosuch://somewhere/studies")


@pytest.mark.parametrize("storage", ["sqlite:///study.db", "study.log", ""])
def test_places_that_are_none_are_refused(storage: str) -> None:
    with pytest.raises(ValueError, match="give journal, journal:PATH or the address of a database"):
        SearchConfig(storage=storage)


def test_a_password_is_in_no_dump_of_the_settings() -> None:
    search = SearchConfig(storage="postgresql://me:s3cret@db.example/studies")
    assert search.storage == "postgresql://db.example/studies"
    assert "s3cret" not in search.model_dump_json()
