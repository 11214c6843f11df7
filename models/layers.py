"""The few layers every part of the network is built from, and how their weights start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution of stride 1. With channels last it is the product of two matrices where they lie, and on a CPU
    is computed as that: the convolution kernels rearrange the weights at every call, which takes longer than the
    product where a map has few positions, and up to twice as long in all.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        # To one channel it is a dot product along the channels, at which convolution kernels are slow everywhere.
        as_product = x.device.type == "cpu" or self.out_channels == 1
        # An exported file says what the network is: a convolution, which every runtime knows how to do fast.
        if torch.compiler.is_exporting() or not as_product or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        # Channels last here too: the gradient then has the layout in which DDP keeps it.
        weight = self.weight.movedim(1, 3).flatten(0, 2)
        return F.linear(x.movedim(1, 3), weight, self.bias).movedim(3, 1)


def split_channels(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Parts of x (N, sum of the widths, H, W).

    With channels last a part is a row of a few numbers for each position. Arithmetic on such rows, shorter than a
    CPU's vectors, takes up to 25 times as long as on as many numbers that lie together; bringing them together takes a
    tenth of that.
    """
    parts = x.split(list(widths), dim=1)
    return tuple(map(_together, parts)) if _in_short_rows(x) else parts


def join_channels(parts: Sequence[Tensor]) -> Tensor:
    """``torch.cat`` along the channels, whose gradient is split as by `split_channels`."""
    if all(_in_short_rows(part) for part in parts):
        joined: Tensor = _JoinChannels.apply(*parts)
        return joined
    return torch.cat(tuple(parts), dim=1)


class _JoinChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.widths = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(_together, grad.split(ctx.widths, dim=1)))


def _in_short_rows(x: Tensor) -> bool:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return x.device.type == "cpu" and last and not torch.compiler.is_compiling()


def _together(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last)


def conv_bn(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias (the norm has one), "same" padding, batch norm."""
    if kernel == stride == groups == 1:
        conv: nn.Conv2d = PointwiseConv(in_channels, out_channels, bias=False)
    else:
        padding = kernel // 2
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """`conv_bn` followed by a ReLU."""
    return conv_bn(in_channels, out_channels, kernel, stride=stride, groups=groups).append(nn.ReLU(inplace=True))


def prediction_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """1x1 convolution that emits heatmaps."""
    return start_near_zero(nn.Conv2d(in_channels, out_channels, 1))


def start_near_zero(conv: nn.Conv2d) -> nn.Conv2d:
    """Let a convolution that emits heatmaps start near zero (std 0.001), as in the simple baselines.

    Nearly the whole target is background, so a start near zero saves the first steps from unlearning noise.
    """
    nn.init.normal_(conv.weight, std=0.001)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
