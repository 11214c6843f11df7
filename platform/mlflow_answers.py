"""What MLflow's answers mean: taken, refused for good, or not MLflow's answer at all.

Between a run and its tracking server stand proxies, ingresses and sign-on pages, which answer in its place: with 401,
403 or 404, with HTML, or with 200 and nothing. None of that says anything about the run: it waits, and is sent later.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_PASSING = frozenset(
    {
        "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED", "DEADLINE_EXCEEDED",
        "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND",
    }
)  # fmt: skip
"""Codes of MLflow's own that may be others for the same request later; a token can be renewed."""


class NotMlflowError(ConnectionError):
    """Something answered as if all were well, and it was not MLflow."""


def is_refusal(error: Exception) -> bool:
    """Tell an answer that will never change (a bad name, a missing file) from a server or store that is away."""
    code = getattr(error, "error_code", None)
    if isinstance(code, str):
        return _is_mlflows_own(error) and code not in _PASSING
    # Not isinstance(error, ValueError): requests reports unreadable answers of a failing proxy as one.
    return isinstance(error, FileNotFoundError | TypeError) or type(error) is ValueError


def _is_mlflows_own(error: Exception) -> bool:
    """Whether MLflow itself said it: its server names an error code; its client makes one up from a bare status."""
    answer = getattr(error, "json", None)
    if isinstance(answer, dict):
        return bool(answer.get("error_code"))
    return "API request to endpoint" not in str(error)


def is_absent(error: Exception) -> bool:
    """Whether MLflow itself said that there is no such run."""
    return is_refusal(error) and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"


class CurveSteps:
    """Which steps of a run's curves MLflow has, so that none is sent twice and none is taken for sent.

    Points arrive out of order: some wait while later ones are sent, and a resumed run trains again what it had logged.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        """Ask for the newest step of each curve.

        Raises:
            NotMlflowError: what answers does not know what it was asked for.
        """
        self._client, self._run_id = client, run_id
        self._newest = newest_steps(client, run_id)
        self._whole: dict[str, set[int]] = {}

    def has(self, key: str, step: int) -> bool:
        """Whether the curve ``key`` has a point at ``step``; asks for the whole curve where it is not the newest."""
        if step > self._newest.get(key, -1):
            return False
        if key not in self._whole:
            self._whole[key] = {point.step for point in self._client.get_metric_history(self._run_id, key)}
        return step in self._whole[key]

    def add(self, points: Iterable[Metric]) -> None:
        """Note points as sent."""
        for point in points:
            self._newest[point.key] = max(point.step, self._newest.get(point.key, -1))
            if point.key in self._whole:
                self._whole[point.key].add(point.step)

    def confirm(self, points: Iterable[Metric]) -> None:
        """Ask whether points that were answered with "yes" have arrived.

        Raises:
            NotMlflowError: they have not.
        """
        there = newest_steps(self._client, self._run_id)
        lost = sum(point.step > there.get(point.key, -1) for point in points)
        if lost:
            raise NotMlflowError(f"{lost} points were answered with success and are not there; is a proxy between?")


def newest_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The newest step of each of a run's curves.

    Raises:
        NotMlflowError: the answer is not about this run.
    """
    run = client.get_run(run_id)
    if run.info.run_id != run_id:
        raise NotMlflowError(f"what answers does not know run {run_id}; is a proxy between?")
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def confirm_files(client: MlflowClient, run_id: str, sizes: Mapping[str, int]) -> None:
    """Ask whether files that were answered with "yes" have arrived.

    Only where they went by way of MLflow's server: what a bucket or a directory took is there.

    Args:
        client: of the run's store.
        run_id: the run.
        sizes: bytes that were sent, by path among the run's artifacts.

    Raises:
        NotMlflowError: one is not there, or shorter.
    """
    if not str(client.get_run(run_id).info.artifact_uri).startswith(("mlflow-artifacts:", "http:", "https:")):
        return
    for folder in {posixpath.dirname(path) for path in sizes}:
        there = {file.path: file.file_size or 0 for file in client.list_artifacts(run_id, folder or None)}
        for path, size in sizes.items():
            if posixpath.dirname(path) == folder and there.get(path, -1) < size:
                raise NotMlflowError(f"{path} was answered with success and is not there; is a proxy between?")
