"""Ray Tune's view of the ledger: a searcher that hands out trials, and a scheduler that records and stops them.

Tune's own ``OptunaSearch`` is not used: it stores a stopped trial as complete with its early figure (which misleads the
sampler), loses the last figure, leaves RUNNING trials behind a kill and keeps its state in a pickle.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from efafnet.pipelines.search.ledger import Assignment, Ledger, State
from efafnet.pipelines.search.stopping import Rule

METRIC = "figure"
"""Name under which a trial reports its validation figure to Tune."""
SAMPLES = "samples_seen"
"""Name under which it reports how many samples it has trained on."""
FAILURE = "failure"
"""Name under which its last result says why it failed."""
OVERTIME = "overtime"
"""Name under which its last result says that its time was up, and when."""

SAME_REASON = 3
"""Trials that fail alike, while none has shown a figure, after which no more are begun."""


class Bookkeeper(Protocol):
    """What else is to be done when a trial begins and ends (tracking, the terminal)."""

    def began(self, assignment: Assignment) -> dict[str, Any]:
        """Prepare a trial and return what its process must know."""

    def again(self, number: int, reason: str) -> None:
        """Take note that a trial starts again because its process died."""

    def ended(self, number: int, state: State, reason: str) -> None:
        """Take note that a trial is over."""

    def set_aside(self, number: int) -> None:
        """Take note that a trial waits."""


class Desk:
    """Keeps the ledger in step with Tune: which Tune trial is which number, and how each ends."""

    def __init__(
        self, ledger: Ledger, rule: Rule, books: Bookkeeper, room: Callable[[], int], patience: int | None = None
    ) -> None:
        self.ledger, self.rule, self.books, self.room, self.patience = ledger, rule, books, room, patience
        self.numbers: dict[str, int] = {}
        self.stopped: set[int] = set()
        self.deaths: dict[int, str] = {}
        """Why the process of a trial died last."""
        self.refused: dict[int, str] = {}
        """Why a trial that was stopped has failed: its figure is none."""
        self.over = False
        """Whether there is nothing more to hand out."""
        self._alike: Counter[str] = Counter()
        self._last_reason = ""

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to Tune's pickles: the study is the state, and open files do not travel."""
        return {}

    @property
    def broken(self) -> str:
        """Why no more trials are begun: they fail alike, and none has shown a figure; nothing while all is well.

        Only what failed in this process counts, so that the same command tries again once the cause is mended. A
        training that diverged says something about its settings, and others may do better.
        """
        alike = bool(self._alike) and max(self._alike.values()) >= SAME_REASON
        return self._last_reason if alike and not self.ledger.any_success() else ""

    def next(self, trial_id: str) -> dict[str, Any] | None:
        """Settings of the next trial; None when there is none now."""
        while True:
            spent = self.out_of_patience
            goes_on = self.rule.goes_on and self.rule.goes_on(self.ledger.standings(exhausted=spent))
            if goes_on is not None:
                assignment: Assignment | None = self.ledger.resume(goes_on)
            elif (assignment := self.ledger.next(begin=not spent)) is None:
                return None
            # The search was killed between this trial's figure and its end: decide as would have been decided then.
            elif assignment.attempt > 1 and self.gives_up(assignment.number):
                self.give_up(assignment.number)
                continue
            assert assignment is not None
            self.numbers[trial_id] = assignment.number
            self.stopped.discard(assignment.number)
            return self.books.began(assignment)

    @property
    def out_of_patience(self) -> bool:
        """Whether so many trials in a row brought nothing better that no more are begun."""
        return self.patience is not None and self.ledger.without_progress() >= self.patience

    @property
    def may_go_on(self) -> bool:
        """Whether a trial that runs may yet make room for one that waits."""
        return self.rule.sets_aside and bool(self.ledger.live())

    def gives_up(self, number: int) -> bool:
        """Whether a trial gives its place to others at its newest figure."""
        return bool(self.ledger.curves[number]) and self.rule.gives_up(self.ledger.curves, number)

    def give_up(self, number: int) -> None:
        """Take its place from a trial, for good or to wait."""
        if self.rule.sets_aside:
            self.ledger.set_aside(number)
            self.books.set_aside(number)
        else:
            self.close(number, "pruned", "")

    def close_aside(self) -> None:
        """End what still waits when the search is over."""
        for number in self.ledger.close_aside():
            self.books.ended(number, "pruned", "")

    def close(self, number: int, state: State, reason: str) -> None:
        """End a trial everywhere."""
        state, reason = self.ledger.finish(number, state, reason)
        if state == "failed" and not reason.startswith("DivergedError"):
            # Without the digits: paths, ports and numbers of trials differ where the cause is one.
            self._alike[kind := re.sub(r"\d+", "#", reason)] += 1
            self._last_reason = reason if self._alike[kind] >= SAME_REASON else self._last_reason
        self.books.ended(number, state, reason)


class StudySearch(Searcher):
    """Hands out the ledger's trials. Its state is the study; Tune has nothing of it to save."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.desk = desk

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial's settings, None while there is no room for it, or that there are no more."""
        finished: dict[str, Any] = cast(Any, Searcher.FINISHED)  # a word, although Tune says dict
        if self.desk.broken:
            return None if self.desk.ledger.live() else finished  # one that runs may yet show a figure
        if len(self.desk.ledger.live()) >= self.desk.room():
            return None
        job = self.desk.next(trial_id)
        if job is not None or self.desk.may_go_on:
            return job
        self.desk.over = True
        return finished

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,
    ) -> None:
        """Close a trial: complete, stopped early, or failed."""
        desk, number = self.desk, self.desk.numbers[trial_id]
        told = (result or {}).get(FAILURE) or desk.refused.get(number)
        late = (result or {}).get(OVERTIME)
        if error or told:
            desk.close(number, "failed", told or desk.deaths.get(number, "its process died"))
        elif late:
            desk.close(number, "pruned" if desk.ledger.curves[number] else "failed", late)
        elif number in desk.stopped:
            desk.give_up(number)
        else:
            desk.close(number, "complete", "")

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is the state."""


class StudyScheduler(FIFOScheduler):
    """Records each figure and stops the trials that the rule gives up."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.desk = desk

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:  # noqa: ARG002 (Tune's)
        """Decide whether the trial goes on."""
        desk, number = self.desk, self.desk.numbers[trial.trial_id]
        # A trial whose process died tells its figures again: they have been judged.
        try:
            new = desk.ledger.report(number, int(result[SAMPLES]), float(result[METRIC]))
        except ValueError as error:
            desk.refused[number] = str(error)
            return TrialScheduler.STOP
        if new and desk.gives_up(number):
            desk.stopped.add(number)
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002 (Tune's)
        """Remember why the trial's process died, for the ledger that is closed next, or for the next attempt."""
        # Tune may not have brought the error to its storage yet.
        cause = trial.get_pickled_error()
        self.desk.deaths[self.desk.numbers[trial.trial_id]] = "its process died" if cause is None else reason_of(cause)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002 (Tune's)
        """Tell of a trial that is here for another attempt."""
        number = self.desk.numbers[trial.trial_id]
        if number in self.desk.deaths:
            self.desk.books.again(number, self.desk.deaths[number])


def reason_of(error: BaseException) -> str:
    """What went wrong inside what Ray wrapped around it, as one line: ``ValueError: the loss is NaN``."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        error = _inside(error) or error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


def _inside(error: BaseException) -> BaseException | None:
    """The exception that one of Ray's carries; None for all others, whose own words say more than their causes."""
    if not any(base.__module__.partition(".")[0] == "ray" for base in type(error).__mro__):
        return None
    failures = getattr(error, "worker_failures", None)
    carried = [*failures.values()] if isinstance(failures, dict) else []
    carried += [getattr(error, name, None) for name in ("controller_failure", "cause", "__cause__")]
    return next((inner for inner in carried if isinstance(inner, BaseException)), None)
