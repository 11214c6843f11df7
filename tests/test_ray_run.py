"""Starting runs: what is refused before anything starts, and what becomes of runs that ended, moved or lost MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.training import ray_run
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.ray_run import _workers_text, run_train, train
from efafnet.pipelines.training.rundir import RunConflictError, RunDirectory, TrainResult, difference
from efafnet.platform.checkpoint import load_checkpoint
from efafnet.platform.tracking import Tracker
from tests.training_cases import sbn_config_of, train_until, write_store


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if Ray is started: an error must come before."""

    def started(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray_run, "connect", started)


def refused(config: TrainConfig, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        train(config)
    assert not (config.run_dir / "checkpoints").exists()


@pytest.mark.usefixtures("no_ray")
class TestRefusals:
    """Every refusal names the setting, its value and what to do, before workers start."""

    def test_stores_that_are_not_there(self, tmp_path: Path) -> None:
        refused(
            sbn_config_of(tmp_path, "data.train=null", "workers=2"),
            "data.train is required: the crop store to train on",
        )
        refused(
            sbn_config_of(tmp_path, f"data.val={tmp_path}/none", "workers=2"), "data.val = .*none: .* does not exist"
        )

    def test_a_store_that_lost_a_file(self, tmp_path: Path) -> None:
        config = sbn_config_of(tmp_path, "workers=2")
        (tmp_path / "val" / "images.parquet").unlink()
        refused(config, r"data.val = .*images.parquet is missing; prepare the store again")

    def test_stores_of_different_skeletons(self, tmp_path: Path) -> None:
        write_store(tmp_path / "coco", 3, skeleton=COCO_17)
        refused(
            sbn_config_of(tmp_path, f"data.val={tmp_path}/coco", "workers=2"),
            r"data.val = .*: its skeleton is coco17 \(17 joints\), that of data.train spots4 \(4 joints\)",
        )

    def test_more_hard_joints_than_joints(self, tmp_path: Path) -> None:
        refused(sbn_config_of(tmp_path, "loss={kind: ohkm, hard_joints: 5}", "workers=2"), "loss.hard_joints to 1..4")

    def test_augmentation_beyond_what_the_store_was_prepared_for(self, tmp_path: Path) -> None:
        refused(
            sbn_config_of(tmp_path, "augmentation.rotation_deg=60", "workers=2"),
            r"data.train = .*rotation_deg is 60, envelope.rotation_deg 45",
        )

    def test_the_weights_of_another_network(self, tmp_path: Path) -> None:
        first = train(sbn_config_of(tmp_path, "name=first", "epochs=1", "data.val=null"))
        config = sbn_config_of(tmp_path, f"init={first.checkpoint.parents[1]}", "network.base_width=12", "workers=2")
        refused(config, "init = .* holds the weights of another network")

    def test_a_run_of_other_settings(self, tmp_path: Path) -> None:
        done = train(sbn_config_of(tmp_path, "epochs=1", "data.val=null"))
        with pytest.raises(
            RunConflictError, match=r"other settings: epochs 1.0 -> 2.0, optimizer.lr 0.005 -> 0.01; give"
        ):
            train(sbn_config_of(tmp_path, "epochs=2", "optimizer.lr=0.01", "data.val=null", "workers=2"))
        assert load_checkpoint(done.checkpoint).meta["step"] == 5

    def test_a_figure_that_no_validation_gives(self, tmp_path: Path) -> None:
        refused(
            sbn_config_of(tmp_path, "validation.metric=mAP", "workers=2"),
            "validation.metric = 'mAP': validation gives ap, ap_50, .*, ar_large; choose one",
        )
        refused(sbn_config_of(tmp_path, "validation.metric=ap", "data.val=null"), "nothing is validated; give data.val")
        assert not (tmp_path / "runs").exists()

    def test_a_fork_of_other_batches_or_without_steps_left(self, tmp_path: Path) -> None:
        first = train(sbn_config_of(tmp_path, "name=first", "epochs=1", "data.val=null")).run_dir
        refused(
            sbn_config_of(tmp_path, f"fork={first}", "batch_size=4"),
            "its steps are batches of 8 samples, not of batch_size=4; set batch_size=8",
        )
        refused(sbn_config_of(tmp_path, f"fork={tmp_path}/none"), "fork = .*none: checkpoint .*none does not exist")
        assert not (tmp_path / "runs" / "nano_test").exists()
        refused(
            sbn_config_of(tmp_path, f"fork={first}", "name=short", "epochs=1"),
            "it has 5 steps, and this run would end after 5; train longer",
        )

    def test_a_run_that_is_being_trained(self, tmp_path: Path) -> None:
        config = sbn_config_of(tmp_path, "workers=2")
        with (
            RunDirectory(config.run_dir).locked(),
            pytest.raises(RunConflictError, match="is being trained by another process"),
        ):
            train(config)


def test_more_workers_than_a_lone_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efafnet.platform.capacity import Capacity
    from efafnet.platform.cluster import Resources

    alone = Resources("a:1", True, 1, 2.0, 0.0, (), "")
    monkeypatch.setattr(ray_run, "connect", lambda _: alone)
    monkeypatch.setattr(ray_run, "capacity", lambda _: Capacity([{"CPU": 2.0}], is_local=True))
    config = sbn_config_of(tmp_path, "workers=8")
    refused(config, "workers = 8: this machine has room for 2 that need 1 CPU each; lower workers or worker.cpus")
    refused(sbn_config_of(tmp_path, "worker.gpu=yes", "workers=1"), "1 GPU is needed, this machine has 0")


def written(directory: Path) -> dict[Path, int]:
    """When each file was written, but for the lock, which notes its holder."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def test_workers_are_told_in_words(tmp_path: Path) -> None:
    one, elastic = sbn_config_of(tmp_path, "workers=1"), sbn_config_of(tmp_path, "workers=2..4")
    assert _workers_text(one, {"CPU": 2.0}) == "1 worker, each with 2 CPU"
    assert _workers_text(elastic, {"CPU": 1.5, "GPU": 1.0}) == "2 to 4 workers, each with 1.5 CPU and 1 GPU"


@pytest.mark.usefixtures("no_ray")
def test_a_run_that_has_ended_says_so_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = sbn_config_of(tmp_path, "epochs=2")
    first = train(config)
    before = written(config.run_dir)
    run_train(sbn_config_of(tmp_path, "epochs=2", "workers=2", "log_every_steps=1"))
    assert "had ended before" in capsys.readouterr().out
    again = train(config)
    assert (again.metrics, again.checkpoint.resolve()) == (first.metrics, first.checkpoint.resolve())
    assert (first.resumed, again.resumed) == (False, True)
    assert written(config.run_dir) == before


def test_a_moved_run_finds_its_checkpoint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000003").mkdir(parents=True)
    directory.finish(TrainResult(directory.path, directory.path / "checkpoints/step-00000003", {"ap": 0.5}, "id"))
    (tmp_path / "run").rename(tmp_path / "moved")
    result = RunDirectory(tmp_path / "moved").result()
    assert result is not None
    assert result.checkpoint == tmp_path / "moved" / "checkpoints" / "step-00000003"


def test_difference_names_what_changed() -> None:
    assert (
        difference({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": None})
        == "b 2 -> 5, c 3 -> (absent), d (absent) -> None"
    )


@pytest.mark.slow
def test_a_run_whose_store_is_away_ends_and_catches_up_where_it_is_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped at step 12, gone on with where the store is then until step 22, ended while it is gone, asked for again
    when it lies elsewhere once more: as when a cluster is taken down and started under another address."""
    honest = Tracker.close

    def tracked(place: str) -> TrainConfig:
        tracking = f"tracking={{enabled: true, uri: 'sqlite:///{tmp_path}/{place}', system_metrics_every_s: null}}"
        return sbn_config_of(tmp_path, tracking, "epochs=6")

    config = tracked("first.db")
    train_until(config, 12, monkeypatch)
    (tmp_path / "first.db").rename(tmp_path / "second.db")
    train_until(tracked("second.db"), 22, monkeypatch)
    assert json.loads((config.run_dir / "run.json").read_text())["tracking_uri"].endswith("second.db")
    assert not list(config.run_dir.glob("unlogged*"))
    monkeypatch.setattr(Tracker, "close", lambda self, timeout_s=20.0: honest(self, min(timeout_s, 1.0)))
    (tmp_path / "second.db").rename(tmp_path / "moved.db")
    result = train(tracked("second.db"))
    assert result.metrics["last/samples"] == 240
    assert "records did not reach MLflow" in capsys.readouterr().err
    assert not (tmp_path / "second.db").exists(), "no empty store is made in its place"
    monkeypatch.setattr(Tracker, "close", honest)
    assert train(tracked("moved.db")).resumed
    assert json.loads((config.run_dir / "run.json").read_text())["tracking_uri"].endswith("moved.db")
    client, run_id = MlflowClient(f"sqlite:///{tmp_path}/moved.db"), result.mlflow_run_id
    assert run_id is not None
    curve = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    assert sorted(curve) == [5, 10, 15, 20, 25, 30]
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["best/ap"] == result.metrics["ap"]
    assert not list(config.run_dir.glob("unlogged*"))
