"""Where people find a run in MLflow's pages."""

from __future__ import annotations

import shlex

from efafnet.platform.mlflow_client import mlflow_client, quietly

TRAINING_VIEW = "workflowType=machine_learning"
"""MLflow 3 shows experiments as traces of language models unless its address asks for trainings."""
UI = "http://127.0.0.1:5000"


def page_of(uri: str, run_id: str) -> str:
    """The address that opens a run; for a store without a server also the command that serves it.

    Empty where MLflow does not answer. Names and passwords in ``uri`` are cut by whoever shows it.
    """
    found: list[str] = []

    def ask() -> None:
        experiment = mlflow_client(uri).get_run(run_id).info.experiment_id
        page = f"/#/experiments/{experiment}/runs/{run_id}?{TRAINING_VIEW}"
        serving = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
        found.append(f"{uri}{page}" if uri.startswith("http") else f"{UI}{page} after: {serving}")

    quietly(ask, f"asking for run {run_id}")
    return found[0] if found else ""
