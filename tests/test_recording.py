"""A run's MLflow run: found where it is now, and sent what it kept while MLflow was away."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from efafnet.pipelines.training.recording import located, send_kept
from efafnet.pipelines.training.rundir import RunDirectory, RunRecord
from efafnet.platform.storage import write_json
from tests.test_mlflow_answers import Server, steps
from tests.training_cases import config_of

GONE = "http://127.0.0.1:9"


def test_ended_runs_send_what_they_kept_to_where_mlflow_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    place = tmp_path / "trials"
    kept, unknown = ("c" * 32, "d" * 32)
    for name, run_id in (("0000", kept), ("0001", unknown), ("0002", None)):
        (place / name).mkdir(parents=True)
        write_json(place / name / "run.json", asdict(RunRecord(name, "", {}, "", run_id, run_id and GONE)))
        item = {"run_id": run_id, "kind": "metric", "key": "loss", "value": 0.5, "step": 3, "timestamp_ms": 1000}
        (place / name / "unlogged.jsonl").write_text(json.dumps(item) + "\n")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        server.runs = {kept: []}
        config = config_of(tmp_path, f"tracking.uri={server.address}")
        send_kept(place, config)
        server.shutdown()
    assert steps(server, kept) == [3]
    assert [(place / name / "unlogged.jsonl").exists() for name in ("0000", "0001", "0002")] == [False, True, True]
    # What a run says of itself follows MLflow where it was found, and only there.
    known = [RunDirectory(place / name).known() for name in ("0000", "0001")]
    assert [record.tracking_uri for record in known if record] == [server.address, GONE]
    assert f"at {server.address} now, was at {GONE}" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_mlflow_lost_gets_a_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        record = RunRecord("a", "", {}, "", "e" * 32, server.address)
        found = located(config_of(tmp_path), record)
        server.shutdown()
    assert (found.mlflow_run_id, found.tracking_uri) == (None, None)
    assert "a new one is begun" in capsys.readouterr().err
