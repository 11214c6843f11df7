"""How many trials run at once, and giving back what a stopped trial's workers had reserved.

Ray Train leaves that to a helper process per run, which gives up for good when it cannot ask the cluster once: when
the machine is busy, or another Ray runs on it. The reservation then stays until the search ends, and takes a place.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.placement import slots
from efafnet.platform import console, ray_private
from efafnet.platform.capacity import capacity
from efafnet.platform.cluster import resources

_WorkerGroupCallback: Any = ray_private.worker_group_callback()

LOOK_EVERY_S = 10.0
"""Seconds between two looks at how large the cluster is."""


class Room:
    """How many runs of one kind the cluster has room for, as it grows and shrinks.

    Args:
        config: one of the runs, placed.
        at_most: what was asked for; None for as many as fit.
    """

    def __init__(self, config: TrainConfig, at_most: int | None) -> None:
        self._config, self._at_most = config, at_most
        self._runs = 0
        self._looked_s = float("-inf")

    def __call__(self) -> int:
        """The number of runs at once; what changes is told."""
        if self._at_most is not None:
            return self._at_most
        if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            before, self._runs = self._runs, slots(self._config, capacity(resources()))
            if before not in (0, self._runs):
                console.note(f"the cluster has room for {self._runs} runs at a time now, {before} before")
        return self._runs


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
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if not file.exists():
        return False
    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(file.read_text())))
    file.unlink()
    with suppress(Exception):  # Ray's own helper was faster
        remove_placement_group(group)
    return True
