"""What the training loop knows of the processes around it: a plain process, or one of several that train together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from efafnet.platform import console

T = TypeVar("T")
_BUCKET_MIB = 25
"""torch's default: smaller pieces cost more messages, larger ones leave less to compute beside them."""


class MetricSink(Protocol):
    """Where metrics and files of a run are recorded; never raises and never blocks training."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record ``metrics`` at ``step`` completed optimizer steps."""

    def log_param(self, name: str, value: str) -> None:
        """Record what a setting came to."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file."""


class NoSink:
    """Records nothing: training without a tracking server, or a worker other than the first."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_param(self, name: str, value: str) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Do nothing."""


class AsyncValidator(Protocol):
    """Validates weights beside training, one set at a time. Rank 0 alone uses it; the others only know it is there."""

    def has_room(self) -> bool:
        """Whether the cluster has room for it at present."""

    def start(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Begin with the network after ``step`` steps."""

    def ready(self) -> bool:
        """Whether ``result`` would return at once."""

    def result(self) -> dict[str, float] | None:
        """Wait for the figures of what was started last; None, and a warning, where that failed."""


@dataclass(frozen=True)
class Status:
    """Where a run stands, for a progress bar."""

    step: int
    """Completed steps."""
    steps: int
    """Those of the whole run."""
    figures: tuple[str, ...]
    """The newest ones, the most wanted first."""


class RunCancelledError(RuntimeError):
    """The search (or who else supervises the run) does not want it any more: it was cancelled between two steps."""


class PlainContext:
    """One process that trains alone, with neither Ray nor MLflow. The base of all other contexts."""

    rank = 0
    """Index of this worker."""
    world_size = 1
    """Number of workers."""

    async_validator: AsyncValidator | None = None
    """Validates beside training; none where validations stop it."""

    live: Callable[[Status], None] | None = None
    """Draws the progress bar anew; none where no terminal can."""

    def __init__(
        self,
        device: torch.device | None = None,
        sink: MetricSink | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.device = device or pick_device("auto")
        self.sink: MetricSink = sink or NoSink()
        self._cancelled = cancelled

    def check(self) -> None:
        """Called before each step.

        Raises:
            RunCancelledError: nobody wants the run to go on.
        """
        if self._cancelled():
            raise RunCancelledError("the run was cancelled")

    def wrap(self, network: nn.Module, gradients: Literal["fp32", "bf16"] = "fp32") -> nn.Module:  # noqa: ARG002
        """Make the network exchange gradients with the other workers, as numbers of that kind."""
        return network

    def total(self, values: Tensor) -> Tensor:
        """Sum ``values`` over the workers."""
        return values

    def gather(self, value: T) -> list[T]:
        """Return every worker's value at rank 0, in order of rank, and an empty list elsewhere."""
        return [value]

    def agree(self, value: T) -> T:
        """Return rank 0's value on every worker."""
        return value

    def from_first(self, action: Callable[[], T]) -> T:
        """Do ``action`` on rank 0 alone and return on every worker what it returned; what it raised, all raise.

        Tensors in nested dictionaries, lists and tuples arrive on the CPU with their order of dimensions in memory.
        """
        return action()

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell whoever supervises the run (a search) where it stands. All workers call this together."""

    def preempted(self) -> bool:
        """Whether a machine under this run has announced that it will be taken away. All workers call this together."""
        return False

    def growing(self) -> bool:
        """Whether the run will soon be started anew with more workers. All workers call this together."""
        return False

    def say(self, line: str) -> None:
        """Show one line to the user."""
        console.note(line)


class GroupContext(PlainContext):
    """One of several processes in an initialised ``torch.distributed`` group, whoever started them."""

    def __init__(self, device: torch.device | None = None, sink: MetricSink | None = None) -> None:
        super().__init__(device, sink)
        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()

    def wrap(self, network: nn.Module, gradients: Literal["fp32", "bf16"] = "fp32") -> nn.Module:
        """Wrap for distributed data parallelism. Buffers are not broadcast: batch-norm statistics stay the worker's
        own between checkpoints and are averaged there, which uses every worker's samples and no time in the step.
        """
        if self.world_size == 1:
            return network
        with warnings.catch_warnings():
            # Its successor is not in every torch from 2.11 on.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped = nn.parallel.DistributedDataParallel(
                network,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                bucket_cap_mb=bucket_mib(network),
            )
        if gradients == "bf16":
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped

    def total(self, values: Tensor) -> Tensor:
        """Sum ``values`` over the workers."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return every worker's value at rank 0, in order of rank, and an empty list elsewhere."""
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        torch.distributed.gather_object(value, values)
        return values or []

    def agree(self, value: T) -> T:
        """Return rank 0's value on every worker."""
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def from_first(self, action: Callable[[], T]) -> T:
        """Do ``action`` on rank 0 alone and return on every worker what it returned; what it raised, all raise."""
        if self.world_size == 1:
            return action()
        tensors: list[Tensor] = []
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = _without_tensors(action(), tensors), None
            except Exception as error:
                outcome = None, error
        value, fault = self.agree(outcome)
        if fault is not None:
            raise fault
        return cast(T, _with_tensors(value, iter(tensors) if self.rank == 0 else None))


@dataclass(frozen=True)
class _Place:
    """Where a tensor was, while it travels by itself."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """Nested values with a ``_Place`` for each tensor, which goes to ``tensors``."""
    if isinstance(value, Tensor):
        in_order = value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)
        tensor = value if in_order else value.contiguous()
        tensors.append(tensor)
        return _Place(tuple(tensor.shape), tensor.stride(), tensor.dtype)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _without_tensors(getattr(value, f.name), tensors) for f in fields(value)})
    if isinstance(value, dict):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_tensors(item, tensors) for item in value)
    return value


def _with_tensors(value: Any, own: Iterator[Tensor] | None) -> Any:
    """Nested values with the tensors back in their places: ``own`` on rank 0, received ones elsewhere."""
    if isinstance(value, _Place):
        tensor = next(own) if own is not None else torch.empty_strided(value.shape, value.stride, dtype=value.dtype)
        if tensor.numel():
            torch.distributed.broadcast(tensor.as_strided((tensor.numel(),), (1,)), src=0)
        return tensor
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _with_tensors(getattr(value, f.name), own) for f in fields(value)})
    if isinstance(value, dict):
        return {key: _with_tensors(item, own) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(item, own) for item in value)
    return value


def bucket_mib(network: nn.Module) -> float:
    """Size of the pieces in which gradients travel, MiB: equal ones, near 25 MiB as by torch's default.

    Equal, because the last one is on its way when nothing is left to compute: of the 143 MiB of EFAFNet R50 six of
    23.9, instead of a small one, five of 25 and a rest.
    """
    whole = sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20
    # At least 1 MiB: torch.compile asks that no piece be smaller than torch's own first one.
    return max(1.0, whole / max(1, round(whole / _BUCKET_MIB)))


def pick_device(wanted: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device.

    Raises:
        ValueError: ``cuda`` was asked for where torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ValueError("device = cuda: torch sees no GPU in this process; use device=cpu, or a machine with one")
    return torch.device("cuda", 0) if wanted != "cpu" and available else torch.device("cpu")
