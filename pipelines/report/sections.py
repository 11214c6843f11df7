"""The report's sections: one for the trainings that stand alone, one for each search."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import markupsafe

from efafnet.pipelines.report.data import RunData, load_json, pictures
from efafnet.pipelines.report.figures import Chart, run_charts, study_charts
from efafnet.pipelines.report.tables import Cell, Column, Row, Table, run_table
from efafnet.pipelines.search.naming import describe
from efafnet.pipelines.search.study_file import STUDY_FILE, study_from_json
from efafnet.pipelines.study.sheet import SHEET_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_PICTURE_PX = 1400
"""Longest side of an embedded picture; larger ones are reduced."""
_WIDE = {"Settings together", "What mattered", "Settings against AP"}


@dataclass(frozen=True)
class Drawn:
    """A chart as the page takes it."""

    title: str
    note: str
    html: markupsafe.Markup
    wide: bool


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI."""

    source: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with its texts, table, charts and pictures."""

    title: str
    anchor: str
    texts: list[str] = field(default_factory=list)
    table: Table | None = None
    code: str = ""
    code_title: str = ""
    charts: list[Drawn] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def run_section(client: MlflowClient, runs: Sequence[RunData], limit: int) -> Section:
    """The trainings that stand alone."""
    shown = [
        Picture(_embedded(content), f"{run.name}: {path.removeprefix('evaluation/')}")
        for run in runs
        for path, content in pictures(client, run.run_id, limit)
    ]
    text = "Only settings that differ between the runs are listed. Click a heading to sort; hover for the full key."
    return Section("Training runs", "runs", [text], run_table(runs), charts=_drawn(run_charts(runs)), pictures=shown)


def search_section(client: MlflowClient, search: RunData, trials: Sequence[RunData]) -> Section:
    """A search and its trials."""
    content = load_json(client, search.run_id, STUDY_FILE)
    texts = [_summary(content, trials)]
    names = _names(content) if content else {}
    charts = study_charts(study_from_json(content), names) if content else []
    best = next((t for t in trials if t.tags.get("efafnet.trial") == search.tags.get("efafnet.best_trial")), None)
    code = f"efafnet train {search.tags.get('efafnet.run_dir', '')}/best.yaml name=… seed=1" if best else ""
    return Section(
        f"Search {search.name}",
        f"search-{search.run_id[:8]}",
        texts,
        run_table(trials) if trials else None,
        code,
        f"The best complete trial is {best.name}. To train its settings as they are, with another seed:"
        if best
        else "",
        _drawn([*charts, *[chart for chart in run_charts(trials) if chart.title != "Validation AP" or not charts]]),
    )


def study_section(client: MlflowClient, study: RunData, repeats: Sequence[RunData]) -> Section:
    """A study: the table that compares its rows, or its runs as long as there is none."""
    content, anchor = load_json(client, study.run_id, SHEET_FILE), f"study-{study.run_id[:8]}"
    if content is None:
        told = [f"{len(repeats)} runs so far. The study has not yet put its table into MLflow."]
        return Section(f"Study {study.name}", anchor, told, run_table(repeats) if repeats else None)
    sheet = content["sheet"]
    rows = [Row([_cell(text) for text in row], best=False) for row in sheet["rows"]]
    table = Table([Column(name, about) for name, about in sheet["columns"]], rows)
    return Section(f"Study {study.name}", anchor, [sheet["title"], *sheet["texts"]], table)


def _cell(text: str) -> Cell:
    try:
        return Cell(text, str(float(text)), "number")
    except ValueError:
        return Cell(text, text)


def _summary(content: dict[str, Any] | None, trials: Sequence[RunData]) -> str:
    if content is None:
        return f"{len(trials)} trials. The search has not yet put its study into MLflow."
    states = [trial["state"] for trial in content["trials"]]
    words = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "still running"}
    counts = ", ".join(f"{states.count(state)} {word}" for state, word in words.items() if state in states)
    return f"{len(states)} trials: {counts}. Only complete trials had the whole budget; the best is chosen among them."


def _names(content: dict[str, Any]) -> dict[int, str]:
    searched = list(dict.fromkeys(name for trial in content["trials"] for name in trial["params"]))
    keys = [name.partition("[")[0] for name in searched]
    return {trial["number"]: describe(trial["user_attrs"].get("settings", {}), keys) for trial in content["trials"]}


def _drawn(charts: Sequence[Chart]) -> list[Drawn]:
    return [Drawn(c.title, c.note, markupsafe.Markup(c.html()), c.title in _WIDE) for c in charts]


def _embedded(content: bytes) -> str:
    """A picture as a data URI, reduced where it is larger than a page shows."""
    import cv2
    import numpy as np

    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return ""
    scale = MAX_PICTURE_PX / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
