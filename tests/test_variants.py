"""The rows of the paper's tables: complete, and every one builds and runs at its real size."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch.nn.utils import get_total_norm

from efafnet.models.heatmaps import encode
from efafnet.models.losses import pose_loss
from efafnet.models.network import HourglassConfig, HRNetConfig, NetworkConfig, PoseNetwork, build_network
from efafnet.models.network_config import AnyNetworkConfig, differing_switches
from efafnet.models.variants import VARIANTS, Variant, variant


def _published(table: str) -> list[float]:
    return sorted(v.paper.ap for v in VARIANTS.values() if table in v.paper.tables and v.paper.ap is not None)


# Every AP that the paper prints for SBN, EFAFNet, HRNet (without extra data) and the hourglass. Rows that stand for
# one printed row in two readings appear twice.
@pytest.mark.parametrize(
    ("table", "aps"),
    [
        ("I", [66.9, 67.1, 70.4, 72.2, 72.8, 73.1, 73.8]),
        ("II", [72.8, 73.2, 73.5, 73.8, 73.8, 74.2, 74.5, 75.0, 75.5]),
        ("VI", [70.4, 70.6, 70.9, 70.9, 70.9, 71.5, 72.8]),
        ("VII", [70.4, 70.8, 71.1, 71.5]),
        ("VIII", [70.4, 70.8, 71.5, 71.5]),
        ("XI", [70.4, 72.2, 72.8, 73.1, 73.8]),
        ("XII", [66.9, 73.8, 74.5, 75.0]),
    ],
)
def test_every_row_of_the_papers_tables_is_a_configuration(table: str, aps: list[float]) -> None:
    assert _published(table) == aps


def test_names_are_keys_and_distinct_rows_are_distinct_configurations() -> None:
    assert all(name == v.name for name, v in VARIANTS.items())
    kinds = {(v.network, str(v.input), v.loss) for v in VARIANTS.values()}
    assert len(kinds) == len(VARIANTS)


def test_starred_rows_mine_the_eight_hardest_joints_and_large_inputs_have_wider_gaussians() -> None:
    for v in VARIANTS.values():
        assert (v.loss.kind == "ohkm") == (v.name.startswith("efafnet_r") and not v.name.endswith("_mse"))
        assert v.heatmap.sigma_px == (3.0 if str(v.input) == "384x288" else 2.0)
    assert VARIANTS["efafnet_r50_256x192"].loss.hard_joints == 8


_SIDE_BY_SIDE = sorted(VARIANTS.values(), key=lambda v: str(v.network))
"""Rows of one network follow each other."""


@lru_cache(maxsize=1)
def _network(config: AnyNetworkConfig) -> PoseNetwork:
    """Made once for the rows that differ in input and loss alone: starting a large one takes half a second."""
    torch.manual_seed(0)
    return build_network(config, 17)


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.parametrize("v", _SIDE_BY_SIDE, ids=lambda v: v.name)
def test_forward_and_backward_at_the_real_size(v: Variant) -> None:
    network = _network(v.network)
    network.zero_grad()
    images = torch.randn(1, 3, v.input.height, v.input.width)
    joints = torch.rand(1, 17, 2) * v.input.width
    target = encode(joints, torch.ones(1, 17), v.input, v.heatmap)
    output = network(images)
    assert output.heatmaps.shape == target.heatmaps.shape
    pose_loss(output, target, v.loss).per_sample.mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(gradients) == len(list(network.parameters()))
    assert get_total_norm(gradients).isfinite(), "it is finite where all of them are"


def test_an_unknown_name_lists_the_known_ones() -> None:
    assert variant("sbn_r50_256x192") is VARIANTS["sbn_r50_256x192"]
    with pytest.raises(ValueError, match=r"no network is called 'sbn'; known: sbn_r50_256x192, "):
        variant("sbn")


def test_differing_switches_name_both_values() -> None:
    one, other = NetworkConfig(), NetworkConfig(fsm="cs", ffm=False)
    assert differing_switches(one, other) == {"fsm": ("parallel", "cs"), "ffm": (True, False)}
    narrow, wide = HRNetConfig(kind="hrnet"), HRNetConfig(kind="hrnet", width=48)
    assert differing_switches(narrow, wide) == {"width": (32, 48)}
    assert differing_switches(one, narrow) == {"kind": ("efafnet", "hrnet")}
    # Both have a `width`, which means something else in each.
    assert differing_switches(narrow, HourglassConfig(kind="hourglass")) == {"kind": ("hrnet", "hourglass")}
