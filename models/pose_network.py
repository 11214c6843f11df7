"""What every network of the project is to the rest of it: crops in, heatmaps out.

Shapes: N crops, K joints, H W the input's side lengths in pixels, h w the heatmap's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efafnet.models.constants import constant
from efafnet.models.network_config import AnyNetworkConfig

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_SCALE = tuple(1 / (255 * std) for std in _STD)
_SHIFT = tuple(-mean * 255 * scale for mean, scale in zip(_MEAN, _SCALE, strict=True))


@dataclass
class PoseOutput:
    """What the network says about a batch of crops."""

    heatmaps: Tensor
    """(N, K, h, w), one map per joint, about 1 at the joint and 0 elsewhere; not bounded."""
    auxiliary: dict[str, Tensor]
    """Heatmaps of the intermediate supervision by encoder stage or stack, (N, K, H/s, W/s) with its stride s; empty
    in eval mode."""


torch.export.register_dataclass(PoseOutput, serialized_type_name="efafnet.PoseOutput")


class PoseNetwork(nn.Module):
    """Heatmaps of K joints from crops of one person each: the base of the networks.

    A sub-class maps normalised images (N, 3, H, W), H and W multiples of 32, to a `PoseOutput` whose heatmaps have
    the stride of its configuration.
    """

    config: AnyNetworkConfig
    """The switches it was built from."""
    num_joints: int
    """K."""
    auxiliary: nn.ModuleDict
    """What exists for training only and is left out of every count of parameters and operations."""

    def __init__(self, num_joints: int) -> None:
        super().__init__()
        if num_joints < 1:
            raise ValueError(f"a network needs at least one joint; got num_joints={num_joints}")
        self.num_joints = num_joints


def normalise(images_uint8: Tensor) -> Tensor:
    """RGB images uint8 (N, 3, H, W) -> float32, (x/255 - mean) / std with ImageNet's mean and std per channel."""
    if images_uint8.dtype != torch.uint8:
        raise ValueError(f"normalise takes uint8 images in 0..255; got {images_uint8.dtype}: normalise only once")
    scale, shift = (
        constant(numbers, torch.float32, images_uint8.device).view(1, 3, 1, 1) for numbers in (_SCALE, _SHIFT)
    )
    return torch.addcmul(shift, images_uint8, scale)
