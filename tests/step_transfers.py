"""What a training step copies to the GPU and where it waits for it, found without a GPU.

    with stand_in_gpu() as gpu:
        network = network_on(gpu.device, row)
        step()                      # the first one makes the constants
        gpu.transfers.clear()
        step()
    assert gpu.transfers == []      # beyond the batch

The stand-in's tensors have shapes, strides, types and ``device="cuda:0"``, but no values: forward, backward and
optimizer are dispatched as on a GPU, and nothing is computed. Whatever the host would have to wait for is an error in
the very line. Autocast does nothing on it: PyTorch switches CUDA's off where there is no GPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from efafnet.models import fsm_fused
from efafnet.models.constants import made_once
from efafnet.models.network import PoseNetwork, build_network
from efafnet.models.variants import Variant
from efafnet.pipelines.crops.batch import Batch

_ROOT = Path(__file__).resolve().parents[1]
_FROM_NUMBERS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
# What reading the two attributes calls; the stubs know only their values.
_DEVICE, _IS_CUDA = (getattr(Tensor, name).__get__ for name in ("device", "is_cuda"))
_ENGINE = "_engine_run_backward"
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
_NO_VALUES = ("meta tensor", "Meta tensor", "data-independent", "no data", "Cannot copy out of meta")
"""Words of what PyTorch says to whoever asks a tensor without values for one."""


@dataclass(frozen=True)
class Transfer:
    """A copy from the host to the device."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    asynchronous: bool
    """Asked for with non_blocking=True; from pageable memory the host waits nevertheless."""
    where: str
    """The innermost line of the project that asked for it."""


@dataclass
class StandInGpu:
    """A GPU that is not there; see `stand_in_gpu`."""

    device: torch.device
    transfers: list[Transfer] = field(default_factory=list)

    def note(self, tensor: Tensor, *, asynchronous: bool = False) -> None:
        """Write down that `tensor` was copied from the host."""
        self.transfers.append(Transfer(tuple(tensor.shape), tensor.dtype, asynchronous, _where()))


class _Calls(TorchFunctionMode):
    """Python's side: what names the GPU gets tensors without values, which say that they lie on the GPU."""

    def __init__(self, gpu: StandInGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func == _DEVICE:
            real = func(*args)
            return self.gpu.device if real.type == "meta" else real
        if func == _IS_CUDA:
            return _on_gpu(args[0])
        kwargs = kwargs or {}
        if func != Tensor.__deepcopy__:  # its memo holds all that was copied before, and names no device
            args, kwargs = tree_map(self._moved, (args, kwargs))
        try:
            outcome = func(*args, **kwargs)
        except (RuntimeError, TypeError) as error:
            if any(words in str(error) for words in _NO_VALUES):
                raise AssertionError(f"the host waits for the GPU: {_where()}") from error
            raise
        # These two copies PyTorch makes without dispatching them, when the values go nowhere.
        if func in _FROM_NUMBERS and _on_gpu(outcome) and not isinstance(args[func is Tensor.new_tensor], Tensor):
            self.gpu.note(outcome)
        if func in _INDEXING and _on_gpu(args[0]):
            for part in args[1] if isinstance(args[1], tuple) else (args[1],):
                if isinstance(part, list):
                    self.gpu.note(torch.tensor(part, device="cpu"))
        return outcome

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.device | str) and str(value).partition(":")[0] == "cuda":
            return torch.device("meta")
        return value


class _Dispatched(TorchDispatchMode):
    """The operators' side: copies from one device to the other, and operands that lie on the wrong one."""

    def __init__(self, gpu: StandInGpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gpu = gpu

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        outcome = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, outcome)) if isinstance(leaf, Tensor)]
        if any(map(_on_gpu, tensors)):
            asynchronous = kwargs.get("non_blocking", func is torch.ops.aten.copy_.default and args[2:] == (True,))
            # A single number on the host travels with the kernel's arguments.
            for tensor in tensors:
                if not _on_gpu(tensor) and (tensor.dim() or func is torch.ops.aten._to_copy.default):
                    self.gpu.note(tensor, asynchronous=bool(asynchronous))
        return outcome


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type in ("meta", "cuda")


def _where() -> str:
    """The innermost line of the project's own code, this file left out."""
    own = [f for f in traceback.extract_stack() if f.filename.startswith(str(_ROOT)) and f.filename != __file__]
    own = [f for f in own if ".venv" not in f.filename]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].line}" if own else "outside the project"


@contextmanager
def stand_in_gpu(*, kernels: bool = True) -> Iterator[StandInGpu]:
    """Inside, tensors on "cuda" have no values, copies to it are written down, and waiting for it is an error.

    Args:
        kernels: whether FSM's kernels are taken to run on the card, or the plain form is.

    Raises:
        AssertionError: inside, from what makes the host wait (`item`, a boolean mask, a copy back), with its line.
    """
    gpu = StandInGpu(torch.device("cuda", 0))
    calls, engine = _Calls(gpu), getattr(torch.autograd, _ENGINE)

    def backward(*args: Any, **kwargs: Any) -> Any:
        # A mode is off while it handles a call; this one must be on in the backward pass.
        with calls:
            return engine(*args, **kwargs)

    made_once.cache_clear()
    try:
        with (
            mock.patch.object(fsm_fused, "works", return_value=kernels),
            mock.patch.object(torch.autograd, _ENGINE, backward),
            calls,
            _Dispatched(gpu),
        ):
            yield gpu
    finally:
        # Constants made inside have no values either.
        made_once.cache_clear()


def network_on(device: torch.device, row: Variant, num_joints: int = 17) -> PoseNetwork:
    """A network in NHWC order on the stand-in."""
    with torch.device(device):
        return build_network(row.network, num_joints).to(memory_format=torch.channels_last)


def host_batch(row: Variant, count: int, num_joints: int = 17) -> Batch:
    """`count` black crops as the reader hands them over, on the host."""
    return Batch(
        images=torch.zeros(count, 3, row.input.height, row.input.width, dtype=torch.uint8),
        joints_px=torch.zeros(count, num_joints, 2),
        visibility=torch.full((count, num_joints), 2, dtype=torch.uint8),
        rows=torch.arange(count),
        input_to_image=torch.eye(2, 3, dtype=torch.float64).repeat(count, 1, 1),
    )
