"""The demo: its commands are real ones, it goes on where it stopped, and it says honestly what came out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines import cli, demo
from efafnet.pipelines.demo import DemoConfig, DemoError, run_demo, stages_of, verdict
from efafnet.platform.configuration import apply_overrides, resolve

NAMES = ["synth", "prepare", "train", "evaluate", "tune", "report"]


def commands(config: DemoConfig) -> list[tuple[str, ...]]:
    return [command for stage in stages_of(config) for command in stage.commands]


def settings(command: Sequence[str]) -> Any:
    """What the command line makes of a command's words."""
    entry = cli._command(command[0])
    tree, source, overrides = cli._base_tree(entry, list(command[1:]))
    return resolve(cli._load_config(entry), apply_overrides(tree, overrides), source)


@pytest.mark.parametrize("size", ["full", "small"])
def test_every_command_of_the_demo_is_accepted_by_the_command_line(tmp_path: Path, size: Any) -> None:
    config = DemoConfig(out=tmp_path / "out", size=size, seed=3)
    assert [stage.name for stage in stages_of(config)] == NAMES
    synth, train_store, val_store, train, evaluate, tune, report = map(settings, commands(config))
    assert synth.seed == train.seed == tune.seed == tune.search.seed == 3
    assert str(train_store.out) == train.data.train == tune.data.train
    assert str(val_store.out) == train.data.val == tune.data.val == evaluate.data
    assert train_store.images == f"{synth.out}/images/train"
    assert evaluate.checkpoint == train.run_dir
    assert train.workers == 2
    assert train.network.encoder == "nano"
    assert tune.search.trials == (6 if size == "full" else 3)
    assert tune.search.stop == "asha"
    assert tune.max_samples is not None
    assert tune.init == train.run_dir
    assert train.tracking.uri == tune.tracking.uri == report.uri == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert train.tracking.experiment == tune.tracking.experiment == report.experiment


class Machine:
    """Runs no commands, but leaves the files that the demo reads; fails where it is told to."""

    def __init__(self, out: Path, ap: float = 0.6) -> None:
        self.out, self.ap, self.broken = out, ap, ""
        self.ran: list[str] = []

    def __call__(self, stage: str, command: Sequence[str]) -> None:
        self.ran.append(command[0])
        if stage == self.broken:
            raise DemoError(f"the stage {stage} ended with exit code 2")
        figures = {"ap": self.ap, "ap_50": 0.9, "ap_75": 0.7, "ar": 0.65, "samples": 6400.0, "elapsed_s": 40.0}
        found = {"trials": {"complete": 3, "stopped early": 5, "failed": 0}, "best_trial": 4, "best_value": 0.4,
                 "best_name": "lr=0.01"}  # fmt: skip
        for split in ("train", "val"):
            people: Any = {"images": [{}] * 3, "annotations": [{}] * 7}
            self.write(f"people/annotations/{split}.json", people)
            self.write(f"crops/{split}/manifest.json", {"counts": {"persons": 6}, "rejects": {"no_joints": 1}})
        self.write("runs/efafnet/result.json", {"metrics": figures})
        self.write("evaluation/metrics.json", {"figures": figures})
        self.write("runs/search/result.json", found)

    def write(self, name: str, content: Any) -> None:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path / "out")
    monkeypatch.setattr(demo, "run_command", found)
    return found


def test_it_ends_with_what_happened(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(DemoConfig(out=machine.out))
    assert machine.ran == ["synth", "prepare", "prepare", "train", "evaluate", "tune", "report"]
    told = capsys.readouterr().out
    for words in (
        "train: 7 people in 3 pictures",
        "val: 6 persons, left out: 1 no_joints",
        "AP 0.600 after 6400 samples (160/s with validation)",
        "AP 0.600, AP50 0.900, AP75 0.700, AR 0.650",
        "3 complete, 5 stopped early; best: trial 4, AP 0.400, lr=0.01",
        "validation AP 0.600 on 6 people that training never saw (target 0.55)",
        f"mlflow ui --backend-store-uri sqlite:///{machine.out}/mlflow.db",
        f"{machine.out}/report.html",
    ):
        assert words in told.replace("\n", " ")


def test_it_goes_on_at_the_stage_that_was_interrupted(machine: Machine) -> None:
    machine.broken = "train"
    with pytest.raises(DemoError, match="the stage train ended with exit code 2"):
        run_demo(DemoConfig(out=machine.out))
    assert machine.ran == ["synth", "prepare", "prepare", "train"]
    machine.ran, machine.broken = [], ""
    run_demo(DemoConfig(out=machine.out))
    assert machine.ran == ["train", "evaluate", "tune", "report"]
    machine.ran = []
    run_demo(DemoConfig(out=machine.out))
    assert machine.ran == []


def test_another_demo_or_anything_else_in_the_directory_is_refused(machine: Machine, tmp_path: Path) -> None:
    run_demo(DemoConfig(out=machine.out))
    with pytest.raises(ValueError, match="holds a demo with"):
        run_demo(DemoConfig(out=machine.out, seed=1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="exists and holds no demo"):
        run_demo(DemoConfig(out=tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_network_below_the_target_is_called_that() -> None:
    assert "BELOW the target of 0.55" in verdict("full", 0.549, 800)
    assert "(target 0.55)" in verdict("full", 0.55, 800)
    assert "BELOW" not in verdict("small", 0.01, 20)
    assert "trains for seconds" in verdict("small", 0.01, 20)


def test_a_failing_command_stops_the_demo(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"the stage report ended with exit code 2.*goes on from here"):
        demo.run_command("report", ("report", f"uri=sqlite:///{tmp_path}/mlflow.db", "experiment=none"))


@pytest.mark.slow
def test_the_small_demo_walks_the_whole_road(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_demo(DemoConfig(out=tmp_path / "out", size="small"))
    told = capfd.readouterr().out
    out = tmp_path / "out"
    assert [entry["stage"] for entry in json.loads((out / "demo.json").read_text())["stages"]] == NAMES
    result = json.loads((out / "runs/search/result.json").read_text())
    ends = result["trials"]
    assert (ends["complete"] + ends["stopped early"], ends["failed"]) == (3, 0)
    page = (out / "report.html").read_text()
    assert "Search search" in page
    assert page.count("data:image/jpeg;base64,") >= 2
    assert len(re.findall(r"[0-9]/6 ", told)) >= 6
    assert "shows only that the road is open" in told
