"""What one of Ray's workers makes of an error: the run's own, which later lives end with, or of a lost group."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

from efafnet.pipelines.training import loop, ray_worker
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import GroupContext, PlainContext
from efafnet.pipelines.training.rundir import RunRecord
from efafnet.platform.storage import read_json
from tests.training_cases import config_of


def told_to_a_worker(config: TrainConfig) -> dict[str, Any]:
    config.run_dir.mkdir(parents=True)
    record = asdict(RunRecord("a", "", {}, ""))
    return asdict(ray_worker.WorkerJob(config.model_dump_json(), record, watched=False, aside=None))


def test_memory_that_runs_out_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray starts dead workers again whatever they died of; the second life knows better."""
    config, lives = config_of(tmp_path), []

    def run(*_: object) -> None:
        lives.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ray_worker, "RayContext", lambda watched: PlainContext())  # noqa: ARG005 (its name is given)
    monkeypatch.setattr(loop, "run", run)
    job = told_to_a_worker(config)
    with pytest.raises(torch.OutOfMemoryError):
        ray_worker.train_on_worker(job)
    assert ray_worker.train_on_worker(job) is None
    assert len(lives) == 1
    told = read_json(config.run_dir / "error.json")["error"]
    assert told == "CUDA out of memory; lower batch_size, or raise optimizer.accumulation"


def test_a_step_that_lost_its_group_says_nothing_about_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes the group down under living workers when another dies: torch's error is no verdict for later lives."""
    config = config_of(tmp_path)

    def run(_: TrainConfig, context: PlainContext) -> None:
        torch.distributed.destroy_process_group()
        context.agree(1)

    monkeypatch.setattr(ray_worker, "RayContext", lambda watched: GroupContext())  # noqa: ARG005 (its name is given)
    monkeypatch.setattr(loop, "run", run)
    job = told_to_a_worker(config)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    with pytest.raises(ValueError, match="process group has not been initialized"):
        ray_worker.train_on_worker(job)
    assert not (config.run_dir / "error.json").exists()
