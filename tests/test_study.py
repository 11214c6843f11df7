"""Studies: what is checked before the first run, what a table says, and a whole one, killed and continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efafnet.pipelines.cli import main
from efafnet.pipelines.evaluation.columns import detections
from efafnet.pipelines.evaluation.matching import match
from efafnet.pipelines.evaluation.metrics import average_precision
from efafnet.pipelines.evaluation.results_file import read_reference
from efafnet.pipelines.runs import concurrency
from efafnet.pipelines.study.config import Plan, StudyConfig, plan_rows, runs_of
from efafnet.pipelines.study.sheet import Sheet, sheet_of, to_json
from efafnet.pipelines.study.statistics import Measured, compare
from efafnet.pipelines.study.study import circumstances, seeds_of, study
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.rundir import RunConflictError
from efafnet.platform.configuration import ConfigurationError, apply_overrides, load_preset, resolve
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.storage import read_json
from efafnet.platform.yaml_text import load_yaml
from efafnet.tune_spaces.space import SpaceError
from efafnet.tune_spaces.study import parse_study
from tests.holds import Holds
from tests.training_cases import SIMPLE, write_store
from tests.waiting import wait_for

TEXT = """\
about: for tests
baseline: quick
rows:
  - {name: quick, settings: {optimizer.lr: 5e-3}, paper: 70}
  - {name: slow, settings: {optimizer.lr: 1e-5}, paper: 71, note: hardly moves}
  - {name: quick again, settings: {optimizer.lr: 5e-3}, paper: 72}
  - {name: another's, paper: 73, missing: not here}
"""


def config_of(place: Path, *overrides: str, text: str = TEXT) -> StudyConfig:
    """A study of seconds on the spots of ``training_cases``."""
    for name, persons in (("train", 40), ("val", 11)):
        if not (place / name).exists():
            write_store(place / name, persons, seed=len(name))
    file = place / "mine.yaml"
    file.write_text(text)
    own = [f"data.train={place}/train", f"data.val={place}/val", f"runs={place}/runs", f"study={file}", "name=auto",
           f"tracking.uri=sqlite:///{place}/mlflow.db", "bootstrap=50"]  # fmt: skip
    own += ["precision=fp32", "test.precision=fp32"]
    return resolve(StudyConfig, apply_overrides(load_preset("nano_test"), [*own, *overrides]))


def planned(config: StudyConfig, text: str = TEXT) -> list[Plan]:
    inputs = open_inputs(config)
    return plan_rows(parse_study(text, "mine.yaml", {"num_joints": 4}), config, config.base(), inputs)


# ---------------------------------------------------------------------------------------------------- before the runs


def test_rows_are_training_runs_validated_at_their_end(tmp_path: Path) -> None:
    config = config_of(tmp_path, "seed=5", "seeds=2", "tracking.register_as=x")
    quick, slow, again, other = planned(config)
    assert quick.config is not None
    assert slow.config is not None
    assert type(slow.config) is TrainConfig
    assert (slow.config.optimizer.lr, slow.config.validation.every_epochs) == (1e-5, None)
    assert slow.config.tracking.register_as is None
    assert (again.config, again.why) == (None, "the same as 'quick' at this scale")
    assert (other.config, other.why) == (None, "not here")
    runs = runs_of([quick, slow, again, other], seeds_of(config), tmp_path / "runs")
    assert list(runs) == [("quick", 5), ("slow", 5), ("quick", 6), ("slow", 6)]
    last = runs["slow", 6]
    assert (last.seed, last.run_dir, last.tracking.run_name) == (6, tmp_path / "runs/slow-s6", "slow, seed 6")


def test_another_training_set_for_each_seed_is_every_rows_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"train: crop store .* row groups; another training set is drawn from"):
        planned(config_of(tmp_path, "resample=train"))
    monkeypatch.setattr("efafnet.pipelines.crops.reader.FEWEST_DRAWN", 2)
    config = config_of(tmp_path, "resample=train")
    plans = planned(config)
    assert [plan.config.resample for plan in plans if plan.config is not None] == ["train", "train"]
    told = circumstances(config, open_inputs(config), plans, [0, 1, 2], "ap", "fp32")
    assert any(text.startswith("training sets: another for each seed, the same for all rows") for text in told)


def test_depth_cannot_be_studied_at_nano_scale(tmp_path: Path) -> None:
    text = "about: depth\nbaseline: 50\nsettings: {loss.hard_joints: 2, input: 64x64}\nrows:\n" + "".join(
        f"  - {{name: {depth}, network: efafnet_r{depth}_384x288}}\n" for depth in (50, 101, 152)
    )
    config = config_of(tmp_path)
    assert [plan.why for plan in planned(config, text)] == ["", *["the same as '50' at this scale"] * 2]
    last = text.replace("baseline: 50", "baseline: 152")
    assert [bool(plan.config) for plan in planned(config, last)] == [False, False, True]
    deep = config_of(tmp_path, "network.encoder=resnet50", "network.base_width=null")
    assert [plan.why for plan in planned(deep, text)] == ["", "", ""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("slow, settings: {optimizer.lr", "slow, settings: {optimiser.lr"),
         r"mine\.yaml:5: optimiser\.lr=1e-05 is refused.*did you mean 'optimizer'"),
        (("lr: 1e-5", "lr: -1"), r"mine\.yaml:5: optimizer\.lr=-1 is refused"),
        (("{optimizer.lr: 1e-5}", "{loss.kind: ohkm, loss.hard_joints: 5}"),
         r"mine\.yaml:5: .*loss\.hard_joints=5 is refused.*more joints than the skeleton's 4"),
        (("{optimizer.lr: 1e-5}", "{input: 96x64}"), r"mine\.yaml:5: input=96x64 is refused.*not prepared"),
        (("slow, settings: {optimizer.lr: 1e-5}", "slow, network: efafnet_r50_256x192"),
         r"mine\.yaml:5: the row 'slow' is refused: hard_joints=8"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_run_is_refused_by_file_and_line(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in TEXT
    with pytest.raises(SpaceError, match=message):
        planned(config_of(tmp_path), TEXT.replace(*change))


def test_a_study_is_looked_at_before_people_are_drawn_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efafnet.pipelines.study.study.synthetic_people", lambda _: pytest.fail("people were drawn"))
    config = resolve(StudyConfig, load_preset("study_nano") | {"study": "nope", "runs": tmp_path})
    with pytest.raises(SpaceError, match="no study 'nope'; there are table_i"):
        study(config)


@pytest.mark.parametrize("key", ["seed: 3", "max_samples: 80", "validation.metric: ap_50", "data.val: x",
                                 "resample: train"])  # fmt: skip
def test_a_row_must_not_set_what_makes_it_incomparable(tmp_path: Path, key: str) -> None:
    config = config_of(tmp_path, text=TEXT.replace("{optimizer.lr: 1e-5}", f"{{{key}}}"))
    with pytest.raises(SpaceError, match=rf"mine\.yaml:5: {key.split(':')[0]} must not be set here: "):
        study(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val=null", "give both, or neither for synthetic people"),
        ("max_time_s=60", "runs of a study need equal budgets"),
        ("bootstrap=1", "one resampling has no spread"),
        ("resample=train seeds=1", "one draw of the training data shows no spread"),
        ("seeds=0", "seeds"),
        ("seedz=3", "did you mean 'seed"),
    ],
)
def test_impossible_studies_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config_of(tmp_path, *override.split())


def test_the_command_starts_from_the_small_preset_and_takes_no_name_from_any(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def settings(*words: str) -> dict[str, Any]:
        assert main([*words, "--print-config"]) == 0
        return dict(load_yaml(capsys.readouterr().out))

    small = settings("study", "table_x")
    assert (small["network"]["encoder"], small["workers"], small["name"]) == ("nano", 0, "auto")
    large = settings("study", "table_x", "coco_r50_256x192")
    assert (large["network"]["encoder"], large["epochs"], large["name"]) == ("resnet50", 150, "auto")
    assert settings("tune", "ohkm", "coco_r50_256x192", "data.val=x")["name"] == "auto"
    ranges = ["optimizer.lr=log(1e-4, 1e-2)", "loss.hard_joints=int(1, num_joints)"]
    inline = settings("tune", *ranges, "coco_r50_256x192", "data.val=x")
    assert inline["space"] == "\n".join(ranges)
    assert inline["network"]["encoder"] == "resnet50"
    assert settings("train", "coco_r50_256x192")["name"] == "coco_r50_256x192"


def test_seeds_and_the_way_of_running_are_not_part_of_a_study(tmp_path: Path) -> None:
    def identity(*overrides: str) -> dict[str, Any]:
        config = config_of(tmp_path, *overrides)
        return open_inputs(config).identity(config)

    assert identity() == identity("seeds=9", "seed=4", "concurrency=1", "bootstrap=0", "confidence=0.9", "keep=all")
    assert identity() != identity("optimizer.lr=0.1")
    assert not {"study", "seeds", "confidence"} & identity().keys()


# --------------------------------------------------------------------------------------------------------- the table


def sheet(figures: dict[str, list[float]]) -> tuple[Sheet, dict[str, Any]]:
    rows = parse_study(TEXT, "mine.yaml", {}).rows
    plans = [Plan(row, None, None, row.missing) for row in rows]
    measured = [Measured(name, dict(enumerate(values))) for name, values in figures.items()]
    found = compare(measured, "quick")
    made = sheet_of("mine", plans, found, ["measured: on nothing"], {"slow-s1": "it fell over"})
    return made, to_json(plans, measured, found, made, {"study": "mine"})


def cell(made: Sheet, row: str, column: str) -> str:
    names = [name for name, _ in made.columns]
    return next(cells for cells in made.rows if cells[0] == row)[names.index(column)]


def test_the_table_sets_the_papers_column_beside_the_measured_one() -> None:
    made, content = sheet({"quick": [50.0, 52.0, 54.0], "slow": [60.0, 62.5, 64.0], "quick again": [50.0, 51.0, 55.0]})
    assert [cell(made, "slow", name) for name in ("paper", "measured", "runs", "paper diff.", "diff.")] == [
        "71.0", "62.2", "3", "+1.0", "+10.2",
    ]  # fmt: skip
    # Three rows of three seeds do not show that rows scatter alike: each difference is judged by its own seeds.
    assert cell(made, "slow", "told apart") == "yes, by own seeds"
    assert cell(made, "quick again", "told apart") == "no, by own seeds"
    assert cell(made, "quick again", "more seeds").endswith(" or more")  # a difference of nothing
    assert cell(made, "quick again", "better").startswith("0.50 (")
    assert cell(made, "quick again", "sd") == "2.65"  # of 50, 51, 55: sqrt(14 / 2)
    assert cell(made, "quick", "diff.") == "baseline"
    assert (cell(made, "another's", "measured"), cell(made, "another's", "diff.")) == ("not run", "")
    told = "\n".join(made.texts)
    assert "told apart from quick at 95 % (Holm over 2 differences): slow (+10.2)" in told
    assert "NOT told apart from quick: quick again" in told
    assert "rank correlation of the measured column with the paper's over 3 rows: +0.00" in told
    assert "slow-s1 failed: it fell over" in told
    assert "slow: hardly moves" in told
    assert "another's: not run, not here" in told
    lines = made.markdown().splitlines()
    assert lines[2].startswith("| row | paper | measured | ± |")
    assert sum(line.startswith("| ") for line in lines) == 6
    assert content["rows"][1]["difference"]["value"] == pytest.approx(62.1666666 - 52)
    assert content["rows"][0]["figures"] == {"0": 50.0, "1": 52.0, "2": 54.0}
    json.dumps(content, allow_nan=False)


def test_without_a_baseline_nothing_is_compared() -> None:
    made, _ = sheet({"slow": [60.0, 61.0], "quick again": [1.0, 2.0]})
    assert "no run of the baseline quick ended: there is nothing to compare with" in made.texts
    assert cell(made, "quick", "measured") == "failed"


def test_a_table_of_single_runs_claims_nothing() -> None:
    made, _ = sheet({"quick": [50.0], "slow": [70.0]})
    assert [cell(made, "slow", name) for name in ("±", "sd", "diff.", "p", "told apart", "better")] == [
        "?", "?", "+20.0", "?", "?", "?",
    ]  # fmt: skip
    assert any("one run per row: nothing here tells a difference from luck" in text for text in made.texts)
    assert not any("told apart from" in text for text in made.texts)


def test_a_row_that_scatters_unlike_the_others_is_said_so() -> None:
    quiet = {str(row): [row + 0.1 * ((row * seed) % 3) for seed in range(4)] for row in range(1, 5)}
    figures = {"0": [0.0] * 4, **quiet, "wild": [10.0, -6.0, 8.0, -4.0]}
    text = "about: x\nbaseline: '0'\nrows:\n" + "".join(f"  - {{name: '{name}'}}\n" for name in figures)
    plans = [Plan(row, None, None, "") for row in parse_study(text, "x.yaml", {}).rows]
    measured = [Measured(name, dict(enumerate(values))) for name, values in figures.items()]
    made = sheet_of("x", plans, compare(measured, "0", resolve=0.5), [], {})
    assert cell(made, "wild", "told apart") == "no, by own seeds"
    assert cell(made, "4", "told apart") == "yes, by own seeds"
    told = "\n".join(made.texts)
    assert "scatter more than the others, and are left out of the pool: wild" in told
    assert "seeds do not show that rows scatter alike: each difference is judged by those of its two rows alone" in told
    even = [
        Measured(name, {seed: float(seed + (seed == row)) for seed in range(6)}) for row, name in enumerate(figures)
    ]
    alike = sheet_of("x", plans, compare(even, "0"), [], {})
    assert any("rows scatter alike as far as seeds show: one spread, widened by 10%" in text for text in alike.texts)
    assert cell(alike, "4", "told apart") == "no"
    assert "a true difference of 0.5 points would stand out in this table every second time with" in told


# ----------------------------------------------------------------------------------------------------- a whole study


def children(place: Path) -> tuple[Any, list[Any]]:
    client = mlflow_client(f"sqlite:///{place}/mlflow.db")
    runs = list(client.search_runs([each.experiment_id for each in client.search_experiments()]))
    (parent,) = [run for run in runs if run.data.tags["efafnet.stage"] == "study"]
    return parent, [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_same_command(
    tmp_path: Path,
    fresh_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """SIGKILL of the driver while runs run on a Ray of its own; then the same command ends with every run there
    once."""
    config_of(tmp_path)
    shutil.copyfile(fresh_store, tmp_path / "mlflow.db")
    settings = [f"data.train={tmp_path}/train", f"data.val={tmp_path}/val", f"runs={tmp_path}/runs", "name=killed",
                "seeds=2", "tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
                "cluster.address=local", "concurrency=1", "tracking.system_metrics_every_s=null",
                "precision=fp32", "test.precision=fp32", "bootstrap=50", *SIMPLE]  # fmt: skip
    words = ["study", f"{tmp_path}/mine.yaml", "nano_test", *settings]
    command = [sys.executable, "-m", "efafnet.pipelines", *words]
    holds = Holds(tmp_path / "holds")
    runs = tmp_path / "runs/killed/runs"
    holds.at(10)
    process = subprocess.Popen(command, env=holds.environment(), stderr=subprocess.DEVNULL, cwd=tmp_path)
    wait_for("checkpoint", lambda: any(runs.glob("*/checkpoints/step-00000010")), lambda: process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    request.getfixturevalue("ray_local")  # now: beside the Ray above it would only take time
    assert main(words) == 0
    told = capsys.readouterr()
    assert "4 runs" in told.err
    assert "told apart from quick" in told.out
    assert "resuming at step 10 " in "".join((run / "train.log").read_text() for run in runs.iterdir())
    result = read_json(tmp_path / "runs/killed/result.json")
    by_name = {row["name"]: row for row in result["rows"]}
    assert [by_name[name]["runs"] for name in ("quick", "slow")] == [2, 2]
    assert by_name["quick"]["mean"] > by_name["slow"]["mean"]
    figures = [100 * read_json(runs / f"quick-s{seed}" / "result.json")["metrics"]["ap"] for seed in (0, 1)]
    assert by_name["quick"]["mean"] == pytest.approx(np.mean(figures))
    truth = read_reference(tmp_path / "val").truth
    table = match(truth, detections(read_json(runs / "quick-s0" / "predictions.json"), truth))
    assert 100 * average_precision(table) == pytest.approx(figures[0])
    assert not list(runs.glob("*/checkpoints"))
    assert (tmp_path / "runs/killed/table.md").read_text().startswith("## mine: for tests")
    parent, repeats = children(tmp_path)
    assert parent.info.status == "FINISHED"
    assert sorted(run.info.run_name for run in repeats) == [
        "quick, seed 0", "quick, seed 1", "slow, seed 0", "slow, seed 1",
    ]  # fmt: skip
    assert {run.info.status for run in repeats} == {"FINISHED"}
    assert parent.data.metrics["mean/quick"] == pytest.approx(np.mean(figures))

    # The runs are there: for the same table no Ray is asked for, and one changed row is refused.
    monkeypatch.delattr(concurrency, "connect")
    tracked = ["name=killed", "seeds=2", "tracking.enabled=true", *SIMPLE]
    again = study(config_of(tmp_path, *tracked))
    assert again.found.rows[0].mean == pytest.approx(np.mean(figures))
    with pytest.raises(RunConflictError, match=r"slow-s0 exists with other settings: optimizer\.lr 1e-05 -> 2e-05"):
        study(config_of(tmp_path, *tracked, text=TEXT.replace("1e-5", "2e-5")))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_that_fails_is_told_and_the_others_are_compared(tmp_path: Path) -> None:
    text = TEXT.replace("lr: 1e-5", "lr: 1e30")
    result = study(config_of(tmp_path, "seeds=1", "name=fails", "workers=1", "concurrency=1", "keep=all", *SIMPLE,
                             text=text))  # fmt: skip
    assert [row.name for row in result.found.rows] == ["quick"]
    assert sorted(result.failures) == ["slow-s0"]
    assert "training diverged" in result.failures["slow-s0"]
    assert any(text.startswith("slow-s0 failed: ") for text in result.sheet.texts)
    assert (result.directory / "runs/quick-s0/best/meta.json").is_file()
