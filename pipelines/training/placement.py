"""What the workers of a run reserve on a cluster: GPUs and cores; and how many such runs fit at once."""

from __future__ import annotations

import math
from typing import TypeVar

from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.capacity import Capacity, check_room, decide_gpu

Run = TypeVar("Run", bound=TrainConfig)

MOST_CPUS = 16
"""Cores that one worker takes by itself: with 14 to read crops the fastest GPU that was measured did not wait."""


def placed(config: Run, there: Capacity, *, runs: int = 1) -> Run:
    """The settings of a run with ``worker.gpu`` and ``worker.cpus`` decided.

    Args:
        config: the run; one of those that run at once, if there are several.
        there: the cluster.
        runs: how many run at once at most.

    Raises:
        ValueError: it can never run there, or nobody knows whether GPUs will come.
    """
    workers, worker = max(1, config.workers), config.worker
    fewest = worker.fewest or workers
    # Who asks for the CPU means its workers too, unless they are asked for GPUs.
    wanted = "no" if worker.gpu == "auto" and config.device == "cpu" else worker.gpu
    gpu = decide_gpu(wanted, fewest * worker.gpus, there)
    cpus = _cpus(there, gpu, worker.gpus, workers * runs) if worker.cpus == "auto" else worker.cpus
    decided = worker.model_copy(update={"gpu": "yes" if gpu else "no", "cpus": float(cpus)})
    config = config.model_copy(update={"worker": decided})
    check_room(fewest, needs(config), there)
    return config


def needs(config: TrainConfig) -> dict[str, float]:
    """What each worker of a placed run reserves, as Ray names it."""
    worker = config.worker
    assert worker.cpus != "auto", "the run was placed"
    return {"CPU": worker.cpus, **({"GPU": worker.gpus} if worker.gpu == "yes" else {})}


def slots(config: TrainConfig, there: Capacity) -> int:
    """How many placed runs the cluster has room for at once, when it has grown; at least one."""
    each = needs(config)
    room = there.room(each)
    # Where nobody knows what may come, one run more than there is room for now makes the cluster grow.
    found = there.living_room(each) // max(1, config.workers) + 1 if room is None else room // max(1, config.workers)
    return max(1, found)


def _cpus(there: Capacity, gpu: bool, share: float, workers: int) -> int:
    """Cores for each worker: those that go with its GPU, less one for the machine itself; on CPUs an equal part."""
    machines = there.largest if there.largest is not None else there.living
    if gpu:
        parts = [shape.get("CPU", 0) / shape["GPU"] * share for shape in machines if shape.get("GPU", 0) >= share]
        return max(1, min(MOST_CPUS, math.floor(min(parts, default=1)) - 1))
    most = min(MOST_CPUS, max((int(shape.get("CPU", 0)) for shape in machines), default=1))
    return next((cpus for cpus in range(most, 1, -1) if (there.room({"CPU": cpus}) or 0) >= workers), 1)
