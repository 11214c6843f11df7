"""A set of training runs side by side: as many at a time as the cluster has room for, each going on where it stood.

A run is one Ray task that trains (in itself, or on Ray Train's workers), predicts the validation store and leaves its
figures on disk. What is on disk is all there is to know: after a kill the same set is given again.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from efafnet.pipelines.runs.attempt import train_attempt
from efafnet.pipelines.runs.children import mark_stopped
from efafnet.pipelines.runs.concurrency import LOOK_EVERY_S, Launch, driver_resources, launch
from efafnet.pipelines.runs.failures import SAME_REASON, AlikeFailures
from efafnet.pipelines.runs.measured import figure_of, has_images, is_done, predict_validation
from efafnet.pipelines.runs.set_line import Show, set_line
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.rundir import RunDirectory
from efafnet.platform import console
from efafnet.platform.interruption import report_stop
from efafnet.platform.ray_errors import reason_of
from efafnet.platform.task_pool import TaskPool


@dataclass(frozen=True)
class Running:
    """How a set of runs is run."""

    parent_run_id: str | None
    """MLflow run that they are children of."""
    metric: str
    """The validation figure that counts."""
    concurrency: int | None = None
    """Runs at a time; None for as many as the cluster has room for."""
    retries: int = 2
    """Times that a run whose process died starts again."""
    keep: bool = False
    """Whether checkpoints stay once a run is measured."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of each run in MLflow."""


def run_all(runs: Sequence[TrainConfig], inputs: Inputs, how: Running) -> dict[str, str]:
    """Bring every run to its end; those that have ended are left alone.

    Returns:
        Why runs failed, or were not begun, by run name. A failure is not remembered: the same set given again tries
        again.

    Raises:
        ValueError: a run's directory holds a run with other settings or data.
        OSError: no Ray.
    """
    for run in runs:
        directory = RunDirectory(run.run_dir)
        if directory.known() is not None and directory.started:
            directory.claim(inputs.identity(run))
    by_image = has_images(inputs)
    left = [run for run in runs if not is_done(run, by_image)]
    if not left:
        return {}
    there = launch(left, how.concurrency)
    done = len(runs) - len(left)
    at_once = min(len(left), there.concurrency())
    console.note(f"{there.cluster}; {len(runs)} runs, {done} of them done; {at_once} at a time")
    with set_line(left[0].runs.parent.name, "runs", len(runs), done) as show:
        return _RunSet(there, how, by_image, done, show).run()


class _RunSet:
    """The runs of a set that are left, and what became of them.

    Args:
        there: the runs, placed.
        how: how they are run.
        by_image: whether their figures are told image by image.
        done: runs of the set that had ended before.
        show: told how many are over, and what runs.
    """

    def __init__(self, there: Launch[TrainConfig], how: Running, by_image: bool, done: int, show: Show) -> None:
        self._there, self._how, self._by_image, self._done, self._show = there, how, by_image, done, show
        self._count = done + len(there.configs)
        self._succeeded = done > 0
        self._alike = AlikeFailures()
        self.failures: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Run them; returns why some did not come to their end, by name."""
        waiting = deque(self._there.configs)
        # On CPUs a process takes one run after the other, which saves seconds each; with GPUs each has a fresh one.
        pool: TaskPool[TrainConfig, str] = TaskPool(
            run_one, driver_resources(self._there.configs[0]), self._how.retries
        )
        try:
            while waiting or len(pool):
                while waiting and not self._broken and len(pool) < self._there.concurrency():
                    run = waiting.popleft()
                    pool.begin(run, self._job(run))
                self._show(self._done, [f"{len(pool)} running"])
                if not len(pool):
                    self._not_begun(waiting)
                    break
                for run, answer in pool.ended(LOOK_EVERY_S):
                    self._ended(run, answer if isinstance(answer, str) else reason_of(answer))
        except KeyboardInterrupt as stop:
            report_stop(stop, f"{self._done} of {self._count} runs over, {len(pool)} running; the same command goes on")
            mark_stopped(run.run_dir for run in pool.running())
            raise
        finally:
            pool.cancel()
        return self.failures

    def _job(self, run: TrainConfig) -> dict[str, Any]:
        return {
            "train": run.model_dump_json(),
            "parent_run_id": self._how.parent_run_id,
            "tags": dict(self._how.tags),
            "keep": self._how.keep,
            "by_image": self._by_image,
            "environment": self._there.environment,
        }

    @property
    def _broken(self) -> bool:
        return bool(self._alike.repeated) and not self._succeeded

    def _ended(self, run: TrainConfig, failure: str) -> None:
        self._done += 1
        if failure:
            self.failures[run.name] = failure
            self._alike.add(failure)
        else:
            self._succeeded = True
        said = f"FAILED: {failure}" if failure else f"{self._how.metric} {figure_of(run, self._how.metric):.4f}"
        console.note(f"{self._done}/{self._count} {run.tracking.run_name or run.name}: {said}")

    def _not_begun(self, waiting: Sequence[TrainConfig]) -> None:
        console.warn(
            f"{SAME_REASON} runs failed for the same reason and none came to its end, so {len(waiting)} more were not "
            f"begun: {self._alike.repeated}; mend it and give the same command again"
        )
        self.failures |= {run.name: f"not begun: {self._alike.repeated}" for run in waiting}


def run_one(job: Mapping[str, Any]) -> str:
    """Train and measure one run; returns why that failed, or nothing."""
    os.environ.update(job["environment"])
    config = TrainConfig.model_validate_json(job["train"])
    failure = train_attempt(
        config,
        parent_run_id=job["parent_run_id"],
        tags=job["tags"],
        then=lambda result: predict_validation(config, result) if job["by_image"] else None,
    )
    if not failure and not job["keep"]:
        shutil.rmtree(config.run_dir / "checkpoints", ignore_errors=True)
        for link in ("best", "latest"):
            (config.run_dir / link).unlink(missing_ok=True)
    return failure
