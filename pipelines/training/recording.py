"""A training run in MLflow: created once, gone on with after every restart, closed with its network and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from efafnet.models.network import build_network
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.protocols import PROTOCOL_TAG
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.rundir import RunRecord, TrainResult
from efafnet.pipelines.training.state import published_weights
from efafnet.platform import console, tracking
from efafnet.platform.checkpoint import load_checkpoint, restore_weights
from efafnet.platform.logged_model import log_model
from efafnet.platform.tracking import Tracker


def open_record(
    config: TrainConfig, inputs: Inputs, record: RunRecord, *, parent_run_id: str | None, tags: Mapping[str, str]
) -> RunRecord:
    """Give a new run its MLflow run; set that of a resumed one to running again.

    Raises:
        TrackingError: the store is not there. Only a NEW run minds: a resumed one trains on and catches up later.
    """
    if not config.tracking.enabled:
        return record
    if record.mlflow_run_id is not None and record.tracking_uri is not None:
        known_uri, known_id = record.tracking_uri, record.mlflow_run_id
        tracking.quietly(lambda: _set_running(known_uri, known_id), f"setting run {known_id} to RUNNING")
        return record
    uri = tracking.prepare_tracking(config.tracking.uri)
    run_id = tracking.create_run(
        uri,
        config.tracking.experiment,
        config.tracking.run_name or config.name,
        parent_run_id=parent_run_id,
        params={**config.model_dump(mode="json"), "digest": record.digest},
        tags={
            "efafnet.stage": "train",
            "efafnet.run_dir": str(config.run_dir),
            PROTOCOL_TAG: inputs.protocol(config),
            **tags,
        },
        datasets=[
            _data_input(store, context)
            for store, context in ((inputs.train, "training"), (inputs.val, "validation"))
            if store is not None
        ],
    )
    return replace(record, mlflow_run_id=run_id, tracking_uri=uri)


def _data_input(store: CropStore, context: str) -> Any:
    counts = store.manifest.counts.model_dump()
    return tracking.dataset_input(store.path.name, store.digest, store.path, context, counts)


def _set_running(uri: str, run_id: str) -> None:
    from mlflow import MlflowClient

    MlflowClient(uri).update_run(run_id, status="RUNNING")


class ResumedSink:
    """Records what the run does not hold yet: steps that are trained again after a restart draw no second curve.

    Their figures are those already recorded, because a restart repeats the steps exactly.
    """

    def __init__(self, tracker: Tracker, recorded: Mapping[str, int]) -> None:
        self._tracker = tracker
        self._recorded = recorded

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue those ``metrics`` that have no point at ``step`` or later."""
        fresh = {key: value for key, value in metrics.items() if step > self._recorded.get(key, -1)}
        if fresh:
            self._tracker.log_metrics(fresh, step)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file."""
        self._tracker.log_artifact(path, folder)


def open_tracker(config: TrainConfig, record: RunRecord) -> tuple[Tracker, ResumedSink] | None:
    """Open the run of ``record`` for the one process that records it; None for a run without MLflow."""
    if record.mlflow_run_id is None or record.tracking_uri is None:
        return None
    spill = config.run_dir / "unlogged.jsonl"
    recorded = last_steps(record.tracking_uri, record.mlflow_run_id)
    tracker = Tracker(
        record.tracking_uri,
        record.mlflow_run_id,
        spill=spill,
        system_metrics_every_s=config.tracking.system_metrics_every_s,
    )
    return tracker, ResumedSink(tracker, recorded)


def last_steps(uri: str, run_id: str) -> dict[str, int]:
    """Return the last step MLflow has of each metric of a run; nothing when it cannot be asked."""
    from mlflow import MlflowClient

    found: dict[str, int] = {}

    def ask() -> None:
        metrics = MlflowClient(uri).get_run(run_id).data.to_proto().metrics
        found.update({metric.key: metric.step for metric in metrics})

    tracking.quietly(ask, f"asking what run {run_id} holds")
    return found


def close_record(config: TrainConfig, inputs: Inputs, record: RunRecord, result: TrainResult) -> None:
    """Log what came out: the network (registered if asked), the checkpoint, the settings and the log; end the run.

    Nothing here can fail the training, whose result is on disk: what MLflow does not take is told.
    """
    if record.mlflow_run_id is None or record.tracking_uri is None:
        return
    uri, run_id = record.tracking_uri, record.mlflow_run_id
    files = Tracker(uri, run_id, spill=config.run_dir / "unlogged-files.jsonl")
    for name in ("config.yaml", "train.log"):
        if (config.run_dir / name).exists():
            files.log_artifact(config.run_dir / name)
    if config.tracking.log_checkpoint:
        files.log_artifact(result.checkpoint, "checkpoints")
    numbers = {f"final/{key}": value for key, value in result.metrics.items() if key not in ("step", "seconds")}
    files.log_metrics(numbers, int(result.metrics["step"]))
    files.close(timeout_s=120)
    tracking.quietly(lambda: _log_network(config, inputs, uri, run_id, result), "logging the network")
    tracking.finish_run(uri, run_id)


def _log_network(config: TrainConfig, inputs: Inputs, uri: str, run_id: str, result: TrainResult) -> None:
    checkpoint = load_checkpoint(result.checkpoint, with_state=False)
    network = build_network(config.network, inputs.skeleton.num_joints)
    restore_weights(network, published_weights(checkpoint), result.checkpoint)
    logged = log_model(
        uri,
        run_id,
        network,
        input_shape=(3, config.input.height, config.input.width),
        register_as=config.tracking.register_as,
        alias=config.tracking.alias,
        step=int(checkpoint.meta["step"]),
        metadata={"skeleton": inputs.skeleton.name, "input": str(config.input), "metrics": result.metrics},
    )
    version = f" (version {logged.version} of {config.tracking.register_as})" if logged.version else ""
    console.note(f"network logged to MLflow as {logged.uri}{version}")


def fail_record(record: RunRecord, *, interrupted: bool) -> None:
    """Say in MLflow that the run stopped."""
    if record.mlflow_run_id is not None and record.tracking_uri is not None:
        tracking.abandon_run(record.tracking_uri, record.mlflow_run_id, "KILLED" if interrupted else "FAILED")
