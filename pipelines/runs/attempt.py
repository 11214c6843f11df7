"""One attempt at one run of a set, in the process that Ray gave it: the run resumes from wherever it stands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.rundir import LOCK, TrainResult
from efafnet.platform.garbage import importing
from efafnet.platform.locks import LockHeldError, hold
from efafnet.platform.ray_errors import reason_of

LOG = "run.log"
"""File in a run's directory with what its training says."""
LEAVE = "leave"
"""File in a run's directory that asks whoever trains it to end after its step."""
RELEASE_S = 60.0
"""Longest wait for an earlier attempt's process to end, seconds."""


def train_attempt(
    config: TrainConfig,
    *,
    parent_run_id: str | None,
    tags: Mapping[str, str],
    cancelled: Callable[[], bool] = lambda: False,
    then: Callable[[TrainResult], object] = lambda _: None,
) -> str:
    """Train a run from wherever it stands, its words in its own log.

    Args:
        config: the run, placed; its directory is made where there is none.
        parent_run_id: MLflow run that it is a child of.
        tags: of its own MLflow run.
        cancelled: asked before each step of a run in this process; true ends it there. So does ``ask_to_leave``.
        then: what follows the training, in the same log.

    Returns:
        Why it failed, as one line; nothing where it did not.
    """
    with importing():
        from efafnet.pipelines.training.ray_run import train

    config.run_dir.mkdir(parents=True, exist_ok=True)
    leave = config.run_dir / LEAVE
    await_release(config.run_dir)
    leave.unlink(missing_ok=True)  # it was meant for the attempt before this one
    with logged(config.run_dir / LOG):
        try:
            then(
                train(
                    config,
                    supervised=True,
                    parent_run_id=parent_run_id,
                    tags=tags,
                    cancelled=lambda: cancelled() or leave.exists(),
                )
            )
        except Exception as error:
            return reason_of(error)
    return ""


def ask_to_leave(run_dir: Path) -> None:
    """Ask whoever trains a run to end after its step: Tune does not tell a process that it keeps for another trial."""
    (run_dir / LEAVE).touch()


def await_release(run_dir: Path) -> None:
    """Wait until an earlier attempt's process is gone: after a kill it may live for seconds and hold the run. Who holds
    it for longer is told by the run's own lock."""
    with suppress(LockHeldError), hold(run_dir / LOCK, wait_s=RELEASE_S):
        pass


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Write what the training says to the run's own log; the terminal shows the set."""
    with path.open("a", encoding="utf-8", buffering=1) as file, redirect_stderr(file):
        yield
    sys.stderr.flush()
