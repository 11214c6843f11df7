"""Training as one of Ray's workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efafnet.pipelines.training import loop
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import GroupContext, Status
from efafnet.pipelines.training.recording import recorded
from efafnet.pipelines.training.rundir import RunRecord
from efafnet.pipelines.training.validation import validate_weights
from efafnet.platform import console, ray_private
from efafnet.platform.storage import read_json, write_json

STATUS = "status.json"
"""File in the run's directory: where it stands, for who looks at it."""
_EVERY_S = 1.0


@dataclass(frozen=True)
class WorkerJob:
    """What a worker is told."""

    config: str
    """The settings as JSON."""
    record: dict[str, Any]
    """The run, a ``RunRecord``."""
    watched: bool
    """Whether Ray watches for nodes that announce their end."""
    each: dict[str, float]
    """What each worker reserves, as Ray names it."""
    async_validation: bool
    """Whether validations run beside training, with as much again; otherwise on the workers."""
    live: bool = False
    """Whether the starting process draws where the run stands, and wants to know it more often than the log says."""


def train_on_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train as one of Ray's workers; ``job`` is a ``WorkerJob`` as a dictionary.

    Errors travel to the starting process as they are: ``faults`` says there which of them are tried again.
    """
    wanted = WorkerJob(**job)
    config, record = TrainConfig.model_validate_json(wanted.config), RunRecord(**wanted.record)
    torch.set_num_threads(config.worker.threads)
    on_cpu = config.device == "cpu"
    context = RayContext(watched=wanted.watched, workers=config.workers, each=wanted.each, on_cpu=on_cpu)
    if wanted.async_validation:
        kind, wait_s = context.device.type, config.validation.wait_s
        context.async_validator = RayAsyncValidator(wanted.config, wanted.each, wait_s, kind)
    if wanted.live:
        context.live = StatusFile(config.run_dir)
    with recorded(config, record, context):
        result = loop.run(config, context)
    return {"checkpoint": str(result.checkpoint), "metrics": result.metrics}


class StatusFile:
    """Writes where the run stands to a file beside its log, at most once in ``_EVERY_S`` seconds. Never raises."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / STATUS
        self._next_s = 0.0

    def __call__(self, status: Status) -> None:
        """Write it, unless that was done a moment ago."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + _EVERY_S
        with suppress(OSError):
            write_json(self._file, asdict(status))


def read_status(run_dir: Path) -> Status | None:
    """What the workers of a run wrote last, if it can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        told = read_json(run_dir / STATUS)
        return Status(told["step"], told["steps"], tuple(told["figures"]))
    return None


class RayContext(GroupContext):
    """One of Ray Train's workers.

    Args:
        watched: whether Ray watches for nodes that announce their end.
        workers: how many workers the run wants; an elastic one may have fewer.
        each: what each of them reserves, as Ray names it.
        on_cpu: whether they compute on the CPU, whatever they reserve.
    """

    def __init__(self, *, watched: bool, workers: int, each: Mapping[str, float], on_cpu: bool = False) -> None:
        import ray.train.torch

        ray_private.report_logger().setLevel(logging.WARNING)
        device = torch.device("cpu") if on_cpu else ray.train.torch.get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        super().__init__(device)
        self._watched = watched
        self._workers = workers
        self._each = each

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report to Ray Train, and through its callbacks to a search. A barrier: all workers meet here."""
        import ray.train

        ray.train.report(dict(metrics))

    def preempted(self) -> bool:
        """Whether a node under this run is being drained, as spot instances are before they vanish. A barrier."""
        import ray.train

        return self._watched and ray.train.get_preemption_info() is not None

    def growing(self) -> bool:
        """Whether an elastic run with fewer workers than it wants could have another, for which Ray will soon start it
        anew from its newest checkpoint. Rank 0 asks the cluster; all workers call this together."""
        if self.world_size >= self._workers:
            return False
        return self.agree(self.rank == 0 and _has_room(self._each))

    def say(self, line: str) -> None:
        """Say nothing: the starting process shows what the loop writes to the run's log."""


def _has_room(needs: Mapping[str, float]) -> bool:
    """Whether one node of the cluster has all of this free; a cluster that does not say has no room."""
    import ray

    try:
        nodes = ray_private.free_by_node()
    except ray.exceptions.RayError:
        return False
    return any(all(free.get(name, 0) >= amount for name, amount in needs.items()) for free in nodes)


class RayAsyncValidator:
    """Validates beside training, in a Ray task.

    Args:
        config_json: settings of the run.
        needs: what the task reserves, as Ray names it.
        wait_s: longest wait for its figures.
        device: kind of device that it computes on, as torch names it.
    """

    def __init__(self, config_json: str, needs: Mapping[str, float], wait_s: float, device: str) -> None:
        self._config_json = config_json
        self._device = device
        self._needs = needs
        self._wait_s = wait_s
        self._step = 0
        self._reference: Any = None

    def has_room(self) -> bool:
        """Whether a node of the cluster has room for it at present."""
        return _has_room(self._needs)

    def start(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Begin with the network after ``step`` steps. A task whose node dies is not tried again: there may be no room
        any more, and training would wait for it."""
        import ray

        cpus, gpus = self._needs["CPU"], self._needs.get("GPU", 0)
        task = ray.remote(validate_weights).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._step = step
        self._reference = task.remote(self._config_json, dict(weights), step, self._device)

    def ready(self) -> bool:
        """Whether ``result`` would return at once."""
        import ray

        return self._reference is None or bool(ray.wait([self._reference], timeout=0)[0])

    def result(self) -> dict[str, float] | None:
        """Wait for the figures of what was started last; None, and a warning, where that failed or takes too long."""
        import ray

        if self._reference is None:
            return None
        try:
            figures: dict[str, float] = ray.get(self._reference, timeout=self._wait_s)
        except ray.exceptions.GetTimeoutError:
            # Its place was taken, or it is slower than training: all workers wait meanwhile.
            ray.cancel(self._reference, force=True)
            self._failed(f"gave no figures within validation.wait_s = {self._wait_s:g} s")
            return None
        except ray.exceptions.RayError as error:
            self._failed(f"failed: {str(error).splitlines()[-1]}")
            return None
        return figures

    def _failed(self, how: str) -> None:
        console.warn(f"the validation of step {self._step} beside training {how}; the workers measure it")
        self._reference = None  # say it once
