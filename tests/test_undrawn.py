"""Networks that are filled from files: nothing is drawn for them, and nothing of them is left as it was found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model  # type: ignore[import-untyped]

from efafnet.models.network import AnyNetworkConfig, HourglassConfig, HRNetConfig, NetworkConfig, build_network
from efafnet.models.undrawn import Undrawn

NETWORKS = (
    NetworkConfig(encoder="nano", base_width=8),
    NetworkConfig(encoder="nano", base_width=8, head="deconvolution"),
    HRNetConfig(kind="hrnet", width=8, modules=(1, 1, 1), blocks=1),
    HourglassConfig(kind="hourglass", stacks=1, width=16),
)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: str(config.short_name))
def test_a_network_filled_from_another_is_that_network(config: AnyNetworkConfig) -> None:
    drawn = build_network(config, 17).eval()
    before = torch.get_rng_state()
    with Undrawn():
        filled = build_network(config, 17).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert unfilled(filled, drawn.state_dict()) == []
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(filled(images).heatmaps, drawn(images).heatmaps)


def unfilled(network: torch.nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """What is no number in a network of which no weight was one, after it was filled."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    network.load_state_dict(tensors)
    return [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]


def test_so_is_a_detector() -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    before = torch.get_rng_state()
    with Undrawn():
        filled = get_model(name, weights=None, weights_backbone=None)
    assert torch.equal(torch.get_rng_state(), before)
    tensors = {key: torch.zeros_like(value) for key, value in filled.state_dict().items()}
    assert unfilled(filled, tensors) == []
