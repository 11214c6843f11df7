"""The search's memory."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import optuna
import pytest
from optuna.trial import TrialState

from efafnet.pipelines.search.earlier import Terms, check_terms, open_study
from efafnet.pipelines.search.ledger import Assignment, Ledger
from efafnet.pipelines.search.samplers import make_sampler
from efafnet.pipelines.search.study_db import open_storage
from efafnet.tune_spaces.space import grid, suggest
from tests.search_cases import SPACE, ledger, search_to_the_end, space, states

ROOT = Path(__file__).resolve().parents[1]


def test_a_search_writes_every_state_and_the_last_figure(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    numbers = [assigned.number for _ in range(4) if (assigned := book.next())]
    assert numbers == [0, 1, 2, 3]
    assert book.next() is None
    book.report(0, 100, 0.25)
    book.report(0, 200, 0.5)
    book.report(1, 100, 0.125)
    assert book.finish(0, "complete") == ("complete", "")
    book.finish(1, "pruned")
    book.finish(2, "failed", "ValueError: the loss is NaN")
    assert book.finish(3, "complete")[0] == "failed"
    complete, pruned, failed, silent = book.study.trials
    assert (complete.state, complete.value) == (TrialState.COMPLETE, 0.5)
    assert complete.intermediate_values == {100: 0.25, 200: 0.5}
    assert (pruned.state, pruned.value) == (TrialState.PRUNED, 0.125)
    assert failed.state == silent.state == TrialState.FAIL
    assert failed.user_attrs["reason"] == "ValueError: the loss is NaN"
    assert "without a single" in silent.user_attrs["reason"]
    assert book.remaining() == 0
    best = book.best()
    assert best is not None
    assert best.number == 0


def test_a_second_process_takes_up_what_the_first_left_running(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    given = [first.next() for _ in range(3)]
    first.note(0, "mlflow_run_id", "abc")
    first.report(0, 100, 0.25)
    first.finish(1, "pruned")
    second = ledger(tmp_path)
    assert second.remaining() == 3
    again = second.next()
    assert isinstance(again, Assignment)
    assert isinstance(given[0], Assignment)
    assert (again.number, again.attempt, again.settings) == (0, 2, given[0].settings)
    assert again.attributes["mlflow_run_id"] == "abc"
    assert second.curves[0] == {100: 0.25}
    second.report(0, 100, 0.75)  # repeated after the restart: the first figure stays
    second.report(0, 200, 0.5)
    second.finish(0, "complete")
    assert second.study.trials[0].intermediate_values == {100: 0.25, 200: 0.5}
    assert [second.next().number for _ in range(2)] == [2, 3]  # type: ignore[union-attr]
    assert second.next() is None
    assert states(second) == ["COMPLETE", "PRUNED", "RUNNING", "RUNNING"]


def test_random_draws_are_the_same_whether_or_not_the_search_was_interrupted(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = [ledger_next.settings for book in [ledger(tmp_path / "whole", trials=6)] for _ in range(6)
             if (ledger_next := book.next())]  # fmt: skip
    broken = []
    for _ in range(6):
        book = ledger(tmp_path / "broken", trials=6)
        assigned = book.next()
        assert assigned is not None
        broken.append(assigned.settings)
        book.finish(assigned.number, "pruned")
    assert broken == whole
    assert len({str(settings) for settings in whole}) == 6


def test_a_kill_between_ask_and_draw_leaves_a_trial_that_is_drawn_later(tmp_path: Path) -> None:
    ledger(tmp_path).study.ask()
    book = ledger(tmp_path)
    assigned = book.next()
    assert assigned is not None
    assert (assigned.number, assigned.attempt) == (0, 1)
    # Drawn as if nothing had happened, and not what the next trial draws.
    (tmp_path / "whole").mkdir()
    whole, after = ledger(tmp_path / "whole"), book.next()
    assert after is not None
    for drawn in (assigned, after):
        undisturbed = whole.next()
        assert undisturbed is not None
        assert drawn.settings == undisturbed.settings
    assert assigned.settings != after.settings


def test_a_grid_is_walked_once_whatever_happens(tmp_path: Path) -> None:
    text = "search:\n  loss.hard_joints: {int: [6, 8]}\n  loss.kind: ohkm\n"
    seen = []
    for _ in range(3):
        book = ledger(tmp_path, space=space(text), sampler="grid", trials=3)
        book.enqueue_grid(grid(book.space))
        assigned = book.next()
        assert assigned is not None
        seen.append(assigned.settings["loss.hard_joints"])
        book.report(assigned.number, 1, 0.1)
        book.finish(assigned.number, "complete")
    assert seen == [6, 7, 8]
    assert ledger(tmp_path, space=space(text), sampler="grid", trials=3).next() is None


def test_start_points_come_first_and_the_rest_is_drawn(tmp_path: Path) -> None:
    book = ledger(tmp_path, space=space(SPACE + "start:\n  - {optimizer.lr: 5e-3, loss.kind: mse}\n"))
    book.enqueue_start()
    book.enqueue_start()
    drawn = [assigned.settings for _ in range(4) if (assigned := book.next())]
    assert drawn[0] == {"optimizer.lr": 0.005, "loss.kind": "mse"}
    assert all(settings["optimizer.lr"] != 0.005 for settings in drawn[1:])


def test_an_earlier_study_teaches_what_fits_and_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    old = ledger(tmp_path / "old")
    for _ in range(3):
        assigned = old.next()
        assert assigned is not None
        old.report(assigned.number, 100, 0.3)
        old.finish(assigned.number, "complete" if assigned.number else "pruned")
    old.next()
    book = ledger(tmp_path)
    assert book.learn_from(old.study) == 3
    assert book.learn_from(old.study) == 0
    assert (book.remaining(), len(book.own()), len(book.study.trials)) == (4, 0, 3)
    other = space(SPACE.replace("1e-2", "2e-2"))
    (tmp_path / "other").mkdir()
    assert ledger(tmp_path / "other", space=other).learn_from(old.study) == 0
    narrower = space("search:\n  loss.kind: {choice: [mse]}\n  seed: {int: [0, 1]}\n")
    (tmp_path / "narrower").mkdir()
    assert ledger(tmp_path / "narrower", space=narrower).learn_from(old.study) == 0


def test_a_study_is_known_by_itself_and_not_by_where_it_lies(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    finish_one(ledger(tmp_path / "old"), 0.3)
    book = ledger(tmp_path / "new")
    assert book.learn_from(open_study(tmp_path / "old/study.db")) == 1
    (tmp_path / "old").rename(tmp_path / "moved")
    assert book.learn_from(open_study(tmp_path / "moved/study.db")) == 0
    # What was itself taken over is not handed on: it may come back under another name.
    (tmp_path / "third").mkdir()
    assert ledger(tmp_path / "third").learn_from(book.study) == 0


def finish_one(book: Ledger, figure: float) -> int:
    """Run the next trial to its end, without any figure if it is NaN."""
    assigned = book.next()
    assert assigned is not None
    if not math.isnan(figure):
        book.report(assigned.number, 100, figure)
    book.finish(assigned.number, "failed" if math.isnan(figure) else "complete")
    return assigned.number


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Terms("pckh", "coco, 17 joints", 160), r"search\.learn_from=.*: its metric is ap, this search's pckh"),
        (Terms("ap", "mpii, 16 joints", 160), r"its skeleton is coco, 17 joints, this search's mpii, 16 joints"),
    ],
)
def test_figures_of_another_kind_are_not_learnt_from(tmp_path: Path, own: Terms, message: str) -> None:
    book = ledger(tmp_path)
    book.set_terms(Terms("ap", "coco, 17 joints", 160), "none")
    earlier = open_study(tmp_path / "study.db")
    with pytest.raises(ValueError, match=message):
        check_terms(earlier, own, tmp_path)


def test_another_budget_or_an_unknown_one_is_told(tmp_path: Path) -> None:
    book, own = ledger(tmp_path), Terms("ap", "coco, 17 joints", 320)
    assert "does not say what its figures are of; make sure that they are ap" in check_terms(book.study, own, tmp_path)
    book.set_terms(Terms("ap", "coco, 17 joints", 160), "none")
    assert "its figures are lower for that alone" in check_terms(book.study, own, tmp_path)
    assert check_terms(book.study, Terms("ap", "coco, 17 joints", 160), tmp_path) == ""


def test_the_best_of_signed_figures_is_the_largest(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for figure in (-0.5, 0.0, -1.0):
        finish_one(book, figure)
    best = book.best()
    assert best is not None
    assert (best.number, best.value) == (1, 0.0)


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_refused_and_nothing_is_written(tmp_path: Path, figure: float) -> None:
    book = ledger(tmp_path)
    book.next()
    with pytest.raises(ValueError, match="the validation figure after 100 samples is"):
        book.report(0, 100, figure)
    assert book.curves == {0: {}}
    assert ledger(tmp_path).study.trials[0].intermediate_values == {}


def test_a_study_that_holds_such_a_figure_from_before_goes_on(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.next()
    book._live[0].report(math.nan, 100)
    book = ledger(tmp_path)
    assert book.curves == {0: {}}
    assert book.next() is not None
    assert book.finish(0, "complete")[0] == "failed"


def test_failed_trials_are_tried_again_where_asked_and_do_not_count_twice(tmp_path: Path) -> None:
    book = ledger(tmp_path, trials=3)
    failed = finish_one(book, math.nan)
    finish_one(book, 0.5)
    finish_one(book, 0.25)
    assert (book.remaining(), book.next()) == (0, None)
    book = ledger(tmp_path, trials=3)
    assert book.retry_failed() == 1
    assert book.retry_failed() == 0  # it is queued
    assert (book.remaining(), book.over()) == (1, 2)
    again = book.next()
    assert again is not None
    assert (again.number, again.attempt) == (3, 1)
    assert again.settings == book.study.trials[failed].user_attrs["settings"]
    assert book.next() is None
    book.finish(3, "failed", "OSError: the disk is full")
    book = ledger(tmp_path, trials=3)
    assert book.retry_failed() == 1  # it failed once more
    assert finish_one(book, 0.75) == 4
    assert (book.remaining(), book.over()) == (0, 3)


def test_samplers_made_anew_for_each_trial_still_learn() -> None:
    """The figure falls with the distance of the rate from 1e-3: TPE's later draws must lie closer to it."""

    def distance(kind: Literal["tpe", "random"], seed: int) -> float:
        study = optuna.create_study(direction="maximize")
        distances = []
        for asked in range(30):
            study.sampler = make_sampler(kind, seed, asked, startup=8)
            drawn = study.ask()
            distances.append(abs(math.log10(suggest(space(), drawn)["optimizer.lr"]) + 3))
            study.tell(drawn, 1 - distances[-1])
        return sum(distances[15:]) / 15

    tpe, random_draws = (sum(distance(kind, seed) for seed in range(4)) for kind in ("tpe", "random"))
    assert tpe < 0.75 * random_draws


@pytest.mark.slow
def test_a_killed_driver_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """SIGKILL at random moments of a busy search; afterwards every trial is there once and ended once."""
    program = (
        "import sys; from pathlib import Path; from tests import search_cases as cases\n"
        "book = cases.ledger(Path(sys.argv[1]), trials=12)\n"
        "print('ready', flush=True)\n"
        "cases.search_to_the_end(book)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    draw = random.Random(5)
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        signal.sigtimedwait([], draw.uniform(0.02, 0.12))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    search_to_the_end(ledger(tmp_path, trials=12))
    study = optuna.load_study(study_name="search", storage=open_storage(tmp_path / "study.db"))
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE"] * 6
    assert all(list(trial.intermediate_values) == [100, 200, 300] for trial in study.trials)
    assert len({str(trial.params) for trial in study.trials}) == 12
