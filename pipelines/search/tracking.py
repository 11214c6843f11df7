"""What a search tells: to MLflow (the parent run and its trials) and to the terminal."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from efafnet.pipelines.runs.attempt import ask_to_leave
from efafnet.pipelines.runs.children import STAGE, mark_stopped, reconcile
from efafnet.pipelines.runs.set_line import Show
from efafnet.pipelines.search.config import TuneConfig, paced, trial_config
from efafnet.pipelines.search.costs import LATENCIES, Costs
from efafnet.pipelines.search.ledger import Assignment, Ledger, State
from efafnet.pipelines.search.naming import describe
from efafnet.pipelines.search.pareto import COST
from efafnet.pipelines.search.study_file import STUDY_FILE, study_to_json
from efafnet.pipelines.training.costs import FOLDER
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.recording import cost_step, fail_record
from efafnet.pipelines.training.rundir import RunDirectory, RunRecord
from efafnet.platform import console
from efafnet.platform.consumption import Consumption, consumed, total
from efafnet.platform.interruption import report_stop
from efafnet.platform.mlflow_client import mlflow_client, points_now, quietly
from efafnet.platform.tracking import finish_run
from efafnet.tune_spaces.space import Space

if TYPE_CHECKING:
    from mlflow import MlflowClient

NUMBER = "efafnet.trial"
STATE = "efafnet.trial_state"
SETTINGS = "efafnet.trial_settings"
"""JSON of the settings that the search gave a trial, by dotted key."""
REASON = "efafnet.trial_reason"
LATELY = 16
"""Trials that ended last, whose directories are looked at again for what late workers wrote."""
STATES = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "interrupted"}
"""Optuna's words for a trial's end, and this program's."""
_MLFLOW_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "waits": "KILLED"}


class SearchTracking:
    """Begins and ends trials in MLflow and on the terminal; MLflow's answers are never waited for.

    Args:
        config: the search, its name and paths settled.
        inputs: its stores.
        space: what is searched.
        ledger: its memory.
        record: the search's own run in MLflow.
    """

    def __init__(self, config: TuneConfig, inputs: Inputs, space: Space, ledger: Ledger, record: RunRecord) -> None:
        self.config, self.inputs, self.space, self.ledger, self.record = config, inputs, space, ledger, record
        self.searched = [entry.key for entry in space.searched]
        self.metric = config.validation.metric or inputs.metric
        """Name of the figure that is searched for."""
        self.environment: dict[str, str] = {}
        """Environment variables of the trials' processes."""
        self.over: list[int] = []
        """Trials that ended, or were paused, in this process."""
        self.show: Show = lambda _over, _figures: None
        """Draws the line that says where the search stands."""
        self._best: int | None = None
        """The trial whose checkpoints were kept when it was last looked."""
        self._study_told = 0
        """Trials that were over when the study was last told."""
        self._taken: dict[int, Consumption] = {}
        """What each trial took that was over."""
        # One thread, so that what is told about a trial arrives in order.
        self._mlflow = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")

    @cached_property
    def costs(self) -> Costs:
        """What the networks cost, where that is weighed."""
        return Costs(self.config.search.against, self.inputs.skeleton.num_joints, self.config.run_dir / LATENCIES)

    @property
    def trials_dir(self) -> Path:
        """Directory that holds the trials' run directories."""
        return self.config.run_dir / "trials"

    def reconcile(self) -> None:
        """Send what trials kept while MLflow was away, and remove runs that a kill left before their first note."""
        reconcile(self.record, self.trials_dir, self.config)

    def dir_of(self, number: int) -> Path:
        """Directory of a trial."""
        return self.trials_dir / f"{number:04d}"

    def began(self, assignment: Assignment) -> dict[str, Any]:
        """Prepare a trial and return its job for ``TrialRun``."""
        name = describe(assignment.settings, self.searched)
        trial = trial_config(self.config, assignment.settings, assignment.number, self.trials_dir)
        trial = paced(trial, self.inputs, self.config.search.validations)
        if self.config.search.against != "none" and COST not in assignment.attributes:
            self.ledger.note(assignment.number, COST, self.costs.of(trial))
        titled = trial.tracking.model_copy(update={"run_name": f"#{assignment.number} {name}"})
        self.over = [number for number in self.over if number != assignment.number]
        again = "goes on" if assignment.attempt > 1 else "starts"
        console.note(f"trial {assignment.number} {again}: {name}")
        self.tell_line()
        return {
            "number": assignment.number,
            "train": trial.model_copy(update={"tracking": titled}).model_dump_json(),
            "parent_run_id": self.record.mlflow_run_id,
            "tags": {STAGE: "trial", NUMBER: str(assignment.number), SETTINGS: json.dumps(assignment.settings)},
            "environment": self.environment,
            "limit_s": self.config.search.trial_s,
        }

    def again(self, number: int, reason: str) -> None:
        """Tell that a trial starts again, and why."""
        self.ledger.note(number, "died", reason)
        console.note(f"trial {number} starts again from its checkpoint: {reason}")

    def ended(self, number: int, state: State, reason: str) -> None:
        """Tell how a trial ended."""
        self.over.append(number)
        curve = self.ledger.curves[number]
        figure = f"{self.metric} {curve[max(curve)]:.3f} after {max(curve)} samples" if curve else ""
        word = {"complete": "complete", "pruned": "stopped early", "failed": "FAILED"}[state]
        told, over = ", ".join(part for part in (figure, reason) if part), self.ledger.over()
        console.note(f"trial {number} {word} ({over}/{self.ledger.trials}): {told}")
        self.tell_line()
        self._mlflow.submit(self._end_in_mlflow, number, state, reason, dict(curve))
        # Whole each time, so not each time: all that is written is then a multiple of the last, however many trials.
        if over >= 1.1 * self._study_told:
            self.tell_study()
        self.log_progress()
        self.tidy(lately=True)

    def paused(self, number: int) -> None:
        """Tell that a trial waits where it stands, and make its process leave."""
        self.over.append(number)
        ask_to_leave(self.dir_of(number))
        curve = self.ledger.curves[number]
        console.note(f"trial {number} waits: {self.metric} {curve[max(curve)]:.3f} after {max(curve)} samples")
        self.tell_line()
        self._mlflow.submit(self._end_in_mlflow, number, "waits", "", dict(curve))

    def tidy(self, *, lately: bool = False) -> None:
        """Remove the checkpoints of trials that ended, except the best one's: of all, or of the latest and of those
        that were the best until now."""
        if self.config.search.keep == "all":
            return
        best = self.ledger.best()
        ended = {trial.number for trial in self.ledger.own() if trial.state.is_finished()}
        if lately:
            # More than one: a stopped trial's workers may still be writing, and a later call removes what they leave.
            ended &= {*self.over[-LATELY:], *([] if self._best is None else [self._best])}
        self._best = None if best is None else best.number
        for number in ended - {self._best}:
            shutil.rmtree(self.dir_of(number) / "checkpoints", ignore_errors=True)

    def _run_of(self, number: int) -> tuple[str, str] | None:
        """Where a trial's run in MLflow is, and its id; None without one."""
        known = RunDirectory(self.dir_of(number)).known()
        if known is None or known.mlflow_run_id is None or known.tracking_uri is None:
            return None
        return known.tracking_uri, known.mlflow_run_id

    def _end_in_mlflow(self, number: int, state: str, reason: str, curve: Mapping[int, float]) -> None:
        if (run := self._run_of(number)) is None:
            return
        uri, run_id = run

        def tell() -> None:
            from mlflow.entities import RunTag

            tags = [RunTag(STATE, state), *([RunTag(REASON, reason)] if reason else [])]
            metrics = points_now({"trial.figure": curve[max(curve)]}, max(curve)) if curve else []
            mlflow_client(uri).log_batch(run_id, metrics=metrics, tags=tags)

        quietly(tell, f"noting the end of trial {number}")
        if state != "complete":
            finish_run(uri, run_id, _MLFLOW_STATUS[state])

    def tell_stopped_again(self) -> None:
        """Say in MLflow once more that trials were stopped which came to their end before they heard of it, and said so
        after this search had. To be called when their processes are gone."""
        stopped = {trial.number for trial in self.ledger.own() if trial.state == TrialState.PRUNED}
        for number in sorted(stopped.intersection(self.over)):
            run = self._run_of(number)
            if run is not None and RunDirectory(self.dir_of(number)).result() is not None:
                self._mlflow.submit(finish_run, *run, _MLFLOW_STATUS["pruned"])

    def tell_line(self) -> None:
        """Draw on the terminal how many trials are over and run, and the best figure so far."""
        best = self.ledger.best()
        found = [] if best is None else [f"best {self.metric} {best.value:.3f} (trial {best.number})"]
        self.show(self.ledger.over(), [*found, f"{len(self.ledger.live())} running"])

    def log_progress(self) -> None:
        """Put on the search's run where it stands, as points of curves over the trials that are over."""
        if self.record.mlflow_run_id is None:
            return
        taken = self._taken_so_far()
        points = points_now(self.progress(), self.ledger.over()) + points_now(taken.metrics(), cost_step(taken))
        self.tell_parent(
            lambda client, run_id: client.log_batch(run_id, metrics=points), "telling where the search stands"
        )

    def progress(self) -> dict[str, float]:
        """Trials by how they ended, and the best figure of a complete one so far."""
        counts, best = Counter(trial.state.name for trial in self.ledger.own()), self.ledger.best()
        words = {**STATES, "RUNNING": "running"}
        figures = {f"trials/{word.replace(' ', '_')}": float(counts[state]) for state, word in words.items()}
        if best is not None and best.value is not None:
            figures |= {f"best/{self.metric}": best.value, "best/trial": float(best.number)}
        return figures

    def _taken_so_far(self) -> Consumption:
        """What the trials took that are over; those of an earlier life of the search are read once."""
        for trial in self.ledger.own():
            # A trial that ended now is read again: it may have been paused before, and gone on.
            if trial.state.is_finished() and (trial.number not in self._taken or trial.number in self.over[-1:]):
                self._taken[trial.number] = consumed(self.dir_of(trial.number) / FOLDER)
        return total(self._taken.values())

    def tell_study(self) -> None:
        """Put the study as it is now among the artifacts of the search's run."""
        self._study_told = self.ledger.over()
        content = study_to_json(self.ledger.own())
        self.tell_parent(lambda client, run_id: client.log_dict(run_id, content, STUDY_FILE), "logging the study")

    def tell_parent(self, action: Callable[[MlflowClient, str], object], what: str) -> None:
        """Queue ``action(client, run_id)`` on the search's run."""
        uri, run_id = self.record.tracking_uri, self.record.mlflow_run_id
        if uri is None or run_id is None:
            return
        self._mlflow.submit(quietly, lambda: action(mlflow_client(uri), run_id), what)

    def stopped(self, error: BaseException) -> None:
        """Tell that the search was stopped before its end, by a signal or an error."""
        interrupted = isinstance(error, KeyboardInterrupt)
        live = self.ledger.live()
        if isinstance(error, KeyboardInterrupt):
            report_stop(
                error,
                f"{self.ledger.over()} of {self.ledger.trials} trials over, {len(live)} running; the same command "
                f"continues search {self.config.name}",
            )
        mark_stopped(map(self.dir_of, live), interrupted=interrupted)
        fail_record(self.record, interrupted=interrupted)

    def leave(self) -> int:
        """Say in MLflow that the trials that still run stopped, to be continued; returns how many they are."""
        live = self.ledger.live()
        mark_stopped(map(self.dir_of, live))
        return len(live)

    def close(self) -> None:
        """Wait until MLflow has been told everything."""
        self._mlflow.shutdown(wait=True)
