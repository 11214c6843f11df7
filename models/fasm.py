"""The Feature Aggregation and Selection Module: FAM (eq. 1) and FSM (eqs. 2-8).

Shapes: N crops, C channels, H W the side lengths of the feature map at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from efafnet.models.fsm_fused import ChannelWeights, Gating, PositionWeights, gated, usable
from efafnet.models.layers import PointwiseConv, conv_bn_relu, join_channels, split_channels
from efafnet.models.network_config import Arrangement, Merge
from efafnet.models.resampling import pool_3x3

SPLITS = 4
"""s of eq. 1."""


class FeatureAggregation(nn.Module):
    """FAM: a 3x3 convolution replaced by four channel splits that see each other one after the other (eq. 1).

    ``y1 = x1``, ``yi = Gi(xi + y(i-1))``, each G a 3x3 convolution with batch norm and ReLU; the results are
    concatenated. With ``recurrence="res2net"`` the first addition is left out and the untouched split is the last,
    as in Res2Net (Gao et al., 2019). With ``chained=False`` (the paper is silent on strided blocks) the form is
    Res2Net's for the first block of a stage: the untouched split is average-pooled, and nothing is added between
    splits of what would be different sizes.

    Args:
        split_channels: channels of one split; input and output have four times as many.
        stride: of the 3x3 convolutions and the pooling; above 1 only when not chained.
        chained: whether splits are added to each other.
        recurrence: `literal` is eq. 1, `res2net` the form Res2Net weights expect.
    """

    def __init__(
        self, split_channels: int, *, stride: int, chained: bool, recurrence: Literal["literal", "res2net"]
    ) -> None:
        super().__init__()
        assert chained is False or stride == 1
        self.split_channels = split_channels
        self.stride = stride
        self.chained = chained
        self.literal = recurrence == "literal"
        moving = SPLITS - 1
        if chained:
            self.branches = nn.ModuleList(conv_bn_relu(split_channels, split_channels, 3) for _ in range(moving))
        else:
            # Nothing passes between the splits, so the three convolutions are one with three groups: one kernel
            # instead of nine, which is what small networks and small feature maps are short of.
            width = moving * split_channels
            self.grouped = conv_bn_relu(width, width, 3, stride=stride, groups=moving)

    @property
    def units(self) -> list[nn.Module]:
        """The G's, each a convolution with batch norm and ReLU; one for all three where nothing is chained."""
        return list(self.branches) if self.chained else [self.grouped]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4*split, H, W) -> (N, 4*split, H/stride, W/stride)."""
        return self.connected(x, self.units)

    def connected(self, x: Tensor, units: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """Eq. 1 with `units` in place of the module's own; the splits are as wide as a quarter of x's channels."""
        if not self.chained:
            return self._independent(x, units[0])
        splits = split_channels(x, [x.shape[1] // SPLITS] * SPLITS)
        if self.literal:
            outputs = [splits[0]]
            for unit, split in zip(units, splits[1:], strict=True):
                outputs.append(unit(split + outputs[-1]))
        else:
            outputs = [units[0](splits[0])]
            for unit, split in zip(units[1:], splits[1:-1], strict=True):
                outputs.append(unit(split + outputs[-1]))
            outputs.append(splits[-1])
        return join_channels(outputs)

    def _independent(self, x: Tensor, grouped: Callable[[Tensor], Tensor]) -> Tensor:
        w = x.shape[1] // SPLITS
        # One split, not two slices: the gradients of slices would be two full-size tensors of zeros, added.
        if self.literal:
            untouched, moving = split_channels(x, (w, 3 * w))
        else:
            moving, untouched = split_channels(x, (3 * w, w))
        pooled = pool_3x3(untouched, self.stride)
        convolved = grouped(moving)
        return join_channels((pooled, convolved) if self.literal else (convolved, pooled))


class ChannelSelection(nn.Module):
    """CS, the channel weights alpha (eqs. 4-6, Fig. 4): two layers over the pooled features, under a sigmoid.

    The text describes both "average plus maximum" (eq. 4) and a mean (eq. 5); here z = mean + maximum over the
    positions, through one pair of layers: C -> C/reduction -> C.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> alpha (N, C, 1, 1) in 0..1."""
        return self.of_pooled(mean_plus_maximum(x))

    def of_pooled(self, z: Tensor) -> Tensor:
        """Mean plus maximum of each channel (N, C) -> alpha (N, C, 1, 1)."""
        alpha = torch.sigmoid(self.excite(F.relu(self.squeeze(z))))
        return alpha[:, :, None, None]

    def weights(self) -> ChannelWeights:
        """What the form for GPUs takes."""
        return ChannelWeights(self.squeeze.weight, self.squeeze.bias, self.excite.weight, self.excite.bias)


def mean_plus_maximum(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C): the two global poolings of eq. 4, added."""
    if torch.compiler.is_compiling():
        return x.mean((2, 3)) + x.flatten(2).max(-1).values
    z: Tensor = _MeanPlusMaximum.apply(x)
    return z


class _MeanPlusMaximum(torch.autograd.Function):
    """One full-size gradient for both poolings, written once in the input's layout; torch's own two are each filled
    with zeros first, and the mean's is copied from one layout to the other and back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        z, index = _pooled(x)
        ctx.save_for_backward(x, index)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, index = ctx.saved_tensors
        share = grad / x[0, 0].numel()
        full = torch.empty_like(x).copy_(share[:, :, None, None])
        full[_places(index, x)] = share + grad
        return full


def _pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> mean plus maximum (N, C), and which of the H * W values was the maximum (N, C)."""
    if x.device.type == "cpu":
        # Pooling over one window: a reduction in half precision, or with indices, is several times slower here.
        mean = F.avg_pool2d(x, x.shape[2:]).flatten(1)
        maximum, index = F.adaptive_max_pool2d(x, 1, return_indices=True)
    else:
        # On a GPU a pooling window is one thread's work and a reduction is everybody's.
        mean = x.mean((2, 3))
        maximum, index = x.flatten(2).max(-1)
    return mean + maximum.flatten(1), index.flatten(1)


def _places(index: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What addresses the maxima in x. To be assigned by, not scattered: a scatter in bfloat16 copies all on a CPU."""
    n, c, _, w = x.shape
    return torch.arange(n, device=x.device)[:, None], torch.arange(c, device=x.device), index // w, index % w


class LocationSelection(nn.Module):
    """LSS, the position weights beta (eq. 2): 1x1 convolutions C -> 1 -> 1 with a ReLU between, under a sigmoid.

    Eq. 2 has a second ReLU right under the sigmoid (``relu=True``): it holds a gate at 1/2 with no gradient wherever
    the second convolution is negative, so the default leaves it out.
    """

    def __init__(self, channels: int, *, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.weigh = PointwiseConv(channels, 1)
        self.adjust = PointwiseConv(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> beta (N, 1, H, W) in 0..1."""
        return self.of_weighed(self.weigh(x))

    def of_weighed(self, sums: Tensor) -> Tensor:
        """The first convolution's output (N, 1, H, W) -> beta."""
        logits = self.adjust(F.relu(sums))
        return torch.sigmoid(F.relu(logits) if self.relu else logits)

    def weights(self) -> PositionWeights:
        """What the form for GPUs takes."""
        assert self.weigh.bias is not None
        assert self.adjust.bias is not None
        return PositionWeights(self.weigh.weight, self.weigh.bias, self.adjust.weight, self.adjust.bias)


class _PooledAndWeighed(torch.autograd.Function):
    """What both gates take of F, on a CPU with channels last, and F itself for what the gates are applied to.

    F has three consumers, each with a gradient of full size, and PyTorch adds them one by one. Here the poolings' and
    the convolution's are added in place to that of the third, which is new and nobody else's: in half precision as one
    product of matrices of rank two. F must have no other consumer than this function.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, index = _pooled(x)
        sums = F.linear(x.movedim(1, 3), weight.flatten(1), bias).movedim(3, 1)
        ctx.save_for_backward(x, weight, index)
        return x, z, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, of_z: Tensor, of_sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, index = ctx.saved_tensors
        n, c, h, w = x.shape
        grad = grad.contiguous(memory_format=torch.channels_last)
        rows, per_row = (t.movedim(1, 3).flatten(1, 2) for t in (grad, of_sums.to(x.dtype)))
        row, share = weight.to(x.dtype).view(1, 1, c), (of_z / (h * w))[:, None]
        if x.dtype == torch.bfloat16:
            factors = (
                torch.cat((per_row, torch.ones_like(per_row)), dim=2),
                torch.cat((row.expand(n, 1, c), share), dim=1),
            )
            torch.baddbmm(rows, *factors, out=rows)
        else:
            rows.addcmul_(per_row, row).add_(share)
        maxima = _places(index, x)
        grad[maxima] = grad[maxima] + of_z
        of_weight = per_row.reshape(1, -1) @ x.movedim(1, 3).reshape(-1, c)
        # With channels last as the weight: DDP copies a gradient of another layout, and warns.
        return grad, of_weight.view(1, 1, 1, c).movedim(3, 1), per_row.sum().view(1)


class FeatureSelection(nn.Module):
    """FSM: how much each value of the aggregated features F counts, and the addition to the identity X.

    With X' = X + alpha X (eq. 7) and X' = X + beta X (eq. 3), and in parallel F + alpha F plus F + beta F (eq. 8),
    every arrangement is F times a factor:

    ============  ========================  =============================
    arrangement   factor                    `scaled` divides by (at 1/2)
    ============  ========================  =============================
    parallel      2 + alpha + beta          3
    cs, lss       1 + alpha, 1 + beta       3/2
    cs_lss, ...   (1 + alpha)(1 + beta)     9/4
    ============  ========================  =============================

    Scaled, the branch starts at about F, so a deep encoder keeps the activation scale of a plain residual network.
    """

    def __init__(
        self, channels: int, *, arrangement: Arrangement, reduction: int, lss_relu: bool, merge: Merge
    ) -> None:
        super().__init__()
        assert arrangement != "none"
        self.arrangement = arrangement
        self.lss_relu = lss_relu
        # In the order in which they act.
        order = ("cs", "lss") if arrangement == "parallel" else tuple(arrangement.split("_"))
        self.gates = nn.ModuleDict({part: self._gate(part, channels, reduction, relu=lss_relu) for part in order})
        at_start = {"parallel": 3.0, "cs": 1.5, "lss": 1.5, "cs_lss": 2.25, "lss_cs": 2.25}[arrangement]
        self.scale = 1 / at_start if merge == "scaled" else 1.0

    @staticmethod
    def _gate(part: str, channels: int, reduction: int, *, relu: bool) -> nn.Module:
        return ChannelSelection(channels, reduction) if part == "cs" else LocationSelection(channels, relu=relu)

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """F and X (N, C, H, W) -> relu(X + F * factor), the same shape."""
        return self.fused(x, identity) if usable(x, identity) else self.plain(x, identity)

    def plain(self, x: Tensor, identity: Tensor) -> Tensor:
        """The form that defines the function, and a CPU's."""
        s = self.scale
        if self.arrangement == "parallel":
            x, alpha, beta = self._both_gates(x)
            return gated_residual(x, identity, 2 * s + s * alpha, s * beta)
        *earlier, last = self.gates.values()
        for gate in earlier:
            x = x * (1 + gate(x))
        return F.relu_(identity + x * (s + s * last(x)))

    def _both_gates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F, alpha and beta; what is done with this F adds to its gradient in one go."""
        cs, lss = self.gates["cs"], self.gates["lss"]
        assert isinstance(cs, ChannelSelection)
        assert isinstance(lss, LocationSelection)
        last = x.is_contiguous(memory_format=torch.channels_last)
        if x.device.type == "cpu" and last and not torch.compiler.is_compiling():
            f, z, sums = _PooledAndWeighed.apply(x, lss.weigh.weight, lss.weigh.bias)
            return f, cs.of_pooled(z), lss.of_weighed(sums)
        return x, cs(x), lss(x)

    def fused(self, x: Tensor, identity: Tensor) -> Tensor:
        """A GPU's form, by the kernels of `fsm_kernels`."""
        s = self.scale
        if self.arrangement == "parallel":
            return gated(x, identity, *self._weights("cs", "lss"), Gating(2 * s, s, self.lss_relu))
        *earlier, last = self.gates
        for part in earlier:
            x = gated(x, None, *self._weights(part), Gating(1, 1, self.lss_relu))
        return gated(x, identity, *self._weights(last), Gating(s, s, self.lss_relu))

    def _weights(self, *parts: str) -> tuple[ChannelWeights | None, PositionWeights | None]:
        """Those of the named gates."""
        cs = lss = None
        for part in parts:
            gate = self.gates[part]
            if isinstance(gate, ChannelSelection):
                cs = gate.weights()
            elif isinstance(gate, LocationSelection):
                lss = gate.weights()
        return cs, lss


def gated_residual(x: Tensor, identity: Tensor, by_channel: Tensor, by_position: Tensor) -> Tensor:
    """``relu(identity + x * (by_channel + by_position))``.

    Args:
        x, identity: (N, C, H, W).
        by_channel: (N, C, 1, 1).
        by_position: (N, 1, H, W).
    """
    if torch.compiler.is_compiling():
        return torch.relu(identity + x * (by_channel + by_position))
    y: Tensor = _GatedResidual.apply(x, identity, by_channel, by_position)
    return y


class _GatedResidual(torch.autograd.Function):
    """By hand for time and memory: the full-size sum of the gates, which does not know of channels last, gets the
    layout of x, and is made again in the backward pass instead of being kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, identity: Tensor, by_channel: Tensor, by_position: Tensor) -> Tensor:
        y = torch.add(by_channel, by_position, out=torch.empty_like(x))
        torch.addcmul(identity, x, y, out=y).relu_()
        ctx.save_for_backward(x, by_channel, by_position, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, by_channel, by_position, y = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
        full = x * grad
        gates = full.sum((2, 3), keepdim=True), full.sum(1, keepdim=True)
        return torch.add(by_channel, by_position, out=full).mul_(grad), grad, *gates
