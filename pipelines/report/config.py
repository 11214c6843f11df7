"""The settings of the report, apart from the code that needs plotly and MLflow."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from efafnet.models.settings import Settings
from efafnet.platform.addresses import BareAddress


class ReportConfig(Settings):
    """Compare runs."""

    out: Path = Path("report.html")
    """The page; one file that needs nothing else, not even a network. An older one is replaced."""
    experiment: str = "efafnet"
    """MLflow experiment that holds the runs."""
    uri: BareAddress | None = None
    """MLflow's address; none for MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory."""
    runs: tuple[str, ...] = ()
    """Names or ids of the only runs to show (searches with their trials); none for all."""
    limit: int = Field(default=200, ge=1)
    """Most runs shown; the newest are kept."""
    pictures: int = Field(default=4, ge=0)
    """Pictures of best and worst persons embedded per evaluated run, the best runs first, as long as the page stays
    below 2.5 MB."""
    title: str = "efafnet runs"
    """Heading of the page."""
    ui: str | None = None
    """Address of MLflow's pages, http://HOST:PORT, that the runs' links lead to; none for the tracking server's own, or
    for a file http://127.0.0.1:5000, where `mlflow ui` shows it."""
