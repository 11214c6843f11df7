"""Giving back what the workers of a run that ended had reserved.

Ray Train leaves that to a helper process per run, which gives up for good when it cannot ask the cluster once: when
the machine is busy, or another Ray runs on it. The reservation then stays until the program ends, and takes a place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from efafnet.platform import ray_private
from efafnet.platform.cluster import remove_reservation

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
        self.file.write_text(group.id.hex())


def release(file: Path) -> bool:
    """Remove the placement group that is noted in ``file``; returns whether there was one noted."""
    if not file.exists():
        return False
    group = file.read_text()
    file.unlink()
    remove_reservation(group)
    return True
