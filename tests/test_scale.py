"""The paper's rows at nano scale: what stays, what is scaled, and that at any other scale nothing is."""

from __future__ import annotations

import pytest

from efafnet.models.network_config import NetworkConfig
from efafnet.models.settings import InputSize
from efafnet.models.variants import VARIANTS
from efafnet.pipelines.study.scale import row_settings, scale_note, scaled_input, scaled_sigma
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.configuration import apply_overrides, load_preset, resolve


def base(preset: str, *overrides: str) -> TrainConfig:
    return resolve(TrainConfig, apply_overrides(load_preset(preset), overrides))


@pytest.mark.parametrize(
    ("nano", "papers", "expected"),
    [
        ("96x64", "256x192", "96x64"),  # the base itself
        ("96x64", "256x256", "96x96"),  # 96x85: square, as the paper's
        ("96x64", "384x288", "128x96"),  # 144x96: of 128 and 160 rows the one with sides 4 to 3
        ("128x96", "256x256", "128x128"),
        ("128x96", "384x288", "192x160"),  # 192x144: 192x128 is 3 to 2, 192x160 is 6 to 5, a little nearer to 4 to 3
        ("64x64", "384x288", "96x96"),
    ],
)
def test_inputs_are_scaled_to_multiples_of_32_of_the_same_shape(nano: str, papers: str, expected: str) -> None:
    size = scaled_input(InputSize.model_validate(papers), base("study_nano", f"input={nano}"))
    assert str(size) == expected


def test_a_row_keeps_its_switches_and_takes_the_bases_encoder() -> None:
    nano = base("study_nano", "network.base_width=8", "network.fam=none")
    settings = row_settings(VARIANTS["sbn_r50_fam"], nano)
    network = NetworkConfig.model_validate(settings["network"])
    paper = VARIANTS["sbn_r50_fam"].network
    assert isinstance(paper, NetworkConfig)
    assert network == paper.model_copy(update={"encoder": "nano", "base_width": 8})
    assert (settings["input"], settings["heatmap.sigma_px"], settings["loss.kind"]) == ("96x64", 0.75, "mse")
    large = row_settings(VARIANTS["efafnet_r152_384x288"], nano)
    assert (large["heatmap.sigma_px"], large["loss.kind"], large["loss.hard_joints"]) == (1.125, "ohkm", 8)


def test_other_networks_get_a_quarter_of_their_width_like_nano() -> None:
    settings = row_settings(VARIANTS["hourglass8_256x192"], base("study_nano"))
    assert (settings["network"]["kind"], settings["network"]["width"], settings["network"]["stacks"]) == (
        "hourglass", 64, 8,
    )  # fmt: skip
    assert settings["loss.auxiliary_weight"] == 1


def test_at_any_other_scale_rows_are_the_papers() -> None:
    full = base("coco_r50_256x256")
    variant = VARIANTS["efafnet_r101_384x288"]
    settings = row_settings(variant, full)
    assert settings["network"] == variant.network.model_dump(mode="json")
    assert settings["input"] == "384x288"
    assert scaled_sigma(3.0, full) == 3.0
    assert scale_note([variant], full) == "network scale: as in the paper"


def test_the_scale_is_said() -> None:
    note = scale_note([VARIANTS["sbn_r50_256x192"], VARIANTS["sbn_r50_384x288"]], base("study_nano"))
    assert "NOT the paper's" in note
    assert "256x192 as 96x64, 384x288 as 128x96" in note
    assert "2 as 0.75, 3 as 1.125" in note
