"""A training run in MLflow: created once, gone on with after every restart, closed with its network and its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efafnet.models.cost import network_size
from efafnet.pipelines.crops.protocols import PROTOCOL_TAG
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.served import served
from efafnet.pipelines.evaluation.trained import filled_network
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.costs import cost_of, metered
from efafnet.pipelines.training.description import SETTINGS, describe_run, model_name
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.rundir import RunDirectory, RunRecord, TrainResult
from efafnet.pipelines.training.state import Checkpoints, published_weights
from efafnet.platform import console, tracking
from efafnet.platform.checkpoint import load_checkpoint, read_meta
from efafnet.platform.configuration import to_yaml
from efafnet.platform.consumption import Consumption, total
from efafnet.platform.garbage import importing
from efafnet.platform.logged_model import Score, log_checkpoints, log_model
from efafnet.platform.mlflow_client import mlflow_client, points_now
from efafnet.platform.mlflow_pages import NOTE
from efafnet.platform.presence import is_there
from efafnet.platform.provenance import environment, environment_tags
from efafnet.platform.storage import sha256_json
from efafnet.platform.tracking import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

UNLOGGED, UNLOGGED_FILES = "unlogged.jsonl", "unlogged-files.jsonl"
"""What MLflow did not take while it was away, in the run's directory."""
_PLUMBING: dict[str, Any] = {
    **dict.fromkeys(("name", "runs", "tracking", "checkpoint", "reader", "worker", "cluster", "cost", "profile"), True),
    **dict.fromkeys(("log_every_steps", "trace"), True),
    "validation": {"overlays", "wait_s", "where"},
    "test": {"batch_size"},
}
"""Settings that change no figure: they are in the artifact ``config.yaml``, and would hide what matters where runs are
compared."""


@importing()  # it imports MLflow
def open_record(
    config: TrainConfig,
    inputs: Inputs,
    record: RunRecord,
    *,
    parent_run_id: str | None,
    tags: Mapping[str, str],
    about: str = "",
) -> RunRecord:
    """Give a new run its MLflow run; set that of a resumed one to running again.

    ``about`` says what a search or a study is, for the description; a training needs no words.

    Raises:
        TrackingError: the store is not there. Only a NEW run minds: a resumed one trains on and catches up later.
    """
    if not config.tracking.enabled:
        return record
    record = located(config, record)
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
        params={
            **config.model_dump(mode="json", exclude=_unlogged(config)),
            **({} if about else _size(config, inputs)),
        },
        tags={
            "efafnet.digest": record.digest,
            "efafnet.stage": "train",
            "efafnet.run_dir": str(config.run_dir),
            "efafnet.currency": config.cost.currency,
            PROTOCOL_TAG: inputs.protocol(config),
            **({"efafnet.forked_from": str(config.fork)} if config.fork else {}),
            **tags,
        },
        datasets=[
            _data_input(store, context)
            for store, context in ((inputs.train, "training"), (inputs.val, "validation"))
            if store is not None
        ],
    )

    def describe() -> None:
        client = mlflow_client(uri)
        client.set_tag(run_id, NOTE, describe_run(config, inputs, run_id, about))
        client.log_text(run_id, to_yaml(config), SETTINGS)

    with tracking.abandoned_on_failure(uri, run_id):
        tracking.quietly(describe, f"describing run {run_id}")
    return replace(record, mlflow_run_id=run_id, tracking_uri=uri)


def located(config: TrainConfig, record: RunRecord) -> RunRecord:
    """The record of a run with the address at which MLflow has it now; without a run where MLflow lost it."""
    if record.mlflow_run_id is None or record.tracking_uri is None:
        return record
    uri = tracking.find_run(record.mlflow_run_id, config.tracking.uri, record.tracking_uri)
    if uri is None:
        console.warn(f"MLflow at {record.tracking_uri} no longer has run {record.mlflow_run_id}: a new one is begun")
        return replace(record, mlflow_run_id=None, tracking_uri=None)
    if uri != record.tracking_uri:
        console.note(f"MLflow run {record.mlflow_run_id}: at {uri} now, was at {record.tracking_uri}")
    return replace(record, tracking_uri=uri)


def _follow(directory: RunDirectory, record: RunRecord) -> None:
    """Let ``run.json`` of a run that nobody trains name the MLflow of ``record``, if that took all that waited."""
    known = directory.known()
    if known is None or known.tracking_uri == record.tracking_uri or _waiting(directory.path):
        return
    directory.note(replace(known, tracking_uri=record.tracking_uri))


def _waiting(run_dir: Path) -> list[str]:
    """Names of the files in a run's directory that hold what MLflow did not take."""
    return [name for name in (UNLOGGED, UNLOGGED_FILES) if is_there(run_dir / name)]


def _unlogged(config: TrainConfig) -> dict[str, Any]:
    """Settings that are no parameters in MLflow, or not yet: what ``auto`` comes to is logged once it is known."""
    return {**_PLUMBING, "precision": True} if config.precision == "auto" else _PLUMBING


def _size(config: TrainConfig, inputs: Inputs) -> dict[str, float]:
    """What the network weighs and one crop costs, as parameters: figures of a run that no step changes."""
    size = network_size(config.network, inputs.skeleton.num_joints, config.input)
    return {"size.parameters_m": round(size.params_m, 3), "size.gmac": float(f"{size.gmac:.4g}")}


def _data_input(store: CropStore, context: str) -> Any:
    counts = store.manifest.counts.model_dump()
    return tracking.dataset_input(store.path.name, store.digest, store.path, context, counts)


def _set_running(uri: str, run_id: str) -> None:
    mlflow_client(uri).update_run(run_id, status="RUNNING")


@contextmanager
def recorded(config: TrainConfig, record: RunRecord, context: PlainContext) -> Iterator[PlainContext]:
    """Measure what this process takes; let rank 0's metrics and files go to the run of ``record``, if there is one."""
    with metered(config, context.device), _logged(config, record, context):
        yield context


@contextmanager
def _logged(config: TrainConfig, record: RunRecord, context: PlainContext) -> Iterator[None]:
    if context.rank != 0 or record.mlflow_run_id is None or record.tracking_uri is None:
        yield
        return
    with Tracker(
        record.tracking_uri,
        record.mlflow_run_id,
        spill=config.run_dir / UNLOGGED,
        system_metrics_every_s=config.tracking.system_metrics_every_s,
    ) as tracker:
        tracker.set_tags(environment_tags())
        tracker.log_dict(environment(), "environment.json")
        context.sink = tracker
        yield


def close_record(config: TrainConfig, inputs: Inputs, record: RunRecord, result: TrainResult) -> None:
    """Log what came out: the network (registered if asked), the checkpoint, the settings and the log; end the run.

    Nothing here can fail the training, whose result is on disk: what MLflow does not take is told.
    """
    if record.mlflow_run_id is None or record.tracking_uri is None:
        return
    uri, run_id = record.tracking_uri, record.mlflow_run_id
    files = Tracker(uri, run_id, spill=config.run_dir / UNLOGGED_FILES)
    for name in (SETTINGS, "train.log"):
        if (config.run_dir / name).exists():
            files.log_artifact(config.run_dir / name)
    if config.tracking.log_checkpoint:
        files.log_artifact(result.checkpoint, "checkpoints")
    taken = cost_of(config)
    files.log_metrics(taken.metrics(), cost_step(taken))
    files.close(timeout_s=30)
    if config.tracking.log_checkpoint or config.tracking.log_network:
        validated, name = _validated_checkpoints(config), model_name(config)
        tracking.quietly(lambda: log_checkpoints(uri, run_id, validated, name), "logging the checkpoints")
    if config.tracking.log_network:
        tracking.quietly(lambda: _log_network(config, inputs, uri, run_id, result), "logging the network")
    tracking.finish_run(uri, run_id)


def catch_up(config: TrainConfig, inputs: Inputs, record: RunRecord, result: TrainResult) -> None:
    """Send what MLflow has not heard of a run that ended while it was away."""
    waiting = _waiting(config.run_dir)
    if not waiting:
        return
    record = located(config, record)
    if record.mlflow_run_id is None or record.tracking_uri is None:
        return
    console.note(f"sending to MLflow what {', '.join(waiting)} kept")
    with Tracker(record.tracking_uri, record.mlflow_run_id, spill=config.run_dir / UNLOGGED):
        pass
    close_record(config, inputs, record, result)
    _follow(RunDirectory(config.run_dir), record)


def send_kept(place: Path, config: TrainConfig) -> None:
    """Send what MLflow has not heard of the runs in the directory ``place``; none of them may be running.

    Args:
        place: directory of run directories.
        config: says where MLflow is.
    """
    for run_dir in sorted({file.parent for file in place.glob("*/unlogged*.jsonl")}):
        directory = RunDirectory(run_dir)
        record = directory.known()
        record = None if record is None else located(config, record)
        if record is None or record.mlflow_run_id is None or record.tracking_uri is None:
            continue
        uri, run_id = record.tracking_uri, record.mlflow_run_id
        console.note(f"sending to MLflow what {run_dir.name} kept")
        for name in _waiting(run_dir):
            Tracker(uri, run_id, spill=run_dir / name).close()
        _follow(directory, record)
        if is_there(directory.result_file):
            tracking.finish_run(uri, run_id)


def _validated_checkpoints(config: TrainConfig) -> dict[int, Path]:
    """The checkpoints kept of steps that were validated."""
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    validated = {int(step) for step in read_meta(checkpoints.all()[-1])["validations"]}
    return {step: checkpoints.path(step) for step in validated if checkpoints.path(step).is_dir()}


def _score(config: TrainConfig, inputs: Inputs, metrics: Mapping[str, float]) -> Score | None:
    """What the trained network is worth, on which persons and tested how; None without validation."""
    metric = config.validation.metric or inputs.metric
    if inputs.val is None or metric not in metrics:
        return None
    test = config.test.model_dump(mode="json", exclude={"batch_size"})
    terms = {"data": inputs.val.digest, "test": test, "input": str(config.input)}
    return Score(metric, metrics[metric], sha256_json(terms)[:16])


@importing()  # MLflow's part for torch, and half of MLflow
def _log_network(config: TrainConfig, inputs: Inputs, uri: str, run_id: str, result: TrainResult) -> None:
    checkpoint = load_checkpoint(result.checkpoint, with_state=False)
    joints = inputs.skeleton.num_joints
    network = filled_network(config.network, joints, published_weights(checkpoint), result.checkpoint)
    logged = log_model(
        uri,
        run_id,
        network,
        input_shape=(3, config.input.height, config.input.width),
        name=model_name(config),
        served=served(checkpoint, inputs.skeleton),
        register_as=config.tracking.register_as,
        alias=config.tracking.alias,
        score=_score(config, inputs, result.metrics),
        step=int(checkpoint.meta["step"]),
        metadata={"skeleton": inputs.skeleton.name, "input": str(config.input), "metrics": result.metrics},
    )
    version = f" (version {logged.version} of {config.tracking.register_as})" if logged.version else ""
    console.note(f"network logged to MLflow as {logged.uri}{version}")
    if logged.alias_note:
        console.note(f"{config.tracking.register_as}: {logged.alias_note}")


def fail_record(record: RunRecord, *, interrupted: bool, taken: Consumption | None = None) -> None:
    """Say in MLflow that the run stopped, and what it took so far where that is known."""
    if record.mlflow_run_id is None or record.tracking_uri is None:
        return
    uri, run_id = record.tracking_uri, record.mlflow_run_id
    tracking.abandon_run(uri, run_id, "KILLED" if interrupted else "FAILED")
    if taken is not None:
        tracking.quietly(lambda: log_cost(uri, run_id, taken), f"logging what run {run_id} took")


def log_cost(uri: str, run_id: str, taken: Consumption) -> None:
    """Log what a run took; raises what MLflow raises."""
    mlflow_client(uri).log_batch(run_id, metrics=points_now(taken.metrics(), cost_step(taken)))


def log_total(record: RunRecord) -> Consumption | None:
    """Log on a search or a study what all its runs took, and return it; None where MLflow is not used or is away."""
    uri, run_id = record.tracking_uri, record.mlflow_run_id
    if uri is None or run_id is None:
        return None
    found: list[Consumption] = []

    def add() -> None:
        found.append(of_children(mlflow_client(uri), run_id))
        log_cost(uri, run_id, found[0])

    tracking.quietly(add, "adding up what the runs took")
    return found[0] if found else None


def of_children(client: MlflowClient, parent_run_id: str) -> Consumption:
    """What the runs below one of MLflow's took together; raises what MLflow raises."""
    parts = [Consumption.of_metrics(run.data.metrics) for run in children(client, parent_run_id)]
    return total(part for part in parts if part is not None)


def children(client: MlflowClient, parent_run_id: str) -> list[Run]:
    """The runs below one of MLflow's, however many; raises what MLflow raises."""
    experiment = client.get_run(parent_run_id).info.experiment_id
    wanted, page = f"tags.`mlflow.parentRunId` = '{parent_run_id}'", None
    found: list[Run] = []
    while page != "":
        answer = client.search_runs([experiment], wanted, max_results=1000, page_token=page)
        found += answer
        page = answer.token or ""
    return found


def cost_step(taken: Consumption) -> int:
    """Step at which a consumption stands in MLflow: it grows with every second, so that the newest is the last."""
    return round(taken.gpu_s + taken.core_s)
