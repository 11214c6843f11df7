"""FSM in few passes: on a GPU its features are read once forwards for all gates, once to gate, twice backwards.

The plain form in `fasm` defines the function; this is the same one for CUDA tensors, as one autograd function over
operators that PyTorch's compilers can see (``torch.ops.efafnet.fsm_*``). The kernels are Triton's, in `fsm_kernels`,
which is imported at the first call: Triton comes with PyTorch's CUDA builds, and without it the plain form runs.

One gating, F (N, C, H, W) with gates alpha (N, C) and beta (N, P), P = H*W positions, each of which may be absent:

    F -> z (N, C), logits (N, P) -> alpha, beta -> Y = relu(X + F (base + scale alpha + scale beta))

Without the identity X there is no ReLU either: the first of two serial gates.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Channels of a program, and positions of its tile: 128 bytes of half precision, whichever is contiguous."""
LINE = 1024
"""Positions of a program that has no channels."""
_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class ChannelWeights(NamedTuple):
    """CS's two layers."""

    weight1: Tensor
    """(R, C)."""
    bias1: Tensor
    weight2: Tensor
    """(C, R)."""
    bias2: Tensor


class PositionWeights(NamedTuple):
    """LSS's two 1x1 convolutions."""

    weight1: Tensor
    """(1, C, 1, 1)."""
    bias1: Tensor
    weight2: Tensor
    """(1, 1, 1, 1)."""
    bias2: Tensor


class Gating(NamedTuple):
    """How the gates act: ``base + scale * (alpha + beta)``, and whether LSS has a ReLU under its sigmoid."""

    base: float
    scale: float
    lss_relu: bool


def usable(f: Tensor, identity: Tensor | None) -> bool:
    """Whether this form takes these tensors: on a GPU whose kernels have been found right, of one type."""
    return (
        f.device.type == "cuda"
        and f.dtype in _TYPES
        and (identity is None or (identity.dtype == f.dtype and identity.shape == f.shape))
        and f.numel() > 0
        and works(f.device.index, f.dtype)
    )


def gated(
    f: Tensor, identity: Tensor | None, cs: ChannelWeights | None, lss: PositionWeights | None, how: Gating
) -> Tensor:
    """One gating; see the module. F and X (N, C, H, W) -> Y, in F's layout."""
    y: Tensor = _Gated.apply(f, identity, how, *(cs or (None,) * 4), *(lss or (None,) * 4))
    return y


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, f: Tensor, identity: Tensor | None, how: Gating, w1: Tensor | None, b1: Tensor | None,
        w2: Tensor | None, b2: Tensor | None, v1: Tensor | None, c1: Tensor | None, v2: Tensor | None,
        c2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        f, identity = in_one_layout(f), None if identity is None else in_one_layout(identity)
        z, index, dots = _ops.fsm_statistics(f, v1, w1 is not None)
        hidden = alpha = logits = beta = None
        if w1 is not None and b1 is not None and w2 is not None and b2 is not None:
            # Two small layers, in the precision of the sums. Nothing in place: compilers have taken a value from before
            # for the one after (PyTorch 2.11, issue 180642).
            with torch.autocast("cuda", enabled=False):
                hidden = torch.addmm(b1.to(z.dtype), z, w1.to(z.dtype).t()).relu()
                alpha = torch.addmm(b2.to(z.dtype), hidden, w2.to(z.dtype).t()).sigmoid()
        if v1 is not None:
            logits, beta = _ops.fsm_position_gate(dots, c1, v2, c2, how.lss_relu)
        y: Tensor = _ops.fsm_gate(f, identity, alpha, beta, how.base, how.scale)
        ctx.how, ctx.residual = how, identity is not None
        kept = y if identity is not None else None
        ctx.save_for_backward(f, kept, z, index, hidden, alpha, logits, beta, w1, b1, w2, b2, v1, c1, v2, c2)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        f, y, z, index, hidden, alpha, logits, beta, w1, b1, w2, b2, v1, c1, v2, c2 = ctx.saved_tensors
        how: Gating = ctx.how
        cs, lss = w1 is not None, v1 is not None
        grad = in_one_layout(grad)
        inner, d_alpha, d_beta = _ops.fsm_gate_backward(grad, y, f, cs, lss, how.scale)
        inner = inner if ctx.residual else grad
        d_z = d_logits = None
        of_cs: tuple[Tensor | None, ...] = (None,) * 4
        of_lss: tuple[Tensor | None, ...] = (None,) * 4
        if cs:
            with torch.autocast("cuda", enabled=False):
                d_z, of_cs = _channel_gate_backward(d_alpha, alpha, hidden, z, (w1, b1, w2, b2))
        if lss:
            d_logits, sums = _ops.fsm_position_gate_backward(d_beta, logits, beta, v2, c2, how.lss_relu)
        pooled = (d_z, index) if cs else (None, None)
        d_f, by_sample = _ops.fsm_features_backward(inner, f, alpha, beta, *pooled, d_logits, v1, how.base, how.scale)
        if lss:
            d_c1, d_v2, d_c2 = sums.sum(0)
            # With channels last, as a network's parameters are: DDP copies a gradient of another layout, and warns.
            d_v1 = by_sample.sum(0).view(1, 1, 1, -1).movedim(3, 1)
            of_lss = tuple(g.view(p.shape).to(p.dtype) for g, p in ((d_v1, v1), (d_c1, c1), (d_v2, v2), (d_c2, c2)))
        return d_f, inner if ctx.residual else None, None, *of_cs, *of_lss


def _channel_gate_backward(
    d_alpha: Tensor, alpha: Tensor, hidden: Tensor, z: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients of z and of CS's two layers, from that of alpha."""
    w1, b1, w2, b2 = weights
    d_u = torch.ops.aten.sigmoid_backward(d_alpha, alpha)
    d_hidden = torch.ops.aten.threshold_backward(d_u @ w2.to(z.dtype), hidden, 0)
    of_weights = (d_hidden.t() @ z, d_hidden.sum(0), d_u.t() @ hidden, d_u.sum(0))
    return d_hidden @ w1.to(z.dtype), tuple(g.to(p.dtype) for g, p in zip(of_weights, (w1, b1, w2, b2), strict=True))


def in_one_layout(t: Tensor) -> Tensor:
    """`t` (N, C, H, W), copied into NHWC order if its positions do not lie at equal distances."""
    h, w = t.shape[2:]
    return t if h == 1 or w == 1 or t.stride(2) == w * t.stride(3) else t.contiguous(memory_format=torch.channels_last)


# ---- the operators: what they return, and where they are computed


def _sums(f: Tensor) -> torch.dtype:
    return torch.float64 if f.dtype == torch.float64 else torch.float32


def _empty_statistics(f: Tensor, weight: Tensor | None, pool: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = f.shape
    of_channels, blocks = (n, c) if pool else (0,), (-(-c // BLOCK), n, h * w) if weight is not None else (0,)
    z, dots = f.new_empty(of_channels, dtype=_sums(f)), f.new_empty(blocks, dtype=_sums(f))
    return z, f.new_empty(of_channels, dtype=torch.int32), dots


def _empty_position_gate(
    dots: Tensor, bias: Tensor, weight2: Tensor, bias2: Tensor, relu: bool
) -> tuple[Tensor, Tensor]:
    del bias, weight2, bias2, relu
    return dots.new_empty(dots.shape[1:]), dots.new_empty(dots.shape[1:])


def _empty_gate(
    f: Tensor, identity: Tensor | None, alpha: Tensor | None, beta: Tensor | None, base: float, scale: float
) -> Tensor:
    del identity, alpha, beta, base, scale
    return torch.empty_like(f)


def _empty_gate_backward(
    grad: Tensor, y: Tensor | None, f: Tensor, cs: bool, lss: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, scale
    n, c, h, w = f.shape
    inner = f.new_empty((0,)) if y is None else torch.empty_like(f)
    blocks = (-(-c // BLOCK), n, h * w) if lss else (0,)
    return inner, f.new_empty((n, c) if cs else (0,), dtype=_sums(f)), f.new_empty(blocks, dtype=_sums(f))


def _empty_position_gate_backward(
    d_beta: Tensor, logits: Tensor, beta: Tensor, weight2: Tensor, bias2: Tensor, relu: bool
) -> tuple[Tensor, Tensor]:
    del beta, weight2, bias2, relu
    return torch.empty_like(logits), d_beta.new_empty((-(-logits.numel() // LINE), 3))


def _empty_features_backward(
    inner: Tensor, f: Tensor, alpha: Tensor | None, beta: Tensor | None, d_z: Tensor | None, index: Tensor | None,
    d_logits: Tensor | None, weight: Tensor | None, base: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    del inner, alpha, beta, d_z, index, d_logits, base, scale
    return torch.empty_like(f), f.new_empty((0,) if weight is None else f.shape[:2], dtype=_sums(f))


def _launched(name: str, empty: Any) -> Any:
    """The operator on a device: what it returns is made as for a tensor without values, then filled."""

    def compute(*arguments: Any) -> Any:
        from efafnet.models import fsm_kernels

        results = empty(*arguments)
        # Triton launches on the current device, whichever its operands lie on.
        with torch.cuda.device_of(arguments[0]):
            getattr(fsm_kernels, name)(*arguments, results)
        return results

    return compute


_LIBRARY = torch.library.Library("efafnet", "FRAGMENT")
_ops = torch.ops.efafnet
for _schema, _empty in (
    ("statistics(Tensor f, Tensor? weight, bool pool) -> (Tensor, Tensor, Tensor)", _empty_statistics),
    (
        "position_gate(Tensor dots, Tensor bias, Tensor weight2, Tensor bias2, bool relu) -> (Tensor, Tensor)",
        _empty_position_gate,
    ),
    (
        "gate(Tensor f, Tensor? identity, Tensor? alpha, Tensor? beta, float base, float scale) -> Tensor",
        _empty_gate,
    ),
    (
        "gate_backward(Tensor grad, Tensor? y, Tensor f, bool cs, bool lss, float scale) -> (Tensor, Tensor, Tensor)",
        _empty_gate_backward,
    ),
    (
        "position_gate_backward(Tensor d_beta, Tensor logits, Tensor beta, Tensor weight2, Tensor bias2, bool relu)"
        " -> (Tensor, Tensor)",
        _empty_position_gate_backward,
    ),
    (
        "features_backward(Tensor inner, Tensor f, Tensor? alpha, Tensor? beta, Tensor? d_z, Tensor? index,"
        " Tensor? d_logits, Tensor? weight, float base, float scale) -> (Tensor, Tensor)",
        _empty_features_backward,
    ),
):
    _name = _schema.partition("(")[0]
    _LIBRARY.define(f"fsm_{_schema}", tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides))
    torch.library.register_fake(f"efafnet::fsm_{_name}", _empty, lib=_LIBRARY)
    # On a CPU too: that is where Triton's interpreter runs them. `usable` never sends a CPU's tensors here.
    for _backend in ("CUDA", "CPU"):
        _LIBRARY.impl(f"fsm_{_name}", _launched(_name, _empty), _backend)


# ---- whether the kernels run on this card


def works(index: int, dtype: torch.dtype) -> bool:
    """Whether the kernels run on GPU `index` and give the plain form's values and gradients; tried once."""
    return _tried(index, dtype)


# As `torch.compiler.assume_constant_result` does, which would import the compiler here: a compiled network asks
# while it is traced, and the answer is a constant to it.
works._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _tried(index: int, dtype: torch.dtype) -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    if not torch.cuda.is_available():
        return False
    try:
        difference = _difference(torch.device("cuda", index), dtype)
    except Exception as error:
        difference, reason = float("inf"), f"{type(error).__name__}: {error}".splitlines()[0]
    else:
        reason = f"they differ from the plain form by {difference:.1e} of the largest value"
    allowed = {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 0.05)
    if difference <= allowed:
        return True
    warnings.warn(
        f"FSM is computed in its plain, slower form: its kernels do not serve {torch.cuda.get_device_name(index)} "
        f"in {str(dtype)[6:]} ({reason})",
        stacklevel=2,
    )
    return False


def _difference(device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference of values and gradients from the plain form in the precision of sums, relative to each's
    largest; on a small map whose sides and channels fill no tile."""
    from efafnet.models.fasm import FeatureSelection

    generator = torch.Generator().manual_seed(0)
    shape = (2, 72, 9, 9)
    x, towards = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    # Distinct in half precision too: where two positions share the maximum, both gradients would be right.
    f = (torch.rand(2, 72, 81, generator=generator).argsort(-1) / 20 - 2).view(shape).to(device, dtype)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        _whole_float32(),
        torch.random.fork_rng([] if device.index is None else [device.index]),
    ):
        torch.manual_seed(0)
        selection = FeatureSelection(72, arrangement="parallel", reduction=4, lss_relu=False, merge="scaled")
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        selection = selection.to(device, exact)
        outcomes = []
        for form, precision in ((selection.fused, dtype), (selection.plain, exact)):
            # In NHWC order, the usual one.
            leaves = [t.to(precision).contiguous(memory_format=torch.channels_last).requires_grad_() for t in (f, x)]
            y = form(*leaves)
            gradients = torch.autograd.grad(y, [*leaves, *selection.parameters()], towards.to(precision))
            outcomes.append([t.detach().double() for t in (y, *gradients)])
    differences = [(a - b).abs().max() / b.abs().max() for a, b in zip(*outcomes, strict=True)]
    return float(torch.stack(differences).max())


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Inside, float32 products are not rounded to TF32, whatever the run computes in: both forms would be, each in its
    own way, by more than they may differ."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
