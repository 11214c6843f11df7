from __future__ import annotations

import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from pydantic import ValidationError

from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.mlflow_store import create_sqlite
from efafnet.platform.tracking import (
    Tracker,
    TrackingConfig,
    TrackingError,
    abandon_run,
    create_run,
    dataset_input,
    finish_run,
    params_of,
    prepare_tracking,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a dead server be noticed at once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spilled(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the store


def test_the_default_store_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efafnet.platform.tracking.create_sqlite", lambda _file: None)
    monkeypatch.chdir(tmp_path)
    assert prepare_tracking() == f"sqlite:///{tmp_path}/mlflow.db"
    assert prepare_tracking("sqlite:///sub/other.db") == f"sqlite:///{tmp_path}/sub/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////abs/m.db")
    assert prepare_tracking() == "sqlite:////abs/m.db"
    assert prepare_tracking("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db", "what is asked for beats the environment"


def test_a_fresh_store_is_made_in_memory_and_knows_its_place(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "mlflow.db"
    create_sqlite(file)
    assert {path.name for path in file.parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}
    with sqlite3.connect(file) as store:
        content = "\n".join(store.iterdump())
    assert f"'Default','file://{file.parent}/mlartifacts/0','active'" in content
    assert "/dev/shm" not in content
    before = file.read_bytes()
    create_sqlite(file)
    assert file.read_bytes() == before


def test_plain_directories_are_refused(tmp_path: Path) -> None:
    for address in ("mlruns", f"file://{tmp_path}"):
        with pytest.raises(TrackingError, match="no longer keeps runs in plain directories; use sqlite:///"):
            prepare_tracking(address)


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database " * 100)
    with pytest.raises(TrackingError, match=r"store .*mlflow\.db cannot be opened: .*tracking\.uri=…"):
        prepare_tracking(f"sqlite:///{tmp_path}/mlflow.db")


def test_an_unwritable_place_is_named() -> None:
    with pytest.raises(TrackingError, match=r"store /proc/none/mlflow\.db cannot be written"):
        prepare_tracking("sqlite:////proc/none/mlflow.db")


def test_no_server_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFAFNET_TRACKING_START_S", "0")
    port = free_port()
    with pytest.raises(TrackingError, match=rf"127\.0\.0\.1:{port} does not answer \(.*refused.*start it, or set"):
        prepare_tracking(f"http://127.0.0.1:{port}")


class _Answer(BaseHTTPRequestHandler):
    status = 403

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Stay quiet."""


def test_a_server_that_refuses_the_host_name_is_told_apart() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TrackingError, match=r"refuses this host name \(403\); start it with --allowed-hosts"):
            prepare_tracking(f"http://127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_fresh_store_survives_processes_that_all_create_it(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from efafnet.platform.tracking import create_run, prepare_tracking\n"
        "uri = prepare_tracking(sys.argv[1])\n"
        "print(create_run(uri, 'together', sys.argv[2]))\n"
    )
    address = f"sqlite:///{tmp_path}/mlflow.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, address, str(k)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for k in range(3)
    ]
    ids = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    client = mlflow_client(address)
    experiments = client.search_experiments(filter_string="name = 'together'")
    assert len(experiments) == 1
    assert {run.info.run_id for run in client.search_runs([experiments[0].experiment_id])} == set(ids)


# ---- runs


def test_settings_are_flat_and_long_ones_cut_but_kept_apart() -> None:
    flat = params_of({"a": {"b": 1e-3, "c": {"d": None}}, "e": {}, "f": [1, "x"], "g": True, "h": "text"})
    assert flat == {"a.b": "0.001", "a.c.d": "null", "e": "{}", "f": '[1, "x"]', "g": "true", "h": "text"}


def test_a_run_holds_settings_lineage_and_code(uri: str, tmp_path: Path) -> None:
    long = [f"{'x' * 700}{k}" for k in range(2)]
    many = {f"k{k}": k for k in range(150)}
    data = dataset_input("people", "f" * 64, tmp_path / "store", "training", {"persons": 7})
    run_id = create_run(
        uri, "tests", "whole", params={"lr": 1e-3, "long": {"a": long[0], "b": long[1]}, **many}, datasets=[data]
    )
    run = mlflow_client(uri).get_run(run_id)
    assert run.info.run_name == "whole"
    assert run.data.params["lr"] == "0.001"
    assert run.data.params["k149"] == "149"
    cut = [run.data.params["long.a"], run.data.params["long.b"]]
    assert all(len(text) == 500 for text in cut)
    assert cut[0] != cut[1], "values that differ beyond the limit must stay different"
    kept = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/params.json")
    assert kept["long"] == {"a": long[0], "b": long[1]}
    assert run.inputs is not None
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("people", "f" * 36)
    assert [tag.value for tag in dataset.tags] == ["training"]
    assert len(run.data.tags["code.digest"]) == 16


def test_artifacts_lie_beside_the_store_wherever_the_process_runs(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = create_run(uri, "elsewhere")
    store = Path(uri.removeprefix("sqlite:///")).parent
    location = mlflow_client(uri).get_run(run_id).info.artifact_uri
    assert location.startswith((store / "mlartifacts" / "elsewhere").as_uri())
    assert list(tmp_path.iterdir()) == [], "MLflow must not drop its folders into the working directory"


def test_trials_are_children_of_their_search(uri: str) -> None:
    parent = create_run(uri, "tests", "search")
    child = create_run(uri, "tests", "trial", parent_run_id=parent, tags={"n": "1"})
    experiment = mlflow_client(uri).get_experiment_by_name("tests")
    assert experiment is not None
    found = mlflow_client(uri).search_runs(
        [experiment.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    assert [run.info.run_id for run in found] == [child]


def test_a_deleted_experiment_is_named(uri: str) -> None:
    client = mlflow_client(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(TrackingError, match=r"experiment 'gone' .* was deleted; restore it"):
        create_run(uri, "gone")


def test_a_run_is_ended(uri: str, run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert finish_run(uri, run_id, "FAILED")
    assert mlflow_client(uri).get_run(run_id).info.status == "FAILED"
    assert abandon_run(uri, run_id, "KILLED")
    assert mlflow_client(uri).get_run(run_id).info.status == "FAILED"
    mlflow_client(uri).update_run(run_id, "RUNNING")
    assert abandon_run(uri, run_id, "KILLED")
    assert mlflow_client(uri).get_run(run_id).info.status == "KILLED"
    assert not finish_run(uri, "0" * 32)
    assert "setting run 000" in capsys.readouterr().err


def test_an_alias_needs_a_name() -> None:
    with pytest.raises(ValidationError, match="alias = 'champion' names a registered network; set register_as too"):
        TrackingConfig(alias="champion")
    TrackingConfig(alias="champion", register_as="efafnet")


# ---- the tracker


def test_everything_queued_arrives(uri: str, run_id: str, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "g.txt").write_text("inside")
    with Tracker(uri, run_id, spill=tmp_path / "spill.jsonl") as tracker:
        for step in range(2300):
            tracker.log_metrics({"loss": 1 / (step + 1)}, step)
        tracker.log_metrics({"np": np.float32(0.5), "nan": math.nan, "t": torch.tensor(2.0)}, 9)  # type: ignore[dict-item]
        tracker.log_artifact(tmp_path / "f.txt", "sub")
        tracker.log_artifact(tmp_path / "folder")
        tracker.log_dict({"a": [1]}, "deep/x.json")
        tracker.set_tags({f"tag{k}": str(k) for k in range(120)})
        assert tracker.flush(60)
        assert tracker.close().count == 0
    run = mlflow_client(uri).get_run(run_id)
    history = mlflow_client(uri).get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / (step + 1)) for step in range(2300)]
    assert run.data.metrics["np"] == 0.5
    assert run.data.metrics["t"] == 2.0
    assert math.isnan(run.data.metrics["nan"])
    assert run.data.tags["tag119"] == "119"
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (root / "sub" / "f.txt").read_text() == "file"
    assert (root / "folder" / "g.txt").read_text() == "inside"
    assert json.loads((root / "deep" / "x.json").read_text()) == {"a": [1]}
    assert not (tmp_path / "spill.jsonl").exists()


def test_what_mlflow_refuses_is_set_aside_and_the_rest_arrives(
    uri: str, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(uri, run_id, spill=tmp_path / "spill.jsonl")
    tracker.log_metrics({"good": 1.0, "bad;name": 2.0, "text": "abc", "good2": 3.0}, 5)  # type: ignore[dict-item]
    tracker.log_artifact(tmp_path / "absent.png")
    tracker.log_metrics({"later": 4.0}, 6)
    lost = tracker.close()
    metrics = mlflow_client(uri).get_run(run_id).data.metrics
    assert metrics == {"good": 1.0, "good2": 3.0, "later": 4.0}
    assert lost.count == 3
    kept = spilled(tmp_path / "spill.jsonl")
    assert [(item["kind"], item["key"]) for item in kept] == [
        ("metric", "bad;name"),
        ("metric", "text"),
        ("artifact", ""),
    ]
    assert "No such file" in kept[2]["reason"]
    assert "3 records did not reach MLflow" in capsys.readouterr().err


@pytest.mark.usefixtures("hasty")
def test_a_dead_server_costs_training_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    tracker = Tracker(f"http://127.0.0.1:{port}", "0" * 32, spill=tmp_path / "spill.jsonl")
    slowest_s = 0.0
    for step in range(200):
        began = time.perf_counter()
        tracker.log_metrics({"loss": float(step)}, step)
        slowest_s = max(slowest_s, time.perf_counter() - began)
        time.sleep(0.002)
    assert slowest_s < 0.25
    deadline = time.monotonic() + 30
    while not (tmp_path / "spill.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert spilled(tmp_path / "spill.jsonl"), "what waits is on disk before the end: a kill must not lose it"
    began = time.monotonic()
    lost = tracker.close(timeout_s=2)
    assert time.monotonic() - began < 15
    assert lost.count == 200
    assert [item["value"] for item in spilled(tmp_path / "spill.jsonl")] == [float(step) for step in range(200)]
    message = " ".join(capsys.readouterr().err.split())
    assert f"200 records did not reach MLflow at http://127.0.0.1:{port}" in message
    assert "spill.jsonl" in message


def test_the_next_process_of_the_run_sends_what_was_kept(uri: str, run_id: str, tmp_path: Path) -> None:
    spill = tmp_path / "spill.jsonl"
    item = {"run_id": run_id, "kind": "metric", "key": "loss", "value": 0.5, "step": 3, "timestamp_ms": 1000}
    foreign = {**item, "run_id": "1" * 32}
    spill.write_text("\n".join([json.dumps(item), json.dumps(foreign), '{"run_id": "tor']))
    # The same point was logged already: a kill may come between sending and forgetting.
    mlflow_client(uri).log_metric(run_id, "loss", 0.5, timestamp=1000, step=3)
    with Tracker(uri, run_id, spill=spill) as tracker:
        tracker.log_metrics({"loss": 0.25}, 4)
    history = mlflow_client(uri).get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(3, 0.5), (4, 0.25)]
    assert not spill.exists()


def test_steps_trained_again_fork_no_curve(uri: str, run_id: str, tmp_path: Path) -> None:
    """Killed at step 25 with the points of 20 and 25 still in the spill file, gone on with from step 10."""
    with Tracker(uri, run_id) as before:
        before.log_metrics({"loss": 1.5, "ap": 0.1}, 15)
    left = [
        {"run_id": run_id, "kind": "metric", "key": "loss", "value": step / 10, "step": step, "timestamp_ms": 9}
        for step in (20, 25)
    ]
    (tmp_path / "spill.jsonl").write_text("\n".join(json.dumps(item) for item in left))
    with Tracker(uri, run_id, spill=tmp_path / "spill.jsonl") as after:
        for step in (15, 20, 25, 30):
            after.log_metrics({"loss": step / 10, **({"ap": 0.2} if step == 30 else {})}, step)
    client = mlflow_client(uri)
    curves = {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in ("loss", "ap")}
    assert curves == {"loss": [(15, 1.5), (20, 2.0), (25, 2.5), (30, 3.0)], "ap": [(15, 0.1), (30, 0.2)]}


def test_a_store_on_another_machine_is_not_created_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "0" * 32, spill=tmp_path / "spill.jsonl")
    tracker.log_metrics({"loss": 1.0}, 1)
    assert tracker.close().count == 1
    assert not (tmp_path / "mlflow.db").exists()
    assert "several machines need a tracking server" in " ".join(capsys.readouterr().err.split())


def test_the_machine_is_measured_under_mlflows_names(uri: str, run_id: str) -> None:
    with Tracker(uri, run_id, system_metrics_every_s=0.2) as tracker:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if "system/cpu_utilization_percentage" in mlflow_client(uri).get_run(run_id).data.metrics:
                break
            time.sleep(0.2)
        tracker.flush()
    metrics = mlflow_client(uri).get_run(run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(metrics)
    assert metrics["system/system_memory_usage_megabytes"] > 100


@contextmanager
def tracking_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server that can be killed; it and its workers end with the block."""
    arguments = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    arguments += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]
    # Without this it also starts eight processes for jobs this project never gives it.
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=env)
    try:
        yield server
    finally:
        kill_group(server)


def kill_group(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.usefixtures("hasty")
def test_a_server_that_is_away_gets_everything_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFAFNET_TRACKING_START_S", "120")
    store = prepare_tracking(f"sqlite:///{tmp_path}/server.db")
    mlflow_client(store).create_experiment("served", artifact_location="mlflow-artifacts:/served")
    run_id = create_run(store, "served")
    port = free_port()
    address, spill = f"http://127.0.0.1:{port}", tmp_path / "spill.jsonl"
    (tmp_path / "f.txt").write_text("file")

    tracker = Tracker(address, run_id, spill=spill)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_artifact(tmp_path / "f.txt")
    assert not tracker.flush(3)
    assert [item["kind"] for item in spilled(spill)] == ["metric", "artifact"]

    with tracking_server(tmp_path, port) as server:
        assert prepare_tracking(address) == address
        tracker.log_metrics({"loss": 2.0}, 2)
        assert tracker.flush(90)
        assert not spill.exists(), "nothing is kept that has arrived"
        client = MlflowClient(address)
        assert [point.value for point in client.get_metric_history(run_id, "loss")] == [1.0, 2.0]
        assert [item.path for item in client.list_artifacts(run_id)] == ["f.txt"]
        kill_group(server)
    tracker.log_metrics({"loss": 3.0}, 3)
    assert tracker.close(timeout_s=1).count == 1
    assert [item["step"] for item in spilled(spill)] == [3]
