"""The Feature Fusion Module (section III-C, Fig. 2): Conv-2 and Conv-5 inform each other.

The paper names the two directions and ExFuse's semantic embedding, not the layers; these are ours.
Shapes: C2 (N, 4w, H/4, W/4), C5 (N, 32w, H/32, W/32).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efafnet.models.layers import conv_bn, conv_bn_relu, join_channels
from efafnet.models.resampling import pool_blocks, upsample


class LowToHigh(nn.Module):
    """Spatial detail into the semantic features (the pink line): C2, brought to 1/32, is added to C5.

    Average-pooled by 4, a 3x3 of stride 2, then a 1x1 to C5's width whose batch norm starts at zero: at the start of
    training C5 passes unchanged, so ImageNet weights keep their meaning.
    """

    def __init__(self, low_channels: int, high_channels: int, hidden: int) -> None:
        super().__init__()
        self.stride = conv_bn_relu(low_channels, hidden, 3, stride=2)
        self.expand = _zeroed(conv_bn(hidden, high_channels, 1))

    def forward(self, c2: Tensor, c5: Tensor) -> Tensor:
        """C2, C5 -> C5 with spatial detail, C5's shape."""
        lowered: Tensor = self.expand(self.stride(pool_blocks(c2, 4)))
        return c5 + lowered


class HighToLow(nn.Module):
    """Semantics into the spatial features (the green line): ExFuse's semantic embedding.

    C5, embedded by a 1x1 and upsampled by 8, gates the embedded C2 by ``1 + tanh``; both are concatenated and
    mixed by a 3x3.
    """

    def __init__(self, low_channels: int, high_channels: int, out_channels: int) -> None:
        super().__init__()
        self.embed_low = conv_bn_relu(low_channels, out_channels, 1)
        self.embed_high = conv_bn(high_channels, out_channels, 1)
        self.mix = conv_bn_relu(2 * out_channels, out_channels, 3)

    def forward(self, c2: Tensor, c5: Tensor) -> Tensor:
        """C2, C5 -> (N, out_channels, H/4, W/4)."""
        semantics = upsample(self.embed_high(c5), 8)
        low = self.embed_low(c2)
        gated = torch.addcmul(low, low, torch.tanh(semantics))
        mixed: Tensor = self.mix(join_channels((gated, semantics)))
        return mixed


class FusionBeforeDecoder(nn.Module):
    """FFM in the order of the text: both directions end in C5 before anything is upsampled.

    The text attaches DUC to the fused features and lets it upsample by 8, so what the green line fuses at 1/4 must come
    back to 1/32. DUC's own rearrangement, reversed, takes it there: the 64 positions of an 8x8 patch become channels,
    so no detail is averaged away; two 1x1 convolutions bring them to C5's width, the second with a batch norm that
    starts at zero, as in `LowToHigh`.

    Args:
        low_channels, high_channels: of C2 and C5.
        width: channels of the features fused at 1/4.
        hidden: channels between the two 1x1 convolutions.
    """

    def __init__(self, low_channels: int, high_channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.low_to_high = LowToHigh(low_channels, high_channels, low_channels // 2)
        self.high_to_low = HighToLow(low_channels, high_channels, width)
        self.gather = nn.PixelUnshuffle(8)
        self.reduce = conv_bn_relu(width * 8**2, hidden, 1)
        self.expand = _zeroed(conv_bn(hidden, high_channels, 1))

    def forward(self, c2: Tensor, c5: Tensor) -> Tensor:
        """C2, C5 -> the fused features, C5's shape."""
        c5 = self.low_to_high(c2, c5)
        fused: Tensor = self.expand(self.reduce(self.gather(self.high_to_low(c2, c5))))
        return c5 + fused


class FeatureFusion(nn.Module):
    """FFM: both directions, and the convolution that joins the fused features with the upsampled ones at 1/4.

    Args:
        low_channels, high_channels: of C2 and C5.
        upsampled_channels: of the features that the head brings to 1/4.
        width: channels of the fused features (64 in a 64-wide network).
    """

    def __init__(self, low_channels: int, high_channels: int, upsampled_channels: int, width: int) -> None:
        super().__init__()
        self.low_to_high = LowToHigh(low_channels, high_channels, low_channels // 2)
        self.high_to_low = HighToLow(low_channels, high_channels, width)
        self.join = conv_bn_relu(width + upsampled_channels, width, 3)
        self.out_channels = width

    def forward(self, c2: Tensor, c5: Tensor, upsampled: Tensor) -> Tensor:
        """C2, the enriched C5, and the upsampled features (N, ., H/4, W/4) -> (N, width, H/4, W/4)."""
        joined: Tensor = self.join(join_channels((self.high_to_low(c2, c5), upsampled)))
        return joined


def _zeroed(layers: nn.Sequential) -> nn.Sequential:
    """A convolution and its batch norm, the norm's scale set to zero: what it is added to starts unchanged."""
    norm = layers[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    return layers
