"""The cost of a network as figures, and those of the named networks as they are stored beside this file.

Counting takes the better part of a second for a large network, and torch besides; a table of forty of them must not
take half a minute. ``python -m efafnet.models.cost`` counts and stores all of them anew; a test counts as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

FILE = "costs.json"


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


def known_cost(name: str, num_joints: int) -> Cost:
    """The stored cost of the named network (a key of ``VARIANTS``) at its own input, for 14, 16 or 17 joints.

    Raises:
        KeyError: there is no such figure.
    """
    return Cost(*_stored()[name][str(num_joints)])


@cache
def _stored() -> dict[str, dict[str, list[int]]]:
    tree: dict[str, dict[str, list[int]]] = json.loads(
        resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    )
    return tree
