"""The few layers every part of the network is built from, and how their weights start."""

from __future__ import annotations

from torch import nn


def conv_bn(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias (the norm has one), "same" padding, batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """`conv_bn` followed by a ReLU."""
    return conv_bn(in_channels, out_channels, kernel, stride=stride, groups=groups).append(nn.ReLU(inplace=True))


def prediction_conv(in_channels: int, out_channels: int, kernel: int = 1) -> nn.Conv2d:
    """Convolution that emits heatmaps: biased, started near zero (std 0.001) as in the simple baselines.

    Nearly the whole target is background, so a start near zero saves the first steps from unlearning noise.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.normal_(conv.weight, std=0.001)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
