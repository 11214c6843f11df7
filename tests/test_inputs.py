"""What a run starts from: ImageNet weights, a checkpoint of its own network, or any kind of network at random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.evaluation.trained import load_trained
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.inputs import check_sides
from efafnet.pipelines.training.loop import run
from efafnet.platform.checkpoint import load_checkpoint
from tests.test_initialisation import hollow_resnet
from tests.training_cases import SPOTS, config_of


class Quiet(PlainContext):
    """Keeps what would be shown, and the names of what would be recorded."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.recorded: set[str] = set()
        super().__init__(torch.device("cpu"), self)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def log_param(self, name: str, value: str) -> None:  # noqa: ARG002
        self.recorded.add(name)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        assert step > 0
        self.recorded.update(metrics)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        raise AssertionError((path, folder))


def test_a_run_starts_from_imagenet_weights_and_says_what_it_took(tmp_path: Path) -> None:
    published = hollow_resnet("resnet50")
    published["layer4.2.conv3.weight"] = torch.rand(2048, 512, 1, 1)
    torch.save(published, tmp_path / "resnet50.pth")
    context = Quiet()
    encoder = "network={encoder: resnet50, fam: none, fsm: none, ffm: false, head: deconvolution, auxiliary_stages: []}"
    config = config_of(
        tmp_path, encoder, f"imagenet.weights={tmp_path}/resnet50.pth", "batch_size=2", "max_samples=2",
        "optimizer.lr=1e-9", "data.val=null", "log_every_steps=1",
    )  # fmt: skip
    result = run(config, context)
    assert context.lines[0] == (
        f"{tmp_path}/resnet50.pth: resnet weights, took 265 of 265 encoder tensors (23.51 of 23.51 M parameters); "
        "unused in the file: fc x2"
    )
    assert context.lines[0] in (config.run_dir / "train.log").read_text()
    trained = load_checkpoint(result.checkpoint, with_state=False).weights["network"]["encoder.conv5.2.expand.0.weight"]
    torch.testing.assert_close(trained, published["layer4.2.conv3.weight"], atol=1e-8, rtol=0)
    with pytest.raises(ValueError, match=r"its depth is resnet50, the network's encoder=nano"):
        run(config_of(tmp_path, "name=other", f"imagenet.weights={tmp_path}/resnet50.pth"), Quiet())


def test_a_run_starts_from_a_checkpoint_of_its_own_network_only(tmp_path: Path) -> None:
    first = run(config_of(tmp_path, "name=first", "max_samples=8", "data.val=null"), Quiet())
    context = Quiet()
    start = (f"init={first.checkpoint}", "max_samples=8", "data.val=null")
    run(config_of(tmp_path, "name=second", *start), context)
    assert context.lines[0] == f"{first.checkpoint}: took the whole network of that checkpoint"
    with pytest.raises(
        ValueError, match=r"another network: network.fsm='parallel' instead of 'cs'; make them the same"
    ):
        run(config_of(tmp_path, "name=third", *start, "network.fsm=cs"), Quiet())
    with pytest.raises(ValueError, match=r"another network: network.kind='efafnet' instead of 'hrnet'"):
        run(config_of(tmp_path, "name=fourth", *start, "network={kind: hrnet, width: 8}"), Quiet())


def test_other_networks_train_by_the_same_loop(tmp_path: Path) -> None:
    for name, network, heads in (
        ("hrnet", "{kind: hrnet, width: 8, modules: [1, 1, 1], blocks: 1}", {"train/head_loss/final"}),
        ("hourglass", "{kind: hourglass, stacks: 2, width: 16}", {"train/head_loss/final", "train/head_loss/stack1"}),
    ):
        context = Quiet()
        config = config_of(
            tmp_path, f"name={name}", f"network={network}", "max_samples=8", "data.val=null", "log_every_steps=1"
        )
        result = run(config, context)
        assert {key for key in context.recorded if key.startswith("train/head_loss/")} == heads
        assert load_trained(result.checkpoint, SPOTS).settings == config.network


def test_sides_without_pairs_are_asked_for_where_samples_are_mirrored(capsys: pytest.CaptureFixture[str]) -> None:
    sided = Skeleton(
        name="dog", joints=("tail", "L_paw", "R_paw"), flip_pairs=(), limbs=(), sigmas=(0.1,) * 3, upper_body=()
    )
    config = TrainConfig()
    with pytest.raises(ValueError, match=r"'dog' has joints named like sides \(L_paw, R_paw\) and no flip pairs"):
        check_sides(config, sided)
    still = config.model_copy(
        update={
            "augmentation": config.augmentation.model_copy(update={"flip_probability": 0.0}),
            "test": config.test.model_copy(update={"flip_test": False}),
        }
    )
    check_sides(still, sided)
    check_sides(config, sided.model_copy(update={"flip_pairs": ((1, 2),)}))
    assert capsys.readouterr().err == ""
    partly = sided.model_copy(update={"joints": ("L_ear", "L_paw", "R_paw"), "flip_pairs": ((1, 2),)})
    check_sides(config, partly)
    assert "L_ear are named like sides and in no flip pair" in capsys.readouterr().err
