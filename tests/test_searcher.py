"""The search's memory, and Ray Tune's view of it."""

from __future__ import annotations

import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from efafnet.pipelines.runs.failures import reason_of
from efafnet.pipelines.search.config import SearchConfig
from efafnet.pipelines.search.controller import Controller
from efafnet.pipelines.search.earlier import Terms, check_terms, open_study
from efafnet.pipelines.search.ledger import (
    Assignment,
    Ledger,
    State,
)
from efafnet.pipelines.search.samplers import as_judged, make_sampler, settled_sampler
from efafnet.pipelines.search.searcher import (
    FAILURE,
    METRIC,
    OVERTIME,
    SAMPLES,
    StudyScheduler,
    StudySearch,
)
from efafnet.pipelines.search.stopping import (
    Rule,
    constant_pauses,
    constant_promotes,
    halving_pauses,
    halving_promotes,
    halving_stops,
)
from efafnet.pipelines.search.study_db import open_storage
from efafnet.tune_spaces.reading import parse_space
from efafnet.tune_spaces.space import Space, grid, suggest

SPACE = """\
search:
  optimizer.lr: {float: [1e-4, 1e-2], log: true}
  loss.kind: {choice: {mse: {}, ohkm: {loss.hard_joints: {int: [1, 17]}}}}
"""


def space(text: str = SPACE) -> Space:
    return parse_space(text, "my.yaml")


def ledger(directory: Path, **changes: Any) -> Ledger:
    settings: dict[str, Any] = {"trials": 4, "sampler": "random", "seed": 1, "startup": 2} | changes
    return Ledger(directory / "study.db", "search", settings.pop("space", space()), **settings)


def states(book: Ledger) -> list[str]:
    return [trial.state.name for trial in book.study.trials]


# -------------------------------------------------------------------------------------------------------------- ledger


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
    program = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
        from efafnet.pipelines.search.ledger import Ledger
        from efafnet.tune_spaces.reading import parse_space
        book = Ledger(Path({str(tmp_path)!r}) / "study.db", "search", parse_space({SPACE!r}, "my.yaml"),
                      trials=12, sampler="random", seed=1, startup=2)
        print("ready", flush=True)
        while (a := book.next()) is not None:
            for samples in (100, 200, 300):
                book.report(a.number, samples, samples / 1000)
            book.finish(a.number, "complete" if a.number % 2 else "pruned")
        """
    )
    draw = random.Random(5)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        signal.sigtimedwait([], draw.uniform(0.02, 0.12))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    study = optuna.load_study(study_name="search", storage=open_storage(tmp_path / "study.db"))
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE"] * 6
    assert all(list(trial.intermediate_values) == [100, 200, 300] for trial in study.trials)
    assert len({str(trial.params) for trial in study.trials}) == 12


# ------------------------------------------------------------------------------------------------------- Tune's view


FINISHED: Any = Searcher.FINISHED


class Listener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def began(self, assignment: Assignment) -> dict[str, Any]:
        self.told.append(("began", assignment.number, assignment.attempt))
        return {"number": assignment.number}

    def again(self, number: int, reason: str) -> None:
        self.told.append(("again", number, reason))

    def ended(self, number: int, state: State, reason: str) -> None:
        self.told.append(("ended", number, state, reason))

    def set_aside(self, number: int) -> None:
        self.told.append(("aside", number))


HALVING = Rule(lambda curves, number: halving_stops(curves, number, [100], 2))


def tune(book: Ledger, rule: Rule = HALVING, **more: Any) -> tuple[Controller, StudySearch, StudyScheduler, Listener]:
    listener = Listener()
    controller = Controller(book, rule, listener, lambda: 100, **more)
    return controller, StudySearch(controller), StudyScheduler(controller), listener


def trial(name: str) -> Any:
    return SimpleNamespace(trial_id=name, get_pickled_error=lambda: None)


def result(samples: int, figure: float, **more: Any) -> dict[str, Any]:
    return {SAMPLES: samples, METRIC: figure, **more}


def test_a_stopped_trial_is_pruned_with_its_last_figure_and_a_finished_one_complete(tmp_path: Path) -> None:
    _, search, scheduler, listener = tune(ledger(tmp_path, trials=2))
    assert search.suggest("a") == {"number": 0}
    assert search.suggest("b") == {"number": 1}
    assert search.suggest("c") is FINISHED
    assert scheduler.on_trial_result(None, trial("a"), result(100, 0.5)) == "CONTINUE"
    assert scheduler.on_trial_result(None, trial("b"), result(100, 0.25)) == "STOP"
    search.on_trial_complete("b", result(100, 0.25))
    assert scheduler.on_trial_result(None, trial("a"), result(200, 0.75)) == "CONTINUE"
    assert scheduler.on_trial_result(None, trial("a"), result(100, 0.5)) == "CONTINUE"  # told again after a restart
    search.on_trial_complete("a", result(200, 0.75))
    one, two = search.controller.ledger.study.trials
    assert (one.state, one.value, one.intermediate_values) == (TrialState.COMPLETE, 0.75, {100: 0.5, 200: 0.75})
    assert (two.state, two.value, two.intermediate_values) == (TrialState.PRUNED, 0.25, {100: 0.25})
    assert listener.told == [("began", 0, 1), ("began", 1, 1), ("ended", 1, "pruned", ""), ("ended", 0, "complete", "")]


def test_a_failed_trial_keeps_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    _, search, scheduler, _ = tune(ledger(tmp_path, trials=4))
    for name in "abc":
        search.suggest(name)
    search.on_trial_complete("a", {FAILURE: "DivergedError: the loss"})
    died = SimpleNamespace(trial_id="b", get_pickled_error=lambda: RuntimeError("node lost"))
    scheduler.on_trial_error(None, died)  # type: ignore[arg-type]
    search.on_trial_complete("b", None, error=True)
    search.on_trial_complete("c", None, error=True)
    reasons = [each.user_attrs["reason"] for each in search.controller.ledger.study.trials]
    assert reasons == ["DivergedError: the loss", "RuntimeError: node lost", "its process died"]
    assert search.suggest("d") == {"number": 3}


def test_a_trial_whose_figure_is_no_number_fails_with_that(tmp_path: Path) -> None:
    _, search, scheduler, listener = tune(ledger(tmp_path, trials=2))
    search.suggest("a")
    assert scheduler.on_trial_result(None, trial("a"), result(100, 0.5)) == "CONTINUE"
    assert scheduler.on_trial_result(None, trial("a"), result(200, math.nan)) == "STOP"
    search.on_trial_complete("a", result(200, math.nan))
    assert listener.told[-1] == ("ended", 0, "failed", "the validation figure after 200 samples is nan")
    (one,) = search.controller.ledger.study.trials
    assert (one.state, one.intermediate_values) == (TrialState.FAIL, {100: 0.5})


def failing(search: StudySearch, *reasons: str) -> None:
    """Begin a trial for each reason, then let each fail with its own."""
    for reason in reasons:
        assert isinstance(search.suggest(reason), dict)
    for reason in reasons:
        search.on_trial_complete(reason, {FAILURE: reason})


def test_three_failures_alike_and_no_figure_end_the_search(tmp_path: Path) -> None:
    controller, search, scheduler, _ = tune(ledger(tmp_path, trials=9))
    failing(search, "OSError: trials/0000 is full", "ValueError: other", "OSError: trials/0001 is full")
    assert controller.broken == ""
    search.suggest("x")
    failing(search, "OSError: trials/0004 is full")
    assert controller.broken == "OSError: trials/0004 is full"
    assert search.suggest("y") is None  # x still runs
    scheduler.on_trial_result(None, trial("x"), result(50, 0.5))
    assert controller.broken == ""  # it can be done: what failed failed for itself
    assert isinstance(search.suggest("y"), dict)


def test_a_search_that_was_ended_by_failures_tries_again_when_it_is_given_again(tmp_path: Path) -> None:
    _, search, _, _ = tune(ledger(tmp_path, trials=9))
    failing(search, "OSError: full 1", "OSError: full 2", "OSError: full 3")
    assert search.suggest("x") is FINISHED
    controller, search, _, _ = tune(ledger(tmp_path, trials=9))
    assert controller.broken == ""
    assert isinstance(search.suggest("x"), dict)


def test_settings_that_diverge_do_not_end_a_search(tmp_path: Path) -> None:
    controller, search, _, _ = tune(ledger(tmp_path, trials=9))
    failing(search, *(f"DivergedError: training diverged at step {step}" for step in range(4)))
    assert controller.broken == ""


def test_a_trial_whose_process_died_goes_on_and_is_judged_by_how_it_ends(tmp_path: Path) -> None:
    _, search, scheduler, listener = tune(ledger(tmp_path, trials=2))
    search.suggest("a")
    scheduler.on_trial_add(None, trial("a"))
    assert scheduler.on_trial_result(None, trial("a"), result(50, 0.25)) == "CONTINUE"
    died = SimpleNamespace(trial_id="a", get_pickled_error=lambda: RuntimeError("killed"))
    scheduler.on_trial_error(None, died)  # type: ignore[arg-type]
    scheduler.on_trial_add(None, trial("a"))  # Tune gives it another attempt
    search.suggest("b")
    scheduler.on_trial_result(None, trial("b"), result(100, 0.75))
    assert scheduler.on_trial_result(None, trial("a"), result(50, 0.25)) == "CONTINUE"
    assert scheduler.on_trial_result(None, trial("a"), result(100, 0.8)) == "CONTINUE"
    search.on_trial_complete("a", result(100, 0.8, done=True))
    assert listener.told[1:] == [("again", 0, "RuntimeError: killed"), ("began", 1, 1), ("ended", 0, "complete", "")]
    one = search.controller.ledger.study.trials[0]
    assert (one.state, one.intermediate_values) == (TrialState.COMPLETE, {50: 0.25, 100: 0.8})


def test_a_trial_killed_after_a_losing_figure_is_not_run_again(tmp_path: Path) -> None:
    _, search, scheduler, _ = tune(ledger(tmp_path, trials=2))
    search.suggest("a")
    search.suggest("b")
    scheduler.on_trial_result(None, trial("a"), result(100, 0.5))
    scheduler.on_trial_result(None, trial("b"), result(100, 0.25))  # and the driver dies
    _, search, _, listener = tune(ledger(tmp_path, trials=2))
    assert search.suggest("x") == {"number": 0}
    assert search.suggest("y") is FINISHED
    assert listener.told == [("began", 0, 2), ("ended", 1, "pruned", "")]


def test_tune_pickles_searcher_and_scheduler(tmp_path: Path) -> None:
    _, search, scheduler, _ = tune(ledger(tmp_path))
    assert len(pickle.dumps((search, scheduler))) < 10_000


def test_a_reason_is_what_ray_wrapped_on_one_line() -> None:
    class WrapperError(RuntimeError):
        """As Ray's exceptions: known by its module."""

    WrapperError.__module__ = "ray.train.v2"
    inner = ValueError("the loss\n  is NaN")
    inner.__cause__ = OSError("a detail that says less")
    workers, trial_error = WrapperError("training failed"), WrapperError("trial failed")
    workers.worker_failures = {0: inner}  # type: ignore[attr-defined]
    trial_error.__cause__ = workers
    assert reason_of(trial_error) == "ValueError: the loss is NaN"
    assert reason_of(KeyError()) == "KeyError"
    assert reason_of(WrapperError("the actor died")) == "WrapperError: the actor died"


# --------------------------------------------------------------------------------- trials that wait and may go on later


def run_through(search: StudySearch, scheduler: StudyScheduler, figures: list[list[float]], at_once: int) -> list[str]:
    """Run a search of trials with these figures at 100, 200, … samples, taking turns; returns what happened, in order.

    A trial that goes on tells again what it had told, as one does that resumes from its checkpoints.
    """
    live: dict[str, list[float]] = {}
    happened: list[str] = []
    asked = 0
    while True:
        while len(live) < at_once:
            job = search.suggest(str(asked))
            if not isinstance(job, dict):
                break
            happened.append(f"+{job['number']}")
            live[str(asked)] = list(figures[job["number"]])
            asked += 1
        if not live:
            assert job is FINISHED
            return happened
        for name in list(live):
            number = search.controller.numbers[name]
            told = len(figures[number]) - len(live[name]) + 1
            last = result(100 * told, live[name].pop(0))
            stopped = scheduler.on_trial_result(None, trial(name), last) == "STOP"
            if stopped or not live[name]:
                del live[name]
                search.on_trial_complete(name, last)
                happened.append(f"{'-' if stopped else '!'}{number}")


PROMOTING = Rule(
    lambda curves, number: halving_pauses(curves, number, [100, 200], 2),
    lambda standings: halving_promotes(standings, [100, 200], 2),
)
CONSTANT = Rule(
    lambda curves, number: constant_pauses(curves, number, 100),
    lambda standings: constant_promotes(standings, 100, 2),
)


def test_a_trial_goes_on_once_those_behind_it_leave_it_among_the_best_half(tmp_path: Path) -> None:
    """One at a time, figures .3 .1 .4 .2 at the first rung: 0 waits (best 0 of 1); 1 waits, and of two 0 may go on to
    the second rung, where it waits alone; 2 is among the best 1 of 3 and goes on, at 200 among the best 1 of 2, to the
    end; 3 waits. Of four the best two are 2 and 0, which have gone on; of two at 200 it was 2. The rest is closed.
    """
    _, search, scheduler, listener = tune(ledger(tmp_path, trials=4), PROMOTING)
    curves = [[0.3, 0.35, 0.4], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]]
    happened = run_through(search, scheduler, curves, at_once=1)
    assert happened == ["+0", "-0", "+1", "-1", "+0", "-0", "+2", "!2", "+3", "-3"]
    search.controller.close_aside()
    zero, one, two, three = search.controller.ledger.study.trials
    assert [each.state.name for each in (zero, one, two, three)] == ["PRUNED", "PRUNED", "COMPLETE", "PRUNED"]
    assert zero.intermediate_values == {100: 0.3, 200: 0.35}
    assert [told for told in listener.told if told[0] == "aside"] == [
        ("aside", 0),
        ("aside", 1),
        ("aside", 0),
        ("aside", 3),
    ]
    assert (two.value, search.controller.ledger.remaining()) == (0.6, 0)


def test_every_trial_waits_at_one_point_and_then_the_best_go_on(tmp_path: Path) -> None:
    _, search, scheduler, _ = tune(ledger(tmp_path, trials=4), CONSTANT)
    curves = [[0.3, 0.9], [0.1, 0.2], [0.4, 0.5], [0.2, 0.3]]
    happened = run_through(search, scheduler, curves, at_once=2)
    assert happened == ["+0", "+1", "-0", "-1", "+2", "+3", "-2", "-3", "+2", "+0", "!2", "!0"]
    search.controller.close_aside()
    assert [each.state.name for each in search.controller.ledger.study.trials] == [
        "COMPLETE",
        "PRUNED",
        "COMPLETE",
        "PRUNED",
    ]
    best = search.controller.ledger.best()
    assert best is not None
    assert best.number == 0


def test_what_waits_waits_through_a_kill(tmp_path: Path) -> None:
    _, search, scheduler, _ = tune(ledger(tmp_path, trials=2), CONSTANT)
    search.suggest("a")
    scheduler.on_trial_result(None, trial("a"), result(100, 0.5))
    search.on_trial_complete("a", result(100, 0.5))  # it waits
    search.suggest("b")
    scheduler.on_trial_result(None, trial("b"), result(100, 0.25))  # and the driver dies before b waits
    _, search, scheduler, listener = tune(ledger(tmp_path, trials=2), CONSTANT)
    assert search.controller.ledger.remaining() == 2
    assert run_through(search, scheduler, [[0.5, 0.6], [0.25, 0.75]], at_once=1) == ["+0", "!0", "+1", "!1"]
    assert listener.told[0] == ("aside", 1)  # as would have been decided then
    assert states(search.controller.ledger) == ["COMPLETE", "COMPLETE"]


def test_no_more_are_begun_after_so_many_without_a_better_one(tmp_path: Path) -> None:
    none = Rule(lambda _curves, _number: False)
    _, search, scheduler, _ = tune(ledger(tmp_path, trials=9), none, patience=2)
    happened = run_through(search, scheduler, [[0.3], [0.4], [0.2], [0.39], [0.9]], at_once=1)
    assert happened == ["+0", "!0", "+1", "!1", "+2", "!2", "+3", "!3"]
    assert search.controller.out_of_patience


def test_a_trial_whose_time_is_up_is_stopped_or_has_failed(tmp_path: Path) -> None:
    _, search, scheduler, listener = tune(ledger(tmp_path, trials=2))
    search.suggest("a")
    search.suggest("b")
    scheduler.on_trial_result(None, trial("a"), result(50, 0.5))
    search.on_trial_complete("a", result(50, 0.5, **{OVERTIME: "its 9 s were over"}))
    search.on_trial_complete("b", result(0, math.nan, **{OVERTIME: "its 9 s were over"}))
    assert listener.told[2:] == [
        ("ended", 0, "pruned", "its 9 s were over"),
        ("ended", 1, "failed", "its 9 s were over"),
    ]


# ------------------------------------------------------------------------------------------------------------ samplers

NUMBERS = "search:\n  optimizer.lr: {float: [1e-4, 1e-2], log: true}\n  heatmap.sigma_px: {float: [0.5, 3]}\n"


@pytest.mark.parametrize("kind", ["gp", "cmaes", "qmc", "optuna.samplers.NSGAIISampler"])
def test_every_sampler_goes_on_after_a_restart_without_repeating_itself(tmp_path: Path, kind: str) -> None:
    drawn = []
    for _ in range(6):
        book = ledger(tmp_path, space=space(NUMBERS), sampler=kind, trials=6)
        assigned = book.next()
        assert assigned is not None
        drawn.append(tuple(assigned.settings.values()))
        rate, sigma = drawn[-1]
        book.report(assigned.number, 100, -((math.log10(rate) + 3) ** 2) - (sigma - 1.5) ** 2)
        book.finish(assigned.number, "complete")
    assert len(set(drawn)) == 6


@pytest.mark.parametrize(
    ("text", "changes", "sampler"),
    [
        (NUMBERS, {"stop": "none"}, "gp"),
        (NUMBERS, {"stop": "constant"}, "gp"),
        (NUMBERS, {"stop": "asha"}, "tpe"),  # it learns from stopped trials
        (SPACE, {"stop": "none"}, "tpe"),  # it knows options
    ],
)
def test_auto_takes_the_sampler_that_suits(text: str, changes: dict[str, Any], sampler: str) -> None:
    search = SearchConfig(sampler="auto", **changes)
    assert settled_sampler(search, space(text), 50) == sampler
    assert settled_sampler(search, space(text), 500) == "tpe"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.Sampler", "No module named 'no'; give one of auto, tpe"),
        ("optuna.samplers.Bayes", "has no attribute 'Bayes'; give one of"),
        ("pathlib.Path", "no class derived from optuna.samplers.BaseSampler"),
    ],
)
def test_a_class_that_is_no_sampler_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"search\.sampler={re.escape(path)}.*{message}"):
        settled_sampler(SearchConfig(sampler=path), space(), 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "bayes"}, "give one of auto, tpe, gp, cmaes, qmc, random, grid, or a class"),
        ({"promotes": True, "stop": "median"}, "promotes=true belongs to stop=asha"),
        ({"sampler": "cmaes", "stop": "constant"}, "sampler=cmaes learns from complete trials"),
    ],
)
def test_ways_to_search_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**changes)


def test_a_sampler_is_shown_the_figures_at_the_one_point_where_all_wait(tmp_path: Path) -> None:
    book = ledger(tmp_path, judged_at=100, waits=True)
    for figure in (0.5, 0.25, 0.75):
        book.next()
        number = book.live()[-1]
        book.report(number, 100, figure)
        book.set_aside(number)
    book.resume(2)
    book.report(2, 200, 0.8)
    shown = as_judged(book.study.trials, {0, 1}, 100).trials
    assert [(each.state.name, each.value) for each in shown] == [
        ("COMPLETE", 0.5),
        ("COMPLETE", 0.25),
        ("COMPLETE", 0.75),
    ]
    shown = as_judged(book.study.trials, {0, 1}, None).trials
    assert [each.state.name for each in shown] == ["PRUNED", "PRUNED", "RUNNING"]
    assert [each.intermediate_values for each in shown] == [{100: 0.5}, {100: 0.25}, {}]
