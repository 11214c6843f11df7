"""``efafnet report``: from MLflow to one self-contained page and a table on the terminal."""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from efafnet.pipelines.crops.protocols import NONE_NAMED, PROTOCOL_TAG, compared
from efafnet.pipelines.report.config import ReportConfig
from efafnet.pipelines.report.data import RunData, differing, load_runs, taken_by
from efafnet.pipelines.report.sections import Album, Section, run_section, search_section, study_section
from efafnet.pipelines.report.tables import (
    Grouped,
    cost_cells,
    cost_columns,
    duration,
    figure_name,
    figure_text,
    grouped,
    setting_text,
    varied_settings,
)
from efafnet.pipelines.search.naming import short_names
from efafnet.pipelines.study.uncertainty import t_quantile
from efafnet.platform import console
from efafnet.platform.consumption import hours
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.storage import check_output_file, write_text
from efafnet.platform.tracking import prepare_tracking

if TYPE_CHECKING:
    import jinja2
    from mlflow import MlflowClient


def run_report(config: ReportConfig) -> None:
    """Write the page and print the table; raises OutputExistsError or UnwritableError where the page cannot be."""
    check_output_file(config.out, overwrite=True)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = prepare_tracking(config.uri)
    client = mlflow_client(uri)
    runs = load_runs(client, config.experiment, names=config.runs, limit=config.limit)
    page = render(config, uri, client, runs)
    write_text(config.out, page)
    show(runs)
    if (told := _protocols(runs)) is not None:
        console.say(told)
    console.say(f"report: {config.out} ({len(page) / 1e6:.1f} MB, needs no network)")


def render(config: ReportConfig, uri: str, client: MlflowClient, runs: Sequence[RunData]) -> str:
    """The page's whole text."""
    groups, ui = grouped(runs), ui_of(config, uri)
    sections: list[Section] = []
    if groups.plain:
        sections.append(run_section(groups.plain, ui, Album(client, config.pictures, len(runs))))
    sections += [study_section(client, study, repeats, ui) for study, repeats in groups.studies]
    sections += [search_section(client, search, trials, ui) for search, trials in groups.searches]
    content = {
        "charts": [[chart.drawing for chart in section.charts] for section in sections],
        "settings": [asdict(section.settings) if section.settings else None for section in sections],
    }
    return _template().render(
        title=config.title,
        subtitle=f"{config.experiment} at {uri}, written {time.strftime('%Y-%m-%d %H:%M')}",
        links=_links(uri, ui),
        headline=_headline(groups),
        remarks=remarks(runs),
        sections=sections,
        plotly_js=_plotly(),
        content=packed(json.dumps(content)),
    )


@cache
def _template() -> jinja2.Template:
    import jinja2

    text = (resources.files("efafnet.pipelines.report") / "page.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)


@cache
def _plotly() -> str:
    """Plotly's program, packed: to pack it takes longer than to draw all charts."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


def packed(text: str) -> str:
    """A text as base64 of its gzip, which every browser since 2023 unpacks by itself."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def ui_of(config: ReportConfig, uri: str) -> str:
    """Address of MLflow's pages, without a slash at the end."""
    own = uri if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    return (config.ui or own).rstrip("/")


def _links(uri: str, ui: str) -> str:
    """How the runs' links are made to work, where that takes something."""
    if not uri.startswith("sqlite:") or not ui.startswith("http://127.0.0.1"):
        return ""
    serving = f"mlflow ui --backend-store-uri {shlex.quote(uri)} --port {ui.rpartition(':')[2]}"
    return f"The runs' links open once this runs: {serving}"


def _headline(groups: Grouped) -> list[tuple[str, str]]:
    trials = [trial for _, each in groups.searches for trial in each]
    repeats = [run for _, each in groups.studies for run in each]
    every = [*groups.plain, *trials, *repeats]
    best = max((run for run in every if run.figure is not None), key=lambda r: r.figure or 0, default=None)
    counts = [
        (len(groups.plain), "training run", ""),
        (len(groups.searches), "search", "searches"),
        (len(trials), "trial", ""),
        (len(groups.studies), "study", "studies"),
        (len(repeats), "run in studies", "runs in studies"),
    ]
    facts = [_counted(*each) for each in counts if each[0]]
    if best is not None:
        facts.insert(0, (f"best validation AP: {best.name}", figure_text(best.figure)))
    if (taken := taken_by(every)) is not None:
        facts.append(("GPU-hours", hours(taken.gpu_s)) if taken.gpu_s else ("core-hours", hours(taken.core_s)))
        if taken.money is not None:
            facts.append((f"{every[0].currency} for all runs", f"{taken.money:.2f}"))
    return [*facts, ("of training, all runs added up", duration(sum(run.duration_s or 0 for run in every)))]


def _counted(count: int, one: str, many: str = "") -> tuple[str, str]:
    return (one if count == 1 else many or f"{one}s"), str(count)


def remarks(runs: Sequence[RunData]) -> list[str]:
    """What a reader must know before comparing."""
    told = []
    trained = [run for run in runs if run.figure is not None]
    sets = {run.datasets.get("validation") for run in trained} - {None}
    if len(sets) > 1:
        told.append(
            f"The runs were validated on {len(sets)} different data sets: their AP does not compare across them."
        )
    versions = {run.tags.get("code.digest") for run in trained} - {None}
    if len(versions) > 1:
        told.append(f"The runs were made by {len(versions)} versions of the code.")
    if (protocols := _protocols(runs)) is not None:
        told.append(protocols)
    failed = [run.named for run in runs if run.status == "FAILED"]
    if failed:
        told.append(f"Failed: {', '.join(failed[:8])}{' …' if len(failed) > 8 else ''}.")
    if trained:
        told.append(_noise(trained))
    return told


def _protocols(runs: Sequence[RunData]) -> str | None:
    """Whether recipes are compared along with networks."""
    return compared([run.tags.get(PROTOCOL_TAG, NONE_NAMED) for run in runs if run.stage != "search"])


def _noise(runs: Sequence[RunData]) -> str:
    """How far runs of equal settings lie apart, where some settings were run with several seeds."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    keys = [key for key in differing(runs) if key != "seed"]
    for run in runs:
        if run.status == "FINISHED" and run.figure is not None:
            same = (*((key, run.params.get(key, "")) for key in keys), ("data", run.datasets.get("validation", "")))
            groups.setdefault(same, []).append(run.figure)
    repeated = [figures for figures in groups.values() if len(figures) > 1]
    if not repeated:
        return "Every setting was run once: small differences in AP may be luck, and nothing here can tell how small."
    df = sum(len(figures) - 1 for figures in repeated)
    spread = math.sqrt(sum((len(each) - 1) * statistics.variance(each) for each in repeated) / df)
    limit = t_quantile(df, 0.975) * math.sqrt(2) * spread
    few = "; with so few repetitions that is itself hardly known" if df < 4 else ""
    return (
        f"Settings that were run with more than one seed: {len(repeated)}. Their AP scatters from seed to seed with a "
        f"standard deviation of {spread:.4f} ({df} df, pooled). Two single runs less than {limit:.3f} apart are not "
        f"told apart at 95 %{few}."
    )


def show(runs: Sequence[RunData]) -> None:
    """Print the runs, best first, with the settings that differ."""
    groups = grouped(runs)
    titled = [("runs", groups.plain)]
    titled += [(f"study “{study.name}”", repeats) for study, repeats in groups.studies]
    titled += [(f"search “{search.name}”", trials) for search, trials in groups.searches]
    for title, group in titled:
        if not group:
            continue
        keys = varied_settings(group)
        names = short_names(keys)
        ranked = sorted(group, key=lambda run: run.figure if run.figure is not None else -1.0, reverse=True)
        rows = [
            [
                run.short_name,
                run.tags.get("efafnet.trial_state", run.status.lower()),
                figure_text(run.figure),
                figure_text(run.best_figure),
                figure_text(run.metrics.get("train/loss"), 5),
                duration(run.duration_s),
                *(cell.text for cell in cost_cells(run, group)),
                *(setting_text(run.setting(key)) for key in keys),
            ]
            for run in ranked
        ]
        name = figure_name(group)
        costs = [column.name for column in cost_columns(group)]
        console.table(
            ["run", "end", name, f"best {name}", "loss", "time", *costs, *(names[key] for key in keys)],
            rows,
            title=title,
        )
