"""HRNet: shapes, the exchange between its branches, how it starts, and that every part of it learns."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from efafnet.models.config import HeatmapConfig, LossConfig
from efafnet.models.heatmaps import encode
from efafnet.models.hrnet import ExchangeBlock, HRNet
from efafnet.models.losses import pose_loss
from efafnet.models.network import HRNetConfig, build_network
from efafnet.models.settings import InputSize

SMALL = HRNetConfig(kind="hrnet", width=8, modules=(1, 1, 2), blocks=1)
SIZE = InputSize(height=64, width=96)


def _network() -> HRNet:
    torch.manual_seed(0)
    return HRNet(SMALL, 17)


def _images() -> Tensor:
    return torch.randn(2, 3, SIZE.height, SIZE.width, generator=torch.Generator().manual_seed(1))


def test_heatmaps_have_stride_4_and_every_parameter_learns() -> None:
    network = _network()
    output = network(_images())
    assert output.heatmaps.shape == (2, 17, 16, 24)
    assert output.auxiliary == {}
    target = encode(torch.rand(2, 17, 2) * 60, torch.ones(2, 17), SIZE, HeatmapConfig())
    pose_loss(output, target, LossConfig()).per_sample.mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_branches_of_w32_have_the_published_channels_and_strides() -> None:
    with torch.device("meta"):
        network = HRNet(HRNetConfig(kind="hrnet"), 17)
        seen: list[list[tuple[int, ...]]] = []
        for block in [m for m in network.modules() if isinstance(m, ExchangeBlock)]:
            block.register_forward_hook(lambda _m, _i, output: seen.append([tuple(x.shape[1:]) for x in output]))
        network(torch.empty(1, 3, 256, 192))
    branches = [(32, 64, 48), (64, 32, 24), (128, 16, 12), (256, 8, 6)]
    assert seen == [branches[:2]] + [branches[:3]] * 4 + [branches] * 2 + [branches[:1]]


def test_an_exchange_sums_what_the_other_branches_see() -> None:
    torch.manual_seed(0)
    block = ExchangeBlock((2, 4, 8), 1, 3).eval()
    inputs = [torch.randn(1, 2, 8, 8), torch.randn(1, 4, 4, 4), torch.randn(1, 8, 2, 2)]
    with torch.no_grad():
        seen = [branch(x) for branch, x in zip(block.branches, inputs, strict=True)]
        # For the middle branch: a stride-2 convolution from the finer one, a 1x1 and nearest neighbours from the
        # coarser one. Batch norm at its start only divides by sqrt(1 + eps).
        fine, coarse = [m for m in block.paths[1].modules() if isinstance(m, nn.Conv2d)]
        unit = (1 + 1e-5) ** -0.5
        down = nn.functional.conv2d(seen[0], fine.weight, stride=2, padding=1) * unit
        up = (nn.functional.conv2d(seen[2], coarse.weight) * unit).repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(block(inputs)[1], torch.relu(down + seen[1] + up))


def test_convolutions_start_normal_with_the_published_deviation() -> None:
    weights = torch.cat([m.weight.flatten() for m in _network().modules() if isinstance(m, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.001, rel=0.01)
    assert weights.mean().item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_activations_start_at_a_sane_scale(dtype: torch.dtype) -> None:
    network, stds = _network(), []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(lambda _m, _i, output: stds.append(output.float().std().item()))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        heatmaps = network(_images()).heatmaps
    assert heatmaps.isfinite().all()
    assert max(stds) < 20


def test_exports_with_any_batch_size() -> None:
    torch.manual_seed(0)
    network = HRNet(SMALL.model_copy(update={"modules": (1, 1, 1)}), 17).eval()
    batch = torch.export.Dim("batch", min=1, max=256)
    exported = torch.export.export(network, (_images(),), dynamic_shapes=({0: batch},))
    images = torch.cat([_images(), _images()[:1]])
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images).heatmaps, network(images).heatmaps)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"every stage needs at least one exchange; got \[1, 0, 3\]"):
        HRNetConfig(kind="hrnet", modules=(1, 0, 3))
    with pytest.raises(ValueError, match="at least one joint; got num_joints=0"):
        build_network(SMALL, 0)
