"""One trial: a training run like any other, watched through the checkpoints it writes, its figures passed on to Tune.

The figures are read from the run's directory and not passed from process to process: so they are there again after
any restart, and a run on Ray's workers and one in this process are watched alike.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray.tune import Trainable
from ray.tune.result import DONE

from efafnet.pipelines.search.searcher import FAILURE, METRIC, OVERTIME, SAMPLES, reason_of
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.rundir import LOCK
from efafnet.platform.checkpoint import read_meta
from efafnet.platform.locks import LockHeldError, hold

POLL_S = 0.5
"""Seconds between two looks at the run's directory."""
PLACEMENT = "placement"
"""File in a trial's directory that notes what its workers have reserved."""
LEAVE = "leave"
"""File in a trial's directory that asks whoever trains it to end after its step."""
RELEASE_S = 60.0
"""Longest wait for an earlier attempt's process to end, seconds."""


@dataclass(frozen=True)
class Figure:
    """One validation of a run."""

    samples: int
    value: float


class Watch:
    """Finds the validations of a run as its checkpoints appear; each is given out once, in order."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "checkpoints"
        self._seen: set[str] = set()

    def new(self) -> list[Figure]:
        """The validations since the last call."""
        figures = []
        for path in sorted(self._directory.glob("step-*")):
            if path.name in self._seen:
                continue
            with suppress(OSError, ValueError):  # pruned or not yet whole: the next look tells
                meta = read_meta(path)
                self._seen.add(path.name)
                if meta.get("validated") is not None:
                    figures.append(Figure(int(meta["samples"]), float(meta["validated"])))
        return figures


class TrialRun:
    """One trial in a thread of this process: its figures as they come, then how it ended.

    Args:
        job: from ``Books.began``.
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
                self.give_up()
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
        error = self._training.error
        return over if error is None else over | {FAILURE: reason_of(error)}

    def give_up(self) -> None:
        """End the trial where it stands. One in this process ends after its step, which is waited for; Ray's workers
        end with this process."""
        self._training.given_up.set()
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
        self._trial.give_up()
        self._trial = TrialRun(new_config)
        return True

    def cleanup(self) -> None:
        """Leave no training behind."""
        self._trial.give_up()


def ask_to_leave(run_dir: Path) -> None:
    """Have whoever trains a run end after its step: Tune tells a process that it keeps for another trial nothing."""
    (run_dir / LEAVE).touch()


def await_release(run_dir: Path) -> None:
    """Wait until an earlier attempt's process is gone: after a kill it may live for seconds and hold the run."""
    with suppress(LockHeldError), hold(run_dir / LOCK, wait_s=RELEASE_S):
        pass


class _Training(threading.Thread):
    """The run in a thread of its own. A daemon: a process that Tune ends must not wait for it."""

    def __init__(self, config: TrainConfig, parent_run_id: str | None, tags: dict[str, str]) -> None:
        super().__init__(name="training", daemon=True)
        self._arguments = config, parent_run_id, tags
        self._leave = config.run_dir / LEAVE
        self.in_this_process = config.workers == 0
        self.given_up = threading.Event()
        self.error: Exception | None = None

    def _unwanted(self) -> bool:
        return self.given_up.is_set() or self._leave.exists()

    def run(self) -> None:
        from efafnet.pipelines.search.placement import PlacementNote
        from efafnet.pipelines.training.ray_run import train

        config, parent_run_id, tags = self._arguments
        note = cast(Any, PlacementNote(config.run_dir / PLACEMENT))
        await_release(config.run_dir)
        (config.run_dir / LEAVE).unlink(missing_ok=True)  # it was meant for the attempt before this one
        with logged(config.run_dir / "trial.log"):
            try:
                train(config, callbacks=[note], parent_run_id=parent_run_id, tags=tags, given_up=self._unwanted)
            except Exception as error:
                self.error = error


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write what the training says to the trial's own log; the terminal shows the search."""
    with path.open("a", encoding="utf-8", buffering=1) as file, redirect_stderr(file):
        yield
    sys.stderr.flush()
