"""The settings of a conversion, apart from the code that needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from efafnet.pipelines.training.config import TrainConfig


class ConvertConfig(TrainConfig):
    """Published weights, and the training whose network they are of: its preset says how the network is tested."""

    name: str = "published"
    """Name that the checkpoint carries; nothing is written under it."""
    weights: Path
    """File of weights (.pth, .safetensors) of HRNet or the simple baseline, with the names of HRNet's repository or of
    mmpose. Only tensors are read from it, no code."""
    out: Path
    """Directory of the checkpoint; must not exist yet."""
    overwrite: bool = False
    """Whether a checkpoint that exists is replaced."""
    skeleton: Literal["coco17", "mpii16", "crowdpose14"] = "coco17"
    """Joints of the network, in the order of their data set."""
