"""A trained network in MLflow: logged, registered under a name, and given back whole.

It is stored as a pickled module, on purpose. MLflow's default, a ``torch.export`` graph, is fixed to the device it was
traced on, cannot return to training mode, and takes only the batch sizes its example allowed. The price: the program
that loads it needs this package, and must trust the store.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efafnet.platform.credentials import full
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.storage import write_json
from efafnet.platform.tracking import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from torch import nn


_SCORE_TAG = "merit."
"""How the tags of a registered version begin that hold its score, in registries that are there already."""


@dataclass(frozen=True)
class LoggedModel:
    """A network in MLflow."""

    uri: str
    """What ``mlflow.pytorch.load_model`` takes."""
    version: str | None
    """Version in the registry, if it was registered."""
    alias_note: str = ""
    """What became of the alias, in words; empty where none was asked for."""


@dataclass(frozen=True)
class Score:
    """What a network is worth: a figure, and the terms under which figures may be compared."""

    metric: str
    """Name of the figure; larger is better."""
    value: float
    terms: str
    """Digest of the data and the way of testing: figures of other terms say nothing about each other."""


@dataclass(frozen=True)
class Served:
    """How a network is served as a function of other things than tensors, by ``mlflow.pyfunc`` and its server."""

    loader: str
    """Module whose ``_load_pyfunc(path)`` gives the function; ``path`` is the directory of the model's data."""
    facts_name: str
    """File in that directory that holds ``facts``."""
    facts: Mapping[str, Any]
    """What the loader needs beside the network; JSON can hold it."""
    signature: Any
    """MLflow's ModelSignature of the function."""
    example: Any
    """An input that fits the signature."""
    packages: Sequence[str] = ()
    """Packages that the function needs beyond the network's."""


def log_model(
    uri: str,
    run_id: str,
    network: nn.Module,
    *,
    input_shape: Sequence[int],
    served: Served | None = None,
    name: str = "network",
    register_as: str | None = None,
    alias: str | None = None,
    score: Score | None = None,
    step: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> LoggedModel:
    """Log a trained network so that ``mlflow.pytorch.load_model`` gives back the same ``nn.Module``.

    Args:
        uri: from ``prepare_tracking``.
        run_id: the run it belongs to.
        network: stays as it is; a copy on the CPU in evaluation mode is logged.
        input_shape: shape of the input without the batch, for the signature of a network that is not ``served``.
        served: what ``mlflow.pyfunc.load_model`` gives instead of a function of tensors; none for that.
        name: name within the run.
        register_as: name in the registry, or None.
        alias: alias for the registered version, or None. A version that has it keeps it unless ``score`` beats its.
        score: what the network is worth; also kept as tags of the registered version.
        step: optimizer steps it was trained for.
        metadata: JSON-able facts stored with it.

    Raises:
        TrackingError: MLflow did not take it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    client = mlflow_client(uri)
    try:
        _choose_place(uri, run_id)
        with _without_pickle_warning():
            info = Model.log(
                artifact_path=None,
                name=name,
                flavor=_Flavour(served),
                flavor_name="mlflow.pytorch",
                run_id=run_id,
                registered_model_name=register_as,
                step=step,
                metadata=dict(metadata or {}),
                pytorch_model=copy.deepcopy(network).cpu().eval(),
                serialization_format="pickle",
                **_function(served, input_shape),
            )
        version, alias_note = info.registered_model_version, ""
        _attach_metrics(client, run_id, str(info.model_id), step)
        if register_as and version is not None:
            alias_note = _register(client, register_as, str(version), alias, score, f"{name}, step {step}")
    except (MlflowException, OSError) as error:
        raise _refused(uri, "the network", error) from error
    return LoggedModel(str(info.model_uri), None if version is None else str(version), alias_note)


def _function(served: Served | None, input_shape: Sequence[int]) -> dict[str, Any]:
    """What MLflow is told of the function that it serves."""
    # Asked to validate, it would load the model again at the end of each training.
    told = {
        "validate_serving_input": False,
        "pip_requirements": _requirements(() if served is None else served.packages),
    }
    if served is None:
        return {**told, "signature": _signature(input_shape)}
    return {**told, "signature": served.signature, "input_example": served.example}


class _Flavour:
    """MLflow's own way of saving networks, and where they are served the function of that."""

    def __init__(self, served: Served | None) -> None:
        self._served = served

    def save_model(self, path: str, mlflow_model: Any, *, validate_serving_input: bool, **settings: Any) -> None:
        """What MLflow calls to fill the model's directory."""
        import mlflow.pytorch

        del validate_serving_input  # read by whoever calls this
        with _versions_taken_as_read():
            mlflow.pytorch.save_model(path=path, mlflow_model=mlflow_model, **settings)
        if self._served is None:
            return
        function = mlflow_model.flavors["python_function"]
        write_json(Path(path) / function["data"] / self._served.facts_name, self._served.facts)
        function["loader_module"] = self._served.loader
        # Settings of the loader that was replaced.
        for name in ("pickle_module_name", "config"):
            function.pop(name, None)
        mlflow_model.save(str(Path(path) / "MLmodel"))


def _choose_place(uri: str, run_id: str) -> None:
    """Let MLflow's global functions act on the run's store and experiment, not on the default experiment."""
    import mlflow

    mlflow.set_tracking_uri(full(uri))
    mlflow.set_experiment(experiment_id=mlflow_client(uri).get_run(run_id).info.experiment_id)


def _register(client: MlflowClient, name: str, version: str, alias: str | None, score: Score | None, what: str) -> str:
    """Describe a registered version, tag it with its score, give it the alias if it may have it, and say which."""
    run = client.get_run(str(client.get_model_version(name, version).run_id))
    worth = "" if score is None else f": {score.metric} {score.value:.4f}"
    client.update_model_version(name, version, f"{what} of run {run.info.run_name}{worth}")
    for key, value in (asdict(score) if score else {}).items():
        client.set_model_version_tag(name, version, f"{_SCORE_TAG}{key}", str(value))
    if alias is None:
        return ""
    holder = _holder(client, name, alias)
    if holder is not None:
        refusal = _refusal(holder.tags, score)
        if refusal:
            return f"version {holder.version} stays {alias}: {refusal}"
    client.set_registered_model_alias(name, alias, version)
    return f"is now {alias}" + ("" if holder is None else f", after version {holder.version}")


def _holder(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _refusal(holder: Mapping[str, str], score: Score | None) -> str:
    """Say why a network with ``score`` may not take the alias from one with these tags; empty if it may."""
    if score is None:
        return "the new network was not validated"
    if (holder.get(f"{_SCORE_TAG}metric"), holder.get(f"{_SCORE_TAG}terms")) != (score.metric, score.terms):
        return "it was measured on other data or in another way; set the alias by hand if the new network is better"
    value = float(holder[f"{_SCORE_TAG}value"])
    return "" if score.value > value else f"its {score.metric} is {value:.4f}, the new network's {score.value:.4f}"


def log_checkpoints(uri: str, run_id: str, checkpoints: Mapping[int, Path], name: str = "network") -> None:
    """Make each checkpoint (by its step) a logged model of the run, with the metrics the run has at that step.

    Its name is ``step-STEP-NAME``, because MLflow shows the beginning of a long one. The files stay where they are; the
    model's tag ``path`` names them. What was logged before is left alone.

    Raises:
        TrackingError: MLflow did not take them.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow_client(uri)
    try:
        _choose_place(uri, run_id)
        experiment = client.get_run(run_id).info.experiment_id
        known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
        names = {model.name for model in known}
        for step, path in sorted(checkpoints.items()):
            title = f"step-{step}-{name}"
            if title not in names:
                model = mlflow.create_external_model(
                    title,
                    run_id,
                    {"path": str(path), "step": str(step)},
                    model_type="checkpoint",
                    experiment_id=experiment,
                )
                _attach_metrics(client, run_id, model.model_id, step)
    except (MlflowException, OSError) as error:
        raise _refused(uri, "the checkpoints", error) from error


def _refused(uri: str, what: str, error: Exception) -> TrackingError:
    reason = " ".join(str(error).split())[:300]
    return TrackingError(f"MLflow at {uri} did not take {what}: {reason}")


def _attach_metrics(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Give a model the validation metrics that its run has at ``step``.

    MLflow logs such a metric to the run too: with the time and value it has there it is the same point.
    """
    from mlflow.entities import Metric

    keys = [key for key in client.get_run(run_id).data.metrics if key.startswith("val/")]
    points = [point for key in keys for point in client.get_metric_history(run_id, key) if point.step == step]
    if points:
        metrics = [Metric(p.key, p.value, p.timestamp, p.step, model_id=model_id) for p in points]
        client.log_batch(run_id, metrics=metrics)


def _signature(input_shape: Sequence[int]) -> Any:
    import numpy as np
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, *input_shape))]))


def _requirements(more: Sequence[str]) -> list[str]:
    """Return what loading needs. Without it MLflow finds out by loading the model in a new process."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in dict.fromkeys(("torch", "torchvision", "numpy", "pydantic", *more)):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package}=={version(package)}")
    return found


@contextlib.contextmanager
def _versions_taken_as_read() -> Iterator[None]:
    """Keep MLflow from comparing ``_requirements`` with what is installed, where they were just read: for that it goes
    through the files of every installed package, half a second of each run. A MLflow that names it otherwise does."""
    from mlflow.utils import environment

    name = "warn_dependency_requirement_mismatches"
    if not hasattr(environment, name):
        yield
        return
    compare = getattr(environment, name)
    setattr(environment, name, lambda _: None)
    try:
        yield
    finally:
        setattr(environment, name, compare)


@contextlib.contextmanager
def _without_pickle_warning() -> Iterator[None]:
    """Silence the warning about a choice that was made deliberately (see ``log_model``)."""
    import logging

    logger = logging.getLogger("mlflow.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
