"""Starting runs: what is refused before anything starts, and runs on Ray's workers that are killed on the way."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.training import ray_run, ray_worker
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.ray_run import run_train, train
from efafnet.pipelines.training.ray_worker import RayAsyncValidator
from efafnet.pipelines.training.rundir import RunConflictError, RunDirectory, TrainResult, difference
from efafnet.platform import ray_private
from efafnet.platform.checkpoint import load_checkpoint
from efafnet.platform.tracking import Tracker
from tests.training_cases import config_of, trace_of, write_store


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
            config_of(tmp_path, "data.train=null", "workers=2"), "data.train is required: the crop store to train on"
        )
        refused(config_of(tmp_path, f"data.val={tmp_path}/none", "workers=2"), "data.val = .*none: .* does not exist")

    def test_a_store_that_lost_a_file(self, tmp_path: Path) -> None:
        config = config_of(tmp_path, "workers=2")
        (tmp_path / "val" / "images.parquet").unlink()
        refused(config, r"data.val = .*images.parquet is missing; prepare the store again")

    def test_stores_of_different_skeletons(self, tmp_path: Path) -> None:
        write_store(tmp_path / "coco", 3, skeleton=COCO_17)
        refused(
            config_of(tmp_path, f"data.val={tmp_path}/coco", "workers=2"),
            r"data.val = .*: its skeleton is coco17 \(17 joints\), that of data.train spots4 \(4 joints\)",
        )

    def test_more_hard_joints_than_joints(self, tmp_path: Path) -> None:
        refused(config_of(tmp_path, "loss={kind: ohkm, hard_joints: 5}", "workers=2"), "loss.hard_joints to 1..4")

    def test_augmentation_beyond_what_the_store_was_prepared_for(self, tmp_path: Path) -> None:
        refused(
            config_of(tmp_path, "augmentation.rotation_deg=60", "workers=2"),
            r"data.train = .*rotation_deg is 60, envelope.rotation_deg 45",
        )

    def test_the_weights_of_another_network(self, tmp_path: Path) -> None:
        first = train(config_of(tmp_path, "name=first", "epochs=1", "data.val=null"))
        config = config_of(tmp_path, f"init={first.checkpoint.parents[1]}", "network.base_width=12", "workers=2")
        refused(config, "init = .* holds the weights of another network")

    def test_a_run_of_other_settings(self, tmp_path: Path) -> None:
        done = train(config_of(tmp_path, "epochs=1", "data.val=null"))
        with pytest.raises(
            RunConflictError, match=r"other settings: epochs 1.0 -> 2.0, optimizer.lr 0.005 -> 0.01; give"
        ):
            train(config_of(tmp_path, "epochs=2", "optimizer.lr=0.01", "data.val=null", "workers=2"))
        assert load_checkpoint(done.checkpoint).meta["step"] == 5

    def test_a_figure_that_no_validation_gives(self, tmp_path: Path) -> None:
        refused(
            config_of(tmp_path, "validation.metric=mAP", "workers=2"),
            "validation.metric = 'mAP': validation gives ap, ap_50, .*, ar_large; choose one",
        )
        refused(config_of(tmp_path, "validation.metric=ap", "data.val=null"), "nothing is validated; give data.val")
        assert not (tmp_path / "runs").exists()

    def test_a_fork_of_other_batches_or_without_steps_left(self, tmp_path: Path) -> None:
        first = train(config_of(tmp_path, "name=first", "epochs=1", "data.val=null")).run_dir
        refused(
            config_of(tmp_path, f"fork={first}", "batch_size=4"),
            "its steps are batches of 8 samples, not of batch_size=4; set batch_size=8",
        )
        refused(config_of(tmp_path, f"fork={tmp_path}/none"), "fork = .*none: checkpoint .*none does not exist")
        assert not (tmp_path / "runs" / "nano_test").exists()
        refused(
            config_of(tmp_path, f"fork={first}", "name=short", "epochs=1"),
            "it has 5 steps, and this run would end after 5; train longer",
        )

    def test_a_run_that_is_being_trained(self, tmp_path: Path) -> None:
        config = config_of(tmp_path, "workers=2")
        with (
            RunDirectory(config.run_dir).locked(),
            pytest.raises(RunConflictError, match="is being trained by another process"),
        ):
            train(config)


def test_more_workers_than_a_lone_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efafnet.platform.capacity import Capacity
    from efafnet.platform.cluster import Resources

    alone = Resources("a:1", True, 1, 2.0, 0.0, (), 1.0, "")
    monkeypatch.setattr(ray_run, "connect", lambda _: alone)
    monkeypatch.setattr(ray_run, "capacity", lambda _: Capacity([{"CPU": 2.0}], is_local=True))
    config = config_of(tmp_path, "workers=8")
    refused(config, "workers = 8: this machine has room for 2 that need 1 CPU each; lower workers or worker.cpus")
    refused(config_of(tmp_path, "worker.gpu=yes", "workers=1"), "1 GPU is needed, this machine has 0")


def written(directory: Path) -> dict[Path, int]:
    """When each file was written, but for the lock, which notes its holder."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.usefixtures("no_ray")
def test_a_run_that_has_ended_says_so_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path, "epochs=2")
    first = train(config)
    before = written(config.run_dir)
    run_train(config_of(tmp_path, "epochs=2", "workers=2", "log_every_steps=1"))
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
        return config_of(tmp_path, tracking, "epochs=6")

    config = tracked("first.db")
    _train_until(config, 12, monkeypatch)
    (tmp_path / "first.db").rename(tmp_path / "second.db")
    _train_until(tracked("second.db"), 22, monkeypatch)
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


# ---- on Ray

RECORDED = ("epochs=24", "validation.every_epochs=8", "trace=true", "checkpoint={every_epochs: null, every_steps: 10}")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_workers_killed_and_stopped_on_the_way_change_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Two runs on two workers; under one a worker is killed and later one stops answering: equal to the bit, one run in
    MLflow, no point twice."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = f"tracking={{uri: '{uri}', system_metrics_every_s: null}}"
    limit_s = 10.0
    impatient = (f"worker.collective_timeout_s={limit_s}", "validation.wait_s=5")
    whole = config_of(tmp_path, "name=whole", "workers=2", tracking, *RECORDED)
    cut = config_of(tmp_path, "name=cut", "workers=2", tracking, *RECORDED, *impatient)
    reference = train(whole)
    lost: list[float] = []
    breaker = threading.Thread(target=_break_workers, args=(cut, lost), daemon=True)
    breaker.start()
    result = train(cut)
    breaker.join()
    assert len(lost) == 2, "the run ended before a worker could be killed and another stopped"
    record_property("restarted_s", lost[0])
    record_property("noticed_s", lost[1])
    assert lost[1] >= limit_s - 1, "nobody heard of it before the collective timed out"
    assert trace_of(cut) == trace_of(whole)
    assert sorted(trace_of(cut)) == list(range(1, 121))
    assert result.metrics["ap"] == reference.metrics["ap"]
    _assert_one_clean_curve(uri, result)
    _assert_model_loads(uri, result)


def _break_workers(config: TrainConfig, lost: list[float]) -> None:
    """Kill one of the workers after step 40 and stop one after step 80; note how long the run stood still each time."""
    for step, number in ((40, signal.SIGKILL), (80, signal.SIGSTOP)):
        if not _until(lambda step=step: _newest(config) >= step):  # type: ignore[misc]
            return
        before = _lives(config)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        workers[0].send_signal(number)
        began = time.monotonic()
        if _until(lambda before=before: _lives(config) > before):  # type: ignore[misc]
            lost.append(time.monotonic() - began)


def _newest(config: TrainConfig) -> int:
    return max((int(path.name[5:]) for path in (config.run_dir / "checkpoints").glob("step-*")), default=0)


def _lives(config: TrainConfig) -> int:
    log = config.run_dir / "train.log"
    return log.read_text().count("resuming at step") if log.exists() else 0


def _until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def _assert_one_clean_curve(uri: str, result: TrainResult) -> None:
    client = MlflowClient(uri)
    assert result.mlflow_run_id is not None
    run = client.get_run(result.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.005"
    assert not {"runs", "reader.threads", "checkpoint.keep_last", "log_every_steps"} & set(run.data.params)
    assert f"-r {result.mlflow_run_id} -a config.yaml" in run.data.tags["mlflow.note.content"]
    assert "config.yaml" in {file.path for file in client.list_artifacts(result.mlflow_run_id)}
    for key, steps in (
        ("train/loss", range(5, 121, 5)),
        ("val/ap", (40, 80, 120)),
        ("best/ap", (40, 80, 120)),
        ("train/epoch_loss", range(5, 121, 5)),
    ):
        counted = Counter(point.step for point in client.get_metric_history(result.mlflow_run_id, key))
        assert counted == Counter(steps), key
    inputs: Any = run.inputs
    assert {entry.dataset.digest for entry in inputs.dataset_inputs} == {
        json.loads((Path(result.run_dir).parents[1] / name / "manifest.json").read_text())["digest"][:36]
        for name in ("train", "val")
    }


def _assert_model_loads(uri: str, result: TrainResult) -> None:
    import mlflow

    mlflow.set_tracking_uri(uri)
    models = mlflow.search_logged_models(
        output_format="list", filter_string=f"source_run_id = '{result.mlflow_run_id}'"
    )
    assert all(model.name.endswith("efafnet-nano-64x64") for model in models)
    network = mlflow.pytorch.load_model(models[0].model_uri)
    weights = load_checkpoint(result.checkpoint).weights["network"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert network(torch.zeros(3, 3, 64, 64)).heatmaps.shape == (3, 4, 16, 16)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_validation_beside_training_finds_what_inline_finds(tmp_path: Path) -> None:
    found = {}
    for where in ("inline", "auto"):
        settings = (
            f"name={where}",
            f"validation.where={where}",
            "validation.every_epochs=8",
            "epochs=24",
            "trace=true",
        )
        config = config_of(tmp_path, "workers=1", *settings)
        result = train(config)
        log = (config.run_dir / "train.log").read_text()
        assert log.count("s beside training)") == (2 if where == "auto" else 0)
        figures = {key: value for key, value in result.metrics.items() if not key.endswith(("seconds", "elapsed_s"))}
        told = re.findall(r"validation at step \d+: .*ar [\d.]+", log)
        found[where] = figures, result.checkpoint.name, told, trace_of(config)
    assert found["auto"] == found["inline"]


def test_room_beside_training_is_that_of_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A free CPU here and a free GPU there are no place for a task; a cluster that does not say has none."""
    import ray

    validator = RayAsyncValidator("", {"CPU": 1, "GPU": 1}, 1, "cuda")
    for nodes, room in (
        ([{"CPU": 4.0}, {"CPU": 0.5, "GPU": 1.0}], False),
        ([{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}], True),
        ([], False),
    ):
        monkeypatch.setattr(ray_private, "free_by_node", lambda nodes=nodes: nodes)
        assert validator.has_room() is room

    def away() -> list[dict[str, float]]:
        raise ray.exceptions.RaySystemError("GCS")

    monkeypatch.setattr(ray_private, "free_by_node", away)
    assert not validator.has_room()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_an_asynchronous_validation_that_never_ends_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    def endless(*_: object) -> None:
        time.sleep(600)

    monkeypatch.setattr(ray_worker, "validate_weights", endless)
    validator = RayAsyncValidator("", {"CPU": 4}, 2, "cpu")
    assert validator.has_room()
    validator.start({}, 40)
    assert not validator.ready()
    began = time.monotonic()
    assert validator.result() is None
    assert time.monotonic() - began < 10
    assert "validation of step 40 beside training gave no figures within validation.wait_s = 2 s" in " ".join(
        capsys.readouterr().err.split()
    )
    assert validator.result() is None
    # Its place is free again for whoever comes next.
    assert ray.get(ray.remote(num_cpus=4)(lambda: 7).remote(), timeout=30) == 7


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun in one process and ended on two workers: the same samples in the same global batches."""
    short = ("trace=true", "epochs=6", "data.val=null", "name=run")
    alone = config_of(tmp_path / "alone", *short)
    train(alone)
    moved = config_of(tmp_path / "moved", *short)
    _train_until(moved, 12, monkeypatch)
    train(config_of(tmp_path / "moved", *short, "workers=2"))
    one, two = trace_of(alone), trace_of(moved)
    assert one.keys() == two.keys()
    assert all(one[step][0] == two[step][0] for step in one)
    # Step 10 is the last checkpoint before the end in one process: the workers begin with step 11.
    assert [len(two[step][1]) for step in (10, 11)] == [1, 2]
    losses = [(sum(map(float.fromhex, t[step][1]))) for t in (one, two) for step in (10, 30)]
    assert losses[0] == losses[2]
    # Batch norm over half the slice and sums in another order: near, and not the same.
    assert losses[1] == pytest.approx(losses[3], rel=0.2)


def _train_until(config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from efafnet.pipelines.training import job

    honest = job.Job.count

    def count(self: job.Job, *arguments: Any) -> None:
        if self.progress.step == step:
            raise KeyboardInterrupt
        honest(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(job.Job, "count", count)
        with pytest.raises(KeyboardInterrupt):
            train(config)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_users_error_in_a_worker_is_one_error_and_not_retried(tmp_path: Path) -> None:
    """A crop that cannot be decoded is found by one worker on the way."""
    config = config_of(tmp_path, "workers=2", "data.val=null", "epochs=2")
    shard = tmp_path / "train" / "persons-00000.parquet"
    table = pq.read_table(shard).to_pylist()
    table[17]["image"] = bytes(len(table[17]["image"]) - 1)
    schema = pq.read_schema(shard)
    pq.write_table(pa.Table.from_pylist(table, schema), shard, row_group_size=8)
    manifest = json.loads((tmp_path / "train" / "manifest.json").read_text())
    manifest["shards"][0]["bytes"] = shard.stat().st_size
    (tmp_path / "train" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"row 17: .* cannot be decoded"):
        train(config)
    again = RunDirectory(config.run_dir).known()
    assert again is not None
    assert again.name == "nano_test"
