"""A set of training runs side by side: as many at a time as the cluster has room for, each going on where it stood.

A run is one Ray task that trains (in itself, or on Ray Train's workers), predicts the validation store and leaves its
figures on disk. What is on disk is all there is to know: after a kill the same set is given again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efafnet.pipelines.evaluation.config import EvaluateConfig, ScoringConfig, WorkersConfig
from efafnet.pipelines.evaluation.evaluate import PREDICTIONS, evaluate
from efafnet.pipelines.evaluation.results_file import reference_of
from efafnet.pipelines.evaluation.trained import open_store
from efafnet.pipelines.search.placement import LOOK_EVERY_S, Room
from efafnet.pipelines.search.searcher import reason_of
from efafnet.pipelines.search.trial import await_release, logged
from efafnet.pipelines.search.tune import trial_resources
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.placement import placed
from efafnet.pipelines.training.recording import fail_record
from efafnet.pipelines.training.rundir import RunDirectory, TrainResult
from efafnet.platform import console
from efafnet.platform.capacity import capacity
from efafnet.platform.cluster import connect
from efafnet.platform.interruption import told
from efafnet.platform.storage import read_json, sha256_bytes, sha256_file, write_text

_FIGURES_ONLY = ScoringConfig(bootstrap=0, errors=False)


@dataclass(frozen=True)
class Running:
    """How a set of runs is run."""

    parent_run_id: str | None
    """MLflow run that they are children of."""
    metric: str
    """The validation figure that counts."""
    concurrency: int | None = None
    """Runs at a time; None for as many as the cluster has room for."""
    retries: int = 2
    """Times that a run whose process died starts again."""
    keep: bool = False
    """Whether checkpoints stay once a run is measured."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of each run in MLflow."""


def run_all(runs: Sequence[TrainConfig], inputs: Inputs, how: Running) -> dict[str, str]:
    """Bring every run to its end; those that have ended are left alone.

    Returns:
        Why runs failed, by run name. A failure is not remembered: the same set given again tries again.

    Raises:
        ValueError: a run's directory holds a run with other settings or data.
        OSError: no Ray.
    """
    for run in runs:
        directory = RunDirectory(run.run_dir)
        if directory.known() is not None and directory.started:
            directory.claim(inputs.identity(run))
    by_image = has_images(inputs)
    left = [run for run in runs if not is_done(run, by_image)]
    if not left:
        return {}
    there = connect(left[0].cluster, show_workers=False)  # each run has its own log
    # Nobody drains a Ray that lives and dies with this program, and each watcher is one process more.
    environment = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if there.is_local else {}
    machines = capacity(there)
    left = [placed(run, machines, runs=min(len(left), how.concurrency or len(left))) for run in left]
    room = Room(left[0], how.concurrency)
    done = len(runs) - len(left)
    console.note(f"{there}; {len(runs)} runs, {done} of them done; {min(len(left), room())} at a time")
    jobs = [
        {
            "train": run.model_dump_json(),
            "parent_run_id": how.parent_run_id,
            "tags": dict(how.tags),
            "keep": how.keep,
            "by_image": by_image,
            "environment": environment,
        }
        for run in left
    ]
    failures: dict[str, str] = {}
    seen: list[int] = []

    def ended(index: int, failure: str) -> None:
        seen.append(index)
        run = left[index]
        told = f"FAILED: {failure}" if failure else f"{how.metric} {figure_of(run, how.metric):.4f}"
        failures.update({run.name: failure} if failure else {})
        console.note(f"{len(runs) - len(left) + len(seen)}/{len(runs)} {run.tracking.run_name or run.name}: {told}")

    def stopped(stop: KeyboardInterrupt, live: Sequence[int]) -> None:
        done = len(runs) - len(left) + len(seen)
        told(stop, f"{done} of {len(runs)} runs over, {len(live)} running; the same command goes on")
        for index in live:
            record = RunDirectory(left[index].run_dir).known()
            if record is not None:
                fail_record(record, interrupted=True)

    _run_tasks(jobs, trial_resources(left[0]), room, how.retries, ended, stopped)
    return failures


def _run_tasks(
    jobs: Sequence[dict[str, Any]],
    resources: Mapping[str, float],
    room: Callable[[], int],
    retries: int,
    ended: Callable[[int, str], None],
    stopped: Callable[[KeyboardInterrupt, Sequence[int]], None],
) -> None:
    """Run ``run_one`` on each job, as many at a time as ``room`` says.

    ``ended`` hears each one's number and failure, ``stopped`` the numbers of those that an interruption leaves.
    """
    import ray

    custom = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    # On CPUs a process takes one run after the other, which saves seconds each; with GPUs Ray gives each a fresh one.
    task = ray.remote(run_one).options(
        num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0), resources=custom, max_retries=retries
    )
    waiting = deque(enumerate(jobs))
    live: dict[ray.ObjectRef[str], int] = {}
    try:
        while waiting or live:
            while waiting and len(live) < room():
                index, job = waiting.popleft()
                live[task.remote(job)] = index
            done, _ = ray.wait(list(live), num_returns=1, timeout=LOOK_EVERY_S)
            for reference in done:
                try:
                    failure = str(ray.get(reference))
                except ray.exceptions.RayError as error:
                    failure = reason_of(error)
                ended(live.pop(reference), failure)
    except KeyboardInterrupt as stop:
        stopped(stop, list(live.values()))
        raise
    finally:
        for reference in live:
            ray.cancel(reference, force=True)


def run_one(job: dict[str, Any]) -> str:
    """Train and measure one run; returns why that failed, or nothing."""
    from efafnet.pipelines.training.ray_run import train

    os.environ.update(job["environment"])
    config = TrainConfig.model_validate_json(job["train"])
    config.run_dir.mkdir(parents=True, exist_ok=True)
    await_release(config.run_dir)
    with logged(config.run_dir / "run.log"):
        try:
            result = train(config, parent_run_id=job["parent_run_id"], tags=job["tags"])
            if job["by_image"]:
                _predict(config, result)
        except Exception as error:
            return reason_of(error)
    if not job["keep"]:
        shutil.rmtree(config.run_dir / "checkpoints", ignore_errors=True)
        for link in ("best", "latest"):
            (config.run_dir / link).unlink(missing_ok=True)
    return ""


def _predict(config: TrainConfig, result: TrainResult) -> None:
    """Leave the run's predictions on the validation store beside its figures, for the bootstrap over images."""
    file = config.run_dir / PREDICTIONS
    if file.exists() or config.data.val is None:
        return
    # Ray's own workers may have GPUs that this process has not.
    workers = WorkersConfig(count=config.workers, cpus=config.worker.threads, reader=config.reader)
    wanted = EvaluateConfig(
        checkpoint=result.checkpoint, data=config.data.val, workers=workers, scoring=_FIGURES_ONLY, overlays=0
    )
    done = evaluate(wanted, open_store(config.data.val))
    content = json.dumps(done.results, separators=(",", ":")) + "\n"
    # As sha256sum writes it, and before the file: that it is there says that the run is measured.
    write_text(_digest_file(file), f"{sha256_bytes(content.encode())}  {file.name}\n")
    write_text(file, content)


# ---- what runs left


def has_images(inputs: Inputs) -> bool:
    """Whether figures can be told image by image: OKS AP can, PCKh is not kept so."""
    return inputs.val is not None and reference_of(inputs.val.path, inputs.val.digest).format != "mpii"


def is_done(run: TrainConfig, by_image: bool) -> bool:
    """Whether a run has ended and is measured."""
    return RunDirectory(run.run_dir).result_file.exists() and (not by_image or (run.run_dir / PREDICTIONS).exists())


def precisions_of(runs: Iterable[TrainConfig]) -> str:
    """The arithmetic that runs began with; more than one, as in ``bf16, fp32``, where machines were unlike."""
    records = [record for run in runs if (record := RunDirectory(run.run_dir).known()) is not None]
    return ", ".join(sorted({str(record.identity["precision"]) for record in records}))


def figure_of(run: TrainConfig, metric: str) -> float:
    """The validation figure at the end of a run that is done."""
    result = RunDirectory(run.run_dir).result()
    assert result is not None, f"run {run.name} is not done"
    return float(result.metrics[metric])


def predictions_of(run: TrainConfig) -> list[dict[str, Any]]:
    """Its COCO results on the validation store; ValueError where they are not what was written."""
    file = run.run_dir / PREDICTIONS
    known = _digest_file(file)
    if known.exists() and known.read_text(encoding="utf-8").split()[:1] != [sha256_file(file)]:
        raise ValueError(
            f"{file} is damaged (sha256sum -c {known.name}); remove both, and the same command remakes them"
        )
    return list(read_json(file))


def _digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
