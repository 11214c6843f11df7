"""One trial: a training run like any other, watched through the checkpoints it writes, its figures passed on to Tune.

The figures are read from the run's directory and not passed from process to process: so they are there again after
any restart, and a run on Ray's workers and one in this process are watched alike.

Imports nothing of what decides over trials (``searcher``, and with it Optuna): each trial's process would load it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Trainable
from ray.tune.result import DONE

from efafnet.pipelines.runs.attempt import train_attempt
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.checkpoint import read_meta

METRIC = "figure"
"""Name under which a trial reports its validation figure to Tune."""
SAMPLES = "samples_seen"
"""Name under which it reports how many samples it has trained on."""
FAILURE = "failure"
"""Name under which its last result says why it failed."""
OVERTIME = "overtime"
"""Name under which its last result says that its time was up, and when."""

POLL_S = 0.5
"""Seconds between two looks at the run's directory."""


@dataclass(frozen=True)
class Figure:
    """One validation of a run."""

    samples: int
    value: float


class Watch:
    """Finds the validations of a run as its checkpoints appear; each is given out once, in order.

    Every checkpoint names all validations before it, so what was pruned before it was looked at is heard too.
    """

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "checkpoints"
        self._seen: set[str] = set()
        self._heard = 0
        """Step of the last validation that was given out."""

    def new(self) -> list[Figure]:
        """The validations since the last call."""
        figures = []
        for path in sorted(self._directory.glob("step-*")):
            if path.name in self._seen:
                continue
            with suppress(OSError, ValueError):  # pruned or not yet whole: the next look tells
                meta = read_meta(path)
                self._seen.add(path.name)
                figures += self._unheard(meta)
        return figures

    def _unheard(self, meta: Mapping[str, Any]) -> list[Figure]:
        known = {int(step): float(value) for step, value in meta["validations"].items()}
        steps = sorted(step for step in known if step > self._heard)
        self._heard = max(steps, default=self._heard)
        # Every step is a batch of as many samples.
        return [Figure(round(meta["samples"] * step / meta["step"]), known[step]) for step in steps]


class TrialRun:
    """One trial in a thread of this process: its figures as they come, then how it ended.

    Args:
        job: from ``SearchTracking.began``.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        os.environ.update(job["environment"])
        config = TrainConfig.model_validate_json(job["train"])
        config.run_dir.mkdir(parents=True, exist_ok=True)
        self._training = _Training(config, job["parent_run_id"], job["tags"])
        # Also what an interrupted attempt had reached, in case its last figure was not heard.
        self._watch = Watch(config.run_dir)
        self._heard: deque[Figure] = deque()
        self._last = Figure(0, math.nan)
        limit = job.get("limit_s")
        self._deadline = math.inf if limit is None else time.monotonic() + limit
        self._limit_s = limit
        self._training.start()

    def next(self) -> dict[str, Any]:
        """Wait for the next figure, or for the end: Tune's result.

        Whatever goes wrong in the training is told as this trial's failure; only a process that dies is Tune's matter.
        """
        alive = True
        while alive and not self._heard:
            if time.monotonic() > self._deadline:
                self.cancel()
                told = f"its {self._limit_s:g} s (search.trial_s) were over"
                return {METRIC: self._last.value, SAMPLES: self._last.samples, DONE: True, OVERTIME: told}
            alive = self._training.is_alive()  # asked before looking, so that no last figure is missed
            self._heard.extend(self._watch.new())
            if alive and not self._heard:
                self._training.join(POLL_S)
        if self._heard:
            self._last = self._heard.popleft()
            return {METRIC: self._last.value, SAMPLES: self._last.samples}
        over = {METRIC: self._last.value, SAMPLES: self._last.samples, DONE: True}
        failure = self._training.failure
        return over | {FAILURE: failure} if failure else over

    def cancel(self) -> None:
        """End the trial where it stands. One in this process ends after its step, which is waited for; Ray's workers
        end with this process."""
        self._training.cancelled.set()
        if self._training.in_this_process:
            self._training.join()


class TrialActor(Trainable):
    """Tune's view of a trial. A process may be given one trial after another, which saves each the seconds that a new
    one needs to import what training needs."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first trial of this process."""
        self._trial = TrialRun(config)

    def step(self) -> dict[str, Any]:
        """Wait for the trial's next figure."""
        return self._trial.next()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial; the one before has ended, or was stopped by the search."""
        self._trial.cancel()
        self._trial = TrialRun(new_config)
        return True

    def cleanup(self) -> None:
        """Leave no training behind."""
        self._trial.cancel()


class _Training(threading.Thread):
    """The run in a thread of its own. A daemon: a process that Tune ends must not wait for it."""

    def __init__(self, config: TrainConfig, parent_run_id: str | None, tags: dict[str, str]) -> None:
        super().__init__(name="training", daemon=True)
        self._arguments = config, parent_run_id, tags
        self.in_this_process = config.workers == 0
        self.cancelled = threading.Event()
        self.failure = ""
        """Why it failed; nothing where it did not."""

    def run(self) -> None:
        config, parent_run_id, tags = self._arguments
        self.failure = train_attempt(config, parent_run_id=parent_run_id, tags=tags, cancelled=self.cancelled.is_set)
