"""DUC and the deconvolutions: where each value lands, and their published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efafnet.models.upsampling import Deconvolutions, DenseUpsampling, ProgressiveUpsampling


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
