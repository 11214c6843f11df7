"""Starting a training run: checks, its directory, its MLflow run, and the loop on Ray's workers or in this process.

With ``ray_worker`` the only module of training that knows Ray; ``recording`` is the one that knows MLflow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from efafnet.pipelines.crops.store import tell_protection
from efafnet.pipelines.training import loop
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext, RunCancelledError, Status, pick_device
from efafnet.pipelines.training.costs import cost_of
from efafnet.pipelines.training.faults import Failures, retry
from efafnet.pipelines.training.inputs import Inputs, initial_network, open_inputs
from efafnet.pipelines.training.introduction import conclude, introduce, print_address
from efafnet.pipelines.training.monitor import PASSING
from efafnet.pipelines.training.placement import needs, placed
from efafnet.pipelines.training.ray_worker import STATUS, WorkerJob, read_status, train_on_worker
from efafnet.pipelines.training.recording import catch_up, close_record, fail_record, open_record, recorded
from efafnet.pipelines.training.rundir import RunDirectory, RunRecord, TrainResult
from efafnet.pipelines.training.state import Checkpoints, fork_source
from efafnet.platform import console, ray_private
from efafnet.platform.capacity import capacity
from efafnet.platform.checkpoint_copies import CheckpointCopies
from efafnet.platform.cluster import Resources, connect, defaults
from efafnet.platform.configuration import absolute_paths, to_yaml
from efafnet.platform.garbage import importing
from efafnet.platform.interruption import report_stop

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

T = TypeVar("T")
Live = Callable[[Status], None]
"""Draws where a run stands."""


def run_train(config: TrainConfig) -> None:
    """Train and show how it ended."""
    result = train(config, begin=introduce)
    conclude(config, result, RunDirectory(result.run_dir).known())


def train(
    config: TrainConfig,
    *,
    supervised: bool = False,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    begin: Callable[[TrainConfig, Inputs], None] | None = None,
) -> TrainResult:
    """Train a run to its end, from wherever it stands; a run that has ended is returned as it is.

    Args:
        config: the run.
        supervised: whether it is one of a set of runs.
        parent_run_id: MLflow run of the search that this run is a trial of.
        tags: further tags of the MLflow run.
        cancelled: asked before each step of a run in this process; true ends it there.
        begin: told of the run before anything is computed; None where nobody sits before it, and then no line is drawn
            anew either.

    Raises:
        ValueError: settings, stores and run directory do not fit together, or training diverged.
        OSError: no Ray, no tracking store, or a file system that refuses.
    """
    config = absolute_paths(config)
    if supervised or parent_run_id is not None:
        # Who supervises runs counts on each figure at its step, and gives the room beside them to other runs.
        inline = config.validation.model_copy(update={"where": "inline"})
        config = config.model_copy(update={"validation": inline})
    inputs = _checked_inputs(config)
    directory = RunDirectory(config.run_dir)
    with directory.locked(), _stop_reported(config):
        copies = _copies(config)
        identity = inputs.identity(config)
        if copies is not None and directory.known() is None:
            copies.pull_file(directory.path / "run.json")
        if copies is None or not copies.names():
            directory.clear_unstarted(identity)
        record = directory.claim(identity, config.changeable())
        if (ended := directory.result()) is not None:
            catch_up(config, inputs, record, ended)
            return ended
        if begin is not None:
            begin(config, inputs)
        record = open_record(config, inputs, record, parent_run_id=parent_run_id, tags=tags or {})
        with _failure_reported(config, record):
            directory.record(record, to_yaml(config))
            if copies is not None:
                copies.push_file(directory.path / "run.json")
            if begin is not None:
                print_address(record)
            with _live(config, watched=begin is not None) as live:
                outcome = _on_ray(config, record, live) if config.workers else _here(config, record, cancelled, live)
            result = TrainResult(config.run_dir, outcome.checkpoint, outcome.metrics, record.mlflow_run_id)
            close_record(config, inputs, record, result)
            directory.finish(result)
        return result


def _checked_inputs(config: TrainConfig) -> Inputs:
    """The stores, after everything that can be refused before workers start."""
    inputs = open_inputs(config)
    for store in inputs.stores:
        tell_protection(store)
    if config.starts_from_weights:
        initial_network(config, inputs.skeleton)  # to refuse foreign weights
    if config.fork is not None:
        fork_source(config.fork, config.batch_size)
    for name in config.schedule.ignored():
        console.warn(f"schedule.{name} has no effect on schedule.kind={config.schedule.kind}")
    return inputs


def _copies(config: TrainConfig) -> CheckpointCopies | None:
    """The store of checkpoints' copies, opened before anything starts; names the setting where it cannot be."""
    address = config.checkpoint.copy_to
    if address is None:
        return None
    try:
        copies = CheckpointCopies(address, config.name)
        copies.names()
    except (ValueError, OSError) as error:
        raise type(error)(f"checkpoint.copy_to = {address}: {error}") from error
    return copies


@contextmanager
def _stop_reported(config: TrainConfig) -> Iterator[None]:
    """Say where the run stands, first of all: who stops a job may give it a few seconds, and MLflow may be away."""
    try:
        yield
    except KeyboardInterrupt as stop:
        report_stop(stop, _how_to_resume(config))
        raise


@contextmanager
def _failure_reported(config: TrainConfig, record: RunRecord) -> Iterator[None]:
    try:
        with _stop_reported(config):
            yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | RunCancelledError)
        fail_record(record, interrupted=stopped, taken=cost_of(config))
        raise


def _how_to_resume(config: TrainConfig) -> str:
    """Say at which step a stopped run was saved, and how to resume it."""
    steps: list[Path] = []
    with suppress(OSError):
        steps = Checkpoints(config.run_dir, config.checkpoint).all()
    if not steps:
        return f"run {config.name} has no checkpoint yet; the same command begins it again"
    return f"step {int(steps[-1].name.removeprefix('step-'))} saved; the same command goes on from there"


@contextmanager
def _live(config: TrainConfig, *, watched: bool) -> Iterator[Live | None]:
    """A progress bar in the terminal; None without a terminal, or where nobody watches."""
    if not watched:
        yield None
        return
    with console.live_line(config.name) as draw:
        yield None if draw is None else lambda at: draw(at.step, at.steps, at.figures)


def _here(config: TrainConfig, record: RunRecord, cancelled: Callable[[], bool], live: Live | None) -> loop.LoopResult:
    def attempt() -> loop.LoopResult:
        plain = PlainContext(pick_device(config.device), cancelled=cancelled)
        plain.live = live
        with recorded(config, record, plain) as context:
            return loop.run(config, context)

    # A process that dies cannot try again, and what is no error of the system deserves its traceback.
    failures = Failures(config.run_dir, config.worker.max_failures, lambda seconds: _wait(seconds, cancelled))
    return retry(attempt, (OSError,), failures)


def _wait(seconds: float, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Wait ``seconds``; raises RunCancelledError as soon as the run is cancelled."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if cancelled():
            raise RunCancelledError("the run was cancelled")
        time.sleep(0.1)


# ---- on Ray


def _on_ray(config: TrainConfig, record: RunRecord, live: Live | None) -> loop.LoopResult:
    """Train on Ray's workers; the lines they write are shown here."""
    resources = connect(config.cluster)
    config = placed(config, capacity(resources))
    each = needs(config)
    console.note(f"{resources}; {_workers_text(config, each)}")
    job = WorkerJob(
        config=config.model_dump_json(),
        record=asdict(record),
        watched=not resources.is_local,
        each=dict(each),
        async_validation=config.validation.where == "auto",
        live=live is not None,
    )
    with _followed(config.run_dir, live), defaults(_ray_train_variables(config, resources)):
        answer = _fit(config, lambda: _trainer(config, job, each, grows=not resources.is_local))
    return loop.LoopResult(Path(answer["checkpoint"]), answer["metrics"])


def _ray_train_variables(config: TrainConfig, resources: Resources) -> dict[str, str]:
    """Settings of Ray Train for this run that it reads from environment variables only."""
    # Its own meetings, as of the report of a validation.
    variables = {"RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(config.worker.collective_timeout_s)}
    if resources.is_local:
        # Nobody drains a Ray that lives and dies with this program; its watcher only writes to the terminal.
        variables["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    if config.worker.fewest is not None:
        # For some 20 s after a node's death Ray still counts it, and waits so long for a place that is gone.
        variables["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"
    return variables


@importing()  # Ray Train's part for torch
def _trainer(config: TrainConfig, job: WorkerJob, each: Mapping[str, float], *, grows: bool) -> TorchTrainer:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from efafnet.pipelines.training.process_group import ClusterTorchConfig
    from efafnet.pipelines.training.reservations import PLACEMENT, PlacementNote

    fewest, most = config.worker.fewest, config.workers
    trainer = TorchTrainer(
        cast(Any, train_on_worker),  # the annotation forgets that it may return something
        train_loop_config=asdict(job),
        torch_config=cast(Any, ClusterTorchConfig)(  # any BackendConfig does
            backend="cpu:gloo,cuda:nccl" if "GPU" in each and config.device != "cpu" else "gloo",
            timeout_s=max(1, round(config.worker.collective_timeout_s)),
        ),
        scaling_config=cast(Any, ScalingConfig)(  # annotated for the API before V2, as is RunConfig
            num_workers=most if fewest in (None, most) else (fewest, most),
            use_gpu="GPU" in each,
            resources_per_worker=dict(each),
            elastic_resize_monitor_interval_s=config.worker.grow_every_s,
        ),
        run_config=cast(Any, RunConfig)(
            name="ray",
            storage_path=str(config.run_dir),
            # Ray would start dead workers again at once, whatever they died of, and never begin to count anew.
            failure_config=FailureConfig(max_failures=0),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[PlacementNote(config.run_dir / PLACEMENT)],
        ),
    )
    return cast("TorchTrainer", ray_private.without_helpers(trainer, grows=grows))


def _fit(config: TrainConfig, trainer: Callable[[], TorchTrainer]) -> dict[str, Any]:
    """Train to the end, with a new set of workers after each failure; raises as ``Failures.wait_or_raise``."""
    with importing():
        from ray.exceptions import RayError
        from ray.train import TrainingFailedError

    from efafnet.pipelines.training.reservations import PLACEMENT, given_back

    def attempt() -> Any:
        with given_back(config.run_dir / PLACEMENT):
            return _in_a_thread(trainer().fit)

    failures = Failures(config.run_dir, config.worker.max_failures, _wait)
    # What happens to workers comes as the former; to the process that controls them (killed for want of memory, or not
    # started), as the latter.
    ended = retry(attempt, (TrainingFailedError, RayError), failures)
    return cast("dict[str, Any]", ended.return_value)


def _in_a_thread(action: Callable[[], T]) -> T:
    """Return what ``action`` returns in a thread of its own.

    In the main thread Ray Train takes Ctrl-C over, asks its controller to abort, and exits without a word.
    """
    outcome: Future[T] = Future()

    def act() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=act, name="fit", daemon=True).start()
    return outcome.result()


def _workers_text(config: TrainConfig, each: Mapping[str, float]) -> str:
    fewest = "" if config.worker.fewest is None else f"{config.worker.fewest} to "
    parts = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    return f"{fewest}{config.workers} worker{'s'[: config.workers != 1]}, each with {parts}"


@contextmanager
def _followed(run_dir: Path, live: Live | None) -> Iterator[None]:
    """Show what the workers write meanwhile: the lines of the run's log, and where they stand if someone looks."""
    log, done = run_dir / "train.log", threading.Event()
    start = _size_of(log)
    thread = threading.Thread(target=_follow, args=(log, start, done, live), name="follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(OSError):
            (run_dir / STATUS).unlink(missing_ok=True)


def _size_of(log: Path) -> int:
    with suppress(OSError):
        return log.stat().st_size
    return 0


def _follow(log: Path, position: int, done: threading.Event, live: Live | None) -> None:
    last = False
    while not last:
        last = done.wait(0.5)
        if live is not None and (status := read_status(log.parent)) is not None:
            live(status)
        try:
            with log.open("rb") as file:
                file.seek(position)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:  # not there yet, or a file system that does not answer for a moment
            continue
        position += len(whole) + len(newline)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            if live is None or not line.startswith(PASSING):
                console.note(line)
