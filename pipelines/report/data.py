"""What the report knows of each run: its settings, figures and curves, read from MLflow once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from efafnet.platform.consumption import Consumption, total

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FIGURES = ("val/ap", "val/pckh")
"""What runs are compared by: the first that a run has."""
CURVES = (*FIGURES, "train/loss", "train/lr", "train/epoch", "train/samples", "speed/elapsed_s")
"""Metrics whose whole history is read."""
INCIDENTAL = (
    "name", "runs", "tracking", "checkpoint", "reader", "worker", "workers", "device", "log_every_steps", "trace",
    "data", "cost",
)  # fmt: skip
"""Settings, or groups of them, that do not change a run's figures: never among those that differ."""
Axis = Literal["epochs", "steps", "samples", "minutes"]
"""What a curve may be drawn over; minutes are those of training, over all restarts."""
PICTURES = (".png", ".jpg", ".jpeg")


class ReportError(ValueError):
    """There is nothing to report on, or it cannot be read; the message says what to do."""


@dataclass
class RunData:
    """One MLflow run."""

    run_id: str
    name: str
    status: str
    """MLflow's word: RUNNING, FINISHED, FAILED or KILLED."""
    started_ms: int
    duration_s: float | None
    parent_id: str | None
    stage: str
    """The tag ``efafnet.stage``: train, trial or longer (of a search), search, repeat (of a study), study; empty for
    runs that do not say."""
    params: dict[str, str]
    metrics: dict[str, float]
    """Last value of each metric."""
    tags: dict[str, str]
    datasets: dict[str, str]
    """Digest of each data set by its context (training, validation)."""
    given: dict[str, Any] | None = None
    """Settings that a search gave this trial; None for runs that are no trials."""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Points (step, value) of the metrics in ``CURVES``, ascending."""
    experiment_id: str = ""

    @property
    def named(self) -> str:
        """The name with the start of the id: names repeat."""
        return f"{self.name} ({self.run_id[:8]})"

    @property
    def short_name(self) -> str:
        """The name, of a trial its number alone: what differs stands beside it."""
        return self.name.partition(" ")[0] if self.stage == "trial" else self.name

    def setting(self, key: str) -> str | None:
        """A setting as text; None where it was not given, or (in a trial) had no part in what was searched."""
        searched = self.given is not None and key not in self.given
        return None if searched else self.params.get(key)

    @property
    def taken(self) -> Consumption | None:
        """What the run took; None where MLflow was not told."""
        return Consumption.of_metrics(self.metrics)

    @property
    def currency(self) -> str:
        """What its money is in."""
        return self.tags.get("efafnet.currency", "USD")

    @property
    def figure(self) -> float | None:
        """AP (PCKh on MPII) of the last validation; of a stopped trial, whose last one MLflow may have missed, what the
        search saw."""
        return next((self.metrics[key] for key in (*FIGURES, "trial.figure") if key in self.metrics), None)

    @property
    def best_figure(self) -> float | None:
        """Largest figure of any validation."""
        points = next((self.curves[key] for key in FIGURES if key in self.curves), [])
        return max((value for _, value in points), default=self.figure)

    @property
    def evaluations(self) -> dict[str, float]:
        """AP of each evaluation of the run's checkpoint, by the name of its crop store."""
        start, end = "evaluation.", ".ap"
        marks = {key: value for key, value in self.metrics.items() if key.startswith(start) and key.endswith(end)}
        return {key.removeprefix(start).removesuffix(end): value for key, value in marks.items()}

    def positions(self, axis: Axis) -> dict[float, float] | None:
        """Where each step of the training curve stands on an axis; None where the run did not record that."""
        if axis == "steps":
            return {step: step for points in self.curves.values() for step, _ in points}
        key, scale = {"epochs": ("train/epoch", 1.0), "samples": ("train/samples", 1.0),
                      "minutes": ("speed/elapsed_s", 1 / 60)}[axis]  # fmt: skip
        points = self.curves.get(key)
        return {step: value * scale for step, value in points} if points else None

    def against(self, metric: str, axis: Axis) -> list[tuple[float, float]] | None:
        """A curve over an axis; None where some of its points have no place on it."""
        points, places = self.curves.get(metric, []), self.positions(axis)
        if places is None or any(step not in places for step, _ in points):
            return None
        return [(places[step], value) for step, value in points]


def axes_of(runs: Sequence[RunData], metric: str) -> list[Axis]:
    """The axes that the metric's curves of all runs can be drawn over."""
    drawn = [run for run in runs if run.curves.get(metric)]
    return [axis for axis in get_args(Axis) if all(run.against(metric, axis) is not None for run in drawn)]


def taken_by(runs: Sequence[RunData]) -> Consumption | None:
    """What runs took together; None where none says. Runs that do not say count as nothing."""
    known = [run.taken for run in runs if run.taken is not None]
    return total(known) if known else None


def load_runs(client: MlflowClient, experiment: str, *, names: Sequence[str] = (), limit: int = 200) -> list[RunData]:
    """Read the runs of an experiment, oldest first.

    Args:
        client: of the tracking store.
        experiment: its name.
        names: ids or names of the only runs to read (with their trials).
        limit: most runs read; the newest are kept.

    Raises:
        ReportError: no such experiment or run, or nothing in it.
    """
    runs = _search(client, experiment, limit)
    if names:
        known = {run.info.run_id for run in runs} | {run.info.run_name for run in runs}
        for name in names:
            if name not in known:
                newest = f" among its newest {limit} (limit=)" if len(runs) == limit else ""
                raise ReportError(f"experiment {experiment!r} has no run {name!r}{newest}; there are {_list(runs)}")
        chosen = {run.info.run_id for run in runs if run.info.run_id in names or run.info.run_name in names}
        for _ in range(2):  # a search's finals have runs of their own
            chosen |= {run.info.run_id for run in runs if run.data.tags.get(_PARENT) in chosen}
        runs = [run for run in runs if run.info.run_id in chosen]
    return [_read(client, run) for run in reversed(runs)]


_PARENT = "mlflow.parentRunId"


def _search(client: MlflowClient, experiment: str, limit: int) -> list[Run]:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(each.name for each in client.search_experiments())) or "none"
        raise ReportError(f"there is no experiment {experiment!r} in MLflow; there are: {names}")
    runs = list(client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"], max_results=limit))
    if not runs:
        raise ReportError(f"experiment {experiment!r} holds no runs yet; train something first, or name another one")
    return runs


def _list(runs: list[Run]) -> str:
    names = [run.info.run_name for run in runs if _PARENT not in run.data.tags]
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _read(client: MlflowClient, run: Run) -> RunData:
    end = run.info.end_time
    curves = {}
    for key in CURVES:
        if key in run.data.metrics:
            points = {float(point.step): point.value for point in client.get_metric_history(run.info.run_id, key)}
            curves[key] = sorted(points.items())
    contexts = {}
    for each in run.inputs.dataset_inputs if run.inputs else []:
        context = next((tag.value for tag in each.tags if tag.key == "mlflow.data.context"), "data")
        contexts[context] = each.dataset.digest
    return RunData(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id[:8],
        status=run.info.status,
        started_ms=run.info.start_time,
        duration_s=(end - run.info.start_time) / 1000 if end else None,
        parent_id=run.data.tags.get(_PARENT),
        stage=run.data.tags.get("efafnet.stage", ""),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        datasets=contexts,
        given=json.loads(run.data.tags["efafnet.trial_settings"])
        if "efafnet.trial_settings" in run.data.tags
        else None,
        curves=curves,
        experiment_id=run.info.experiment_id,
    )


def differing(runs: Sequence[RunData]) -> list[str]:
    """Keys whose values are not the same in all runs, in the order of the configuration.

    Runs of other programs, which may lie in the same experiment, are passed over: they have none of the settings.
    """
    told = [run for run in runs if run.params and run.stage] or [run for run in runs if run.params]
    keys = list(dict.fromkeys(key for run in told for key in run.params))
    return [
        key for key in keys if key.partition(".")[0] not in INCIDENTAL and len({run.setting(key) for run in told}) > 1
    ]


def load_json(client: MlflowClient, run_id: str, path: str) -> dict[str, Any] | None:
    """A JSON file among a run's artifacts, or None where it is not there (yet)."""
    if all(each.path != path for each in client.list_artifacts(run_id, path.rpartition("/")[0])):
        return None
    with tempfile.TemporaryDirectory() as place:
        content = json.loads(Path(client.download_artifacts(run_id, path, place)).read_text(encoding="utf-8"))
    return dict(content)


def pictures(client: MlflowClient, run_id: str, limit: int) -> Iterator[tuple[str, bytes]]:
    """Up to ``limit`` pictures of a run's evaluations: (path within the artifacts, file content)."""
    paths = sorted(_walk(client, run_id, "evaluation"))[:limit]
    with tempfile.TemporaryDirectory() as place:
        for path in paths:
            yield path, Path(client.download_artifacts(run_id, path, place)).read_bytes()


def _walk(client: MlflowClient, run_id: str, folder: str) -> Iterator[str]:
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _walk(client, run_id, item.path)
        elif item.path.lower().endswith(PICTURES):
            yield item.path
