"""From 1/32 back to 1/4: the simple baseline's deconvolutions and Dense Upsampling Convolution (DUC).

Each module has ``out_channels``. Shapes: N crops, h w the side lengths of the incoming map.
"""

from __future__ import annotations

from torch import Tensor, nn

from efafnet.models.layers import conv_bn_relu, prediction_conv


class Deconvolutions(nn.Sequential):
    """Three 4x4 deconvolutions of stride 2, each with batch norm and ReLU (section III-A; 256 filters in the paper)."""

    def __init__(self, in_channels: int, filters: int) -> None:
        layers: list[nn.Module] = []
        for i in range(3):
            deconv = nn.ConvTranspose2d(in_channels if i == 0 else filters, filters, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(deconv.weight, std=0.001)
            layers += [deconv, nn.BatchNorm2d(filters), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        self.out_channels = filters


class DenseUpsampling(nn.Module):
    """DUC (section III-D): a 1x1 to `hidden`, a 3x3 to r^2 values per output channel, rearranged to r times the size.

    The paper's softmax before the argmax is left out: it contradicts the squared-error loss on the heatmaps.

    Args:
        in_channels: of the incoming map.
        hidden: channels of the 1x1 convolution; 0 leaves it out.
        out_channels: after the rearrangement.
        factor: r, how many times larger the output is.
        predicts: True if the output is the heatmaps; otherwise batch norm and ReLU follow.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, factor: int, predicts: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.embed = conv_bn_relu(in_channels, hidden, 1) if hidden else nn.Identity()
        expanded = out_channels * factor**2
        if predicts:
            self.expand = prediction_conv(hidden or in_channels, expanded, kernel=3)
            self.finish: nn.Module = nn.Identity()
        else:
            self.expand = nn.Conv2d(hidden or in_channels, expanded, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.expand.weight, mode="fan_in", nonlinearity="relu")
            # After the rearrangement, so that the r^2 positions of a channel share one scale and no grid appears.
            self.finish = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
        self.shuffle = nn.PixelShuffle(factor)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, r*h, r*w)."""
        finished: Tensor = self.finish(self.shuffle(self.expand(self.embed(x))))
        return finished


class ProgressiveUpsampling(nn.Sequential):
    """DUC in three steps of 2 instead of one of 8; the last step emits `out_channels`."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, *, predicts: bool) -> None:
        half = hidden // 2
        super().__init__(
            DenseUpsampling(in_channels, hidden, half, factor=2, predicts=False),
            DenseUpsampling(half, 0, half, factor=2, predicts=False),
            DenseUpsampling(half, 0, out_channels, factor=2, predicts=predicts),
        )
        self.out_channels = out_channels
