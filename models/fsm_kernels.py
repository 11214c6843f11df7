"""FSM's passes over the features as Triton kernels; `fsm_fused` says what they are parts of.

Each reads every full-size tensor once. A ReLU passes what is no number, as PyTorch's does and `tl.maximum` does not:
a run that diverges must show it. Sums run in float32 (float64 for float64), in a fixed order: a program owns all
positions of its channels, and what is summed over channels is written by blocks of channels and added up after.

Shapes: F, X, Y and their gradients (N, C, H, W) in any layout whose positions P = H*W lie at equal distances, that is
NCHW and NHWC; per channel (N, C); per position (N, P), by blocks of channels (B, N, P). Offsets within one sample are
32-bit, between samples 64-bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from efafnet.models.fsm_fused import BLOCK, LINE

_WARPS = 8


@triton.jit
def _statistics(
    f, weight, z, index, dots, C, P, f_n, f_c, f_p, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    POOL: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Mean plus maximum over the positions and where the maximum is; dot products along the channels."""
    n = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    here = f + n * f_n + c[None, :] * f_c
    total = tl.zeros((BLOCK_P, BLOCK_C), SUM)
    largest = tl.full((BLOCK_P, BLOCK_C), float("-inf"), SUM)
    first = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    if DOT:
        along = tl.load(weight + c, mask=c < C, other=0).to(SUM)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p[:, None] < P) & (c[None, :] < C)
        x = tl.load(here + p[:, None] * f_p, mask=inside, other=0).to(SUM)
        if DOT:
            row = (block * tl.num_programs(0) + n) * P
            tl.store(dots + row + p, tl.sum(x * along[None, :], 1), mask=p < P)
        if POOL:
            total += x
            larger = inside & (x > largest)
            first = tl.where(larger, p[:, None], first)
            largest = tl.where(larger, x, largest)
    if POOL:
        top = tl.max(largest, 0)
        # The first of equals, whatever the order in which a tile is searched.
        position = tl.min(tl.where(largest == top[None, :], first, P), 0)
        tl.store(z + n * C + c, tl.sum(total, 0) / P + top, mask=c < C)
        tl.store(index + n * C + c, position, mask=c < C)


@triton.jit
def _position_gate(
    dots, bias, weight2, bias2, logits, beta, M, BLOCKS, LINE: tl.constexpr, RELU: tl.constexpr, SUM: tl.constexpr
):
    """From dot products by blocks of channels to LSS's gates, position by position."""
    m = tl.program_id(0).to(tl.int64) * LINE + tl.arange(0, LINE)
    logit = tl.zeros((LINE,), SUM) + tl.load(bias).to(SUM)
    block = dots + m
    for _ in range(BLOCKS):
        logit += tl.load(block, mask=m < M, other=0)
        block += M
    u = tl.load(weight2).to(SUM) * tl.where(logit <= 0, 0, logit) + tl.load(bias2).to(SUM)
    if RELU:
        u = tl.where(u <= 0, 0, u)
    tl.store(logits + m, logit, mask=m < M)
    tl.store(beta + m, 1 / (1 + tl.exp(-u)), mask=m < M)


@triton.jit
def _gate(
    f, identity, alpha, beta, y, C, P, f_n, f_c, f_p, x_n, x_c, x_p, y_n, y_c, y_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, CS: tl.constexpr, LSS: tl.constexpr, RESIDUAL: tl.constexpr,
    BASE: tl.constexpr, SCALE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """F times its gates, added to the identity, under a ReLU."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (p[:, None] < P) & (c[None, :] < C)
    factor = tl.full((BLOCK_P, BLOCK_C), BASE, SUM)
    if CS:
        factor += SCALE * tl.load(alpha + n * C + c, mask=c < C, other=0)[None, :]
    if LSS:
        factor += SCALE * tl.load(beta + n * P + p, mask=p < P, other=0)[:, None]
    out = factor * tl.load(f + n * f_n + c[None, :] * f_c + p[:, None] * f_p, mask=inside, other=0).to(SUM)
    if RESIDUAL:
        out += tl.load(identity + n * x_n + c[None, :] * x_c + p[:, None] * x_p, mask=inside, other=0).to(SUM)
        out = tl.where(out <= 0, 0, out)
    tl.store(y + n * y_n + c[None, :] * y_c + p[:, None] * y_p, out, mask=inside)


@triton.jit
def _gate_backward(
    grad, y, f, inner, d_alpha, d_beta, C, P, d_n, d_c, d_p, y_n, y_c, y_p, f_n, f_c, f_p, i_n, i_c, i_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, CS: tl.constexpr, LSS: tl.constexpr, RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The gradient under the ReLU, and its product with F summed over positions and, by blocks, over channels."""
    n = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    by_channel = tl.zeros((BLOCK_P, BLOCK_C), SUM)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p[:, None] < P) & (c[None, :] < C)
        g = tl.load(grad + n * d_n + c[None, :] * d_c + p[:, None] * d_p, mask=inside, other=0)
        if RESIDUAL:
            out = tl.load(y + n * y_n + c[None, :] * y_c + p[:, None] * y_p, mask=inside, other=0)
            g = tl.where(out <= 0, 0, g)
            tl.store(inner + n * i_n + c[None, :] * i_c + p[:, None] * i_p, g, mask=inside)
        x = tl.load(f + n * f_n + c[None, :] * f_c + p[:, None] * f_p, mask=inside, other=0)
        product = x.to(SUM) * g.to(SUM)
        by_channel += product
        if LSS:
            row = (block * tl.num_programs(0) + n) * P
            tl.store(d_beta + row + p, SCALE * tl.sum(product, 1), mask=p < P)
    if CS:
        tl.store(d_alpha + n * C + c, SCALE * tl.sum(by_channel, 0), mask=c < C)


@triton.jit
def _position_gate_backward(
    d_beta, logits, beta, weight2, bias2, d_logits, sums, M, BLOCKS,
    LINE: tl.constexpr, RELU: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """From the gates' gradient by blocks of channels to the dot products'; sums for LSS's three numbers."""
    m = tl.program_id(0).to(tl.int64) * LINE + tl.arange(0, LINE)
    g = tl.zeros((LINE,), SUM)
    block = d_beta + m
    for _ in range(BLOCKS):
        g += tl.load(block, mask=m < M, other=0)
        block += M
    gate = tl.load(beta + m, mask=m < M, other=0)
    logit = tl.load(logits + m, mask=m < M, other=0)
    hidden = tl.where(logit <= 0, 0, logit)
    scale = tl.load(weight2).to(SUM)
    d_u = g * gate * (1 - gate)
    if RELU:
        d_u = tl.where(scale * hidden + tl.load(bias2).to(SUM) <= 0, 0, d_u)
    d_logit = tl.where(logit <= 0, 0, d_u * scale)
    tl.store(d_logits + m, d_logit, mask=m < M)
    here = sums + tl.program_id(0) * 3
    tl.store(here, tl.sum(d_logit, 0))
    tl.store(here + 1, tl.sum(d_u * hidden, 0))
    tl.store(here + 2, tl.sum(d_u, 0))


@triton.jit
def _features_backward(
    inner, f, alpha, beta, d_z, index, d_logits, weight, d_f, d_weight, C, P,
    i_n, i_c, i_p, f_n, f_c, f_p, o_n, o_c, o_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, CS: tl.constexpr, LSS: tl.constexpr,
    BASE: tl.constexpr, SCALE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """F's gradient: through its factor, its poolings and its dot products at once; the latter's weights', by sample."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    by_channel = tl.full((BLOCK_C,), BASE, SUM)
    if CS:
        by_channel += SCALE * tl.load(alpha + n * C + c, mask=c < C, other=0)
        peak = tl.load(d_z + n * C + c, mask=c < C, other=0).to(SUM)
        where = tl.load(index + n * C + c, mask=c < C, other=0)
        share = peak / P
    if LSS:
        along = tl.load(weight + c, mask=c < C, other=0).to(SUM)
        of_weight = tl.zeros((BLOCK_P, BLOCK_C), SUM)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p[:, None] < P) & (c[None, :] < C)
        g = tl.load(inner + n * i_n + c[None, :] * i_c + p[:, None] * i_p, mask=inside, other=0).to(SUM)
        if LSS:
            gate = tl.load(beta + n * P + p, mask=p < P, other=0)
            d_logit = tl.load(d_logits + n * P + p, mask=p < P, other=0)
            x = tl.load(f + n * f_n + c[None, :] * f_c + p[:, None] * f_p, mask=inside, other=0).to(SUM)
            of_weight += x * d_logit[:, None]
            out = g * (by_channel[None, :] + SCALE * gate[:, None]) + d_logit[:, None] * along[None, :]
        else:
            out = g * by_channel[None, :]
        if CS:
            out += share[None, :] + tl.where(p[:, None] == where[None, :], peak[None, :], 0)
        tl.store(d_f + n * o_n + c[None, :] * o_c + p[:, None] * o_p, out, mask=inside)
    if LSS:
        tl.store(d_weight + n * C + c, tl.sum(of_weight, 0), mask=c < C)


# ---- the launches; arguments and results are those of the operators in `fsm_fused`


def _sizes(f: Tensor) -> tuple[int, int, int]:
    n, c, h, w = f.shape
    return n, c, h * w


def _tile(c: int, p: int, f: Tensor) -> dict[str, Any]:
    return {
        "BLOCK_C": min(BLOCK, triton.next_power_of_2(c)),
        "BLOCK_P": min(BLOCK, triton.next_power_of_2(p)),
        "SUM": _sum_type(f),
        "num_warps": _WARPS,
    }


def _sum_type(values: Tensor) -> Any:
    return tl.float64 if values.dtype == torch.float64 else tl.float32


def _strides(t: Tensor) -> tuple[int, int, int]:
    """Distances of samples, channels and positions; `fsm_fused.even` made the positions' equal."""
    return t.stride(0), t.stride(1), t.stride(2) if t.shape[3] == 1 else t.stride(3)


def statistics(f: Tensor, weight: Tensor | None, pool: bool, out: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill z, the maxima's positions and the dot products."""
    n, c, p = _sizes(f)
    tile = _tile(c, p, f)
    _statistics[(n, triton.cdiv(c, tile["BLOCK_C"]))](
        f, weight, *out, c, p, *_strides(f), POOL=pool, DOT=weight is not None, **tile
    )


def position_gate(
    dots: Tensor, bias: Tensor, weight2: Tensor, bias2: Tensor, relu: bool, out: tuple[Tensor, Tensor]
) -> None:
    """Fill the logits and the gates."""
    m = out[0].numel()
    _position_gate[(triton.cdiv(m, LINE),)](
        dots, bias, weight2, bias2, *out, m, dots.shape[0], LINE=LINE, RELU=relu, SUM=_sum_type(dots)
    )


def gate(
    f: Tensor, identity: Tensor | None, alpha: Tensor | None, beta: Tensor | None, base: float, scale: float, y: Tensor
) -> None:
    """Fill Y."""
    n, c, p = _sizes(f)
    tile = _tile(c, p, f)
    _gate[(n, triton.cdiv(c, tile["BLOCK_C"]), triton.cdiv(p, tile["BLOCK_P"]))](
        f, identity, alpha, beta, y, c, p, *_strides(f), *_strides(f if identity is None else identity), *_strides(y),
        CS=alpha is not None, LSS=beta is not None, RESIDUAL=identity is not None, BASE=base, SCALE=scale, **tile,
    )  # fmt: skip


def gate_backward(
    grad: Tensor, y: Tensor | None, f: Tensor, cs: bool, lss: bool, scale: float, out: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Fill the gradient under the ReLU (with Y only), the channels' gates' and, by blocks, the positions' gates'."""
    n, c, p = _sizes(f)
    tile = _tile(c, p, f)
    inner, d_alpha, d_beta = out
    strides = (*_strides(grad), *_strides(f if y is None else y), *_strides(f), *_strides(f if y is None else inner))
    _gate_backward[(n, triton.cdiv(c, tile["BLOCK_C"]))](
        grad, y, f, inner, d_alpha, d_beta, c, p, *strides,
        CS=cs, LSS=lss, RESIDUAL=y is not None, SCALE=scale, **tile,
    )  # fmt: skip


def position_gate_backward(
    d_beta: Tensor, logits: Tensor, beta: Tensor, weight2: Tensor, bias2: Tensor, relu: bool, out: tuple[Tensor, Tensor]
) -> None:
    """Fill the logits' gradient and, by programs, the sums for the first bias, second weight and second bias."""
    m = logits.numel()
    _position_gate_backward[(triton.cdiv(m, LINE),)](
        d_beta, logits, beta, weight2, bias2, *out, m, d_beta.shape[0], LINE=LINE, RELU=relu, SUM=_sum_type(d_beta)
    )


def features_backward(
    inner: Tensor, f: Tensor, alpha: Tensor | None, beta: Tensor | None, d_z: Tensor | None, index: Tensor | None,
    d_logits: Tensor | None, weight: Tensor | None, base: float, scale: float, out: tuple[Tensor, Tensor],
) -> None:  # fmt: skip
    """Fill F's gradient and, by samples, that of the dot products' weights."""
    n, c, p = _sizes(f)
    tile = _tile(c, p, f)
    _features_backward[(n, triton.cdiv(c, tile["BLOCK_C"]))](
        inner, f, alpha, beta, d_z, index, d_logits, weight, *out, c, p,
        *_strides(inner), *_strides(f), *_strides(out[0]),
        CS=alpha is not None, LSS=beta is not None, BASE=base, SCALE=scale, **tile,
    )  # fmt: skip
