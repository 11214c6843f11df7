"""Starting a training run: checks, its directory, its MLflow run, and the loop on Ray's workers or in this process.

The one module of training that knows Ray; ``recording`` is the one that knows MLflow.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from efafnet.pipelines.training import loop
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import GroupContext, PlainContext, pick_device
from efafnet.pipelines.training.inputs import initial_network, open_inputs
from efafnet.pipelines.training.monitor import DivergedError
from efafnet.pipelines.training.recording import close_record, fail_record, open_record, open_tracker
from efafnet.pipelines.training.rundir import RunDirectory, RunRecord, TrainResult
from efafnet.platform import console
from efafnet.platform.cluster import Resources, connect
from efafnet.platform.configuration import absolute_paths, to_yaml
from efafnet.platform.storage import read_json, write_json

if TYPE_CHECKING:
    from ray.train import UserCallback


def run_train(config: TrainConfig) -> None:
    """Train and show how it ended."""
    result = train(config)
    if result.resumed:
        console.say(f"run {result.run_dir} had ended before; remove it or choose another name=… to train again")
    console.say(f"checkpoint: {result.checkpoint}")
    if result.mlflow_run_id:
        console.say(f"MLflow run: {result.mlflow_run_id}")
    console.table(["figure", "value"], [(key, f"{value:.6g}") for key, value in sorted(result.metrics.items())])


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[UserCallback] = (),
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainResult:
    """Train a run to its end, from wherever it stands; a run that has ended is returned as it is.

    Args:
        config: the run.
        callbacks: Ray Train callbacks, for example Tune's.
        parent_run_id: MLflow run of the search that this run is a trial of.
        tags: further tags of the MLflow run.

    Raises:
        ValueError: settings, stores and run directory do not fit together, or training diverged.
        OSError: no Ray, no tracking store, or a file system that refuses.
    """
    config = absolute_paths(config)
    inputs = open_inputs(config)
    if config.starts_from_weights:
        initial_network(config, inputs.skeleton)  # to refuse foreign weights before workers start
    for name in config.schedule.ignored():
        console.warn(f"schedule.{name} has no effect on schedule.kind={config.schedule.kind}")
    directory = RunDirectory(config.run_dir)
    with directory.locked():
        record = directory.claim(inputs.identity(config))
        ended = directory.result()
        if ended is not None:
            return ended
        record = open_record(config, inputs, record, parent_run_id=parent_run_id, tags=tags or {})
        directory.record(record, to_yaml(config))
        with _failure_told(record):
            outcome = _here(config, record) if config.workers == 0 else _on_ray(config, record, callbacks)
        result = TrainResult(config.run_dir, outcome.checkpoint, outcome.metrics, record.mlflow_run_id)
        close_record(config, inputs, record, result)
        directory.finish(result)
        return result


@contextmanager
def _failure_told(record: RunRecord) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        fail_record(record, interrupted=isinstance(error, KeyboardInterrupt))
        raise


def _here(config: TrainConfig, record: RunRecord) -> loop.LoopResult:
    with _recorded(config, record, PlainContext(pick_device(config.device))) as context:
        return loop.run(config, context)


@contextmanager
def _recorded(config: TrainConfig, record: RunRecord, context: PlainContext) -> Iterator[PlainContext]:
    """Let rank 0's metrics go to MLflow."""
    opened = open_tracker(config, record) if context.rank == 0 else None
    if opened is None:
        yield context
        return
    tracker, context.sink = opened
    with tracker:
        yield context


# ---- on Ray


def _on_ray(config: TrainConfig, record: RunRecord, callbacks: Sequence[UserCallback]) -> loop.LoopResult:
    """Train on Ray's workers; the lines they write are shown here."""
    resources = connect(config.cluster)
    if resources.is_local:
        # Nobody drains a Ray that lives and dies with this program; its watcher only writes to the terminal.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from efafnet.pipelines.training.process_group import ClusterTorchConfig

    gpu = _use_gpu(config, resources)
    needs = {"CPU": config.worker.cpus, **({"GPU": 1} if gpu else {})}
    _check_resources(config, resources, needs)
    _verdict_file(config).unlink(missing_ok=True)
    trainer = TorchTrainer(
        cast(Any, _train_on_worker),  # the annotation forgets that it may return something
        train_loop_config={"config": config.model_dump_json(), "record": asdict(record)},
        torch_config=ClusterTorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpu, resources_per_worker=needs),
        run_config=cast(Any, RunConfig)(  # annotated for the API before V2
            name="ray",
            storage_path=str(config.run_dir),
            failure_config=FailureConfig(max_failures=config.worker.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=list(callbacks),
        ),
    )
    console.note(f"{resources}; {config.workers} workers, each {needs}")
    with _followed(config.run_dir / "train.log"):
        ended: Any = trainer.fit()
    answer: dict[str, Any] | None = ended.return_value
    if answer is None:
        raise ValueError(read_json(_verdict_file(config))["error"])
    return loop.LoopResult(Path(answer["checkpoint"]), answer["metrics"])


def _train_on_worker(job: dict[str, Any]) -> dict[str, Any] | None:
    """Train as one of Ray's workers.

    A user's error is written down before it is raised: Ray starts dead workers again whatever they died of, and the
    second life ends at once instead of failing the same way after the same time.
    """
    config, record = TrainConfig.model_validate_json(job["config"]), RunRecord(**job["record"])
    torch.set_num_threads(max(1, int(config.worker.cpus)))
    context = RayContext()
    verdict = _verdict_file(config)
    if context.agree(verdict.exists()):
        return None
    try:
        with _recorded(config, record, context):
            result = loop.run(config, context)
    except ValueError as error:
        write_json(verdict, {"error": str(error)})
        if isinstance(error, DivergedError):
            return None  # all workers are here
        raise
    return {"checkpoint": str(result.checkpoint), "metrics": result.metrics}


class RayContext(GroupContext):
    """One of Ray Train's workers."""

    def __init__(self) -> None:
        import ray.train.torch
        from ray.train.v2._internal.execution import context as reporting

        # Its logger is named after a file and escapes the LoggingConfig: every worker would print each report.
        reporting.logger.setLevel(logging.WARNING)
        device = ray.train.torch.get_device()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        super().__init__(device)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report to Ray Train, and through its callbacks to a search. A barrier: all workers meet here."""
        import ray.train

        ray.train.report(dict(metrics))

    def say(self, line: str) -> None:
        """Say nothing: the starting process shows what the loop writes to the run's log."""


def _use_gpu(config: TrainConfig, resources: Resources) -> bool:
    wanted = config.worker.gpu
    return wanted == "yes" or (wanted == "auto" and config.device != "cpu" and resources.gpus >= config.workers)


def _check_resources(config: TrainConfig, resources: Resources, needs: Mapping[str, float]) -> None:
    """Refuse what a Ray on this machine alone can never run; a cluster may still grow.

    Raises:
        ValueError: more CPUs or GPUs than there are.
    """
    if not resources.is_local:
        return
    for kind, there in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        wanted = needs.get(kind, 0) * config.workers
        if wanted > there:
            raise ValueError(
                f"workers = {config.workers}: they need {wanted:g} {kind}, this machine has {there:g}; "
                "lower workers or worker.cpus, or join a cluster with cluster.address=…"
            )


def _verdict_file(config: TrainConfig) -> Path:
    return config.run_dir / "error.json"


@contextmanager
def _followed(log: Path) -> Iterator[None]:
    """Show the lines that are appended to ``log`` meanwhile."""
    done = threading.Event()
    start = log.stat().st_size if log.exists() else 0
    thread = threading.Thread(target=_follow, args=(log, start, done), name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _follow(log: Path, position: int, done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(0.5)
        if not log.exists():
            continue
        with log.open("rb") as file:
            file.seek(position)
            whole, newline, _ = file.read().rpartition(b"\n")
        position += len(whole) + len(newline)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            console.note(line)
