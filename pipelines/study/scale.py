"""The paper's networks at another scale: with the nano encoder, every row keeps what makes it that row.

A study on a CPU cannot train ResNet-50 at 256x192. Where the preset's network is nano, each row's switches are kept and
its encoder, widths, input and Gaussian are scaled by what the preset is to the paper's default (ResNet-50, 256x192,
2 heatmap pixels). With any other encoder rows are taken as the paper has them.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from efafnet.models.network_config import NetworkConfig
from efafnet.models.settings import InputSize
from efafnet.models.variants import Variant
from efafnet.pipelines.training.config import TrainConfig

PAPER_INPUT = InputSize(height=256, width=192)
PAPER_SIGMA_PX = 2.0
PAPER_WIDTH = 64
"""Channels of ResNet's first convolution."""


def is_nano(base: TrainConfig) -> bool:
    """Whether rows are to be scaled down."""
    return isinstance(base.network, NetworkConfig) and base.network.encoder == "nano"


def row_settings(variant: Variant, base: TrainConfig) -> dict[str, Any]:
    """What a row of this configuration sets, by dotted key: network, input, target, loss."""
    loss = {f"loss.{key}": value for key, value in variant.loss.model_dump(exclude_unset=True).items()}
    return {
        "network": scaled_network(variant, base),
        "input": str(scaled_input(variant.input, base)),
        "heatmap.sigma_px": scaled_sigma(variant.heatmap.sigma_px, base),
        "heatmap.stride": variant.network.heatmap_stride,
        "loss.kind": variant.loss.kind,
        **loss,
    }


def scaled_network(variant: Variant, base: TrainConfig) -> dict[str, Any]:
    """The row's switches, at the scale of a nano ``base``: its encoder; other kinds of networks in its width."""
    switches = variant.network.model_dump(mode="json")
    if not isinstance(base.network, NetworkConfig) or base.network.encoder != "nano":
        return switches
    if isinstance(variant.network, NetworkConfig):
        return switches | {"encoder": "nano", "base_width": base.network.base_width}
    return switches | {"width": max(8, switches["width"] * base.network.width // PAPER_WIDTH // 4 * 4)}


def scaled_sigma(sigma_px: float, base: TrainConfig) -> float:
    """The row's Gaussian in heatmap pixels, at the scale of a nano ``base``."""
    return sigma_px * base.heatmap.sigma_px / PAPER_SIGMA_PX if is_nano(base) else sigma_px


def scaled_input(size: InputSize, base: TrainConfig) -> InputSize:
    """The row's input, at the scale of a nano ``base``.

    Sides must be multiples of 32: of those around the scaled ones, the pair whose shape is most like the row's, and
    the larger of two as good.
    """
    if not is_nano(base):
        return size
    if size == PAPER_INPUT:
        return base.input
    height = size.height * base.input.height / PAPER_INPUT.height
    width = size.width * base.input.width / PAPER_INPUT.width
    candidates = [InputSize(height=h, width=w) for h, w in product(_around(height), _around(width))]
    return min(candidates, key=lambda each: (round(_shape_error(each, size), 9), -each.height * each.width))


def _around(side: float) -> list[int]:
    """The multiples of 32 below and above, at least 32; the side itself where it is one."""
    return sorted({max(32, math.floor(side / 32) * 32), max(32, math.ceil(side / 32) * 32)})


def _shape_error(size: InputSize, wanted: InputSize) -> float:
    return abs(math.log(size.height / size.width * wanted.width / wanted.height))


def scale_note(variants: list[Variant], base: TrainConfig) -> str:
    """Say at which scale the rows run; ``variants`` are those of the rows that run."""
    if not isinstance(base.network, NetworkConfig) or not is_nano(base):
        return "network scale: as in the paper"
    inputs = {f"{each.input} as {scaled_input(each.input, base)}": None for each in variants}
    sigmas = {f"{each.heatmap.sigma_px:g} as {scaled_sigma(each.heatmap.sigma_px, base):g}": None for each in variants}
    return (
        f"network scale: NOT the paper's. Encoder nano (one bottleneck per stage, {base.network.width} channels "
        f"instead of {PAPER_WIDTH}) in place of each ResNet; inputs {', '.join(inputs)}; Gaussians (heatmap pixels) "
        f"{', '.join(sigmas)}"
    )
