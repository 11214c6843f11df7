"""The cost of a network as figures, and those of the named networks as they are stored beside this file.

Counting all of it takes the better part of a second for a large network, torch, and torch's compiler besides; a table
of forty of them must not take half a minute.
``python -m efafnet.models.cost`` counts and stores all of them anew; a test counts as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from efafnet.models.network_config import AnyNetworkConfig, NetworkConfig
from efafnet.models.settings import InputSize
from efafnet.models.variants import VARIANTS

FILE = "costs.json"
STORED: dict[str, tuple[AnyNetworkConfig, InputSize]] = {
    **{name: (variant.network, variant.input) for name, variant in VARIANTS.items()},
    "nano_96x64": (NetworkConfig(encoder="nano"), InputSize(height=96, width=64)),
    "nano_without_fasm_96x64": (NetworkConfig(encoder="nano", fam="none", fsm="none"), InputSize(height=96, width=64)),
    "nano_8_channels_without_fasm_96x64": (
        NetworkConfig(encoder="nano", base_width=8, fam="none", fsm="none"),
        InputSize(height=96, width=64),
    ),
    "nano_8_channels_64x64": (NetworkConfig(encoder="nano", base_width=8), InputSize(height=64, width=64)),
}
"""The networks whose costs are stored: the named ones, and those that presets and demos train in minutes on a CPU."""


@dataclass(frozen=True)
class Size:
    """What a network weighs and a crop costs. The auxiliary heads, which exist in training only, are not counted."""

    parameters: int
    """Weights and biases, batch norm's included; running statistics are not parameters."""
    multiply_adds: int
    """Multiply-adds of all convolutions, deconvolutions and linear layers in one forward pass."""

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return self.parameters / 1e6

    @property
    def gmac(self) -> float:
        """Multiply-adds in 10^9."""
        return self.multiply_adds / 1e9


@dataclass(frozen=True)
class Cost(Size):
    """All of the cost of one network for one crop."""

    paper_operations: int
    """The HRNet repository's counter, which the paper's figures evidently come from: weights x OUTPUT positions, also
    for deconvolutions (four times too high there, since each weight meets each input position only once)."""
    saved_bytes: int
    """Activations in float32 that autograd keeps for the backward pass, per crop, in bytes."""

    @property
    def paper_g(self) -> float:
        """The paper's count, in 2^30 as that counter divides."""
        return self.paper_operations / 2**30

    @property
    def saved_mb(self) -> float:
        """Saved activations per crop in 10^6 bytes."""
        return self.saved_bytes / 1e6


def known_cost(name: str, num_joints: int) -> Cost:
    """The stored cost of a network, a key of ``STORED``, at its own input.

    It holds for any number of joints: the heads alone depend on it, and each joint is one more filter there.

    Raises:
        KeyError: no network of that name is stored.
    """
    stored = _stored()[name]
    pairs = zip(stored["without_joints"], stored["each_joint"], strict=True)
    return Cost(*(without + num_joints * each for without, each in pairs))


def looked_up(network: AnyNetworkConfig, num_joints: int, input_size: InputSize) -> Cost | None:
    """The stored cost of a network at that input; None where it has to be counted (``cost.network_cost``)."""
    for name, known in STORED.items():
        if known == (network, input_size):
            return known_cost(name, num_joints)
    return None


@cache
def _stored() -> dict[str, dict[str, list[int]]]:
    """By name, what a network without joints would cost and what each joint adds: the fields of ``Cost`` in order."""
    tree: dict[str, dict[str, list[int]]] = json.loads(
        resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    )
    return tree
