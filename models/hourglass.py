"""The stacked hourglass (Newell et al., ECCV 2016): down to 1/64 and back, again and again, supervised each time.

Shapes: N crops, K joints, C channels (256 as published), H W the input's side lengths in pixels, h = H/4, w = W/4.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from efafnet.models.network_config import HourglassConfig
from efafnet.models.pose_network import PoseNetwork, PoseOutput

DEPTH = 4
"""Halvings inside one hourglass."""


def _bn_relu_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Pre-activation: batch norm, ReLU, convolution. With bias and torch's own start, both as published."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv)


class PreactivatedBottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 through half the output's channels, added to the input (its 1x1 where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.branch = nn.Sequential(
            _bn_relu_conv(in_channels, half, 1), _bn_relu_conv(half, half, 3), _bn_relu_conv(half, out_channels, 1)
        )
        self.identity = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        added: Tensor = self.branch(x) + self.identity(x)
        return added


class Hourglass(nn.Module):
    """One level of an hourglass: beside it at full resolution, inside it at half, where the next level stands."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.beside = PreactivatedBottleneck(channels, channels)
        self.down = PreactivatedBottleneck(channels, channels)
        self.inside = Hourglass(channels, depth - 1) if depth > 1 else PreactivatedBottleneck(channels, channels)
        self.up = PreactivatedBottleneck(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        # Rounded up, so that sizes that 64 does not divide (288) lose no column and small ones do not vanish.
        low = self.down(F.max_pool2d(x, 2, ceil_mode=True))
        low = self.up(self.inside(low))
        merged: Tensor = self.beside(x) + F.interpolate(low, size=x.shape[2:], mode="nearest")
        return merged


class Stack(nn.Module):
    """An hourglass, the features that follow it, and their heatmaps."""

    def __init__(self, channels: int, num_joints: int) -> None:
        super().__init__()
        self.hourglass = Hourglass(channels, DEPTH)
        self.refine = PreactivatedBottleneck(channels, channels)
        self.features = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.predict = nn.Conv2d(channels, num_joints, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) -> features of the same shape, heatmaps (N, K, h, w)."""
        features = self.features(self.refine(self.hourglass(x)))
        return features, self.predict(features)


class Merge(nn.Module):
    """What a stack hands to the next: its input, its features and its heatmaps, added."""

    def __init__(self, channels: int, num_joints: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(channels, channels, 1)
        self.heatmaps = nn.Conv2d(num_joints, channels, 1)

    def forward(self, x: Tensor, features: Tensor, heatmaps: Tensor) -> Tensor:
        """Three maps of (N, C or K, h, w) -> (N, C, h, w)."""
        merged: Tensor = x + self.features(features) + self.heatmaps(heatmaps)
        return merged


class StackedHourglass(PoseNetwork):
    """A stem to stride 4 and a row of hourglasses, each of which corrects the heatmaps of the one before.

    The heatmaps of all stacks but the last are the auxiliary ones (`stack1`, ...). Their heads are no training-only
    extra: the next stack reads what they say, so they count as part of the network.
    """

    config: HourglassConfig

    def __init__(self, config: HourglassConfig, num_joints: int) -> None:
        super().__init__(num_joints)
        self.config = config
        c = config.width
        self.stem = nn.Sequential(
            nn.Conv2d(3, c // 4, 7, stride=2, padding=3),
            nn.BatchNorm2d(c // 4),
            nn.ReLU(inplace=True),
            PreactivatedBottleneck(c // 4, c // 2),
            nn.MaxPool2d(2),
            PreactivatedBottleneck(c // 2, c // 2),
            PreactivatedBottleneck(c // 2, c),
        )
        self.stacks = nn.ModuleList(Stack(c, num_joints) for _ in range(config.stacks))
        self.merges = nn.ModuleList(Merge(c, num_joints) for _ in range(config.stacks - 1))
        self.auxiliary = nn.ModuleDict()

    def forward(self, images: Tensor) -> PoseOutput:
        """Normalised images (N, 3, H, W) -> heatmaps (N, K, h, w), and in training those of the earlier stacks."""
        x = self.stem(images)
        features, heatmaps = self.stacks[0](x)
        earlier = {}
        for number, (merge, stack) in enumerate(zip(self.merges, self.stacks[1:], strict=True), start=1):
            earlier[f"stack{number}"] = heatmaps
            x = merge(x, features, heatmaps)
            features, heatmaps = stack(x)
        return PoseOutput(heatmaps, earlier if self.training else {})
