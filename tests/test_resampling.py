"""Pooling and upsampling with their own gradients, against PyTorch's and against numerical ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from efafnet.models import resampling
from efafnet.models.resampling import pool_3x3, pool_blocks, upsample
from tests.step_transfers import stand_in_gpu

_LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def _bilinear(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=8.0, mode="bilinear", align_corners=False)


# (with its own gradient, PyTorch's, input's shape)
_FORMS = pytest.mark.parametrize(
    ("own", "plain", "shape"),
    [
        (lambda x: pool_blocks(x, 4), lambda x: F.avg_pool2d(x, 4), (2, 3, 8, 12)),
        (lambda x: pool_3x3(x, 2), lambda x: F.avg_pool2d(x, 3, stride=2, padding=1), (2, 3, 6, 4)),
        (lambda x: pool_3x3(x, 2), lambda x: F.avg_pool2d(x, 3, stride=2, padding=1), (2, 3, 4, 2)),
        (lambda x: upsample(x, 8), _bilinear, (2, 3, 3, 2)),
        (lambda x: upsample(x, 8), _bilinear, (1, 2, 1, 1)),
    ],
    ids=["blocks", "halving", "halving-4x2", "upsample", "upsample-1x1"],
)


@_FORMS
@_LAYOUTS
def test_the_same_function_and_gradient_as_pytorchs(
    own: Callable[[Tensor], Tensor],
    plain: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "_own", lambda _: True)
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    y, expected = own(x), plain(x)
    assert torch.equal(y, expected)
    towards = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, towards)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, towards)[0], rtol=0, atol=1e-12)
    assert gradient.is_contiguous(memory_format=layout)
    torch.autograd.gradcheck(own, (x[:1].detach().requires_grad_(),))


@_FORMS
def test_half_precision_stays_within_its_own_rounding(
    own: Callable[[Tensor], Tensor],
    plain: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "_own", lambda _: True)
    torch.manual_seed(0)
    x = torch.randn(shape).bfloat16().requires_grad_()
    towards = torch.randn_like(plain(x))
    (gradient,) = torch.autograd.grad(own(x), x, towards)
    exact_x = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(plain(exact_x), exact_x, towards.double())
    # Two roundings of bfloat16, half a unit of 2^-7 each, of sums that are at most the largest.
    assert (gradient.double() - exact).abs().max() <= 2 * 2**-8 * exact.abs().max()


def test_a_gpu_gets_them_and_a_cpu_pytorchs_own() -> None:
    def names(x: Tensor) -> list[str]:
        nodes = (pool_blocks(x, 4), pool_3x3(x, 2), pool_3x3(x, 1), upsample(x, 8))
        return [type(y.grad_fn).__name__ for y in nodes]

    with stand_in_gpu() as gpu:
        x = torch.zeros(1, 2, 8, 8, device=gpu.device, requires_grad=True)
        assert names(x) == ["_PoolBlocksBackward", "_HalvingPoolBackward", "AvgPool2DBackward0", "_UpsampleBackward"]
        pool_3x3(torch.zeros(1, 2, 7, 8, device=gpu.device), 2)  # an odd side: PyTorch's
    x = torch.zeros(1, 2, 8, 8, requires_grad=True)
    assert not any(name in ("_PoolBlocksBackward", "_HalvingPoolBackward", "_UpsampleBackward") for name in names(x))
