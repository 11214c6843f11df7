"""The named protocols: their constants, what fills a configuration, and what is said of runs that depart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from efafnet.models.settings import InputSize
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.pipelines.crops.manifest import SourceRecord
from efafnet.pipelines.crops.prepare import PrepareConfig
from efafnet.pipelines.crops.protocols import PROTOCOLS, ProtocolName, compared, constants, departures, described
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext, pick_device
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.loop import run
from efafnet.pipelines.training.recording import open_record
from efafnet.pipelines.training.rundir import RunRecord
from efafnet.platform import tracking
from efafnet.platform.checkpoint import load_checkpoint
from efafnet.platform.configuration import (
    ConfigurationError,
    apply_overrides,
    flatten,
    load_preset,
    preset_names,
    resolve,
)
from tests.training_cases import config_of

SMALL = InputSize(height=256, width=192)


def _resolved(*overrides: str, preset: str | None = None) -> TrainConfig:
    return resolve(TrainConfig, apply_overrides(load_preset(preset) if preset else {}, overrides))


def _tree(*overrides: str, preset: str | None = None) -> dict[str, Any]:
    return _resolved(*overrides, preset=preset).model_dump(mode="json")


# Figures as the protocols' authors publish them; `paper` states no batch size, 64 is ours.
@pytest.mark.parametrize(
    ("name", "lr", "batch", "epochs", "milestones", "warmup", "loss", "box_rule"),
    [
        ("paper", 5e-4, 64, 150, (90, 120), 0, "ohkm", "sbn"),
        ("sbn", 1e-3, 128, 140, (90, 120), 0, "mse", "sbn"),
        ("hrnet", 1e-3, 128, 210, (170, 200), 0, "mse", "sbn"),
        ("mmpose", 5e-4, 512, 210, (170, 200), 500, "mse", "mmpose"),
    ],
)
def test_a_protocol_by_name_stands_for_its_published_constants(
    name: ProtocolName,
    lr: float,
    batch: int,
    epochs: int,
    milestones: tuple[int, int],
    warmup: int,
    loss: str,
    box_rule: str,
) -> None:
    config = _resolved(f"protocol={name}")
    assert (config.optimizer.kind, config.optimizer.lr, config.optimizer.weight_decay) == ("adam", lr, 0)
    assert (config.batch_size, config.epochs) == (batch, epochs)
    schedule = config.schedule
    assert (schedule.kind, schedule.milestones, schedule.factor) == ("multistep", milestones, 0.1)
    assert schedule.warmup_steps == warmup
    assert (config.loss.kind, config.loss.hard_joints) == (loss, 8)
    assert (config.heatmap.encoding, config.heatmap.decoding, config.heatmap.sigma_px) == ("quantised", "quarter", 2)
    test = config.test
    assert (test.flip_test, test.joint_score_threshold, test.nms, test.nms_threshold) == (True, 0.2, "oks", 0.9)
    assert PROTOCOLS[name].box_rule == box_rule
    assert described(config.model_dump(mode="json")) == name


# Scale from 1 - f to 1 + f; largest rotation; shift and its probability; half bodies and the upper one's probability.
# HRNet's code prefers the upper half where a normal is below .5: .6915.
@pytest.mark.parametrize(
    ("name", "scale", "largest_deg", "shift", "half_body", "distribution"),
    [
        ("paper", (0.7, 1.3), 80, (0, 0), (0, 0.7), "clipped_normal"),
        ("sbn", (0.7, 1.3), 80, (0, 0), (0, 0.7), "clipped_normal"),
        ("hrnet", (0.65, 1.35), 90, (0, 0), (0.3, 0.6915), "clipped_normal"),
        ("mmpose", (0.5, 1.5), 80, (0.16, 0.3), (0.3, 0.7), "truncated_normal"),
    ],
)
def test_a_protocols_augmentation(
    name: str,
    scale: tuple[float, float],
    largest_deg: float,
    shift: tuple[float, float],
    half_body: tuple[float, float],
    distribution: str,
) -> None:
    varied = _resolved(f"protocol={name}").augmentation
    assert (1 - varied.scale_factor, 1 + varied.scale_factor) == pytest.approx(scale)
    assert 2 * varied.rotation_deg == largest_deg
    assert (varied.shift_factor, varied.shift_probability) == shift
    assert (varied.half_body_probability, varied.half_body_upper_probability) == half_body
    assert varied.distribution == distribution
    assert (varied.padding, varied.rotation_probability, varied.flip_probability) == (1.25, 0.6, 0.5)
    # Half-body samples: more than 8 visible joints, padding 1.5.
    assert (varied.half_body_min_joints, varied.half_body_padding) == (9, 1.5)


@pytest.mark.parametrize("preset", preset_names())
def test_every_bundled_preset_reads_a_store_prepared_with_defaults(preset: str) -> None:
    config = _resolved(preset=preset)
    Envelope().check(config.augmentation, config.input, any_reduced=True)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("preset", ["coco_r50_384x288", "crowdpose_r50_256x192", "mpii_r50_256x256"])
def test_a_store_prepared_for_a_protocol_serves_it_on_every_data_set(name: ProtocolName, preset: str) -> None:
    places = {"annotations": "a.json", "images": "images", "out": "out"}
    prepared = resolve(PrepareConfig, {**places, "protocol": name})
    assert PrepareConfig.model_validate({**places, "protocol": name}) == prepared
    assert prepared.annotated_rule == PROTOCOLS[name].box_rule
    skeleton = {"coco": "coco17", "crow": "crowdpose14", "mpii": "mpii16"}[preset[:4]]
    size = _resolved(preset=preset).input
    settings = [f"{key}={value}" for key, value in constants(name, size, skeleton).items() if key[:4] == "augm"]
    config = _resolved(f"protocol={name}", f"input={size}", *settings)
    prepared.envelope.check(config.augmentation, size, any_reduced=True)
    assert departures(config.model_dump(mode="json"), skeleton=skeleton) == {}


def test_what_prepare_is_given_wins_over_its_protocol() -> None:
    places = {"annotations": "a.json", "images": "images", "out": "out", "protocol": "mmpose"}
    config = resolve(PrepareConfig, {**places, "envelope": {"rotation_deg": 10}, "box_rule": "sbn"})
    assert (config.envelope.rotation_deg, config.envelope.shift_factor, config.envelope.scale_factor) == (10, 0.16, 0.5)
    assert config.sources()[0].box_rule == "sbn"
    # SBN's recipe knows no half bodies: its stores need no room for them.
    assert not resolve(PrepareConfig, {**places, "protocol": "sbn"}).envelope.half_body


def test_sigma_follows_the_input() -> None:
    # 2 at 64x48 and 64x64 heatmaps, 3 at 96x72.
    sizes = ["256x192", "256x256", "384x288"]
    assert [_resolved("protocol=sbn", f"input={size}").heatmap.sigma_px for size in sizes] == [2, 2, 3]


def test_every_constant_is_a_setting() -> None:
    known = flatten(TrainConfig().model_dump(mode="json"))
    for name in PROTOCOLS:
        assert [key for key in constants(name, SMALL) if key not in known] == []


def test_what_is_given_wins_and_is_named_as_a_difference() -> None:
    tree = _tree("protocol=sbn", "batch_size=64", "test.flip_test=false", "augmentation.padding=1.3", "max_samples=99")
    assert tree["augmentation"]["rotation_deg"] == 40
    assert tree["optimizer"]["lr"] == 1e-3
    assert described(tree) == (
        "sbn, with differences: augmentation.padding=1.3 (1.25), max_samples=99 (null), test.flip_test=false (true), "
        "batch_size=64 (128)"
    )
    assert described(_tree("batch_size=64")) == "none named"


def test_another_protocol_takes_a_presets_place() -> None:
    assert described(_tree(preset="coco_r50_384x288")) == "paper"
    other = _resolved("protocol=mmpose", preset="coco_r50_384x288")
    assert (other.batch_size, other.loss.kind, other.heatmap.sigma_px) == (512, "mse", 3)
    assert described(other.model_dump(mode="json")) == "mmpose"


def test_settings_made_in_python_follow_too() -> None:
    assert TrainConfig(protocol="mmpose").batch_size == 512
    assert TrainConfig.model_validate({"protocol": "sbn", "optimizer": {"clip_norm": 1.0}}).optimizer.lr == 1e-3
    # What was resolved once stays as it is.
    config = _resolved("protocol=sbn", "epochs=200")
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_skeletons_with_constants_of_their_own() -> None:
    assert described(_tree(preset="mpii_r50_256x256"), skeleton="mpii16") == "paper"
    assert described(_tree(preset="crowdpose_r50_256x192"), skeleton="crowdpose14") == "paper"
    assert departures(_tree("protocol=sbn"), skeleton="mpii16") == {
        "augmentation.scale_factor": "0.3 (0.25)",
        "augmentation.rotation_deg": "40 (30)",
    }
    assert departures(_tree("protocol=mmpose"), skeleton="mpii16") == {
        "augmentation.half_body_probability": "0.3 (0)",
        "augmentation.shift_probability": "0.3 (0)",
    }
    # A protocol of another version is known by its name alone.
    assert described({**_tree("protocol=sbn"), "protocol": "modern"}) == "modern"


def _source(**fields: Any) -> SourceRecord:
    names = ("data_set", "annotations", "annotations_sha256", "images", "images_sha256")
    return SourceRecord.model_validate(dict.fromkeys(names, "x") | {"format": "coco", "box_rule": "sbn"} | fields)


def test_boxes_of_another_rule_are_a_difference_detections_are_not() -> None:
    tree = _tree("protocol=mmpose")
    assert departures(tree, [_source()]) == {"box_rule": "sbn (mmpose)"}
    assert departures(tree, [_source(box_rule="mmpose")]) == {}
    assert departures(tree, [_source(box_rule="unclipped", detections="boxes.json")]) == {}
    assert departures(tree, [_source(box_rule="unclipped", format="mpii_json")]) == {}


def test_an_unknown_protocol_and_an_impossible_input_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"protocol = 'modern': takes paper \| sbn \| hrnet \| mmpose or null"):
        _resolved("protocol=modern")
    with pytest.raises(ConfigurationError, match="multiple of 32; got 250"):
        _resolved("protocol=sbn", "input=250x192")


@pytest.mark.parametrize(
    ("descriptions", "sentence"),
    [
        (["sbn", "sbn"], None),
        (["none named", "none named"], None),
        (
            ["paper", "sbn", "paper, with differences: epochs=9 (150)"],
            "Runs of different protocols are compared: paper (2 of the runs), sbn (1 of the runs), and 1 depart from "
            "theirs in single settings. Figures differ by recipe as well as by network.",
        ),
        (
            ["none named", "sbn"],
            "Runs of different protocols are compared: none named (1 of the runs), sbn (1 of the runs). Figures differ "
            "by recipe as well as by network.",
        ),
        (
            ["sbn", "sbn, with differences: epochs=9 (140)"],
            "1 of the 2 runs depart in single settings from the protocol they name, sbn.",
        ),
    ],
)
def test_a_comparison_across_protocols_says_so(descriptions: list[str], sentence: str | None) -> None:
    assert compared(descriptions) == sentence


def test_a_run_records_its_protocol(tmp_path: Path) -> None:
    lines: list[str] = []

    class Heard(PlainContext):
        def say(self, line: str) -> None:
            lines.append(line)

    config = config_of(tmp_path, "protocol=sbn", "max_samples=8", "data.val=null")
    result = run(config, Heard(pick_device("cpu")))
    told = load_checkpoint(result.checkpoint).meta["protocol"]
    assert lines[0] == f"protocol: {told}"
    assert told.startswith("sbn, with differences: augmentation.scale_factor=0.1 (0.3)")
    # The store of this test has boxes of no rule.
    assert told.endswith("box_rule=none (sbn)")


def test_the_tracked_run_carries_its_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, "tracking.enabled=true", "protocol=sbn")
    tags: dict[str, str] = {}
    monkeypatch.setattr(tracking, "prepare_tracking", lambda _uri: "sqlite:///nowhere.db")
    monkeypatch.setattr(tracking, "dataset_input", lambda *_: None)
    monkeypatch.setattr(tracking, "create_run", lambda *_, **given: tags.update(given["tags"]) or "id")
    record = RunRecord("run", "digest", {}, "now")
    opened = open_record(config, open_inputs(config), record, parent_run_id=None, tags={"efafnet.stage": "trial"})
    assert opened.mlflow_run_id == "id"
    assert tags["efafnet.stage"] == "trial"
    assert tags["efafnet.protocol"].startswith("sbn, with differences: augmentation.scale_factor=0.1 (0.3), ")
