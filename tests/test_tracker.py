"""What a run sends to MLflow while it trains: what is refused is set aside, a server that is away gets all later."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from efafnet.platform import interruption
from efafnet.platform import tracker as tracker_module
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.storage import append_lines
from efafnet.platform.tracking import Tracker, create_run, prepare_tracking
from tests.processes import deaf_port, free_port
from tests.waiting import LIMIT_S, wait_for


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a dead server be noticed at once, and wait for one that is only slow."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")


def spilled(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
        assert tracker.flush(LIMIT_S)
        assert tracker.close(LIMIT_S).count == 0
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


def test_a_server_that_hangs_costs_training_nothing(
    uri: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is queued while the first request is still waiting for its answer."""
    asked, queued = threading.Event(), threading.Event()

    def hanging(address: str) -> MlflowClient:
        asked.set()
        assert queued.wait(LIMIT_S)
        return mlflow_client(address)

    monkeypatch.setattr("efafnet.platform.tracker.mlflow_client", hanging)
    (tmp_path / "f.txt").write_text("file")
    with Tracker(uri, run_id, spill=tmp_path / "spill.jsonl") as tracker:
        tracker.log_metrics({"loss": 0.0}, 0)
        assert asked.wait(LIMIT_S)
        for step in range(1, 200):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.set_tags({"tag": "1"})
        tracker.log_param("param", "1")
        tracker.log_artifact(tmp_path / "f.txt")
        tracker.log_text("text", "text.txt")
        assert mlflow_client(uri).get_metric_history(run_id, "loss") == []
        queued.set()
        assert tracker.close(LIMIT_S).count == 0
    assert len(mlflow_client(uri).get_metric_history(run_id, "loss")) == 200


@pytest.mark.usefixtures("hasty")
def test_a_dead_server_costs_training_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is queued while the disk takes its time for what could not be sent."""
    writing, queued = threading.Event(), threading.Event()
    honest, spill = Tracker._write_spill, tmp_path / "spill.jsonl"

    def slow(self: Tracker, items: list[Any]) -> bool:
        writing.set()
        assert queued.wait(LIMIT_S)
        return honest(self, items)

    monkeypatch.setattr(Tracker, "_write_spill", slow)
    with deaf_port() as port:
        tracker = Tracker(f"http://127.0.0.1:{port}", "0" * 32, spill=spill)
        tracker.log_metrics({"loss": 0.0}, 0)
        assert writing.wait(LIMIT_S)
        for step in range(1, 200):
            tracker.log_metrics({"loss": float(step)}, step)
        queued.set()
        # On disk before the end: a kill must not lose it.
        wait_for("what waits on disk", lambda: spill.exists() and spilled(spill))
        lost = tracker.close(timeout_s=0.5)
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
    with Tracker(uri, run_id, system_metrics_every_s=1e-6) as tracker:
        tracker._sample_system()
        assert not tracker._pending, "the first figure is one of the run's own: comparisons begin with it"
        tracker.log_metrics({"train/loss": 1.0}, 1)
        name = "system/cpu_utilization_percentage"
        wait_for(name, lambda: name in mlflow_client(uri).get_run(run_id).data.metrics)
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
def test_what_a_full_disk_did_not_keep_is_kept_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where there never is, nobody is told that it was kept."""
    honest, tries, has_room = append_lines, threading.Event(), False

    def append(path: Path, lines: bytes) -> None:
        tries.set()
        if not has_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        honest(path, lines)

    monkeypatch.setattr(tracker_module, "append_lines", append)
    with deaf_port() as port:
        for gets_room in (False, True):
            spill = tmp_path / f"{gets_room}.jsonl"
            tracker = Tracker(f"http://127.0.0.1:{port}", "0" * 32, spill=spill)
            has_room = False
            tries.clear()
            tracker.log_metrics({"loss": 1.5}, 1)
            assert tries.wait(LIMIT_S)
            has_room = gets_room
            lost = tracker.close(timeout_s=0.5)
            assert (lost.count, lost.file) == (1, spill if gets_room else None)
            assert spill.exists() == gets_room
            said = " ".join(capsys.readouterr().err.split())
            assert ("they are in" in said, "not all of them could be kept" in said) == (gets_room, not gets_room)
    assert [item["value"] for item in spilled(spill)] == [1.5]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("interrupted", ["work", "flush"])
def test_ctrl_c_finds_what_waits_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str) -> None:
    """Within seconds the process may be gone, whatever its connections wait for."""
    spill, when_flushed = tmp_path / "spill.jsonl", []

    def flush(_self: Tracker, timeout_s: float) -> bool:
        when_flushed.append((timeout_s, spill.exists()))
        if interrupted == "flush":
            raise KeyboardInterrupt
        return False

    def work() -> None:
        with deaf_port() as port, Tracker(f"http://127.0.0.1:{port}", "0" * 32, spill=spill) as tracker:
            tracker.log_metrics({"loss": 2.5}, 7)
            if interrupted == "work":
                raise KeyboardInterrupt

    monkeypatch.setattr(Tracker, "flush", flush)
    with pytest.raises(KeyboardInterrupt):
        work()
    if interrupted == "work":
        assert when_flushed == [(tracker_module._HURRIED_S, True)]
        assert tracker_module._HURRIED_S < interruption.GRACE_S
    assert [(item["value"], item["step"]) for item in spilled(spill)] == [(2.5, 7)], "once"


@pytest.mark.usefixtures("hasty")
def test_a_server_that_is_away_gets_everything_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFAFNET_TRACKING_START_S", str(LIMIT_S))
    store = prepare_tracking(f"sqlite:///{tmp_path}/server.db")
    mlflow_client(store).create_experiment("served", artifact_location="mlflow-artifacts:/served")
    run_id = create_run(store, "served")
    port = free_port()
    address, spill = f"http://127.0.0.1:{port}", tmp_path / "spill.jsonl"
    (tmp_path / "f.txt").write_text("file")

    tracker = Tracker(address, run_id, spill=spill)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_artifact(tmp_path / "f.txt")
    wait_for("what waits on disk", lambda: spill.exists() and len(spilled(spill)) == 2)
    assert not tracker.flush(0.1)
    assert [item["kind"] for item in spilled(spill)] == ["metric", "artifact"]

    with tracking_server(tmp_path, port) as server:
        assert prepare_tracking(address) == address
        tracker.log_metrics({"loss": 2.0}, 2)
        assert tracker.flush(LIMIT_S)
        assert not spill.exists(), "nothing is kept that has arrived"
        client = MlflowClient(address)
        assert [point.value for point in client.get_metric_history(run_id, "loss")] == [1.0, 2.0]
        assert [item.path for item in client.list_artifacts(run_id)] == ["f.txt"]
        kill_group(server)
    tracker.log_metrics({"loss": 3.0}, 3)
    assert tracker.close(timeout_s=1).count == 1
    assert [item["step"] for item in spilled(spill)] == [3]
