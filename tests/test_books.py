"""What a search removes from MLflow: what a kill left before anything was noted, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efafnet.pipelines.search import books
from efafnet.pipelines.search.books import remove_orphans
from efafnet.pipelines.training.rundir import RunRecord
from efafnet.platform.storage import write_json

PARENT = RunRecord("search", "", {}, "", mlflow_run_id="parent", tracking_uri="http://mlflow")


def child(run_id: str, place: str, status: str = "RUNNING", metrics: dict[str, float] | None = None) -> Any:
    tags = {"efafnet.run_dir": f"/moved/{place}"} if place else {}
    return SimpleNamespace(
        info=SimpleNamespace(run_id=run_id, status=status), data=SimpleNamespace(tags=tags, metrics=metrics or {})
    )


def test_only_runs_that_nothing_was_noted_of_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = tmp_path / "trials"
    for name, run_id in (("0000", "known"), ("0001", None), ("0002", "another")):
        (trials / name).mkdir(parents=True)
        record: dict[str, object] = {"name": name, "digest": "", "identity": {}, "created": "", "mlflow_run_id": run_id}
        write_json(trials / name / "run.json", record)
    children = [
        child("known", "trials/0000"),
        child("left", "trials/0001"),
        child("left too", "trials/0002"),
        child("ended", "trials/0002", "FINISHED"),
        child("stopped", "trials/0001", "KILLED"),
        child("has figures", "trials/0001", metrics={"train/loss": 0.5}),
        child("tidied away", "trials/0007"),
        child("tidied away and ended", "trials/0008", "FINISHED"),
        child("of the finals", "finals/0001"),
        child("foreign", ""),
    ]
    removed: list[str] = []
    client = SimpleNamespace(
        get_run=lambda _: SimpleNamespace(info=SimpleNamespace(experiment_id="1")),
        search_runs=lambda *_, **__: children,
        delete_run=removed.append,
    )
    monkeypatch.setattr(books, "mlflow_client", lambda _: client)
    remove_orphans(PARENT, trials)
    assert removed == ["left", "left too"]
