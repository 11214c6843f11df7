"""FAM and FSM against the paper's equations, evaluated by hand."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efafnet.models.fasm import (
    ChannelSelection,
    FeatureAggregation,
    FeatureSelection,
    LocationSelection,
    gated_residual,
    mean_plus_maximum,
)
from efafnet.models.network_config import Arrangement, Merge


def _centre_weight(value: float, channels: int) -> Tensor:
    """A 3x3 kernel that multiplies each channel by `value`."""
    weight = torch.zeros(channels, channels, 3, 3)
    weight[range(channels), range(channels), 1, 1] = value
    return weight


def _scaling_branches(fam: FeatureAggregation, factors: list[float]) -> None:
    """Make G_i the multiplication by factors[i] (of non-negative input: a ReLU follows)."""
    for branch, factor in zip(fam.branches, factors, strict=True):
        assert isinstance(branch, nn.Sequential)
        conv = branch[0]
        assert isinstance(conv, nn.Conv2d)
        conv.weight.data = _centre_weight(factor, fam.split_channels)


# x1..x4 = 1, 10, 100, 1000 and G2, G3, G4 = times 2, 3, 5.
@pytest.mark.parametrize(
    ("recurrence", "expected"),
    [
        # y1 = 1; y2 = 2 (10 + 1) = 22; y3 = 3 (100 + 22) = 366; y4 = 5 (1000 + 366) = 6830
        ("literal", [1.0, 22.0, 366.0, 6830.0]),
        # y1 = 2*1 = 2; y2 = 3 (10 + 2) = 36; y3 = 5 (100 + 36) = 680; the last split passes
        ("res2net", [2.0, 36.0, 680.0, 1000.0]),
    ],
)
def test_equation_1(recurrence: Literal["literal", "res2net"], expected: list[float]) -> None:
    fam = FeatureAggregation(1, stride=1, chained=True, recurrence=recurrence).eval()
    _scaling_branches(fam, [2.0, 3.0, 5.0])
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 4, 1, 1).expand(1, 4, 5, 5)
    with torch.no_grad():
        y = fam(x)
    # The norm of an untrained batch norm in eval mode divides by sqrt(1 + 1e-5) at every branch.
    torch.testing.assert_close(y[0, :, 2, 2], torch.tensor(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("recurrence", ["literal", "res2net"])
def test_strided_form_is_three_separate_convolutions_and_a_pooled_split(
    recurrence: Literal["literal", "res2net"],
) -> None:
    torch.manual_seed(0)
    w = 5
    fam = FeatureAggregation(w, stride=2, chained=False, recurrence=recurrence).eval()
    conv, norm = fam.grouped[0], fam.grouped[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.randn(3 * w)
    x = torch.randn(2, 4 * w, 8, 6)
    splits = x.split(w, dim=1)
    untouched, moving = (splits[0], splits[1:]) if recurrence == "literal" else (splits[3], splits[:3])
    convolved = []
    for i, split in enumerate(moving):
        rows = slice(i * w, (i + 1) * w)
        y = F.conv2d(split, conv.weight[rows], stride=2, padding=1)
        assert norm.running_var is not None
        y = F.batch_norm(y, norm.running_mean[rows], norm.running_var[rows], norm.weight[rows], norm.bias[rows])
        convolved.append(F.relu(y))
    pooled = F.avg_pool2d(untouched, 3, stride=2, padding=1)
    expected = torch.cat([pooled, *convolved] if recurrence == "literal" else [*convolved, pooled], dim=1)
    torch.testing.assert_close(fam(x), expected)
    assert fam(x).shape == (2, 4 * w, 4, 3)


def test_channel_selection_pools_mean_plus_maximum() -> None:
    cs = ChannelSelection(2, reduction=1)
    cs.squeeze.weight.data = torch.eye(2)
    cs.excite.weight.data = torch.eye(2)
    nn.init.zeros_(cs.squeeze.bias)
    nn.init.zeros_(cs.excite.bias)
    # Channel 0: mean 2.5, maximum 4 -> z = 6.5. Channel 1: mean -1, maximum -1 -> z = -2, which ReLU makes 0.
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[-1.0, -1.0], [-1.0, -1.0]]])[None]
    expected = torch.sigmoid(torch.tensor([6.5, 0.0])).view(1, 2, 1, 1)
    torch.testing.assert_close(cs(x), expected)


_LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


def _leaf(*shape: int, layout: torch.memory_format = torch.contiguous_format, seed: int = 0) -> Tensor:
    """Float64, which numerical gradients need."""
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=layout).requires_grad_()


@_LAYOUTS
def test_both_poolings_and_their_gradient(layout: torch.memory_format) -> None:
    x = _leaf(3, 5, 6, 4, layout=layout)
    torch.testing.assert_close(mean_plus_maximum(x), x.mean((2, 3)) + x.amax((2, 3)))
    torch.autograd.gradcheck(mean_plus_maximum, (x,))
    (gradient,) = torch.autograd.grad(mean_plus_maximum(x).sum(), x)
    assert gradient.is_contiguous(memory_format=layout)


@_LAYOUTS
def test_gated_residual_and_its_gradient(layout: torch.memory_format) -> None:
    x, identity = _leaf(3, 5, 6, 4, layout=layout), _leaf(3, 5, 6, 4, layout=layout, seed=1)
    gates = _leaf(3, 5, 1, 1, seed=2), _leaf(3, 1, 6, 4, seed=3)
    y = gated_residual(x, identity, *gates)
    torch.testing.assert_close(y, torch.relu(identity + gates[0] * x + gates[1] * x))
    assert y.is_contiguous(memory_format=layout)
    torch.autograd.gradcheck(gated_residual, (x, identity, *gates))
    gradients = torch.autograd.grad(y.sum(), (x, identity))
    assert all(g.is_contiguous(memory_format=layout) for g in gradients)


@pytest.mark.slow
def test_a_compiled_fsm_is_the_same_function() -> None:
    fsm = _selection("parallel", "scaled").double()
    inputs = tuple(_leaf(2, 8, 4, 3, layout=torch.channels_last, seed=seed) for seed in (0, 1))
    outputs = []
    for call in (fsm, torch.compile(fsm, backend="aot_eager")):
        y = call(*inputs)
        outputs.append((y, *torch.autograd.grad(y.square().sum(), (*inputs, *fsm.parameters()))))
    torch.testing.assert_close(outputs[1], outputs[0])


@_LAYOUTS
def test_location_selection_weighs_channels_as_a_convolution_does(layout: torch.memory_format) -> None:
    lss = LocationSelection(5, relu=False).double()
    x = _leaf(3, 5, 6, 4, layout=layout)
    convolved = F.conv2d(x, lss.weigh.weight, lss.weigh.bias)
    torch.testing.assert_close(lss.weigh(x), convolved)
    leaves = [x, *lss.weigh.parameters()]
    expected = torch.autograd.grad(convolved.square().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(lss.weigh(x).square().sum(), leaves), expected)


@pytest.mark.parametrize(("relu", "expected_logit"), [(False, -3.0), (True, 0.0)])
def test_location_selection_equation_2(relu: bool, expected_logit: float) -> None:
    lss = LocationSelection(2, relu=relu)
    lss.weigh.weight.data = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    lss.adjust.weight.data = torch.tensor([-1.0]).view(1, 1, 1, 1)
    assert lss.weigh.bias is not None
    assert lss.adjust.bias is not None
    nn.init.zeros_(lss.weigh.bias)
    nn.init.zeros_(lss.adjust.bias)
    # Position 0: W1 x = 1 + 2 = 3, W2 = -3. Position 1: W1 x = -5 -> 0 -> sigmoid(0) either way.
    x = torch.tensor([[[[1.0, -1.0]], [[1.0, -2.0]]]])
    expected = torch.sigmoid(torch.tensor([expected_logit, 0.0])).view(1, 1, 1, 2)
    torch.testing.assert_close(lss(x), expected)
    beta = lss(x)
    beta.sum().backward()
    assert lss.adjust.weight.grad is not None
    # The ReLU under the sigmoid of eq. 2 stops the gradient wherever it closes the gate: the reading's whole point.
    assert (lss.adjust.weight.grad.abs().sum().item() > 0) is not relu


def _selection(arrangement: Arrangement, merge: Merge) -> FeatureSelection:
    torch.manual_seed(1)
    return FeatureSelection(8, arrangement=arrangement, reduction=4, lss_relu=False, merge=merge)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_in_few_passes_with_channels_last_it_is_the_same_function(dtype: torch.dtype, tolerance: float) -> None:
    """Values and all gradients against those of each operation by itself, in float64 and channels first."""
    # Multiples of 1/64, distinct and exact in bfloat16 too: where two positions share a maximum, both would be right.
    order = torch.rand(2, 8, 12, generator=torch.Generator().manual_seed(0)).argsort(-1)
    f, x = (order - 6).view(2, 8, 4, 3) / 64, torch.linspace(-1, 1, 192).view(2, 8, 4, 3).to(torch.bfloat16)
    fsm, found = _selection("parallel", "scaled").to(torch.bfloat16), []
    lss = fsm.gates["lss"]
    assert isinstance(lss, LocationSelection)
    # Else its ReLU lets nothing through.
    assert lss.weigh.bias is not None
    nn.init.ones_(lss.weigh.bias)
    for precision, layout in ((torch.float64, torch.contiguous_format), (dtype, torch.channels_last)):
        leaves = [t.to(precision).contiguous(memory_format=layout).requires_grad_() for t in (f, x)]
        fsm = fsm.to(precision)
        y = fsm(*leaves)
        gradients = torch.autograd.grad(y.square().sum(), (*leaves, *fsm.parameters()))
        assert all(g.is_contiguous(memory_format=layout) for g in gradients[:2])
        found.append([t.double() for t in (y, *gradients)])
    for expected, other in zip(*found, strict=True):
        assert expected.abs().max() > 0
        assert (other - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradients_lie_as_their_parameters_do() -> None:
    """What DDP asks of them (torch.nn.parallel.DistributedDataParallel: gradient layout contract); it warns else."""
    fsm = _selection("parallel", "scaled").to(memory_format=torch.channels_last)
    f, x = (torch.rand(2, 8, 4, 3).contiguous(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    fsm(f, x).sum().backward()
    for name, parameter in fsm.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name


def test_parallel_factor_is_equation_8() -> None:
    fsm = _selection("parallel", "sum")
    f = torch.randn(2, 8, 4, 3)
    alpha, beta = fsm.gates["cs"](f), fsm.gates["lss"](f)
    x = torch.randn(2, 8, 4, 3)
    torch.testing.assert_close(fsm(f, x), torch.relu(x + (f + alpha * f) + (f + beta * f)))


@pytest.mark.parametrize("arrangement", ["cs_lss", "lss_cs"])
def test_serial_factor_applies_the_second_gate_to_the_first_gates_output(arrangement: Arrangement) -> None:
    fsm = _selection(arrangement, "sum")
    f = torch.randn(2, 8, 4, 3)
    first, second = (fsm.gates[name] for name in arrangement.split("_"))
    once = f + first(f) * f
    x = torch.randn(2, 8, 4, 3)
    torch.testing.assert_close(fsm(f, x), torch.relu(x + once + second(once) * once))


@pytest.mark.parametrize(
    ("arrangement", "share"), [("parallel", 1 / 3), ("cs", 2 / 3), ("lss", 2 / 3), ("cs_lss", 4 / 9), ("lss_cs", 4 / 9)]
)
def test_scaled_merge_keeps_the_branch_at_its_own_size(arrangement: Arrangement, share: float) -> None:
    # Positive and without an identity, so that the ReLU passes everything and the output is F times the factor.
    f, nothing = torch.rand(4, 8, 6, 5) + 0.1, torch.zeros(4, 8, 6, 5)
    plain, scaled = (_selection(arrangement, merge)(f, nothing) / f for merge in ("sum", "scaled"))
    torch.testing.assert_close(scaled, share * plain)
    assert 0.75 < scaled.mean().item() < 1.25
    half = _selection(arrangement, "scaled")
    for p in half.parameters():
        nn.init.zeros_(p)
    # Every gate at 1/2: the branch is F itself.
    torch.testing.assert_close(half(f, nothing), f)
