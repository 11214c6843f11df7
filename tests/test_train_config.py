"""The settings of a run: what is refused, what identifies it, and that every preset is possible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efafnet.models.cost import network_cost
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.identity import CHANGEABLE, IDENTITY, INCIDENTAL, is_in
from efafnet.pipelines.training.step import step_seed
from efafnet.platform.configuration import (
    ConfigurationError,
    apply_overrides,
    describe,
    flatten,
    load_preset,
    preset_names,
    resolve,
    to_yaml,
)


def resolved(*overrides: str) -> TrainConfig:
    return resolve(TrainConfig, apply_overrides({}, overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs=100"], r"schedule.milestones must lie before the end of the run at epochs=100; got \[90.0, 120.0\]"),
        (["batch_size=3", "workers=4"], "batch_size=3 cannot be shared by workers=4 .* at least 4"),
        (
            ["batch_size=64", "workers=4", "compute.micro_batch=32"],
            "compute.micro_batch=32 leaves some of workers=4 without a part of batch_size=64; make it 16 or less",
        ),
        (
            ["workers=2", "worker.collective_timeout_s=300"],
            "validation.wait_s=300: all workers wait meanwhile, and give up after worker.collective_timeout_s=300",
        ),
        (["compute.micro_batch=0"], "micro_batch is a number of crops, at least 1, or auto; got 0"),
        (["precision=fp16", "device=cpu"], "works on GPUs only"),
        (["heatmap.stride=1"], "heatmap.stride = 1: network.head=duc puts out heatmaps of stride 4"),
        (["network.kind=hrnet", "heatmap.stride=2"], "network.kind=hrnet puts out heatmaps of stride 4"),
        (["network.kind=hrnet", "network.encoder=nano"], "no setting 'network.encoder' in the chosen kind"),
        (["network.fsm=none", "network.lss_relu=true"], r"^network: lss_relu=true belongs to LSS"),
        (["network.kind=cpn"], r"network.kind = 'cpn': takes efafnet \| hrnet \| hourglass"),
        (["network.kind=hourglass", "imagenet.download=true"], "network.kind=hourglass has none; leave them out"),
        (["init=a", "imagenet.weights=b.pth"], "the checkpoint would overwrite the imagenet weights"),
        (["input=250x192"], "multiple of 32; got 250, try 224 or 256"),
        (["name=a/b"], "names a directory"),
        (["name=''"], "names a directory"),
        (["optimizer.learning_rate=1"], "optimizer.learning_rate"),
        (["schedule.kind=linear"], "schedule.kind"),
        (["checkpoint.every_epochs=null"], "a run without checkpoints is lost"),
        (["workers=-1"], "workers"),
        (["workers=4..2"], r"workers is a number, or FEWEST..MOST like 1..4; got '4..2'"),
        (["workers=2", "worker.fewest=3"], "worker.fewest=3 is more than workers=2"),
        (["epochs=0"], "epochs"),
        (["seed=1764144000000"], "seed = 1764144000000: must be at most 4294967295"),
    ],
)
def test_what_cannot_be_is_refused_with_its_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolved(*overrides)


def test_a_range_of_workers_is_the_most_and_the_fewest() -> None:
    config = resolved("workers=1..4", "worker.cpus=2")
    assert (config.workers, config.worker.fewest, config.worker.cpus) == (4, 1, 2)
    assert resolve(TrainConfig, _reread(to_yaml(config))) == config


def test_every_setting_is_explained() -> None:
    assert [row.key for row in describe(TrainConfig) if not row.text] == []


def test_identity_holds_what_changes_the_figures_and_nothing_else() -> None:
    base = resolved().identity("t", "v")
    same = resolved(
        "name=other", "runs=/elsewhere", "workers=4", "data.train=/moved", "device=cpu", "reader.threads=7",
        "checkpoint.every_steps=9", "tracking.experiment=x", "log_every_steps=3", "trace=true", "cluster.num_cpus=4",
        "validation={where: inline, every_epochs: 3, patience: 2, overlays: 0}", "worker.fewest=2", "test.batch_size=7",
        "compute={channels_last: false, compile: default, graph: off, micro_batch: 8}",
    )  # fmt: skip
    assert same.identity("t", "v") == base
    assert resolved().identity("other", "v") != base
    for override in (
        "optimizer.lr=1e-3", "loss.kind=ohkm", "input=288x192", "seed=1", "batch_size=32", "network.ffm=false",
        "reader.shuffle_groups=2", "max_samples=999", "precision=bf16", "test.flip_test=false", "validation.metric=ar",
        "compute.sync_batch_norm=true", "fork=runs/old",
    ):  # fmt: skip
        changed = resolved(override).identity("t", "v")
        assert [key for key in base if base[key] != changed[key]] == [_leaf(override)]


def test_every_setting_either_makes_the_run_or_may_change() -> None:
    for key in flatten(resolved().model_dump(mode="json")):
        own = [group for group in (*IDENTITY, *CHANGEABLE) if is_in(key, group)]
        assert len(own) <= 1, f"{key} is in {own}"
        assert own or any(is_in(key, group) for group in INCIDENTAL), f"{key} belongs into a list of identity.py"


def test_the_largest_seed_can_be_drawn_from_at_every_step_and_worker() -> None:
    seed = resolved("seed=4294967295").seed
    torch.manual_seed(step_seed(seed, 10**9, 4_098))


def _leaf(override: str) -> str:
    key = override.partition("=")[0]
    return {"input": "input.height"}.get(key, key)


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_possible_and_read_back(name: str) -> None:
    config = resolve(TrainConfig, load_preset(name), name)
    assert config.name == name
    assert resolve(TrainConfig, _reread(to_yaml(config))) == config


def _reread(text: str) -> dict[str, object]:
    from efafnet.platform.configuration import read_tree

    return read_tree(text, "test")


def test_the_baseline_preset_is_the_published_network() -> None:
    config = resolve(TrainConfig, load_preset("sbn_r50_256x192"))
    cost = network_cost(config.network, 17, config.input)
    assert cost.params_m == pytest.approx(34.00, abs=0.005)
    assert cost.paper_g == pytest.approx(8.99, abs=0.01)


def test_presets_hold_their_published_recipes() -> None:
    paper = resolve(TrainConfig, load_preset("coco_r50_256x192"))
    assert (paper.optimizer.lr, paper.epochs, paper.schedule.milestones, paper.batch_size) == (5e-4, 150, (90, 120), 64)
    assert (paper.loss.kind, paper.loss.hard_joints, paper.heatmap.sigma_px) == ("ohkm", 8, 2)
    large = resolve(TrainConfig, load_preset("coco_r50_384x288"))
    assert (str(large.input), large.heatmap.sigma_px) == ("384x288", 3)
    simple = resolve(TrainConfig, load_preset("sbn_r50_256x192"))
    assert (simple.optimizer.lr, simple.epochs, simple.batch_size, simple.loss.kind) == (1e-3, 140, 128, "mse")


def test_relative_paths_are_kept_for_the_caller_to_resolve() -> None:
    config = resolved("data.train=crops/train")
    assert config.data.train == "crops/train"
    assert config.run_dir == Path("runs/train")
