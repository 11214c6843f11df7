"""The settings of the heatmap codec, the losses and the initialisation.

Apart from their owners, which need torch: the command line explains and checks settings before anything heavy is
imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from efafnet.models.settings import Settings


class HeatmapConfig(Settings):
    """How joints are drawn as heatmaps and read back."""

    sigma_px: float = Field(default=2.0, gt=0)
    """Standard deviation of the target's Gaussian in heatmap pixels: 2 for 256x192 inputs, 3 for 384x288."""
    stride: Literal[1, 2, 4] = 4
    """Input pixels per heatmap pixel; must be the network's."""
    encoding: Literal["quantised", "unquantised", "udp"] = "quantised"
    """Where the Gaussian stands: on the nearest heatmap pixel (SBN), exactly (DARK), or exactly with UDP's scale."""
    decoding: Literal["argmax", "quarter", "dark", "udp"] = "quarter"
    """From heatmap to joint: the maximum; shifted a quarter pixel towards the higher neighbour (SBN); DARK's or UDP's
    second-order step on the smoothed logarithm."""

    @model_validator(mode="after")
    def _matching(self) -> HeatmapConfig:
        if self.decoding == "udp" and self.encoding != "udp":
            raise ValueError(
                f"decoding=udp belongs to encoding=udp; got encoding={self.encoding}: set decoding=dark or encoding=udp"
            )
        return self

    @property
    def flip_shift(self) -> bool:
        """Whether the flip test must shift the mirrored heatmaps by one column: yes, unless UDP's scale is used."""
        return self.encoding != "udp"


class LossConfig(Settings):
    """What training minimises."""

    kind: Literal["mse", "ohkm"] = "mse"
    """Mean over all joints (mse), or over the hardest joints of each person (ohkm; the paper's best is 8 of 17)."""
    hard_joints: int = Field(default=8, ge=1)
    """R, how many joints of a person OHKM keeps, 1 to K. Read by kind=ohkm only."""
    auxiliary_weight: float = Field(default=0.25, ge=0, le=1)
    """Weight of each intermediate supervision head beside the final one's 1. Without effect on a network without."""

    def check(self, num_joints: int) -> None:
        """Refuse a loss that this skeleton cannot have: ValueError if OHKM should keep more joints than exist."""
        if self.kind == "ohkm" and self.hard_joints > num_joints:
            raise ValueError(
                f"hard_joints={self.hard_joints} keeps more joints than the skeleton's {num_joints}: "
                f"set loss.hard_joints to 1..{num_joints}, or loss.kind=mse"
            )


class InitialisationConfig(Settings):
    """Where the encoder's weights come from. With neither setting the network starts at random."""

    weights: Path | None = None
    """File of ImageNet weights: a torchvision ResNet, or a Res2Net 26w x 4s, as .pth or .safetensors."""
    download: bool = False
    """Fetch torchvision's ImageNet weights (V1) for the encoder's depth over the network, or from its cache."""

    @model_validator(mode="after")
    def _one_source(self) -> InitialisationConfig:
        if self.download and self.weights is not None:
            raise ValueError(f"weights={self.weights} and download=true name two sources: set one of them")
        return self

    @property
    def wanted(self) -> bool:
        """Whether there is a source."""
        return self.download or self.weights is not None
