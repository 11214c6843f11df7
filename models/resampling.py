"""Pooling and upsampling as PyTorch's own, with gradients that a GPU writes in one or two plain passes.

PyTorch's backward kernels for average pooling and bilinear upsampling gather or scatter value by value: some .6 ms a
call on an H200 for maps that are copied in a tenth of that. What is computed is the same. On a CPU, and where a
compiler makes the kernels, PyTorch's own run.

Shapes: N crops, C channels, H W the side lengths of the larger map, h w of the smaller.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def pool_blocks(x: Tensor, size: int) -> Tensor:
    """The mean of each block of size x size: (N, C, H, W) -> (N, C, H/size, W/size), sides divisible by size."""
    if _own(x):
        pooled: Tensor = _PoolBlocks.apply(x, size)
        return pooled
    return F.avg_pool2d(x, size)


def pool_3x3(x: Tensor, stride: int) -> Tensor:
    """The mean of 3x3 values, zeros around the map counted: (N, C, H, W) -> (N, C, H/stride, W/stride)."""
    if stride == 2 and x.shape[2] % 2 == x.shape[3] % 2 == 0 and _own(x):
        pooled: Tensor = _HalvingPool.apply(x)
        return pooled
    return F.avg_pool2d(x, 3, stride=stride, padding=1)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear, between pixel centres as in OpenCV: (N, C, h, w) -> (N, C, factor*h, factor*w)."""
    if _own(x):
        larger: Tensor = _Upsample.apply(x, factor)
        return larger
    return _interpolated(x, factor)


def _own(x: Tensor) -> bool:
    return x.device.type == "cuda" and not torch.compiler.is_compiling()


def _interpolated(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class _PoolBlocks(torch.autograd.Function):
    """`pool_blocks`; its gradient is the smaller one, repeated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.size = size
        return F.avg_pool2d(x, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        h, w = grad.shape[2:]
        size = ctx.size
        full = _empty(grad, size)
        blocks = full.unflatten(3, (w, size)).unflatten(2, (h, size))
        blocks.copy_((grad / size**2)[:, :, :, None, :, None])
        return full, None


class _HalvingPool(torch.autograd.Function):
    """`pool_3x3` with stride 2.

    An even row of x is in one window, an odd one in two, columns likewise: each of the four kinds of pixels has a
    gradient that is a sum of one, two or four shifted views of the smaller map.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return F.avg_pool2d(x, 3, stride=2, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx
        full = _empty(grad, 2)
        # The window beyond the last one does not exist: zeros.
        share = F.pad(grad / 9, (0, 1, 0, 1))
        here, right = share[..., :-1], share[..., 1:]
        across = here + right
        full[:, :, ::2, ::2] = here[:, :, :-1]
        full[:, :, ::2, 1::2] = across[:, :, :-1]
        torch.add(here[:, :, :-1], here[:, :, 1:], out=full[:, :, 1::2, ::2])
        torch.add(across[:, :, :-1], across[:, :, 1:], out=full[:, :, 1::2, 1::2])
        return full


class _Upsample(torch.autograd.Function):
    """`upsample`; its gradient is two matrix products, one along each side.

    Bilinear weights of a whole factor are multiples of 1/(2 factor): exact in every type for a power of two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return _interpolated(x, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        n, c, height, width = grad.shape
        h, w = height // ctx.factor, width // ctx.factor
        # Rows first, as one product a crop whose inner side is all of a row's columns and channels.
        rows = grad.movedim(1, 3).reshape(n, height, width * c)
        rows = torch.bmm(_weights(h, ctx.factor, grad).expand(n, -1, -1), rows)
        columns = torch.bmm(_weights(w, ctx.factor, grad).expand(n * h, -1, -1), rows.reshape(n * h, width, c))
        return columns.reshape(n, h, w, c).movedim(3, 1).contiguous(memory_format=_layout(grad)), None


def _weights(length: int, factor: int, like: Tensor) -> Tensor:
    """(length, factor*length): how much of each upsampled value came from each value; type and device of `like`."""
    one_at_a_time = torch.eye(length, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(one_at_a_time, scale_factor=float(factor), mode="linear", align_corners=False)[0]


def _empty(grad: Tensor, factor: int) -> Tensor:
    """A map `factor` times as large as `grad`, in its layout and type."""
    n, c, h, w = grad.shape
    return torch.empty(
        (n, c, factor * h, factor * w), dtype=grad.dtype, device=grad.device, memory_format=_layout(grad)
    )


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format
