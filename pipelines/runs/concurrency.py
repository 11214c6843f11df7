"""How many runs of a set the cluster takes at once, and what each of their processes reserves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.placement import Run, needs, placed, slots
from efafnet.platform import console
from efafnet.platform.capacity import capacity
from efafnet.platform.cluster import HEAD, connect, resources

LOOK_EVERY_S = 10.0
"""Seconds between two looks at how large the cluster is."""


class Concurrency:
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
        """The number of runs at once; a change of it is told on the terminal."""
        if self._at_most is not None:
            return self._at_most
        if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            before, self._runs = self._runs, slots(self._config, capacity(resources()))
            if before not in (0, self._runs):
                console.note(f"the cluster has room for {self._runs} runs at a time now, {before} before")
        return self._runs


@dataclass(frozen=True)
class Launch(Generic[Run]):
    """A set of runs with its place on a cluster."""

    configs: list[Run]
    """The runs, placed."""
    concurrency: Concurrency
    environment: dict[str, str]
    """Environment variables of the runs' processes."""
    cluster: str
    """The cluster in words."""


def launch(configs: Sequence[Run], at_most: int | None, *, count: int | None = None) -> Launch[Run]:
    """Connect to Ray and place runs on it.

    Args:
        configs: the runs, or one that stands for all; at least one, and all need the same.
        at_most: runs at a time that were asked for; None for as many as fit.
        count: how many runs there are; None for as many as ``configs``.

    Raises:
        OSError: no Ray.
        ValueError: a run can never run there.
    """
    there = connect(configs[0].cluster, show_workers=False)  # each run has its own log
    count = len(configs) if count is None else count
    machines = capacity(there)
    ready = [placed(config, machines, runs=min(count, at_most or count)) for config in configs]
    # Nobody drains a Ray that lives and dies with this program, and each run's watcher is one process more.
    environment = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if there.is_local else {}
    return Launch(ready, Concurrency(ready[0], at_most), environment, str(there))


def driver_resources(config: TrainConfig) -> dict[str, float]:
    """What is reserved for the own process of a run that was placed. With Ray's workers that is nothing but a place
    on the head node: the workers reserve for themselves, and two 1-CPU runs fit a machine with two CPUs exactly.
    """
    return {HEAD: 0.001} if config.workers > 0 else needs(config)
