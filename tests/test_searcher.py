"""Ray Tune's view of a search's memory."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from efafnet.pipelines.search.controller import Controller
from efafnet.pipelines.search.ledger import Assignment, Ledger, State
from efafnet.pipelines.search.searcher import StudyScheduler, StudySearch
from efafnet.pipelines.search.stopping import (
    Rule,
    constant_pauses,
    constant_promotes,
    halving_pauses,
    halving_promotes,
    halving_stops,
)
from efafnet.pipelines.search.trial import FAILURE, METRIC, OVERTIME, SAMPLES
from efafnet.platform.ray_errors import reason_of
from tests.search_cases import ledger, states

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

    def paused(self, number: int) -> None:
        self.told.append(("paused", number))


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
    lambda state: halving_promotes(state, [100, 200], 2),
)
CONSTANT = Rule(
    lambda curves, number: constant_pauses(curves, number, 100),
    lambda state: constant_promotes(state, 100, 2),
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
    search.controller.close_paused()
    zero, one, two, three = search.controller.ledger.study.trials
    assert [each.state.name for each in (zero, one, two, three)] == ["PRUNED", "PRUNED", "COMPLETE", "PRUNED"]
    assert zero.intermediate_values == {100: 0.3, 200: 0.35}
    assert [told for told in listener.told if told[0] == "paused"] == [
        ("paused", 0),
        ("paused", 1),
        ("paused", 0),
        ("paused", 3),
    ]
    assert (two.value, search.controller.ledger.remaining()) == (0.6, 0)


def test_every_trial_waits_at_one_point_and_then_the_best_go_on(tmp_path: Path) -> None:
    _, search, scheduler, _ = tune(ledger(tmp_path, trials=4), CONSTANT)
    curves = [[0.3, 0.9], [0.1, 0.2], [0.4, 0.5], [0.2, 0.3]]
    happened = run_through(search, scheduler, curves, at_once=2)
    assert happened == ["+0", "+1", "-0", "-1", "+2", "+3", "-2", "-3", "+2", "+0", "!2", "!0"]
    search.controller.close_paused()
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
    assert listener.told[0] == ("paused", 1)  # as would have been decided then
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
