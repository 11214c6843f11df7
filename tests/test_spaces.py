"""The search spaces that come with the project: each fits the presets it is meant for, and says what it says."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from efafnet.pipelines.runs.settings import with_settings
from efafnet.pipelines.search.naming import describe
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.configuration import load_preset, resolve
from efafnet.tune_spaces.checking import check_space
from efafnet.tune_spaces.reading import available_spaces, load_space
from efafnet.tune_spaces.space import Choice, Range, Space, grid, suggest

PRESET = {"demo": "synth_nano"}
JOINTS = {"coco_r50_256x192": 17, "crowdpose_r50_256x192": 14, "mpii_r50_256x256": 16, "synth_nano": 17}


def load(name: str, preset: str) -> tuple[Space, dict[str, Any]]:
    tree = load_preset(preset)
    config = resolve(TrainConfig, tree)
    return load_space(name, {"num_joints": JOINTS[preset], "epochs": float(config.epochs), "steps": 1000}), tree


@pytest.mark.parametrize("name", available_spaces())
def test_every_space_is_possible_with_its_preset(name: str) -> None:
    preset = PRESET.get(name, "coco_r50_256x192")
    space, tree = load(name, preset)

    def build(settings: dict[str, Any]) -> TrainConfig:
        config = resolve(TrainConfig, with_settings(tree, settings))
        config.loss.check(JOINTS[preset])
        return config

    assert check_space(space, build) >= 2
    assert space.about.endswith(".")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        build(suggest(space, study.ask()))


@pytest.mark.parametrize("preset", ["coco_r50_256x192", "crowdpose_r50_256x192", "mpii_r50_256x256"])
def test_ohkm_searches_every_r_of_whatever_skeleton(preset: str) -> None:
    space, _ = load("ohkm", preset)
    assert [point["loss.hard_joints"] for point in grid(space)] == list(range(1, JOINTS[preset] + 1))
    assert [settings for _, settings in space.start] == [{"loss.hard_joints": JOINTS[preset] // 2}]


@pytest.mark.parametrize("name", ["auxiliary", "augmentation", "backbone", "input_size", "lr_schedule"])
def test_the_papers_own_settings_are_tried_first(name: str) -> None:
    space, tree = load(name, "coco_r50_256x192")
    ((_, settings),) = space.start
    given = resolve(TrainConfig, tree)
    tried = resolve(TrainConfig, with_settings(tree, settings))
    assert tried.model_copy(update={"protocol": None}) == given.model_copy(update={"protocol": None})


def test_backbones_are_whole_networks() -> None:
    space, _ = load("backbone", "coco_r50_256x192")
    assert [describe(point, ["network"]) for point in grid(space)] == [
        "network=resnet50", "network=resnet101", "network=resnet152", "network=hrnet/32", "network=hrnet/48",
    ]  # fmt: skip


def test_input_sizes_are_those_of_the_paper_with_the_gaussian_that_belongs_to_each() -> None:
    space, _ = load("input_size", "coco_r50_256x192")
    assert grid(space) == [
        {"input": "256x192", "heatmap.sigma_px": 2},
        {"input": "256x256", "heatmap.sigma_px": 2},
        {"input": "384x288", "heatmap.sigma_px": 3},
    ]


def test_a_schedules_own_settings_exist_only_with_it() -> None:
    space, _ = load("lr_schedule", "coco_r50_256x192")
    kind = next(entry for entry in space.entries if entry.key == "schedule.kind").domain
    assert isinstance(kind, Choice)
    assert {
        option.value: [entry.key.removeprefix("schedule.") for entry in option.entries] for option in kind.options
    } == {
        "multistep": ["optimizer.lr", "milestones", "factor", "warmup_steps"],
        "cosine": ["optimizer.lr", "floor", "warmup_steps"],
        "one_cycle": ["optimizer.lr", "rise"],
    }
    milestones = kind.options[0].entries[1].domain
    assert isinstance(milestones, Choice)
    assert milestones.options[0].value == [90.0, 120.0]  # of 150: the paper's own
    assert [entry.name for entry in space.searched].count("schedule.warmup_steps") == 2  # one parameter, two places


def test_all_is_the_sum_of_its_parts() -> None:
    everything, _ = load("all", "coco_r50_256x192")
    parts = [load(name, "coco_r50_256x192")[0] for name in ("ohkm", "lr_schedule", "input_size")]
    assert {e.key for part in parts for e in part.searched} | {"loss.kind"} == {e.key for e in everything.searched}
    rates = {entry.name: entry.domain for entry in everything.searched if entry.key == "optimizer.lr"}
    assert rates == {
        "optimizer.lr": Range(1e-4, 1e-2, integer=False, log=True),
        "optimizer.lr[schedule.kind=one_cycle]": Range(3e-4, 3e-2, integer=False, log=True),
    }
