"""Ray Tune's view of a search: a searcher that hands out trials, and a scheduler that records and stops them.

Tune's own ``OptunaSearch`` is not used: it stores a stopped trial as complete with its early figure (which misleads the
sampler), loses the last figure, leaves RUNNING trials behind a kill and keeps its state in a pickle.
"""

from __future__ import annotations

from typing import Any, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from efafnet.pipelines.search.controller import Controller
from efafnet.pipelines.search.trial import FAILURE, METRIC, OVERTIME, SAMPLES
from efafnet.platform.ray_errors import reason_of


class StudySearch(Searcher):
    """Hands out the ledger's trials. Its state is the study; Tune has nothing of it to save."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.controller = controller

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial's settings, None while there is no room for it, or that there are no more."""
        finished: dict[str, Any] = cast(Any, Searcher.FINISHED)  # a word, although Tune says dict
        if self.controller.broken:
            return None if self.controller.ledger.live() else finished  # one that runs may yet show a figure
        if len(self.controller.ledger.live()) >= self.controller.concurrency():
            return None
        job = self.controller.next(trial_id)
        if job is not None or self.controller.may_go_on:
            return job
        self.controller.over = True
        return finished

    def on_trial_complete(
        self,
        trial_id: str,
        result: dict[str, Any] | None = None,
        error: bool = False,
    ) -> None:
        """Close a trial: complete, stopped early, or failed."""
        controller, number = self.controller, self.controller.numbers[trial_id]
        told = (result or {}).get(FAILURE) or controller.refused.get(number)
        late = (result or {}).get(OVERTIME)
        if error or told:
            controller.close(number, "failed", told or controller.deaths.get(number, "its process died"))
        elif late:
            controller.close(number, "pruned" if controller.ledger.curves[number] else "failed", late)
        elif number in controller.stopped:
            controller.halt(number)
        else:
            controller.close(number, "complete", "")

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is the state."""


class StudyScheduler(FIFOScheduler):
    """Records each figure and ends the trials that the rule halts."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.controller = controller

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:  # noqa: ARG002 (Tune's)
        """Decide whether the trial goes on."""
        controller, number = self.controller, self.controller.numbers[trial.trial_id]
        # A trial whose process died tells its figures again: they have been judged.
        try:
            new = controller.ledger.report(number, int(result[SAMPLES]), float(result[METRIC]))
        except ValueError as error:
            controller.refused[number] = str(error)
            return TrialScheduler.STOP
        if new and controller.halts(number):
            controller.stopped.add(number)
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002 (Tune's)
        """Remember why the trial's process died, for the ledger that is closed next, or for the next attempt."""
        # Tune may not have brought the error to its storage yet.
        cause = trial.get_pickled_error()
        self.controller.deaths[self.controller.numbers[trial.trial_id]] = (
            "its process died" if cause is None else reason_of(cause)
        )

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:  # noqa: ARG002 (Tune's)
        """Tell of a trial that is here for another attempt."""
        number = self.controller.numbers[trial.trial_id]
        if number in self.controller.deaths:
            self.controller.listener.again(number, self.controller.deaths[number])
