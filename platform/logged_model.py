"""A trained network in MLflow: logged, registered under a name, and given back whole.

It is stored as a pickled module, on purpose. MLflow's default, a ``torch.export`` graph, is fixed to the device it was
traced on, cannot return to training mode, and takes only the batch sizes its example allowed. The price: the program
that loads it needs this package, and must trust the store.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.tracking import TrackingError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LoggedModel:
    """A network in MLflow."""

    uri: str
    """What ``mlflow.pytorch.load_model`` takes."""
    version: str | None
    """Version in the registry, if it was registered."""


def log_model(
    uri: str,
    run_id: str,
    network: nn.Module,
    *,
    input_shape: Sequence[int],
    name: str = "network",
    register_as: str | None = None,
    alias: str | None = None,
    step: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> LoggedModel:
    """Log a trained network so that ``mlflow.pytorch.load_model`` gives back the same ``nn.Module``.

    Args:
        uri: from ``prepare_tracking``.
        run_id: the run it belongs to.
        network: stays as it is; a copy on the CPU in evaluation mode is logged.
        input_shape: shape of the input without the batch, for the signature.
        name: name within the run.
        register_as: name in the registry, or None.
        alias: alias for the registered version, or None.
        step: optimizer steps it was trained for.
        metadata: JSON-able facts stored with it.

    Raises:
        TrackingError: MLflow did not take it.
    """
    import mlflow
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    client = mlflow_client(uri)
    mlflow.set_tracking_uri(uri)
    try:
        with _without_pickle_warning():
            info = Model.log(
                artifact_path=None,
                name=name,
                flavor=mlflow.pytorch,
                run_id=run_id,
                registered_model_name=register_as,
                step=step,
                metadata=dict(metadata or {}),
                pytorch_model=copy.deepcopy(network).cpu().eval(),
                serialization_format="pickle",
                signature=_signature(input_shape),
                pip_requirements=_requirements(),
            )
        version = info.registered_model_version
        if register_as and alias and version is not None:
            client.set_registered_model_alias(register_as, alias, str(version))
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(f"MLflow at {uri} did not take the network: {reason}") from error
    return LoggedModel(str(info.model_uri), None if version is None else str(version))


def _signature(input_shape: Sequence[int]) -> Any:
    import numpy as np
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, *input_shape))]))


def _requirements() -> list[str]:
    """Return what loading needs. Without it MLflow finds out by loading the model in a new process."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("torch", "torchvision", "numpy", "pydantic"):
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package}=={version(package)}")
    return found


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
