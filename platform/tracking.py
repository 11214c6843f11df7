"""MLflow: where runs are recorded, and how they are created and ended.

The driver prepares the store and creates the run; whoever trains logs to it by its id, so a restart goes on in the
same run. MLflow is imported only when one of these functions is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from efafnet.models.settings import Settings
from efafnet.platform import console
from efafnet.platform.addresses import BareAddress
from efafnet.platform.configuration import flatten
from efafnet.platform.credentials import bare
from efafnet.platform.garbage import importing
from efafnet.platform.mlflow_answers import NotMlflowError, is_absent, newest_steps
from efafnet.platform.mlflow_client import mlflow_client, quietly, sqlite_file
from efafnet.platform.mlflow_pages import ABOUT, NOTE
from efafnet.platform.mlflow_store import TrackingError, create_sqlite
from efafnet.platform.provenance import COMMAND_TAG, code_version, command_line, is_job_copy
from efafnet.platform.tracker import Tracker, Unlogged

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

__all__ = [
    "Tracker",
    "TrackingConfig",
    "TrackingError",
    "Unlogged",
    "abandon_run",
    "abandoned_on_failure",
    "create_run",
    "dataset_input",
    "find_run",
    "finish_run",
    "params_of",
    "prepare_tracking",
    "quietly",
    "sqlite_file",
]

_MAX_PARAM_CHARS = 500  # the limit of servers before MLflow 2.8; newer ones take 6000
_PARAMS_PER_BATCH = 100
_SERVER_START_S = 30.0


class TrackingConfig(Settings):
    """What is recorded in MLflow, and where."""

    enabled: bool = True
    """Whether the run is recorded in MLflow at all."""
    uri: BareAddress | None = None
    """Address of the store: http(s)://HOST:PORT of a tracking server, or sqlite:///PATH. Null: the environment's
    MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory."""
    experiment: str = Field(default="efafnet", min_length=1)
    """Experiment that holds the run; created when absent."""
    run_name: str | None = None
    """Name of the run in MLflow; null for the run's own name."""
    register_as: str | None = None
    """Name in the model registry under which the final network is registered; null for not registering."""
    alias: str | None = None
    """Alias of the best registered version, for example champion: models:/NAME@ALIAS loads it. The new version receives
    it if none has it yet, or if it beats the one that has it on the same data, tested the same way. Needs
    register_as."""
    log_checkpoint: bool = True
    """Whether the best checkpoint is copied to the run's artifacts."""
    log_network: bool = True
    """Whether the final network is logged as a model that MLflow loads. With neither this nor log_checkpoint, as in the
    trials of a search and the runs of a study, no checkpoint is listed as a model either: most are removed soon."""
    system_metrics_every_s: float | None = Field(default=10.0, gt=0)
    """Seconds between samples of CPU, memory, disk, network and GPU; null for none."""

    @model_validator(mode="after")
    def _registered_is_logged(self) -> TrackingConfig:
        if self.register_as is not None and not self.log_network:
            raise ValueError(f"register_as = {self.register_as!r} registers the logged network; set log_network=true")
        return self

    @model_validator(mode="after")
    def _alias_needs_a_name(self) -> TrackingConfig:
        if self.alias is not None and self.register_as is None:
            raise ValueError(f"alias = {self.alias!r} names a registered network; set register_as too, or drop alias")
        return self


# ---- the store


@importing()  # it imports MLflow
def prepare_tracking(uri: str | None = None) -> str:
    """Make sure the store answers and return its absolute address. To be called once, before any worker starts.

    A fresh sqlite store is created here under a lock, because several processes creating one break it.

    Args:
        uri: see ``TrackingConfig.uri``.

    Raises:
        TrackingError: the address is of a kind MLflow does not support, or nothing usable is there.
    """
    address = _absolute(uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    if address.startswith(("http://", "https://")):
        _await_server(address)
        return address
    file = sqlite_file(address)
    if file is None:
        return address  # another database, or a scheme of an MLflow plugin
    if is_job_copy(file):
        console.warn(
            f"MLflow's store {file} goes when Ray cleans up this job; set MLFLOW_TRACKING_URI to a server, "
            "or give tracking.uri=sqlite:////PATH on storage that stays"
        )
    create_sqlite(file)
    return f"sqlite:///{file}"


def _absolute(address: str) -> str:
    address = bare(address)
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    file = sqlite_file(address)
    if file is not None:
        return f"sqlite:///{file.expanduser().absolute()}"
    if "://" in address and not address.startswith("file:"):
        return address
    raise TrackingError(
        f"tracking address {address}: MLflow no longer keeps runs in plain directories; "
        "use sqlite:///PATH/mlflow.db or the http address of a tracking server"
    )


def find_run(run_id: str, given: str | None, noted: str) -> str | None:
    """Return the address at which a run is found: its id is what stays, its server may move.

    Args:
        run_id: the run.
        given: address in the settings; None for the environment's MLFLOW_TRACKING_URI, if that is set.
        noted: where the run was recorded before.

    Returns:
        The present address where the run is there, or where nobody can say; the noted one where it is only there. None
        where MLflow itself says, wherever it was asked, that there is no such run.
    """
    now = given or os.environ.get("MLFLOW_TRACKING_URI")
    present = noted if now is None else _absolute(now)
    absent = 0
    places = list(dict.fromkeys((present, noted)))
    for address in places:
        try:
            newest_steps(mlflow_client(address), run_id)
        except Exception as error:
            absent += is_absent(error)
        else:
            return address
    return None if absent == len(places) else present


def _await_server(address: str) -> None:
    """Wait until a tracking server answers; one that is just starting may need more than ten seconds."""
    deadline = time.monotonic() + _patience_s()
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                answer.read()
            return
        except urllib.error.HTTPError as error:
            if error.code == 403:
                raise TrackingError(
                    f"tracking server {address} refuses this host name (403); start it with --allowed-hosts naming it, "
                    "or give the credentials that a proxy before it wants (MLFLOW_TRACKING_TOKEN, …)"
                ) from error
            if error.code < 500:
                return  # it lives, and asks for credentials or keeps /health elsewhere
            reason = f"HTTP {error.code}"
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "reason", error))
        if time.monotonic() > deadline:
            raise TrackingError(
                f"tracking server {address} does not answer ({reason}); start it, or set tracking.uri=… or "
                "MLFLOW_TRACKING_URI to one that runs"
            )
        time.sleep(0.5)


def _patience_s() -> float:
    given = os.environ.get("EFAFNET_TRACKING_START_S", str(_SERVER_START_S))
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(given)) < math.inf:
            return seconds
    raise TrackingError(f"EFAFNET_TRACKING_START_S={given}: give seconds, 0 or more, or unset it")


def _experiment_id(uri: str, name: str) -> str:
    """Return the experiment's id; create it when absent, with its artifacts beside a sqlite store."""
    from mlflow.exceptions import MlflowException

    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        store = sqlite_file(uri)
        # MLflow's own default is ./mlruns of whatever directory the process that creates the experiment runs in.
        location = (store.parent / "mlartifacts" / name).as_uri() if store else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags={NOTE: ABOUT}))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise TrackingError(f"experiment {name!r} cannot be created at {uri}: {error}") from error
            experiment = client.get_experiment_by_name(name)  # another process was faster
    if experiment is not None and not experiment.experiment_id:
        raise NotMlflowError("what answers there is not MLflow; is a proxy between?")
    if experiment is None or experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} at {uri} was deleted; restore it in MLflow or choose another with "
            "tracking.experiment=…"
        )
    return str(experiment.experiment_id)


# ---- runs


def create_run(
    uri: str,
    experiment: str,
    run_name: str | None = None,
    *,
    parent_run_id: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    datasets: Sequence[DatasetInput] = (),
) -> str:
    """Create a run and return its id. Called by the driver only, once per training or search.

    Args:
        uri: from ``prepare_tracking``.
        experiment: name of the experiment.
        run_name: name people see.
        parent_run_id: the search this run is a trial of.
        params: settings; nested groups become dotted keys, long values are cut (and the whole kept as
            ``params.json``).
        tags: further tags; the user, the program and the code version are added.
        datasets: from ``dataset_input``.

    Raises:
        TrackingError: the store refuses, or does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow_client(uri)
        parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        every = {**_context_tags(), **parent, **(tags or {})}
        run = client.create_run(_experiment_id(uri, experiment), tags=every, run_name=run_name)
        run_id = str(run.info.run_id)
        newest_steps(client, run_id)
        with abandoned_on_failure(uri, run_id):
            log_params(uri, run_id, params or {})
            if datasets:
                client.log_inputs(run_id, datasets=list(datasets))
    except (MlflowException, OSError, ValueError, AttributeError) as error:  # also of answers that are not MLflow's
        if isinstance(error, TrackingError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(
            f"MLflow at {uri} did not take the run: {reason}; give the same command again once it does, another "
            "tracking.uri=…, or tracking.enabled=false"
        ) from error
    return run_id


def _context_tags() -> dict[str, str]:
    import getpass

    code = code_version()
    user = ""
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        user = getpass.getuser()
    tags = {
        "mlflow.user": user,
        "mlflow.source.name": "efafnet",
        "mlflow.source.type": "JOB" if os.environ.get("RAY_JOB_ID") else "LOCAL",
        "mlflow.source.git.commit": str(code["git_commit"] or ""),
        "code.version": str(code["version"]),
        "code.digest": str(code["source_digest"]),
        "code.git_dirty": str(code["git_dirty"]).lower(),
        COMMAND_TAG: command_line(sys.argv) or "",
    }
    return {key: value for key, value in tags.items() if value}


def log_params(uri: str, run_id: str, params: Mapping[str, Any]) -> None:
    """Log settings as parameters; nested groups become dotted keys. Raises what MLflow raises."""
    from mlflow.entities import Param

    client = mlflow_client(uri)
    flat = params_of(params)
    entities = [Param(key, _short(value)) for key, value in flat.items()]
    for start in range(0, len(entities), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entities[start : start + _PARAMS_PER_BATCH])
    if any(len(value) > _MAX_PARAM_CHARS for value in flat.values()):
        client.log_text(run_id, json.dumps(params, indent=2, default=str), "params.json")


def params_of(tree: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow's parameters: dotted keys and texts."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in flatten(tree).items()
    }


def _short(text: str) -> str:
    """Cut what is too long for a parameter; a digest keeps two different long values apart."""
    if len(text) <= _MAX_PARAM_CHARS:
        return text
    mark = f"… ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
    return text[: _MAX_PARAM_CHARS - len(mark)] + mark


def dataset_input(name: str, digest: str, source: Path, context: str, profile: Mapping[str, Any]) -> DatasetInput:
    """Describe a data set a run uses, for MLflow's lineage.

    Args:
        name: what people call it.
        digest: identity of its content; the first 36 characters count.
        source: where it lies.
        context: ``training``, ``validation`` or ``evaluation``.
        profile: counts worth seeing beside it.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(
        name=name,
        digest=digest[:36],
        source_type="local",
        source=json.dumps({"uri": str(source)}),
        profile=json.dumps(dict(profile)),
    )
    return DatasetInput(dataset=data, tags=[InputTag("mlflow.data.context", context)])


def finish_run(uri: str, run_id: str, status: str = "FINISHED") -> bool:
    """Set a run's final status (FINISHED, FAILED or KILLED); say so, and return False, when MLflow is away."""

    return quietly(lambda: mlflow_client(uri).set_terminated(run_id, status), f"setting run {run_id} to {status}")


@contextlib.contextmanager
def abandoned_on_failure(uri: str, run_id: str) -> Iterator[None]:
    """End a run, of which nothing here knows yet, should the block fail or be stopped: nobody else ever would."""
    try:
        yield
    except BaseException as error:
        abandon_run(uri, run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def abandon_run(uri: str, run_id: str, status: Literal["FAILED", "KILLED"]) -> bool:
    """As :func:`finish_run`, but a run that was ended from outside keeps that end: a search stops its trials."""

    def end() -> None:
        client = mlflow_client(uri)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status)

    return quietly(end, f"setting run {run_id} to {status}")
