"""Searches: what is checked before them, how they fit a cluster, and whole small ones on Ray."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run, ViewType

from efafnet.pipelines.cli import main
from efafnet.pipelines.promotion import run_promoted
from efafnet.pipelines.runs.concurrency import driver_resources
from efafnet.pipelines.runs.settings import automatic_name
from efafnet.pipelines.search.config import TuneConfig, paced, trial_config
from efafnet.pipelines.search.earlier import open_study, study_identity
from efafnet.pipelines.search.naming import describe
from efafnet.pipelines.search.tune import run_tune, tune
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.placement import placed
from efafnet.platform.capacity import Capacity
from efafnet.platform.configuration import ConfigurationError, apply_overrides, load_preset, resolve
from efafnet.platform.mlflow_client import mlflow_client
from tests import rays
from tests.holds import Holds
from tests.processes import program
from tests.training_cases import ROOT, SIMPLE, wait_until_left, write_store
from tests.waiting import LIMIT_S, wait_for

SPACE = """\
about: for tests
search:
  optimizer.lr: {float: [1e-3, 1e-2], log: true}
  loss.kind: {choice: {mse: {}, ohkm: {loss.hard_joints: {int: [1, num_joints]}}}}
"""


def config_of(place: Path, *overrides: str, space: str = SPACE) -> TuneConfig:
    """A search of seconds on the spots of ``training_cases``."""
    for name, persons in (("train", 40), ("val", 11)):
        if not (place / name).exists():
            write_store(place / name, persons, seed=len(name))
    file = place / "my.yaml"
    file.write_text(space)
    own = [f"data.train={place}/train", f"data.val={place}/val", f"runs={place}/runs", f"space={file}"]
    own += ["name=auto", "search.trials=3", f"tracking.uri=sqlite:///{place}/mlflow.db", "tracking.enabled=false"]
    own += ["precision=fp32", "test.precision=fp32", "worker.cpus=1", *SIMPLE]
    return resolve(TuneConfig, apply_overrides(load_preset("nano_test"), [*own, *overrides]))


# ---------------------------------------------------------------------------------------------------- before a search


def test_a_trial_is_the_base_run_with_its_settings_and_its_own_directory(tmp_path: Path) -> None:
    config = config_of(tmp_path, "tracking.register_as=efafnet")
    trial = trial_config(config, {"loss.kind": "ohkm", "loss.hard_joints": 2}, 7, tmp_path / "trials")
    assert type(trial) is TrainConfig
    assert (trial.loss.kind, trial.loss.hard_joints, trial.run_dir) == ("ohkm", 2, tmp_path / "trials" / "0007")
    assert (trial.tracking.register_as, trial.tracking.log_checkpoint, trial.tracking.log_network) == (
        None,
        False,
        False,
    )
    assert (trial.optimizer, trial.seed, trial.data) == (config.optimizer, config.seed, config.data)


def test_validations_are_spread_evenly_over_the_budget(tmp_path: Path) -> None:
    config = config_of(tmp_path)  # 40 persons, batches of 8, 4 epochs: 20 steps
    inputs = open_inputs(config)
    trial = trial_config(config, {}, 0, tmp_path)
    assert paced(trial, inputs, 4).validation.every_epochs == pytest.approx(1.0)
    assert paced(trial, inputs, 4).validation.where == "inline"
    assert paced(trial, inputs, 4).checkpoint == trial.checkpoint  # no more of them than of any run
    short = trial.model_copy(update={"max_samples": 80})  # 10 steps: 2 epochs
    assert paced(short, inputs, 4).validation.every_epochs == pytest.approx(0.5)
    assert config.rungs(inputs) == ([40, 80], 40)  # of 160 samples: a quarter, a half


def test_a_name_is_the_same_for_the_same_command_only(tmp_path: Path) -> None:
    def name(*overrides: str) -> str:
        config = config_of(tmp_path, *overrides)
        return automatic_name(config, "my", open_inputs(config).identity(config) | {"space": SPACE})

    first = name()
    assert first.startswith("my-")
    assert name() == name("search.trials=9", "search.concurrency=1") == first
    assert len({first, name("seed=1"), name("search.seed=1"), name("search.grace=0.5"), name("epochs=5")}) == 5
    assert name("name=mine") == "mine"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val=null", "data.val is required: trials are compared"),
        ("max_time_s=60", "trials of a search need equal budgets"),
        ("search.validations=1", "leaves nothing to stop a trial by"),
        ("search.trails=3", "did you mean 'search.trials'"),
        ("search.sampler=bayes", "tpe"),
    ],
)
def test_impossible_searches_are_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config_of(tmp_path, override)


@pytest.mark.parametrize(
    ("space", "overrides", "message"),
    [
        ("search:\n  optimiser.lr: {float: [1e-3, 1e-2]}\n", (), r"my\.yaml:2: optimiser\.lr=.*mean 'optimizer'"),
        ("search:\n  optimizer.lr: {float: [1e-3, 1e-2]}\n  loss.kind: ohkm\n  loss.hard_joints: {int: [1, 5]}\n", (),
         r"my\.yaml:4: .*loss\.hard_joints=5 is refused.*more joints than the skeleton's 4"),
        ("search:\n  input: {choice: [64x64, 64x96]}\n", (), r"my\.yaml:2: input=64x96 .*not prepared"),
        ("search:\n  optimizer.lr: {float: [1e-3, 1e-2], step: 1e-3}\n", ("search.sampler=grid",),
         r"the grid of .*my\.yaml has 10 points"),
        ("search:\n  seed: {int: [0, 9]}\n", (), r"my\.yaml:2: seed must not be set here: .*luckiest would win"),
        ("search:\n  max_samples: {int: [80, 160]}\n", ("search.stop=asha",),
         r"my\.yaml:2: max_samples must not be set here: search\.stop=asha compares trials at equal samples"),
        (SPACE, ("search.learn_from=nowhere",), r"nowhere/study\.db does not exist"),
    ],
)  # fmt: skip
def test_a_space_that_does_not_fit_is_refused_before_the_first_trial(
    tmp_path: Path, space: str, overrides: tuple[str, ...], message: str
) -> None:
    config = config_of(tmp_path, *overrides, space=space)
    with pytest.raises(ValueError, match=message):
        tune(config)
    assert not list(tmp_path.glob("runs/*/trials"))


def test_another_search_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    from efafnet.pipelines.training.rundir import RunConflictError, RunDirectory

    config = config_of(tmp_path, "name=mine")
    inputs = open_inputs(config)
    directory = RunDirectory(config.run_dir)
    directory.path.mkdir(parents=True)
    directory.claim(inputs.identity(config) | {"space": SPACE})
    with pytest.raises(RunConflictError, match=r"search\.seed 0 -> 1"):
        tune(config_of(tmp_path, "name=mine", "search.seed=1"))


# ----------------------------------------------------------------------------------------------------------- resources


def nodes(*each: tuple[float, float]) -> Capacity:
    return Capacity([{"CPU": cpus, "GPU": gpus} for cpus, gpus in each])


def test_a_trial_reserves_for_itself_only_what_it_uses_itself(tmp_path: Path) -> None:
    there = nodes((2, 1))
    assert driver_resources(placed(config_of(tmp_path, "workers=2", "worker.gpu=no"), there)) == {
        "node:__internal_head__": 0.001
    }
    assert driver_resources(placed(config_of(tmp_path, "workers=0", "worker.gpu=no"), there)) == {"CPU": 1.0}
    assert driver_resources(placed(config_of(tmp_path, "workers=0", "worker.gpu=yes"), there)) == {"CPU": 1, "GPU": 1}
    shared = config_of(tmp_path, "workers=0", "worker.gpu=yes", "worker.gpus=0.25")
    assert driver_resources(placed(shared, there)) == {"CPU": 1.0, "GPU": 0.25}


def test_workers_of_one_run_never_share_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"worker\.gpus = 0\.5: two of workers=2 could land on one GPU"):
        config_of(tmp_path, "workers=2", "worker.gpus=0.5")


# ------------------------------------------------------------------------------------------------------ whole searches


def children(place: Path, name: str) -> tuple[Run, list[Run]]:
    """The run of a search in MLflow, and its trials in order."""
    client = mlflow_client(f"sqlite:///{place}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()], run_view_type=ViewType.ALL)
    (parent,) = [run for run in runs if run.info.run_name == name]
    mine = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, sorted(mine, key=lambda run: int(run.data.tags["efafnet.trial"]))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_search_prunes_records_and_leaves_a_preset_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("search.trials=4", "name=small", "tracking.enabled=true", "search.concurrency=1",
               "search.sampler=random", "workers=0", "tracking.system_metrics_every_s=null")  # fmt: skip
    config = config_of(tmp_path, *changes, space=SPACE.replace("1e-3, 1e-2", "1e-5, 2e-2"))
    run_tune(config)
    study = open_study(tmp_path / "runs/small/study.db")
    states = [trial.state.name for trial in study.trials]
    assert len(states) == 4
    assert set(states) == {"COMPLETE", "PRUNED"}
    for trial in study.trials:
        assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]
        assert (max(trial.intermediate_values) == 160) == (trial.state.name == "COMPLETE")
    best = study.best_trial
    parent, trials = children(tmp_path, "small")
    assert (parent.info.status, parent.data.tags["efafnet.best_trial"]) == ("FINISHED", str(best.number))
    assert [run.info.status for run in trials] == [{"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[s] for s in states]
    assert all(run.data.params["optimizer.lr"] == str(study.trials[n].params["optimizer.lr"])
               for n, run in enumerate(trials))  # fmt: skip
    params = [set(run.data.params.items()) for run in trials]
    differing = {key for each in params for key, _ in each ^ params[0]}
    assert differing <= {"optimizer.lr", "loss.kind", "loss.hard_joints"}  # what MLflow draws when they are compared
    assert trials[0].info.run_name == f"#0 {describe(study.trials[0].user_attrs['settings'], study.trials[0].params)}"
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    files = [file.path for file in client.list_artifacts(parent.info.run_id, "search")]
    assert {"search/best.yaml", "search/study.json", "search/my.yaml", "search/charts.html"} <= set(files)
    assert not client.search_logged_models([parent.info.experiment_id]), "of the trials' checkpoints one is kept"
    kept = [path.parent.name for path in (tmp_path / "runs/small/trials").glob("*/checkpoints")]
    assert kept == [f"{best.number:04d}"]
    preset = resolve(TrainConfig, load_preset(str(tmp_path / "runs/small/best.yaml")))
    assert preset.optimizer.lr == best.params["optimizer.lr"]
    assert (preset.name, preset.runs, preset.epochs) == ("small-best", tmp_path / "runs", 4)
    told = capsys.readouterr()
    assert "stopped early" in told.out
    assert f"best: trial {best.number}, ap {best.value:.4f}" in told.out

    again = tune(config)  # the same command again: nothing is run
    assert (again.best_number, again.counts["complete"]) == (best.number, states.count("COMPLETE"))
    assert "had ended before" in capsys.readouterr().err
    assert len(children(tmp_path, "small")[1]) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_trials_on_rays_workers_fail_alone_and_the_search_goes_on(tmp_path: Path) -> None:
    space = "search:\n  optimizer.lr: {choice: [1e30, 5e-3]}\n"
    config = config_of(tmp_path, "name=ray", "workers=1", "search.sampler=grid", "search.trials=2",
                       "search.concurrency=2", "tracking.enabled=true", space=space)  # fmt: skip
    result = tune(config)
    assert result.counts == {"complete": 1, "stopped early": 0, "failed": 1, "interrupted": 0}
    assert result.best_settings == {"optimizer.lr": 0.005}
    failed, complete = open_study(tmp_path / "runs/ray/study.db").trials
    assert "training diverged" in failed.user_attrs["reason"]
    assert len(complete.intermediate_values) == 4
    assert [run.info.status for run in children(tmp_path, "ray")[1]] == ["FAILED", "FINISHED"]


@dataclass(frozen=True)
class Searched:
    """A search whose time was up before its first trial had a process, and that the same command then ended."""

    directory: Path
    codes: tuple[int, int]
    """Exit codes of both commands."""
    left: list[str]
    """States of the trials that the first one left."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, _rays_end: None) -> Searched:
    """Three trials at random, none of them stopped early: what two tests ask of a search that has ended."""
    rays.share()
    place = tmp_path_factory.mktemp("searched")
    wanted = ("name=searched", "search.trials=3", "workers=0", "search.concurrency=1", "search.sampler=random",
              "search.stop=none")  # fmt: skip
    study = place / "runs/searched/study.db"
    timed = run_promoted(config_of(place, "search.time_s=0.1", *wanted))
    left = [trial.state.name for trial in open_study(study).trials]
    return Searched(study.parent, (timed, run_promoted(config_of(place, *wanted))), left)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_search_whose_time_is_up_leaves_its_trials_to_be_continued(searched: Searched) -> None:
    """A tenth of a second is over before a process is there; without a complete trial the exit code says so."""
    assert searched.left == ["RUNNING"]
    assert searched.codes == (1, 0)
    trials = open_study(searched.directory / "study.db").trials
    assert [(trial.state.name, trial.user_attrs["attempts"]) for trial in trials] == [
        ("COMPLETE", 2), ("COMPLETE", 1), ("COMPLETE", 1),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_search_learns_from_another_and_outlives_a_trials_process(
    tmp_path: Path, searched: Searched, holds: Holds
) -> None:
    """Warm start, start points, the median rule, and SIGKILL of a trial's process."""
    space = f"{SPACE}start:\n  - {{optimizer.lr: 0.005, loss.kind: mse}}\n"
    config = config_of(tmp_path, "name=second", f"search.learn_from={searched.directory}", "search.stop=median",
                       "search.trials=3", "workers=0", "search.concurrency=1", space=space)  # fmt: skip
    checkpoints = config.run_dir / "trials/0000/checkpoints"
    holds.at(10)
    killer = threading.Thread(target=lambda: kill_trial(checkpoints, holds), daemon=True)
    killer.start()
    tune(config)
    study = open_study(config.run_dir / "study.db")
    known = [trial for trial in study.trials if "imported_from" in trial.user_attrs]
    own = [trial for trial in study.trials if trial not in known]
    origin = study_identity(open_study(searched.directory / "study.db"))
    assert [trial.user_attrs["imported_from"] for trial in known] == [f"{origin}#{n}" for n in range(3)]
    assert own[0].params == {"optimizer.lr": 0.005, "loss.kind": "mse"}
    assert {trial.state.name for trial in own} <= {"COMPLETE", "PRUNED"}
    assert own[0].user_attrs["died"]
    assert list(own[0].intermediate_values) == [40 * n for n in range(1, 5)]  # the first cannot be stopped
    assert "resuming at step" in (checkpoints.parent / "train.log").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_search_without_a_complete_trial_exits_with_1(tmp_path: Path) -> None:
    space = "search:\n  optimizer.lr: {choice: [1e30]}\n"
    config = config_of(tmp_path, "search.trials=1", "workers=0", "name=broken", space=space)
    assert run_promoted(config) == 1
    assert [trial.state.name for trial in open_study(tmp_path / "runs/broken/study.db").trials] == ["FAIL"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_trial_that_waited_ends_as_if_it_had_never_waited(tmp_path: Path, searched: Searched) -> None:
    """The same three settings in a search where all wait after a quarter and one goes on, and in one without stops."""
    tune(config_of(tmp_path, "name=waiting", "search.stop=constant", "search.finish=1", "search.trials=3", "workers=0",
                   "search.sampler=random", "search.concurrency=1"))  # fmt: skip
    waiting = open_study(tmp_path / "runs/waiting/study.db").trials
    whole = open_study(searched.directory / "study.db").trials
    assert [trial.params for trial in waiting] == [trial.params for trial in whole]
    first = [trial.intermediate_values[40] for trial in waiting]
    best = first.index(max(first))
    for number, (one, other) in enumerate(zip(waiting, whole, strict=True)):
        assert one.state.name == ("COMPLETE" if number == best else "PRUNED")
        assert one.intermediate_values == {
            samples: figure for samples, figure in other.intermediate_values.items() if number == best or samples == 40
        }
    assert waiting[best].user_attrs["attempts"] == 2


def kill_trial(checkpoints: Path, holds: Holds) -> None:
    """SIGKILL the process of the trial that waits after ten steps, once it has left a checkpoint."""
    wait_for("checkpoint", lambda: any(checkpoints.glob("step-*")))
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # among them are some that have ended
            if any(file.path == str(checkpoints.parent / "run.log") for file in process.open_files()):
                process.kill()
    holds.release(10)


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_command(tmp_path: Path, fresh_store: Path, holds: Holds) -> None:
    """Ctrl-C and SIGKILL of the driver while trials run on a cluster; then the search ends with every trial there
    once."""
    config_of(tmp_path)
    shutil.copyfile(fresh_store, tmp_path / "mlflow.db")
    settings = [f"data.train={tmp_path}/train", f"data.val={tmp_path}/val", f"runs={tmp_path}/runs", "name=killed",
                "search.trials=2", "search.sampler=random", "search.stop=none", "workers=0",
                "tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "search.concurrency=1",
                "tracking.system_metrics_every_s=null", f"cluster.address={rays.shared()}", *SIMPLE]  # fmt: skip
    words = ["tune", f"{tmp_path}/my.yaml", "nano_test", *settings]
    command = program(*words)
    first = tmp_path / "runs/killed/trials/0000"
    holds.at(5)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT)
    wait_for("checkpoint", lambda: (first / "checkpoints/step-00000005").exists(), lambda: process.poll() is not None)
    process.send_signal(signal.SIGINT)
    told = " ".join(process.communicate(timeout=LIMIT_S)[1].decode().split())
    assert process.returncode == 130
    assert re.search(
        r"warning: interrupted; 0 of 2 trials over, \d running; the same command continues search killed", told
    )
    parent, runs = children(tmp_path, "killed")
    assert {run.info.status for run in (parent, *runs)} == {"KILLED"}
    wait_until_left(first)
    holds.move(5, to=10)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
    wait_for("another", lambda: (first / "checkpoints/step-00000010").exists(), lambda: process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until_left(first)
    holds.release(10)
    assert main(words) == 0
    assert "resuming at step 10 " in (first / "train.log").read_text()
    study = open_study(tmp_path / "runs/killed/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert all(len(trial.intermediate_values) == 4 for trial in study.trials)
    assert max(trial.user_attrs["attempts"] for trial in study.trials) >= 2
    _, runs = children(tmp_path, "killed")
    assert [(run.info.status, run.info.lifecycle_stage) for run in runs] == [("FINISHED", "active")] * 2
    history = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db").get_metric_history(runs[0].info.run_id, "val/ap")
    assert len({point.step for point in history}) == len(history) == 4
