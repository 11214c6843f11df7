"""What a network costs: parameters, multiply-adds, the paper's own count, activations kept for the backward pass.

Everything is derived from shapes, on torch's `meta` device or of a batch without crops: nothing is computed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from efafnet.models.known_costs import FILE, STORED, Cost, Size, looked_up
from efafnet.models.network import PoseNetwork, build_network
from efafnet.models.network_config import AnyNetworkConfig
from efafnet.models.settings import InputSize
from efafnet.models.undrawn import Undrawn


@lru_cache(maxsize=64)
def network_cost(config: AnyNetworkConfig, num_joints: int, input_size: InputSize) -> Cost:
    """The cost of a configuration for `num_joints` joints and crops of `input_size`; once per process."""
    return cost_at(shapes_of(config, num_joints), input_size)


def shapes_of(config: AnyNetworkConfig, num_joints: int) -> PoseNetwork:
    """The network on torch's `meta` device: shapes without values."""
    with torch.device("meta"), Undrawn():
        return build_network(config, num_joints)


def cost_at(network: PoseNetwork, input_size: InputSize) -> Cost:
    """The cost of a network on the `meta` device for crops of `input_size`."""
    with QuickBatchNorm(), _counted_operations(network) as operations:
        saved = _saved_bytes(network, _crop(input_size))
    return Cost(_parameters(network), operations["macs"], operations["paper"], saved)


@lru_cache(maxsize=64)
def network_size(config: AnyNetworkConfig, num_joints: int, input_size: InputSize) -> Size:
    """Of the cost what a run says of its network: parameters and multiply-adds, once per process.

    Stored ones are looked up. Others are counted as a batch without crops passes: on the `meta` device torch computes
    in Python, and loads its compiler for that, which takes more than a second of a program that compiles nothing.
    """
    known = looked_up(config, num_joints, input_size)
    if known is not None:
        return known
    with _WithoutValues(), torch.no_grad():
        network = build_network(config, num_joints).eval()
        with _counted_operations(network) as operations:
            network(torch.empty(0, 3, input_size.height, input_size.width))
    return Size(_parameters(network), operations["macs"])


def multiply_adds(config: AnyNetworkConfig, num_joints: int, input_size: InputSize) -> int:
    """Multiply-adds of one forward pass, as `network_size` has them."""
    return network_size(config, num_joints, input_size).multiply_adds


def _crop(size: InputSize) -> Tensor:
    """One crop without values, (1, 3, H, W)."""
    return torch.empty(1, 3, size.height, size.width, device="meta")


def _parameters(network: PoseNetwork) -> int:
    """Weights and biases without the auxiliary heads, which exist in training only."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary."))


class _WithoutValues(Undrawn):
    """Lets a network be built and applied for its shapes: a batch without crops goes through all of it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.pixel_unshuffle:  # on CPUs torch gives back as it is what holds nothing
            return _gathered(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


class QuickBatchNorm(TorchDispatchMode):
    """Inside, batch norm on the `meta` device gives its shapes at once.

    torch composes it there of some fifty operations in Python, two thirds of the time in which a network is counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What ``func`` returns, or tensors of the shapes of it."""
        if func is not torch.ops.aten.native_batch_norm.default:
            return func(*args, **(kwargs or {}))
        x = args[0]
        return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _gathered(x: Tensor, factor: int) -> Tensor:
    """Room for what ``pixel_unshuffle`` makes of x (N, C, H, W)."""
    n, channels, height, width = x.shape
    return x.new_empty(n, channels * factor**2, height // factor, width // factor)


@contextmanager
def _counted_operations(network: PoseNetwork) -> Iterator[dict[str, int]]:
    """Multiply-adds (`macs`) and paper operations (`paper`) per crop of the forward pass made inside.

    Training and inference make the same ones, but for the auxiliary heads.
    """
    counted = {"macs": 0, "paper": 0}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        positions = math.prod(output.shape[2:])
        applied = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        counted["macs"] += weight.numel() * math.prod(applied.shape[2:])
        counted["paper"] += weight.numel() * positions

    handles = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


def _saved_bytes(network: PoseNetwork, crop: Tensor) -> int:
    """Bytes of distinct tensors that the training forward pass keeps per crop, parameters and auxiliary heads left
    out."""
    owned = {_storage(p) for p in network.parameters()} | {_storage(b) for b in network.buffers()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in owned:
            saved[_storage(tensor)] = tensor
        return tensor

    auxiliary, network.auxiliary = network.auxiliary, nn.ModuleDict()
    # A batch of one has a single value per channel at 1/32 of the smallest inputs, which batch norm refuses.
    batch = crop.expand(2, -1, -1, -1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.train()(batch)
    network.auxiliary = auxiliary
    return sum(t.untyped_storage().nbytes() for t in saved.values()) // len(batch)


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's memory; meta tensors have no address to tell them apart by."""
    return int(tensor.untyped_storage()._cdata)


def counted() -> dict[str, dict[str, list[int]]]:
    """Count every network whose costs are stored, as they are stored."""
    return {name: _by_joint(network, size) for name, (network, size) in STORED.items()}


def _by_joint(network: AnyNetworkConfig, size: InputSize) -> dict[str, list[int]]:
    """What the network would cost without joints, and what each joint adds."""
    one, two = (astuple(network_cost(network, joints, size)) for joints in (1, 2))
    each = [more - fewer for fewer, more in zip(one, two, strict=True)]
    return {"without_joints": [total - part for total, part in zip(one, each, strict=True)], "each_joint": each}


if __name__ == "__main__":
    lines = (f"  {json.dumps(name)}: {json.dumps(costs)}" for name, costs in counted().items())
    Path(__file__).with_name(FILE).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
