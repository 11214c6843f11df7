"""Runs on Ray's workers: killed, stopped, validated beside training, resumed with another number of workers."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from efafnet.pipelines.training import ray_worker
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.ray_run import train
from efafnet.pipelines.training.ray_worker import RayAsyncValidator
from efafnet.pipelines.training.rundir import RunDirectory, TrainResult
from efafnet.platform import ray_private
from efafnet.platform.checkpoint import load_checkpoint
from tests.holds import Holds
from tests.training_cases import lives, newest_step, sbn_config_of, trace_of, train_as_two, train_until
from tests.waiting import LIMIT_S, wait_for

RECORDED = ("epochs=12", "validation.every_epochs=3", "trace=true", "checkpoint={every_epochs: null, every_steps: 5}")


@pytest.mark.slow
def test_workers_killed_and_stopped_on_the_way_change_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None], holds: Holds
) -> None:
    """A run on two workers, of which one is killed and later one stops answering, is equal to the bit to an undisturbed
    one of two processes without Ray: one run in MLflow, no point twice."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = f"tracking={{uri: '{uri}', system_metrics_every_s: null}}"
    limit_s = 10.0
    impatient = (f"worker.collective_timeout_s={limit_s}", "validation.wait_s=5")
    whole = sbn_config_of(tmp_path, "name=whole", "workers=2", "tracking.enabled=false", *RECORDED)
    reference = train_as_two(whole)
    cut = sbn_config_of(tmp_path, "name=cut", "workers=2", tracking, *RECORDED, *impatient)
    lost: list[float] = []
    over = threading.Event()
    breaker = threading.Thread(target=_break_workers, args=(cut, holds, lost, over), daemon=True)
    holds.at(20)
    breaker.start()
    try:
        result = train(cut)
    finally:
        over.set()
    breaker.join()
    assert len(lost) == 2, "the run ended before a worker could be killed and another stopped"
    record_property("restarted_s", lost[0])
    record_property("noticed_s", lost[1])
    assert lost[1] >= limit_s - 1, "nobody heard of it before the collective timed out"
    assert trace_of(cut) == trace_of(whole)
    assert sorted(trace_of(cut)) == list(range(1, 61))
    assert result.metrics["ap"] == reference.metrics["ap"]
    _assert_one_clean_curve(uri, result)
    _assert_model_loads(uri, result)


def _break_workers(config: TrainConfig, holds: Holds, lost: list[float], over: threading.Event) -> None:
    """Kill one of the workers after step 20 and stop one after step 40 of 60; note how long the run stood still each
    time."""
    for step, number in ((20, signal.SIGKILL), (40, signal.SIGSTOP)):
        wait_for(f"step {step}", lambda step=step: newest_step(config) >= step, over.is_set)  # type: ignore[misc]
        before = len(lives(config))
        _workers()[0].send_signal(number)
        if step == 20:
            holds.move(20, to=40)
        else:
            holds.release(40)
        lost.append(wait_for("restart", lambda n=before: len(lives(config)) > n, over.is_set))  # type: ignore[misc]


def _workers() -> list[psutil.Process]:
    """The workers of the run, which must be there."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # among them are some that have ended
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


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
        ("train/loss", range(5, 61, 5)),
        ("val/ap", (15, 30, 45, 60)),
        ("best/ap", (15, 30, 45, 60)),
        ("train/epoch_loss", range(5, 61, 5)),
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
    assert all(model.name.endswith("sbn-nano-64x64") for model in models)
    network = mlflow.pytorch.load_model(models[0].model_uri)
    weights = load_checkpoint(result.checkpoint).weights["network"]
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert network(torch.zeros(3, 3, 64, 64)).heatmaps.shape == (3, 4, 16, 16)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_idle")
def test_validation_beside_training_finds_what_inline_finds(tmp_path: Path) -> None:
    """On one of Ray's workers beside training, between the steps of a run in this process."""
    found = {}
    for where, workers in (("inline", 0), ("auto", 1)):
        settings = (f"name={where}", f"validation.where={where}", "validation.every_epochs=2", "epochs=6", "trace=true")
        config = sbn_config_of(tmp_path, f"workers={workers}", *settings)
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
@pytest.mark.usefixtures("ray_idle")
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
    assert time.monotonic() - began < LIMIT_S, "it sleeps for twice as long"
    assert "validation of step 40 beside training gave no figures within validation.wait_s = 2 s" in " ".join(
        capsys.readouterr().err.split()
    )
    assert validator.result() is None
    # Its place is free again for whoever comes next.
    assert ray.get(ray.remote(num_cpus=4)(lambda: 7).remote(), timeout=LIMIT_S) == 7


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun in one process and ended by two, which do what two of Ray's workers do (see above): the same samples in the
    same global batches."""
    short = ("trace=true", "epochs=6", "data.val=null", "name=run")
    alone = sbn_config_of(tmp_path / "alone", *short)
    train(alone)
    moved = sbn_config_of(tmp_path / "moved", *short)
    train_until(moved, 12, monkeypatch)
    moved = sbn_config_of(tmp_path / "moved", *short, "workers=2")
    directory = RunDirectory(moved.run_dir)
    with directory.locked():
        assert directory.claim(open_inputs(moved).identity(moved), moved.changeable()) == directory.known(), "one run"
    train_as_two(moved)
    one, two = trace_of(alone), trace_of(moved)
    assert one.keys() == two.keys()
    assert all(one[step][0] == two[step][0] for step in one)
    # Step 10 is the last checkpoint before the end in one process: the workers begin with step 11.
    assert [len(two[step][1]) for step in (10, 11)] == [1, 2]
    losses = [(sum(map(float.fromhex, t[step][1]))) for t in (one, two) for step in (10, 30)]
    assert losses[0] == losses[2]
    # Batch norm over half the slice and sums in another order: near, and not the same.
    assert losses[1] == pytest.approx(losses[3], rel=0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_users_error_in_a_worker_is_one_error_and_not_retried(tmp_path: Path) -> None:
    """A crop that cannot be decoded is found by one worker on the way."""
    config = sbn_config_of(tmp_path, "workers=2", "data.val=null", "epochs=2")
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
