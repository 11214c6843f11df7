"""An MLflow store to fill with runs, and a study to report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import optuna
from mlflow.entities import Metric

from efafnet.pipelines.report.data import RunData, load_runs
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.tracking import create_run, dataset_input, finish_run, prepare_tracking

BASE = {"name": "x", "optimizer": {"lr": 0.001}, "loss": {"kind": "mse"}, "seed": 0, "data": {"train": "a"}}


class Store:
    """An MLflow store to fill with runs."""

    def __init__(self, place: Path) -> None:
        self.uri = prepare_tracking(f"sqlite:///{place}/mlflow.db")
        self.client = mlflow_client(self.uri)
        self.place = place

    def run(
        self,
        name: str,
        curve: list[float],
        *,
        status: str = "FINISHED",
        data: str = "d1",
        tags: dict[str, str] | None = None,
        parent: str | None = None,
        **params: Any,
    ) -> str:
        """Add a run whose validation figures, one per 10 steps (1 epoch), are ``curve``."""
        run_id = create_run(
            self.uri, "test", name, parent_run_id=parent, params=BASE | {"name": name} | params,
            tags={"efafnet.stage": "train", **(tags or {})},
            datasets=[dataset_input("val", data, self.place, "validation", {})],
        )  # fmt: skip
        now = int(time.time() * 1000)
        points = [Metric("val/ap", value, now, 10 * (i + 1)) for i, value in enumerate(curve)]
        points += [Metric("train/epoch", i + 1.0, now, 10 * (i + 1)) for i in range(len(curve))]
        points += [Metric("train/samples", 640.0 * (i + 1), now, 10 * (i + 1)) for i in range(len(curve))]
        points += [Metric("train/loss", 1 / (i + 1), now, 10 * (i + 1)) for i in range(len(curve))]
        self.client.log_batch(run_id, metrics=points)
        finish_run(self.uri, run_id, status)
        return run_id

    def runs(self, **options: Any) -> list[RunData]:
        return load_runs(self.client, "test", **options)


def study_of(*trials: tuple[dict[str, Any], list[float], str]) -> optuna.Study:
    """A finished study over a rate and a conditional number; trials as (parameters, figures, state)."""
    study = optuna.create_study(direction="maximize")
    rate = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    kind = optuna.distributions.CategoricalDistribution(["mse", "ohkm"])
    joints = optuna.distributions.IntDistribution(1, 17)
    domains = {"optimizer.lr": rate, "loss.kind": kind, "loss.hard_joints": joints}
    for number, (params, figures, state) in enumerate(trials):
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                value=figures[-1] if figures and state != "FAIL" else None,
                params=params,
                distributions={name: domains[name] for name in params},
                intermediate_values={100 * (i + 1): value for i, value in enumerate(figures)},
                user_attrs={"settings": params, "number": number},
            )
        )
    return study


STUDY: tuple[tuple[dict[str, Any], list[float], str], ...] = (
    ({"optimizer.lr": 1e-3, "loss.kind": "mse"}, [0.2, 0.5], "COMPLETE"),
    ({"optimizer.lr": 1e-2, "loss.kind": "ohkm", "loss.hard_joints": 8}, [0.1], "PRUNED"),
    ({"optimizer.lr": 3e-3, "loss.kind": "ohkm", "loss.hard_joints": 4}, [0.2, 0.6], "COMPLETE"),
    ({"optimizer.lr": 5e-3, "loss.kind": "mse"}, [0.2, 0.4], "COMPLETE"),
    ({"optimizer.lr": 6e-3, "loss.kind": "mse"}, [0.2, 0.45], "COMPLETE"),
    ({"optimizer.lr": 9e-3, "loss.kind": "mse"}, [], "FAIL"),
)
