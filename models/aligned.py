"""FAM on aligned channels: splits of 26 and 52 channels computed as 32 and 56, the same function.

Tensor cores take channels in steps of 16 bytes, 8 values of half precision: convolutions of 26 channels are padded at
every call or fall to slow kernels (on an H200, FAM at 26 channels cost four times FAM at 16, a twofold width). Here a
bottleneck's small weights are padded instead, with zeros, from the first 1x1 to the last. The additional channels are
zero throughout: their convolutions have zero weights, and batch norm with scale and shift zero leaves zero. Nothing is
stored: parameters, buffers, state dict and optimizer are those of the narrow form, and what flows into the padding's
gradient is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efafnet.models.fasm import SPLITS, FeatureAggregation

STEP = 8
"""Channels that make 16 bytes of half precision."""
_HALF = (torch.bfloat16, torch.float16)
_Module = TypeVar("_Module", bound=nn.Module)


def is_faster(fam: FeatureAggregation, x: Tensor) -> bool:
    """Whether the aligned form is the faster one: on a GPU in half precision, where the splits are not aligned.

    Batch norm over several GPUs computes its statistics in a module of its own, which sees the narrow form only.
    """
    if x.device.type != "cuda" or fam.split_channels % STEP == 0:
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return dtype in _HALF and not any(isinstance(module, nn.SyncBatchNorm) for module in fam.modules())


def bottleneck(reduce: nn.Sequential, fam: FeatureAggregation, expand: nn.Sequential, x: Tensor) -> Tensor:
    """``expand(fam(reduce(x)))`` through wider splits.

    Args:
        reduce: 1x1, batch norm and ReLU, to the four splits.
        fam: between them.
        expand: 1x1 and batch norm.
        x: (N, C, H, W).
    """
    w = fam.split_channels
    extra = -w % STEP
    units = [reduce, *fam.units]
    norms = _Norms([_part(unit, 1, nn.BatchNorm2d) for unit in units], w, extra)

    def unit(index: int, weight: Tensor) -> Callable[[Tensor], Tensor]:
        conv = _part(units[index], 0, nn.Conv2d)

        def call(x: Tensor) -> Tensor:
            y = F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            return F.relu_(norms(index, y))

        return call

    narrow = [_part(unit, 0, nn.Conv2d).weight for unit in units]
    splits = unit(0, _rows(narrow[0], w, extra))(x)
    # Each G has as many input channels as one split; three of them may be one convolution with three groups.
    inner = [_rows(F.pad(weight, (0, 0, 0, 0, 0, extra)), w, extra) for weight in narrow[1:]]
    joined = fam.connected(splits, [unit(1 + i, weight) for i, weight in enumerate(inner)])
    norms.write_back()
    last = F.pad(_part(expand, 0, nn.Conv2d).weight.unflatten(1, (SPLITS, w)), (0, 0, 0, 0, 0, extra)).flatten(1, 2)
    y: Tensor = expand[1](F.conv2d(joined, last))
    return y


def _part(unit: nn.Module, index: int, kind: type[_Module]) -> _Module:
    assert isinstance(unit, nn.Sequential)
    part = unit[index]
    assert isinstance(part, kind)
    return part


def _rows(weight: Tensor, w: int, extra: int) -> Tensor:
    """(splits * w, C, kh, kw) -> (splits * (w + extra), C, kh, kw), zeros behind each split's rows."""
    if weight.shape[0] == w:
        return F.pad(weight, (0, 0, 0, 0, 0, 0, 0, extra))
    return F.pad(weight.unflatten(0, (-1, w)), (0, 0, 0, 0, 0, 0, 0, extra)).flatten(0, 1)


class _Vectors(NamedTuple):
    """One batch norm's, wide."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor


class _Norms:
    """A bottleneck's batch norms with padded vectors, which are padded all at once: each is a few hundred bytes, and
    what counts is the number of kernels."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d], w: int, extra: int) -> None:
        self.norms = norms
        self.width = w
        counts = [norm.num_features // w for norm in self.norms] * 2
        affine = torch.cat([*(norm.weight for norm in self.norms), *(norm.bias for norm in self.norms)])
        self.running = [*(norm.running_mean for norm in self.norms), *(norm.running_var for norm in self.norms)]
        with torch.no_grad():
            statistics = F.pad(torch.cat([t for t in self.running if t is not None]).view(-1, w), (0, extra))
        self.statistics = statistics.split(counts)
        rows = F.pad(affine.view(-1, w), (0, extra)).split(counts)
        vectors = [part.flatten() for part in (*rows, *self.statistics)]
        # All weights, then all biases, means and variances.
        n = len(self.norms)
        self.vectors = [_Vectors(*vectors[i::n]) for i in range(n)]

    def __call__(self, index: int, x: Tensor) -> Tensor:
        norm, (weight, bias, mean, variance) = self.norms[index], self.vectors[index]
        assert norm.momentum is not None
        return F.batch_norm(x, mean, variance, weight, bias, norm.training, norm.momentum, norm.eps)

    def write_back(self) -> None:
        """Bring the running statistics of this pass to the modules' own buffers."""
        n = len(self.norms)
        training = [i for i, norm in enumerate(self.norms) if norm.training]
        if not training:
            return
        own, passed, counters = [], [], []
        for i in training:
            own += [t for t in (self.running[i], self.running[n + i]) if t is not None]
            passed += [self.statistics[k][:, : self.width].flatten() for k in (i, n + i)]
            counters += [t for t in (self.norms[i].num_batches_tracked,) if t is not None]
        with torch.no_grad():
            torch._foreach_copy_(own, passed)
            torch._foreach_add_(counters, 1)
