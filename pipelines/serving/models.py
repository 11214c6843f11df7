"""Which networks are served: runs, checkpoints, and models of MLflow's registry, each under a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from efafnet.pipelines.evaluation.trained import find_checkpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_REGISTRY = "models:/"
_HALTS = ("best", "latest")


@dataclass(frozen=True)
class Served:
    """A network under its name."""

    name: str
    checkpoint: Path


def find_models(locations: Sequence[str], tracking_uri: str | None = None) -> list[Served]:
    """The checkpoints of ``locations``, named after their runs; those of one name are numbered.

    Raises:
        ValueError: a location is neither a checkpoint nor a run, or the registry has no such model.
        OSError: MLflow cannot be reached.
    """
    found: list[Served] = []
    for location in locations:
        if location.startswith(_REGISTRY):
            wanted, path = location.removeprefix(_REGISTRY), _registered(location, tracking_uri)
        else:
            path = find_checkpoint(Path(location).expanduser().absolute())
            wanted = _name(path)
        taken = {served.name for served in found}
        found.append(Served(next(name for name in _numbered(wanted) if name not in taken), path))
    return found


def _name(checkpoint: Path) -> str:
    """The run's name: that of the directory above its checkpoints."""
    parts = [part for part in checkpoint.parts if part not in (*_HALTS, "checkpoints")]
    steps = re.compile(r"(step|checkpoint)[-_]?\d+$")
    named = [part for part in parts if not steps.fullmatch(part)]
    return (named or parts)[-1]


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def _registered(location: str, tracking_uri: str | None) -> Path:
    """The checkpoint behind a registered model: in its run's directory, else the one that MLflow keeps."""
    from mlflow.exceptions import MlflowException

    from efafnet.platform.mlflow_client import mlflow_client
    from efafnet.platform.tracking import prepare_tracking

    uri = prepare_tracking(tracking_uri)
    client = mlflow_client(uri)
    try:
        version = _version(client, location)
        run = client.get_run(str(version.run_id))
        directory = Path(run.data.tags.get("efafnet.run_dir", ""))
        path = find_checkpoint(directory)
        if directory.is_absolute() and (path / "meta.json").is_file():
            return path
        return _downloaded(client, location, str(version.run_id), directory)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"models={location}: MLflow at {uri} says: {reason}") from error


def _version(client: MlflowClient, location: str) -> ModelVersion:
    name, _, alias = location.removeprefix(_REGISTRY).partition("@")
    if alias:
        return client.get_model_version_by_alias(name, alias)
    name, _, number = name.partition("/")
    if not number.isdigit():
        raise ValueError(
            f"models={location}: write models:/NAME@ALIAS or models:/NAME/VERSION, for example models:/efafnet@champion"
        )
    return client.get_model_version(name, number)


def _downloaded(client: MlflowClient, location: str, run_id: str, directory: Path) -> Path:
    files = [entry.path for entry in client.list_artifacts(run_id, "checkpoints") if entry.is_dir]
    if not files:
        raise ValueError(
            f"models={location}: the directory {directory} of its run is not on this machine, and MLflow holds no "
            "checkpoint of it; name a checkpoint, or train with tracking.log_checkpoint=true"
        )
    return Path(client.download_artifacts(run_id, files[-1]))
