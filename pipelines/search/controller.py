"""What decides over a search's trials: which one runs next, which stops or pauses, and when no more are begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from efafnet.pipelines.runs.failures import AlikeFailures
from efafnet.pipelines.search.ledger import Assignment, Ledger, State
from efafnet.pipelines.search.stopping import Rule


class TrialListener(Protocol):
    """What else is to be done when a trial begins and ends (tracking, the terminal)."""

    def began(self, assignment: Assignment) -> dict[str, Any]:
        """Prepare a trial and return what its process must know."""

    def again(self, number: int, reason: str) -> None:
        """Take note that a trial starts again because its process died."""

    def ended(self, number: int, state: State, reason: str) -> None:
        """Take note that a trial is over."""

    def paused(self, number: int) -> None:
        """Take note that a trial is paused."""


class Controller:
    """Decides which trial runs next and how each ends, and keeps the ledger in step with who runs them.

    Args:
        ledger: the search's memory.
        rule: how trials' budgets are spent.
        listener: hears what begins and ends.
        concurrency: says how many trials may run at once.
        patience: trials in a row without a better figure after which no more are begun; None for no such end.
    """

    def __init__(
        self,
        ledger: Ledger,
        rule: Rule,
        listener: TrialListener,
        concurrency: Callable[[], int],
        patience: int | None = None,
    ) -> None:
        self.ledger, self.rule, self.listener = ledger, rule, listener
        self.concurrency, self.patience = concurrency, patience
        self.numbers: dict[str, int] = {}
        self.stopped: set[int] = set()
        self.deaths: dict[int, str] = {}
        """Why the process of a trial died last."""
        self.refused: dict[int, str] = {}
        """Why a trial that was stopped has failed: its figure is none."""
        self.over = False
        """Whether there is nothing more to hand out."""
        self._alike = AlikeFailures()

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to Tune's pickles: the study is the state, and open files do not travel."""
        return {}

    @property
    def broken(self) -> str:
        """Why no more trials are begun: they fail alike, and none has shown a figure; nothing while all is well."""
        return "" if self.ledger.any_success() else self._alike.repeated

    def next(self, trial_id: str) -> dict[str, Any] | None:
        """Settings of the next trial; None when there is none now."""
        while True:
            spent = self.out_of_patience
            paused = self.rule.to_resume and self.rule.to_resume(self.ledger.state(exhausted=spent))
            if paused is not None:
                assignment: Assignment | None = self.ledger.resume(paused)
            elif (assignment := self.ledger.next(begin=not spent)) is None:
                return None
            # The search was killed between this trial's figure and its end: decide as would have been decided then.
            elif assignment.attempt > 1 and self.halts(assignment.number):
                self.halt(assignment.number)
                continue
            assert assignment is not None
            self.numbers[trial_id] = assignment.number
            self.stopped.discard(assignment.number)
            return self.listener.began(assignment)

    @property
    def out_of_patience(self) -> bool:
        """Whether so many trials in a row brought nothing better that no more are begun."""
        return self.patience is not None and self.ledger.without_progress() >= self.patience

    @property
    def may_go_on(self) -> bool:
        """Whether a trial that runs may yet make room for one that waits."""
        return self.rule.pauses and bool(self.ledger.live())

    def halts(self, number: int) -> bool:
        """Whether a trial is to stop or pause at its newest figure."""
        return bool(self.ledger.curves[number]) and self.rule.halts(self.ledger.curves, number)

    def halt(self, number: int) -> None:
        """Stop a trial for good, or pause it."""
        if self.rule.pauses:
            self.ledger.pause(number)
            self.listener.paused(number)
        else:
            self.close(number, "pruned", "")

    def close_paused(self) -> None:
        """End what still waits when the search is over."""
        for number in self.ledger.close_paused():
            self.listener.ended(number, "pruned", "")

    def close(self, number: int, state: State, reason: str) -> None:
        """End a trial everywhere."""
        state, reason = self.ledger.finish(number, state, reason)
        if state == "failed":
            self._alike.add(reason)
        self.listener.ended(number, state, reason)
