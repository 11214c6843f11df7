"""Giving back what the workers of a run had reserved, where the process that controls them died before it could.

Ray does it when the program ends; until then the place is taken, and the run's next workers may wait for it in vain.
Ray Train has a helper process per run for that, which asks the dashboard each second whether the controller lives. Here
the reservation is noted in the run's directory, and whoever begins or ends the run removes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from efafnet.platform import ray_private
from efafnet.platform.cluster import remove_reservation
from efafnet.platform.presence import is_there

_WorkerGroupCallback: Any = ray_private.worker_group_callback()

PLACEMENT = "placement"
"""File in a run's directory that notes what its workers have reserved."""


class PlacementNote(_WorkerGroupCallback):  # type: ignore[misc]
    """Notes in a file which placement group the workers of a run have."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Write the group's id."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self.file.write_text(group.id.hex(), encoding="utf-8")


def release(file: Path) -> bool:
    """Remove the placement group that is noted in ``file``; returns whether there was one noted."""
    if not is_there(file):
        return False
    group = file.read_text(encoding="utf-8", errors="replace")
    file.unlink()
    remove_reservation(group)
    return True


@contextmanager
def given_back(file: Path) -> Iterator[None]:
    """Release what is noted in ``file`` before the work meanwhile, of a process that died, and when it has ended, well
    or not. Not where a signal ends it: the program ends too, and a cluster that hangs must not keep it."""
    release(file)
    try:
        yield
    except Exception:
        release(file)
        raise
    release(file)
