"""One trial: a training run like any other, watched through the checkpoints it writes, its figures passed on to Tune.

The figures are read from the run's directory and not passed from process to process: so they are there again after
any restart, and a run on Ray's workers and one in this process are watched alike.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from efafnet.pipelines.search.searcher import FAILURE, METRIC, SAMPLES, reason_of
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.checkpoint import read_meta

POLL_S = 0.5
"""Seconds between two looks at the run's directory."""
PLACEMENT = "placement"
"""File in a trial's directory that notes what its workers have reserved."""
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


def run_trial(job: dict[str, Any]) -> None:
    """Train one trial to its end; Tune's trainable. ``job`` comes from ``Books.began``.

    Whatever goes wrong in the training is reported as this trial's failure; only a process that dies is Tune's matter.
    """
    os.environ.update(job["environment"])
    config = TrainConfig.model_validate_json(job["train"])
    config.run_dir.mkdir(parents=True, exist_ok=True)
    training = _Training(config, job["parent_run_id"], job["tags"])
    watch = Watch(config.run_dir)
    await_release(config.run_dir)
    with logged(config.run_dir / "trial.log"):
        _report(watch.new())  # what an interrupted attempt had reached, in case its last figure was not heard
        training.start()
        while training.is_alive():
            training.join(POLL_S)
            _report(watch.new())
    if training.error is not None:
        from ray import tune

        tune.report({FAILURE: reason_of(training.error), METRIC: float("nan"), SAMPLES: 0})


def await_release(run_dir: Path) -> None:
    """Wait until an earlier attempt's process is gone: after a kill it may live for seconds and hold the run."""
    deadline = time.monotonic() + RELEASE_S
    with (run_dir / ".lock").open("a") as lock:
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(POLL_S)


def _report(figures: list[Figure]) -> None:
    from ray import tune

    for figure in figures:
        tune.report({METRIC: figure.value, SAMPLES: figure.samples})


class _Training(threading.Thread):
    """The run in a thread of its own. A daemon: a trial that Tune stops must not be waited for."""

    def __init__(self, config: TrainConfig, parent_run_id: str | None, tags: dict[str, str]) -> None:
        super().__init__(name="training", daemon=True)
        self._arguments = config, parent_run_id, tags
        self.error: Exception | None = None

    def run(self) -> None:
        from efafnet.pipelines.search.placement import PlacementNote
        from efafnet.pipelines.training.ray_run import train

        config, parent_run_id, tags = self._arguments
        note = cast(Any, PlacementNote(config.run_dir / PLACEMENT))
        try:
            train(config, callbacks=[note], parent_run_id=parent_run_id, tags=tags)
        except Exception as error:
            self.error = error


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write what the training says to the trial's own log; the terminal shows the search."""
    with path.open("a", encoding="utf-8", buffering=1) as file, redirect_stderr(file):
        yield
    sys.stderr.flush()
