"""What a network costs: parameters, multiply-adds, the paper's own count, activations kept for the backward pass.

Everything is derived from shapes on torch's `meta` device: no weights are allocated and nothing is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efafnet.models.network import PoseNetwork, build_network
from efafnet.models.network_config import AnyNetworkConfig
from efafnet.models.settings import InputSize


@dataclass(frozen=True)
class Cost:
    """The cost of one network for one crop. The auxiliary heads, which exist in training only, are not counted."""

    parameters: int
    """Weights and biases, batch norm's included; running statistics are not parameters."""
    multiply_adds: int
    """Multiply-adds of all convolutions, deconvolutions and linear layers in one forward pass."""
    paper_operations: int
    """The HRNet repository's counter, which the paper's figures evidently come from: weights x OUTPUT positions, also
    for deconvolutions (four times too high there, since each weight meets each input position only once)."""
    saved_bytes: int
    """Activations in float32 that autograd keeps for the backward pass, per crop, in bytes."""

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return self.parameters / 1e6

    @property
    def gmac(self) -> float:
        """Multiply-adds in 10^9."""
        return self.multiply_adds / 1e9

    @property
    def paper_g(self) -> float:
        """The paper's count, in 2^30 as that counter divides."""
        return self.paper_operations / 2**30

    @property
    def saved_mb(self) -> float:
        """Saved activations per crop in 10^6 bytes."""
        return self.saved_bytes / 1e6


def network_cost(config: AnyNetworkConfig, num_joints: int, input_size: InputSize) -> Cost:
    """The cost of a configuration for `num_joints` joints and crops of `input_size`."""
    with torch.device("meta"):
        network = build_network(config, num_joints)
        crop = torch.empty(1, 3, input_size.height, input_size.width)
    parameters = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary."))
    macs, paper = _operations(network.eval(), crop)
    return Cost(parameters, macs, paper, _saved_bytes(network, crop))


def _operations(network: PoseNetwork, crop: Tensor) -> tuple[int, int]:
    """Multiply-adds and paper operations of one forward pass of a batch of one."""
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
    with torch.no_grad():
        network(crop)
    for handle in handles:
        handle.remove()
    return counted["macs"], counted["paper"]


def _saved_bytes(network: PoseNetwork, crop: Tensor) -> int:
    """Bytes of distinct tensors that the training forward pass keeps, parameters left out."""
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
