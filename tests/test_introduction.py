"""What a run says of itself before its first step and at its end."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from efafnet.pipelines.training import start
from efafnet.pipelines.training.context import Status
from efafnet.pipelines.training.description import describe_run
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.introduction import conclude, introduce, next_commands
from efafnet.pipelines.training.monitor import best_metrics, outcome_of, status_figures
from efafnet.pipelines.training.ray_worker import STATUS, StatusFile, read_status
from efafnet.pipelines.training.rundir import RunRecord, TrainResult
from efafnet.pipelines.training.schedule import plan_run
from efafnet.pipelines.training.state import Progress
from efafnet.platform.mlflow_pages import folded, narrowed
from tests.training_cases import config_of

RECORD = RunRecord("nano_test", "", {}, "")


def introduced(tmp_path: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    config = config_of(tmp_path, *overrides)
    introduce(config, open_inputs(config))
    return capsys.readouterr().err


def test_a_run_says_what_it_is_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = introduced(tmp_path, capsys, "epochs=3", "batch_size=12", "workers=5")
    digest = json.loads((tmp_path / "train" / "manifest.json").read_text())["digest"][:12]
    assert f"train: 40 persons of 40 images, digest {digest}, {tmp_path}/train" in text
    assert "val: 11 persons of 11 images" in text
    # 3 x 40 persons in steps of 12 are 10 steps; 12 crops for five workers are two or three each.
    assert "10 steps of 12 crops: 3 epochs; validated every 2 epochs and at the end" in text
    assert "5 of Ray, 2 or 3 crops of each batch to each" in text
    assert "(one each epoch)" in text
    assert "warning" not in text


def test_the_first_line_comes_before_what_trains_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    trainer = SimpleNamespace(run_train=lambda _: said.append(capsys.readouterr().err))
    monkeypatch.setattr("efafnet.pipelines.training.ray_run", trainer, raising=False)
    start.run_train(config_of(tmp_path))
    assert said == [f"run nano_test in {tmp_path}/runs/nano_test\n"]


def test_length_in_whole_steps_and_under_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # 3 x 40 / 16 = 7.5, so 8 steps of 16: 128 samples, 3.2 epochs.
    text = introduced(tmp_path, capsys, "epochs=3", "batch_size=16")
    assert "8 steps of 16 crops: 3.2 epochs (3, and the last step is a whole one)" in text
    text = introduced(tmp_path, capsys, "epochs=3", "batch_size=16", "max_samples=33")
    assert "3 steps of 16 crops: 1.2 epochs (max_samples; epochs=3 would be 8 steps)" in text


def test_a_run_without_validation_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "warning: no data.val: nothing is validated" in introduced(tmp_path, capsys, "data.val=null")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (["network={encoder: resnet50}"], "efafnet-r50"),
        (["network={encoder: resnet101, fam: none, fsm: none, ffm: false, head: deconvolution}"], "sbn-r101"),
        (["network={kind: hrnet, width: 48}"], "hrnet-w48"),
        (["network={kind: hourglass, stacks: 2}"], "hourglass2"),
    ],
)
def test_networks_are_named_after_what_they_are(tmp_path: Path, settings: list[str], name: str) -> None:
    assert config_of(tmp_path, *settings).network.short_name == name


PROGRESS = Progress(
    step=108,
    elapsed_s=444.0,
    train_loss=0.25,
    validation={"ap": 0.5},
    last_validation=108,
    best={"ap": 0.6},
    best_step=81,
)
PLAN = plan_run(epochs=20, samples=86, global_batch=16)


def test_the_best_so_far_is_a_curve_of_its_own() -> None:
    """The newest validation is at step 108, the best was at 81, of a store of 86 persons in batches of 16."""
    assert best_metrics(PROGRESS, PLAN, "ap") == {"best/ap": 0.6, "best/epoch": pytest.approx(81 * 16 / 86)}
    assert best_metrics(Progress(), PLAN, "ap") == {}


def test_code_in_a_description_is_narrow_enough_for_the_page() -> None:
    data = [f"data.{part}=/mnt/stores/of the group/{part}" for part in ("train", "val")]
    typed = shlex.join(["efafnet", "train", "coco_r50_256x192", *data, "batch_size=16"])
    lines = folded(typed).splitlines()
    assert lines == [
        "efafnet train coco_r50_256x192 'data.train=/mnt/stores/of the group/train' \\",
        "  'data.val=/mnt/stores/of the group/val' batch_size=16",
    ]
    assert shlex.split(folded(typed).replace("\\\n", "")) == shlex.split(typed), "as a shell reads it"
    assert folded("efafnet train 'cut off") == "efafnet train 'cut off"
    space = "search:\n  optimizer.lr: {float: [3e-4, 1e-2], log: true}\n"
    text = f"about: {'long words ' * 20}\n# {'remark ' * 20}\n{space}"
    shown = narrowed(text)
    assert max(map(len, shown.splitlines())) <= 80
    assert yaml.safe_load(shown) == yaml.safe_load(text)


def test_a_description_says_how_to_make_the_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    inputs = open_inputs(config)
    monkeypatch.setattr(sys, "argv", ["/bin/efafnet", "train", "nano_test", "data.train=s3://me:secret@b/a b"])
    text = describe_run(config, inputs, "f00d")
    assert "Training of efafnet-nano-64x64." in text
    assert "- **training data**: 40 persons of 40 images" in text
    assert "- **validation data**: 11 persons of 11 images" in text
    assert "\nefafnet train nano_test 'data.train=s3://b/a b'\n```" in text
    monkeypatch.setattr(sys, "argv", ["default_worker.py"])  # a trial, which nobody typed
    text = describe_run(config, inputs, "f00d")
    assert "mlflow artifacts download -r f00d -a config.yaml -d .\nefafnet train ./config.yaml name=again\n" in text
    text = describe_run(config, inputs, "f00d", "Search a over b.")
    assert text.startswith("Search a over b.\n")
    assert "efafnet train" not in text


def test_best_and_last_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The best of a run at step 81, its end at step 108: 1,296 and 1,728 samples of a store of 86 persons."""
    figures = outcome_of(PROGRESS, PLAN, 16)
    assert figures == {
        "ap": 0.6, "step": 81, "epoch": pytest.approx(81 * 16 / 86), "samples": 1296, "elapsed_s": 444,
        "last/ap": 0.5, "last/step": 108, "last/epoch": pytest.approx(108 * 16 / 86), "last/samples": 1728,
        "last/train_loss": 0.25,
    }  # fmt: skip
    config = config_of(tmp_path)
    folder = config.run_dir / "validation" / "step-00000081"
    folder.mkdir(parents=True)
    interval = {"low": 0.55, "high": 0.65, "std": 0.02, "approximate": False}
    (folder / "metrics.json").write_text(json.dumps({"intervals": {"ap": interval}}))
    result = TrainResult(config.run_dir, config.run_dir / "checkpoints" / "step-00000081", figures, None)
    conclude(config, result, RECORD)
    text = capsys.readouterr().out
    assert "best: step 81, epoch 15.07" in text
    row = next(line for line in text.splitlines() if line.startswith("│ ap "))
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["ap", "0.6000", "0.5500 to 0.6500"]
    assert "last: step 108, epoch 20.09, ap 0.5000, loss 0.250000, 1,728 samples in 7:24" in text
    assert f"pictures: {folder}" in text
    assert f"next: efafnet evaluate {config.run_dir} {tmp_path}/val" in text


def test_the_commands_that_follow_are_commands(tmp_path: Path) -> None:
    from efafnet.pipelines import cli

    config = config_of(tmp_path)
    result = TrainResult(config.run_dir, config.run_dir / "best", {"step": 1.0}, None)
    for line in next_commands(config, result):
        program, name, *words = line.split()
        assert program == "efafnet"
        assert cli.main([name, *words, "--print-config"]) == 0


def test_the_line_that_is_drawn_anew(tmp_path: Path) -> None:
    metrics = {"train/loss": 0.5, "speed/samples_per_s": 80.0, "speed/mfu": 0.31, "system/gpu_memory_peak_gib": 12.5}
    progress = Progress(step=54, elapsed_s=30.0, validation={"ap": 0.5}, best={"ap": 0.6}, best_step=27)
    figures = status_figures(progress, PLAN, metrics, "ap")
    # 54 of 108 steps took 30 s: as long again.
    told = ("ETA 0:30", "loss 0.50000", "AP 0.500 (best 0.600)", "80 samples/s", "MFU 31.0%", "12.5 GiB")
    assert figures == told
    assert read_status(tmp_path) is None
    write = StatusFile(tmp_path)
    write(Status(54, 108, figures))
    write(Status(55, 108, figures))  # within the same second
    assert read_status(tmp_path) == Status(54, 108, figures)
    (tmp_path / STATUS).write_text("torn")
    assert read_status(tmp_path) is None
