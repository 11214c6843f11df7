"""What a search removes from MLflow: what a kill left before anything was noted, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow.store.entities.paged_list import PagedList

from efafnet.pipelines.runs import children
from efafnet.pipelines.runs.children import remove_orphans
from efafnet.pipelines.search import tracking
from efafnet.pipelines.search.ledger import Ledger
from efafnet.pipelines.training.rundir import RunDirectory, RunRecord, TrainResult
from efafnet.platform.storage import write_json
from efafnet.tune_spaces.reading import parse_space

PARENT = RunRecord("search", "", {}, "", mlflow_run_id="parent", tracking_uri="http://mlflow")


def child(run_id: str, place: str, status: str = "RUNNING", metrics: dict[str, float] | None = None) -> Any:
    tags = {"efafnet.run_dir": f"/moved/{place}"} if place else {}
    return SimpleNamespace(
        info=SimpleNamespace(run_id=run_id, status=status), data=SimpleNamespace(tags=tags, metrics=metrics or {})
    )


def tracked(place: Path, record: RunRecord, *, trials: int, keep: str) -> tracking.SearchTracking:
    """A search over one number in ``place``, with a ledger in memory."""
    space = parse_space("search:\n  optimizer.lr: {float: [1e-4, 1e-2]}\n", "s.yaml")
    ledger = Ledger(Path(":memory:"), "search", space, trials=trials, sampler="random", seed=0, startup=1)
    config: Any = SimpleNamespace(
        run_dir=place, search=SimpleNamespace(keep=keep), validation=SimpleNamespace(metric="ap")
    )
    return tracking.SearchTracking(config, cast(Any, None), space, ledger, record)


def test_only_runs_that_nothing_was_noted_of_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = tmp_path / "trials"
    for name, run_id in (("0000", "known"), ("0001", None), ("0002", "another")):
        (trials / name).mkdir(parents=True)
        record: dict[str, object] = {"name": name, "digest": "", "identity": {}, "created": "", "mlflow_run_id": run_id}
        write_json(trials / name / "run.json", record)
    found = [
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

    def search_runs(*_: Any, page_token: str | None, **__: Any) -> PagedList[Any]:
        # MLflow answers in pages.
        return PagedList(found[:2], "next") if page_token is None else PagedList(found[2:], None)

    client = SimpleNamespace(
        get_run=lambda _: SimpleNamespace(info=SimpleNamespace(experiment_id="1")),
        search_runs=search_runs,
        delete_run=removed.append,
    )
    monkeypatch.setattr(children, "mlflow_client", lambda _: client)
    remove_orphans(PARENT, trials)
    assert removed == ["left", "left too"]


def test_a_search_tells_its_run_what_its_trials_took_each_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tracked(tmp_path, PARENT, trials=3, keep="all")
    ledger = mine.ledger
    points: list[tuple[str, float, int]] = []

    def log_batch(run_id: str, metrics: Any) -> None:
        assert run_id == "parent"
        points.extend((metric.key, metric.value, metric.step) for metric in metrics)

    client = SimpleNamespace(log_batch=log_batch, log_dict=lambda *_: None)
    monkeypatch.setattr(tracking, "mlflow_client", lambda _: client)
    for number, end in ((0, "complete"), (1, "pruned"), (2, "complete")):
        assignment = ledger.next()
        assert assignment is not None
        used = tmp_path / "trials" / f"{number:04d}" / "consumption"
        used.mkdir(parents=True)
        write_json(used / "a.json", {"core_s": 100, "cpu_s": 30})
        ledger.report(number, 100, 0.5 - 0.1 * number)
        ledger.finish(number, cast(Any, end))
        mine.ended(number, cast(Any, end), "")
    mine.close()
    assert [(value, step) for key, value, step in points if key == "cost.core_s"] == [
        (100, 100),
        (200, 200),
        (300, 300),
    ]
    assert [(value, step) for key, value, step in points if key == "best/ap"] == [(0.5, 1), (0.5, 2), (0.5, 3)]
    assert [(value, step) for key, value, step in points if key == "trials/stopped_early"] == [(0, 1), (1, 2), (1, 3)]


def test_a_stopped_trial_that_ended_before_it_heard_of_it_stays_stopped_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four trials the first heard in time, and the third was not stopped; the fourth is another command's."""
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(tracking, "finish_run", lambda _uri, run_id, status: told.append((run_id, status)))
    monkeypatch.setattr(tracking, "mlflow_client", lambda _: SimpleNamespace(log_batch=lambda *_, **__: None))
    mine = tracked(tmp_path, RunRecord("search", "", {}, ""), trials=4, keep="all")
    for number, end in enumerate(("pruned", "pruned", "complete", "pruned")):
        mine.ledger.next()
        mine.ledger.report(number, 100, 0.5)
        directory = RunDirectory(tmp_path / "trials" / f"{number:04d}")
        directory.path.mkdir(parents=True)
        directory.record(RunRecord(directory.path.name, "", {}, "", f"run {number}", "http://mlflow"), "")
        if number > 0:
            directory.finish(TrainResult(directory.path, directory.path / "checkpoints/step-00000003", {}, None))
        mine.ledger.finish(number, cast(Any, end))
        if number < 3:
            mine.ended(number, cast(Any, end), "")
    mine.tell_stopped_again()
    mine.close()
    assert told == [("run 0", "KILLED"), ("run 1", "KILLED"), ("run 1", "KILLED")]


def test_the_line_of_a_search_counts_a_paused_trial_as_not_running(tmp_path: Path) -> None:
    mine = tracked(tmp_path, RunRecord("search", "", {}, ""), trials=2, keep="all")
    shown: list[tuple[int, list[str]]] = []
    mine.show = lambda over, figures: shown.append((over, list(figures)))
    for number in (0, 1):
        mine.ledger.next()
        mine.ledger.report(number, 100, 0.5)
        (tmp_path / "trials" / f"{number:04d}").mkdir(parents=True)
    mine.ledger.pause(0)
    mine.paused(0)
    mine.ledger.finish(1, "complete")
    mine.ended(1, "complete", "")
    mine.close()
    assert shown == [(0, ["1 running"]), (1, ["best ap 0.500 (trial 1)", "0 running"])]


def test_what_a_long_search_writes_and_removes_grows_with_its_trials_and_not_with_their_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 trials that get better: each is the best for a while, and only the last keeps its checkpoints."""
    mine = tracked(tmp_path, RunRecord("search", "", {}, ""), trials=40, keep="best")
    ledger = mine.ledger
    told: list[int] = []
    removed: list[str] = []
    rmtree = shutil.rmtree

    def remove(path: Path, **more: Any) -> None:
        removed.append(path.parent.name)
        rmtree(path, **more)

    monkeypatch.setattr(tracking, "study_to_json", lambda trials: told.append(len(trials)))
    monkeypatch.setattr(shutil, "rmtree", remove)
    for figure in range(40):
        assignment = ledger.next()
        assert assignment is not None
        (tmp_path / "trials" / f"{assignment.number:04d}" / "checkpoints").mkdir(parents=True)
        ledger.report(assignment.number, 100, float(figure))
        ledger.finish(assignment.number, "complete")
        mine.ended(assignment.number, "complete", "")
        kept = [path.parent.name for path in (tmp_path / "trials").glob("*/checkpoints")]
        assert kept == [f"{assignment.number:04d}"]
    mine.close()
    assert mine.progress() == {
        "trials/complete": 40, "trials/stopped_early": 0, "trials/failed": 0, "trials/running": 0, "best/ap": 39,
        "best/trial": 39,
    }  # fmt: skip
    assert told[:3] == [1, 2, 3]
    assert sum(told) <= 12 * 40  # 820 if told after every trial
    assert told[-1] >= 40 / 1.1 - 1
    assert len(removed) <= 14 * 40  # 780 if all that ended before were looked at after every trial
