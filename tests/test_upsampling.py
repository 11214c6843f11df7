"""DUC and the deconvolutions: where each value lands, and their published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efafnet.models.upsampling import Deconvolutions, DenseUpsampling, ProgressiveUpsampling, WideConv


def test_duc_divides_the_map_into_r_squared_parts_of_the_incoming_size() -> None:
    """Section III-D: channel c*r^2 + r*i + j of the small map is row i, column j of every r x r cell of map c."""
    duc = DenseUpsampling(1, 0, 2, factor=2, predicts=True)
    nn.init.zeros_(duc.expand.weight)
    assert duc.expand.bias is not None
    duc.expand.bias.data = torch.arange(8.0)
    maps = duc(torch.zeros(1, 1, 2, 3))
    assert maps.shape == (1, 2, 4, 6)
    assert maps[0, 0, 2:4, 4:6].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert maps[0, 1, 0:2, 0:2].tolist() == [[4.0, 5.0], [6.0, 7.0]]


def test_duc_keeps_positions() -> None:
    duc = DenseUpsampling(1, 0, 1, factor=8, predicts=True)
    nn.init.zeros_(duc.expand.weight)
    duc.expand.weight.data[:, :, 1, 1] = 1.0  # each output position copies the pixel it lies in
    small = torch.arange(6.0).view(1, 1, 2, 3)
    torch.testing.assert_close(duc(small), nn.functional.interpolate(small, scale_factor=8))


def test_deconvolutions_are_the_baselines() -> None:
    head = Deconvolutions(2048, 256)
    # 4 x 4 kernels, 256 filters, no bias, two parameters of batch norm per filter.
    assert sum(p.numel() for p in head.parameters()) == 16 * 256 * (2048 + 256 + 256) + 3 * 512
    assert Deconvolutions(8, 4)(torch.zeros(1, 8, 3, 2)).shape == (1, 4, 24, 16)


@pytest.mark.parametrize("predicts", [True, False])
def test_progressive_steps_reach_the_same_size(predicts: bool) -> None:
    head = ProgressiveUpsampling(16, 8, 5, predicts=predicts)
    features = head(torch.randn(2, 16, 3, 2))
    assert features.shape == (2, head.out_channels, 24, 16)
    # Features end in a ReLU, heatmaps do not.
    assert (features.min().item() < 0) is predicts


def _wide(bias: bool, shape: tuple[int, ...]) -> tuple[WideConv, Tensor]:
    torch.manual_seed(0)
    conv = WideConv(shape[1], 6, 3, padding=1, bias=bias).double().to(memory_format=torch.channels_last)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    return conv, x.requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 1, 1, 1), (3, 2, 1, 6)])
def test_a_wide_convolution_and_its_gradients_are_pytorchs(bias: bool, shape: tuple[int, ...]) -> None:
    conv, x = _wide(bias, shape)
    y = conv(x)
    plain = F.conv2d(x, conv.weight, conv.bias, padding=1)
    assert type(y.grad_fn).__name__ == "_WideConvBackward"
    assert torch.equal(y, plain)
    leaves, towards = [x, *conv.parameters()], torch.randn_like(y)
    expected = torch.autograd.grad(plain, leaves, towards)
    found = torch.autograd.grad(y, leaves, towards)
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)
        assert gradient.stride() == wanted.stride() or min(gradient.shape[1:]) == 1
    # A gradient of another layout, and nobody who asks for x's.
    (alone,) = torch.autograd.grad(conv(x.detach()), [conv.weight], towards.contiguous())
    torch.testing.assert_close(alone, expected[1], rtol=1e-12, atol=1e-12)


def test_a_wide_convolution_under_autocast_computes_in_half_precision() -> None:
    conv, x = _wide(True, (2, 16, 4, 3))
    conv, x = conv.float(), x.detach().float().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
        plain = F.conv2d(x, conv.weight, conv.bias, padding=1)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, plain)
    towards = torch.randn_like(y)
    found = torch.autograd.grad(y, list(conv.parameters()), towards)
    expected = torch.autograd.grad(plain, list(conv.parameters()), towards)
    for gradient, wanted in zip(found, expected, strict=True):
        assert gradient.dtype == torch.float32
        # Each rounds its sum to 8 bits once.
        assert (gradient - wanted).abs().max() <= 2**-7 * wanted.abs().max()


def test_only_a_cpu_that_trains_with_channels_last_needs_it() -> None:
    conv, x = _wide(False, (2, 5, 4, 3))
    with torch.no_grad():
        assert conv(x).grad_fn is None
    assert type(conv(x.contiguous()).grad_fn).__name__ == "ConvolutionBackward0"
