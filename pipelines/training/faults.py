"""Which errors end a run at once, and how often it is tried again after the others.

A closed list of errors is the run's own: every later life would meet them again, on any machine. Everything else is
the machine's, a file system that answers late as much as a process that was killed, and is tried again from the newest
checkpoint; only what happens again and again at the same place ends a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from efafnet.pipelines.crops.decode import UndecodableCropError
from efafnet.pipelines.training.errors import DivergedError, LostRunError
from efafnet.pipelines.training.rundir import RunConflictError
from efafnet.platform import console
from efafnet.platform.cluster import ClusterError
from efafnet.platform.configuration import ConfigurationError
from efafnet.platform.presence import entries
from efafnet.platform.ray_errors import carried_by

T = TypeVar("T")

FINAL = (DivergedError, ConfigurationError, RunConflictError, LostRunError, UndecodableCropError)
"""What ends a run for good."""
PAUSES_S = (1.0, 4.0, 15.0, 60.0)
"""Seconds before the first, second, … try at the same place; the last before all further ones."""


class Failures:
    """The failures of a run since its last progress, which is a new checkpoint.

    Args:
        run_dir: the run's directory.
        limit: failures of one kind at one place that are survived; -1 for any number.
        sleep: waits so many seconds.
    """

    def __init__(self, run_dir: Path, limit: int, sleep: Callable[[float], object]) -> None:
        self._directory, self._limit, self._sleep = run_dir / "checkpoints", limit, sleep
        self._counts: Counter[str] = Counter()
        self._place = ""

    def wait_or_raise(self, error: BaseException) -> None:
        """Wait, so that the run can go on from its newest checkpoint, or end it.

        Raises:
            ValueError: the error is the run's own (``FINAL``): raised as it is.
            ClusterError: the same happened too often at this place.
        """
        cause = cause_of(error)
        if isinstance(cause, FINAL):
            raise cause from error
        place = self._newest()
        if place != self._place:
            self._counts.clear()
            self._place = place
        kind = type(cause).__name__
        self._counts[kind] += 1
        count, text = self._counts[kind], _shortened(" ".join(str(cause).split()))
        # Errors of the system say what they are; those of libraries need not.
        reason = text if isinstance(cause, OSError) and text else f"{kind}: {text}"
        if 0 <= self._limit < count:
            self._end(reason, count, error)
        pause_s = PAUSES_S[min(count, len(PAUSES_S)) - 1]
        of = f" of {self._limit}" if self._limit >= 0 else ""
        console.warn(f"{reason}; going on from {place} in {pause_s:g} s (failure {count}{of} there)")
        self._sleep(pause_s)

    def _end(self, reason: str, count: int, error: BaseException) -> NoReturn:
        remedy = "; lower compute.micro_batch or test.batch_size" if "OutOfMemory" in reason else ""
        raise ClusterError(
            f"training stopped: {count} failures of this kind without progress beyond {self._place} "
            f"(worker.max_failures = {self._limit}): {reason}{remedy}; give the same command again to go on from there"
        ) from error

    def _newest(self) -> str:
        """Name of the newest checkpoint; the last one known if the file system does not answer."""
        with suppress(OSError):
            steps = [path.name for path in entries(self._directory) if path.name.startswith("step-")]
            return steps[-1] if steps else "the start"
        return self._place or "the start"


def _shortened(text: str) -> str:
    """A long message's beginning and end: some say first what happened, some last, and Ray's advise in between."""
    return text if len(text) <= 300 else f"{text[:140]} … {text[-150:]}"


def cause_of(error: BaseException) -> BaseException:
    """What happened, out of what Ray Train wraps around it.

    Where several workers failed it is the one that says most: the run's own error, else one of the system, else the
    first. The others only lost their fellow.
    """
    inside = [cause_of(inner) for inner in carried_by(error)]
    ranked = sorted(inside, key=lambda e: 0 if isinstance(e, FINAL) else 1 if isinstance(e, OSError) else 2)
    return ranked[0] if ranked else error


def retry(attempt: Callable[[], T], passing: tuple[type[BaseException], ...], failures: Failures) -> T:
    """Return what ``attempt`` returns. After one of ``passing`` try again, as often as ``failures`` allows."""
    while True:
        try:
            return attempt()
        except passing as error:
            failures.wait_or_raise(error)
