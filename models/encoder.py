"""The residual encoder: Conv-1 to Conv-5 of the paper, its bottleneck with FAM and FSM inside (Fig. 3).

Shapes: N crops, H W the input's side lengths in pixels; stage k has stride 2^k: C2 (N, 4w, H/4, W/4) to
C5 (N, 32w, H/32, W/32), w = 64 in the paper.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from efafnet.models import aligned
from efafnet.models.fasm import SPLITS, FeatureAggregation, FeatureSelection
from efafnet.models.layers import conv_bn, conv_bn_relu
from efafnet.models.network_config import BLOCKS, NetworkConfig


class Features(NamedTuple):
    """The outputs of the four stages, finest first."""

    c2: Tensor
    c3: Tensor
    c4: Tensor
    c5: Tensor


def _aggregation(config: NetworkConfig, planes: int, *, stride: int, first: bool) -> tuple[nn.Module, int]:
    """The middle of a bottleneck and its width: a 3x3 convolution, or FAM."""
    if config.fam == "none":
        return conv_bn_relu(planes, planes, 3, stride=stride), planes
    split = planes // SPLITS if config.fam == "width4" else planes * 26 // 64
    # Res2Net treats the first block of every stage as strided, stage 1's too; eq. 1 has no reason to.
    chained = not first if config.fam_recurrence == "res2net" else stride == 1
    fam = FeatureAggregation(split, stride=stride, chained=chained, recurrence=config.fam_recurrence)
    return fam, SPLITS * split


class Bottleneck(nn.Module):
    """Residual bottleneck (Fig. 3): 1x1 -> 3x3 or FAM -> 1x1 -> FSM, added to the identity.

    ``X~ = relu(X + F * factor)`` with F = A(X) of eq. 8 and FSM's factor; see `FeatureSelection` for the readings of
    eq. 8. The 3x3 carries the stride, as in torchvision.

    Args:
        config: the network's switches.
        in_channels: of the input.
        planes: the bottleneck's width before FAM; the output has ``4 * planes`` channels.
        stride: 1 or 2.
        first: whether this is the first block of its stage.
        aggregate, select: whether this block holds FAM and FSM (where the configuration has them).
    """

    def __init__(
        self,
        config: NetworkConfig,
        in_channels: int,
        planes: int,
        *,
        stride: int = 1,
        first: bool = False,
        aggregate: bool = True,
        select: bool = True,
    ) -> None:
        super().__init__()
        plain = config if aggregate else config.model_copy(update={"fam": "none"})
        aggregation, width = _aggregation(plain, planes, stride=stride, first=first)
        out_channels = 4 * planes
        self.reduce = conv_bn_relu(in_channels, width, 1)
        self.aggregate = aggregation
        self.expand = conv_bn(width, out_channels, 1)
        reshapes = stride != 1 or in_channels != out_channels
        self.identity = conv_bn(in_channels, out_channels, 1, stride=stride) if reshapes else None
        self.select = None
        if select and config.fsm != "none":
            self.select = FeatureSelection(
                out_channels,
                arrangement=config.fsm,
                reduction=config.reduction,
                lss_relu=config.lss_relu,
                merge=config.fsm_merge,
            )
        self.identity_twice = self.select is not None and config.fsm_merge == "literal"

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, 4*planes, H/stride, W/stride)."""
        features = self._features(x)
        identity = x if self.identity is None else self.identity(x)
        if self.identity_twice:
            identity = identity + identity
        if self.select is None:
            return F.relu_(features + identity)
        selected: Tensor = self.select(features, identity)
        return selected

    def _features(self, x: Tensor) -> Tensor:
        """The branch F before its selection, (N, 4*planes, H/stride, W/stride)."""
        if isinstance(self.aggregate, FeatureAggregation) and aligned.is_faster(self.aggregate, x):
            return aligned.bottleneck(self.reduce, self.aggregate, self.expand, x)
        features: Tensor = self.expand(self.aggregate(self.reduce(x)))
        return features


class ResidualEncoder(nn.Module):
    """ResNet's stem and four stages of `Bottleneck`; ``conv2`` ... ``conv5`` are the paper's Conv-2 ... Conv-5."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w = config.width
        self.conv1 = conv_bn_relu(3, w, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        counts = BLOCKS[config.encoder]
        self.conv2 = _stage(config, w, w, counts[0], stride=1)
        self.conv3 = _stage(config, 4 * w, 2 * w, counts[1], stride=2)
        self.conv4 = _stage(config, 8 * w, 4 * w, counts[2], stride=2)
        self.conv5 = _stage(config, 16 * w, 8 * w, counts[3], stride=2)

    def forward(self, images: Tensor) -> Features:
        """Normalised images (N, 3, H, W) -> C2, C3, C4, C5."""
        c2 = self.conv2(self.pool(self.conv1(images)))
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return Features(c2, c3, c4, self.conv5(c4))


def _stage(config: NetworkConfig, in_channels: int, planes: int, count: int, *, stride: int) -> nn.Sequential:
    """One stage of `count` bottlenecks, with FAM and FSM where the configuration places them."""
    inside = config.fasm_placement != "after_stage"
    blocks = []
    for i in range(count):
        select = inside and (config.fasm_placement == "every_block" or i == count - 1)
        blocks.append(
            Bottleneck(
                config,
                in_channels if i == 0 else 4 * planes,
                planes,
                stride=stride if i == 0 else 1,
                first=i == 0,
                aggregate=inside,
                select=select,
            )
        )
    if not inside:
        blocks.append(Bottleneck(config, 4 * planes, planes))
    return nn.Sequential(*blocks)
