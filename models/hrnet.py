"""HRNet (Sun et al., CVPR 2019): branches of four resolutions side by side that exchange what they see.

Shapes: N crops, K joints, H W the input's side lengths in pixels, W32 or W48 the channels C of the finest branch.
Branch i has stride 4 * 2^i and C * 2^i channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from efafnet.models.encoder import Bottleneck
from efafnet.models.layers import conv_bn, conv_bn_relu, prediction_conv
from efafnet.models.network_config import HRNetConfig, NetworkConfig
from efafnet.models.pose_network import PoseNetwork, PoseOutput

_STEM = 64
"""Channels of the stem, whatever the width."""


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions, added to the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn_relu(channels, channels, 3)
        self.second = conv_bn(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return F.relu_(self.second(self.first(x)) + x)


def _path(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """From one branch's resolution and width to another's: finer by a 1x1 and nearest neighbours, coarser by 3x3
    convolutions of stride 2, of which the last changes the width.
    """
    if source == target:
        return nn.Identity()
    if source > target:
        upsample = nn.Upsample(scale_factor=float(2 ** (source - target)), mode="nearest")
        return conv_bn(channels[source], channels[target], 1).append(upsample)
    steps: list[nn.Module] = [
        conv_bn_relu(channels[source], channels[source], 3, stride=2) for _ in range(target - source - 1)
    ]
    return nn.Sequential(*steps, conv_bn(channels[source], channels[target], 3, stride=2))


class ExchangeBlock(nn.Module):
    """Blocks on every branch, then an exchange: each of the first `outputs` branches becomes the sum of all.

    Args:
        channels: of the incoming branches, finest first.
        blocks: `BasicBlock`s on each branch.
        outputs: branches that go on; the last exchange of the network needs the finest alone.
    """

    def __init__(self, channels: Sequence[int], blocks: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(c) for _ in range(blocks))) for c in channels)
        self.paths = nn.ModuleList(
            nn.ModuleList(_path(channels, source, target) for source in range(len(channels)))
            for target in range(outputs)
        )

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Branches of (N, C 2^i, H / 2^i, W / 2^i) -> the first `outputs` of them, the same shapes."""
        seen = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
        outputs = []
        for paths in self.paths:
            assert isinstance(paths, nn.ModuleList)
            # From 0: what the identity passes on is read by the other branches too and must not be added to in place.
            total = sum(path(x) for path, x in zip(paths, seen, strict=True))
            outputs.append(F.relu_(total))
        return outputs


class HRNet(PoseNetwork):
    """Stem to stride 4, a stage of bottlenecks, then stages of two, three and four branches; a 1x1 on the finest.

    All convolutions start as published: normal with standard deviation 0.001, batch norm taking care of the scale.
    """

    config: HRNetConfig

    def __init__(self, config: HRNetConfig, num_joints: int) -> None:
        super().__init__(num_joints)
        self.config = config
        channels = [config.width * 2**i for i in range(4)]
        self.stem = nn.Sequential(conv_bn_relu(3, _STEM, 3, stride=2), conv_bn_relu(_STEM, _STEM, 3, stride=2))
        # `aggregate` and `select` off make the block of the residual encoder a plain bottleneck.
        blocks = [_STEM] + [4 * _STEM] * (config.blocks - 1)
        self.stage1 = nn.Sequential(
            *(Bottleneck(NetworkConfig(), c, _STEM, aggregate=False, select=False) for c in blocks)
        )
        self.finest = conv_bn_relu(4 * _STEM, channels[0], 3)
        sources = [4 * _STEM, *channels[1:3]]
        self.openings = nn.ModuleList(
            conv_bn_relu(source, new, 3, stride=2) for source, new in zip(sources, channels[1:], strict=True)
        )
        self.stages = nn.ModuleList(_stage(config, channels[: i + 2], config.modules[i]) for i in range(3))
        self.predict = prediction_conv(channels[0], num_joints)
        self.auxiliary = nn.ModuleDict()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)

    def forward(self, images: Tensor) -> PoseOutput:
        """Normalised images (N, 3, H, W) -> heatmaps (N, K, H/4, W/4)."""
        coarsest = self.stage1(self.stem(images))
        branches = [self.finest(coarsest)]
        for opening, stage in zip(self.openings, self.stages, strict=True):
            branches = stage([*branches, opening(coarsest)])
            coarsest = branches[-1]
        return PoseOutput(self.predict(branches[0]), {})


def _stage(config: HRNetConfig, channels: Sequence[int], count: int) -> nn.Sequential:
    """`count` exchange blocks on the branches; the last of the four-branch stage gives the finest branch alone."""
    last = 1 if len(channels) == 4 else len(channels)
    outputs = [len(channels)] * (count - 1) + [last]
    return nn.Sequential(*(ExchangeBlock(channels, config.blocks, n) for n in outputs))
