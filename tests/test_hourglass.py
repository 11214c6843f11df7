"""The stacked hourglass: shapes at any size, supervision of every stack, and that every part of it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from efafnet.models.config import HeatmapConfig, LossConfig
from efafnet.models.heatmaps import encode
from efafnet.models.hourglass import Hourglass, PreactivatedBottleneck, StackedHourglass
from efafnet.models.losses import pose_loss
from efafnet.models.network import HourglassConfig
from efafnet.models.settings import InputSize

SMALL = HourglassConfig(kind="hourglass", stacks=3, width=16)
SIZE = InputSize(height=64, width=128)


def _network() -> StackedHourglass:
    torch.manual_seed(0)
    return StackedHourglass(SMALL, 17)


def _images(size: InputSize = SIZE) -> Tensor:
    return torch.randn(2, 3, size.height, size.width, generator=torch.Generator().manual_seed(1))


def test_every_stack_has_heatmaps_in_training_and_every_parameter_learns() -> None:
    network = _network()
    output = network(_images())
    assert {name: tuple(maps.shape) for name, maps in output.auxiliary.items()} == {
        "stack1": (2, 17, 16, 32), "stack2": (2, 17, 16, 32),
    }  # fmt: skip
    assert output.heatmaps.shape == (2, 17, 16, 32)
    target = encode(torch.rand(2, 17, 2) * 60, torch.ones(2, 17), SIZE, HeatmapConfig())
    loss = pose_loss(output, target, LossConfig(auxiliary_weight=1))
    assert list(loss.by_head) == ["final", "stack1", "stack2"]
    torch.testing.assert_close(loss.per_sample.detach(), sum(loss.by_head.values()))
    loss.per_sample.mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert network.eval()(_images()).auxiliary == {}


@pytest.mark.parametrize("size", ["32x32", "96x64", "384x288"])
def test_sizes_that_64_does_not_divide_keep_their_heatmaps(size: str) -> None:
    wanted = InputSize.model_validate(size)
    with torch.no_grad():
        heatmaps = _network().eval()(_images(wanted)).heatmaps
    assert heatmaps.shape == (2, 17, wanted.height // 4, wanted.width // 4)


def test_one_level_adds_what_half_the_resolution_sees() -> None:
    torch.manual_seed(0)
    level = Hourglass(8, 1).eval()
    x = torch.randn(1, 8, 4, 6)
    with torch.no_grad():
        # The largest of every 2x2, through three blocks, each value back on its four pixels.
        pooled = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
        low = level.up(level.inside(level.down(pooled)))
        expected = level.beside(x) + low.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(level(x), expected)


def test_blocks_are_preactivated() -> None:
    """Nothing follows the addition: the input passes unchanged where the branch says nothing."""
    block = PreactivatedBottleneck(8, 8).eval()
    last = [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1]
    x = torch.randn(1, 8, 3, 3)
    with torch.no_grad():
        last.weight.zero_()
        assert last.bias is not None
        last.bias.zero_()
        torch.testing.assert_close(block(x), x)


def test_activations_of_the_full_network_start_at_a_sane_scale_and_fit_half_precision() -> None:
    torch.manual_seed(0)
    network, outputs = StackedHourglass(HourglassConfig(kind="hourglass"), 17), list[tuple[float, float]]()

    def see(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append((output.std().item(), output.abs().max().item()))

    for module in network.modules():
        module.register_forward_hook(see)
    with torch.no_grad():
        network(_images(InputSize(height=64, width=64)))
    assert max(std for std, _ in outputs) < 20
    assert max(largest for _, largest in outputs) < 1000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype: torch.dtype) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert _network()(_images()).heatmaps.isfinite().all()


def test_exports_with_any_batch_size() -> None:
    torch.manual_seed(0)
    network = StackedHourglass(SMALL.model_copy(update={"stacks": 2}), 17).eval()  # a first and a last
    batch = torch.export.Dim("batch", min=1, max=256)
    exported = torch.export.export(network, (_images(),), dynamic_shapes=({0: batch},))
    images = torch.cat([_images(), _images()[:1]])
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images).heatmaps, network(images).heatmaps)
