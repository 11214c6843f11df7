"""One way to reach MLflow: bounded waiting, nothing written outside the store's own directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from efafnet.platform import console
from efafnet.platform.credentials import full, take_from_cluster
from efafnet.platform.presence import is_there

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_REQUEST_TIMEOUT_S = 30


def mlflow_client(uri: str, *, create: bool = False) -> MlflowClient:
    """Return a client of an absolute tracking address; only with ``create`` is a sqlite store made that is not there.

    Raises:
        FileNotFoundError: the store is not there.
    """
    from mlflow import MlflowClient

    bound_waiting()
    # It would print a run's address when that ends: with the password in it, and without the view of trainings.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    store = sqlite_file(uri)
    if store is not None:
        if not (create or is_there(store)):
            # MLflow would make an empty store here: the usual case is a worker on another machine than the driver.
            raise FileNotFoundError(f"{store} is not on this machine; several machines need a tracking server")
        # Without it every process that opens a sqlite store makes a folder ./mlruns wherever it happens to run.
        os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = (store.parent / "mlartifacts").as_uri()
    take_from_cluster()
    return MlflowClient(full(uri))


def bound_waiting() -> None:
    """Let MLflow give up early on a server that is away: by default it waits 120 s an answer, eight times, and between
    two tries as long as a proxy asks for (``Retry-After``), be it an hour."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_REQUEST_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a ``sqlite:///…`` address, or None for any other address."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix).partition("?")[0]) if uri.startswith(prefix) else None


def points_now(figures: Mapping[str, float], step: int = 0) -> list[Metric]:
    """One point for each of these figures, for ``log_batch``: one request, where ``log_metric`` has one for each."""
    from mlflow.entities import Metric

    now_ms = time.time_ns() // 10**6
    return [Metric(name, value, now_ms, step) for name, value in figures.items()]


def quietly(action: Callable[[], object], what: str) -> bool:
    """Run a tracking call whose failure must not end the program; say what failed and return whether it worked."""
    try:
        action()
    except Exception as error:
        console.warn(f"MLflow: {what} failed: {' '.join(str(error).split())[:300]}")
        return False
    return True
