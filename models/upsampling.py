"""From 1/32 back to 1/4: the simple baseline's deconvolutions and Dense Upsampling Convolution (DUC).

Each module has ``out_channels``. Shapes: N crops, h w the side lengths of the incoming map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from efafnet.models.layers import conv_bn_relu, start_near_zero


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


class WideConv(nn.Conv2d):
    """A 3x3 convolution to very many channels on a small map: most of its numbers are weights.

    On a CPU with channels last the gradient of the weights is computed as one product of matrices: the convolution
    kernels take two to four times as long, most of it for bringing that gradient into the weights' layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, h, w) -> (N, out_channels, h, w)."""
        own = (
            x.device.type == "cpu"
            and x.is_contiguous(memory_format=torch.channels_last)
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )
        if not own:
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            # Inside the function autocast would change what is computed, and not what is kept.
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        y: Tensor = _WideConv.apply(x, weight, bias)
        return y


class _WideConv(torch.autograd.Function):
    """A 3x3 convolution with channels last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        d_x = d_weight = None
        grad = grad.contiguous(memory_format=torch.channels_last)
        if of_x:
            # stride, padding, dilation, not transposed, output padding, groups; x's gradient alone
            how = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False])
            d_x = torch.ops.aten.convolution_backward(grad, x, weight, None, *how)[0]
        if of_weight:
            # With channels last the gradient is (positions, out), the weights are (out, 9 in).
            product = grad.movedim(1, 3).flatten(0, 2).t() @ _neighbourhoods(x)
            d_weight = product.view(len(weight), 3, 3, x.shape[1]).movedim(3, 1)
        return d_x, d_weight, grad.sum((0, 2, 3)) if of_bias else None


def _neighbourhoods(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N h w, 9 C): the 3x3 values around each position, zeros beyond the border; channels last."""
    padded = F.pad(x.movedim(1, 3), (0, 0, 1, 1, 1, 1))
    n, h, w, c = padded.shape
    sample, row, column, channel = padded.stride()
    windows = padded.as_strided((n, h - 2, w - 2, 3, 3, c), (sample, row, column, row, column, channel))
    return windows.reshape(-1, 9 * c)


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
        self.expand = WideConv(hidden or in_channels, expanded, 3, padding=1, bias=predicts)
        if predicts:
            start_near_zero(self.expand)
            self.finish: nn.Module = nn.Identity()
        else:
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
