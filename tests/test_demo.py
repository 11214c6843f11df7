"""The demo: its commands are real ones, it goes on where it stopped, and it says honestly what came out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines import demo
from efafnet.pipelines.arguments import base_tree
from efafnet.pipelines.commands import BY_NAME
from efafnet.pipelines.demo import Clock, DemoConfig, DemoError, run_demo, stages_of, verdict
from efafnet.platform.configuration import apply_overrides, resolve
from efafnet.platform.locks import hold
from efafnet.platform.machine import cores

NAMES = ["synth", "prepare", "train", "evaluate", "tune", "report"]


def commands(config: DemoConfig, clock: Clock) -> list[tuple[str, ...]]:
    return [command for stage in stages_of(config) for command in stage.commands(clock)]


def settings(command: Sequence[str]) -> Any:
    """What the command line makes of a command's words."""
    entry = BY_NAME[command[0]]
    tree, source, overrides = base_tree(entry, list(command[1:]))
    return resolve(entry.settings(), apply_overrides(tree, overrides), source)


@pytest.mark.parametrize("size", ["full", "small"])
def test_every_command_of_the_demo_is_accepted_by_the_command_line(tmp_path: Path, size: Any) -> None:
    config = DemoConfig(out=tmp_path / "out", size=size, seed=3)
    Machine(config.out)("train", ("train",))
    assert [stage.name for stage in stages_of(config)] == NAMES
    synth, train_store, val_store, train, evaluate, tune, report = map(settings, commands(config, Clock(480, 50)))
    assert synth.people == "clear"
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
    assert (synth.images.train, synth.images.val) == ((4000, 400) if size == "full" else (60, 20))
    # The small size counts samples; the full one takes what the clock leaves: 480 - 50 - 35 - 20 - 72 - 8 seconds.
    assert (train.max_samples, train.max_time_s) == ((None, 295) if size == "full" else (480, None))
    assert tune.init == train.run_dir
    assert train.tracking.uri == tune.tracking.uri == report.uri == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert train.tracking.experiment == tune.tracking.experiment == report.experiment


class Machine:
    """Runs no commands, but leaves the files that the demo reads; fails where it is told to."""

    def __init__(self, out: Path, ap: float = 0.6) -> None:
        self.out, self.ap, self.broken = out, ap, ""
        self.error: BaseException = DemoError("the stage train ended with exit code 2")
        self.ran: list[str] = []
        self.commands: list[list[str]] = []

    def __call__(self, stage: str, command: Sequence[str]) -> None:
        self.ran.append(command[0])
        self.commands.append(list(command))
        if stage == self.broken:
            raise self.error
        figures = {"ap": self.ap, "ap_50": 0.9, "ap_75": 0.7, "ar": 0.65, "last/samples": 6400.0, "elapsed_s": 40.0}
        found = {"trials": {"complete": 3, "stopped early": 5, "failed": 0}, "best_trial": 4, "best_value": 0.4,
                 "best_name": "lr=0.01"}  # fmt: skip
        for split in ("train", "val"):
            people: Any = {"images": [{}] * 3, "annotations": [{}] * 7}
            self.write(f"people/annotations/{split}.json", people)
            self.write(f"crops/{split}/manifest.json", {"counts": {"persons": 6}, "rejects": {"no_joints": 1}})
        self.write("runs/efafnet/result.json", {"metrics": figures})
        self.write("runs/efafnet/run.json", {"identity": {"precision": "fp32"}})
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
        "AP 0.600 after 6400 samples: 160/s with validation, in fp32",
        f"on {cores()} cores (",
        "AP 0.600, AP50 0.900, AP75 0.700, AR 0.650",
        "3 complete, 5 stopped early; best: trial 4, AP 0.400, lr=0.01",
        "validation AP 0.600 on 6 people that training never saw, after 6,400 samples",
        "EFAFNet without FASM",
        f"{machine.out}/evaluation/best.jpg",
        f"mlflow ui --backend-store-uri sqlite:///{machine.out}/mlflow.db",
        f"{machine.out}/report.html",
    ):
        assert words in told.replace("\n", " ")


def test_it_goes_on_at_the_stage_that_was_interrupted(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.broken = "train"
    again = f"efafnet demo {machine.out} minutes=9"
    with pytest.raises(DemoError, match=rf"the stage train ended with exit code 2\. To go on there: {again}$"):
        run_demo(DemoConfig(out=machine.out, minutes=9))
    assert machine.ran == ["synth", "prepare", "prepare", "train"]
    machine.ran, machine.error = [], KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_demo(DemoConfig(out=machine.out, minutes=9))
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"interrupted; to go on with stage 3 of 6, train: {again}" in said
    machine.broken = ""
    run_demo(DemoConfig(out=machine.out, minutes=9))
    assert machine.ran == ["train", "train", "evaluate", "tune", "report"]
    # The same command to the letter, for a run is resumed by its own settings: the clock is not asked again.
    trained = [command for command in machine.commands if command[0] == "train"]
    assert len(trained) == 3
    assert trained[0] == trained[1] == trained[2]
    machine.ran = []
    run_demo(DemoConfig(out=machine.out, minutes=9))
    assert machine.ran == []


def test_the_clock_gives_training_what_the_other_stages_leave() -> None:
    # 480 s less what is spent, 35 s around the loop, evaluation's 20, 15 % for the search and the report's 8.
    assert Clock(480, 45).training_s == 480 - 45 - 35 - 20 - 72 - 8
    # In four minutes a search is short; in twenty it ends after 120 s, and evaluation and report take no longer either.
    assert Clock(240, 45).training_s == 240 - 45 - 35 - 20 - 50 - 8
    assert Clock(1200, 45).training_s == 1200 - 45 - 35 - 20 - 120 - 8
    assert Clock(480, 470).training_s == 60
    # 480 - 350 - 8 - 50 = 72 s at 300 samples/s for six trials, half of which are stopped half-way.
    assert Clock(480, 350).trial_samples(300) == 4800
    assert Clock(480, 350).trial_samples(5000) == 8000
    assert Clock(480, 475).trial_samples(300) == 800


def test_another_demo_or_anything_else_in_the_directory_is_refused(machine: Machine, tmp_path: Path) -> None:
    run_demo(DemoConfig(out=machine.out))
    with pytest.raises(ValueError, match="holds a demo with"):
        run_demo(DemoConfig(out=machine.out, seed=1))
    with pytest.raises(ValueError, match="holds a demo with"):
        run_demo(DemoConfig(out=machine.out, minutes=20))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="exists and holds no demo"):
        run_demo(DemoConfig(out=tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_it_says_what_it_reached_and_what_more_brings() -> None:
    told = verdict("full", 0.412, 554, 61000)
    assert told.startswith("validation AP 0.412 on 554 people that training never saw, after 61,000 samples")
    for samples, ap in demo.MEASURED:
        assert f"{ap:.2f} after {samples:,}" in told
    assert "EFAFNet without FASM" in told
    assert "trains for seconds" in verdict("small", 0.01, 20, 480)


def test_a_demo_of_another_version_is_not_gone_on_with(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_demo(DemoConfig(out=machine.out))
    monkeypatch.setattr(demo, "drawing_digest", lambda: "other")
    with pytest.raises(ValueError, match="of another version; name another directory, or remove it"):
        run_demo(DemoConfig(out=machine.out))


def test_two_demos_in_one_directory(machine: Machine) -> None:
    machine.out.mkdir()
    with hold(machine.out / "lock"), pytest.raises(ValueError, match=r"out: process \d+ on .* runs a demo there; wait"):
        run_demo(DemoConfig(out=machine.out))
    assert machine.ran == []
    run_demo(DemoConfig(out=machine.out))
    assert machine.ran[0] == "synth"


def test_a_demo_that_was_moved_goes_on_only_where_nothing_is_left_to_do(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.broken = "train"
    with pytest.raises(DemoError):
        run_demo(DemoConfig(out=machine.out))
    moved = machine.out.rename(tmp_path / "my demo")
    with pytest.raises(ValueError, match=rf"was begun in {tmp_path}/out and is not finished; move it back, or name"):
        run_demo(DemoConfig(out=moved))
    moved.rename(machine.out)
    machine.broken = ""
    run_demo(DemoConfig(out=machine.out))
    capsys.readouterr()
    run_demo(DemoConfig(out=machine.out.rename(moved)))
    told = capsys.readouterr().out
    assert f"efafnet train '{moved}/runs/search/best.yaml'" in told
    assert f"mlflow ui --backend-store-uri 'sqlite:///{moved}/mlflow.db'" in told


def test_a_failing_command_stops_the_demo(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="the stage report ended with exit code 2"):
        demo.run_command("report", ("report", f"out={tmp_path}/report.html", "pages=1"))  # no such setting


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
    assert "Search “search”" in page
    assert page.count("data:image/webp;base64,") >= 2
    assert len(re.findall(r"[0-9]/6 ", told)) >= 6
    assert "shows only that the road is open" in told
