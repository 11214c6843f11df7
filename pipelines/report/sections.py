"""The report's sections: one for the trainings that stand alone, one for each search."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from efafnet.pipelines.report.curves import run_charts
from efafnet.pipelines.report.data import RunData, differing, load_json, pictures, taken_by
from efafnet.pipelines.report.forest import forest
from efafnet.pipelines.report.tables import Cell, Column, Row, Table, origin_table, run_table
from efafnet.pipelines.runs.chart import Chart
from efafnet.pipelines.search.charts import study_charts
from efafnet.pipelines.search.naming import describe
from efafnet.pipelines.search.study_file import STUDY_FILE, study_from_json
from efafnet.pipelines.study.sheet import SHEET_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_PICTURE_PX = 1200
"""Longest side of an embedded picture; larger ones are reduced."""
MAX_PAGE_BYTES = 2_500_000
_PACKED_PLOTLY_BYTES, _BYTES_PER_RUN, _FRAME_BYTES = 1_960_000, 2_000, 40_000
"""Bytes that the parts of a page take, measured; pictures get what is left."""
_WIDE = {"Settings together", "What mattered", "Settings against AP", "Differences from the baseline"}


@dataclass(frozen=True)
class Drawn:
    """A chart as the page takes it."""

    title: str
    note: str
    drawing: dict[str, Any] | None
    """What the script draws; None where the note says why there is nothing."""
    wide: bool

    @property
    def axes(self) -> list[str]:
        """What the x axis may be."""
        return list(self.drawing["axes"]) if self.drawing else []


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI."""

    source: str
    caption: str


@dataclass(frozen=True)
class Compared:
    """The settings that are not the same in all runs of a section, for comparing any two of them."""

    names: list[str]
    """Of the runs."""
    keys: list[str]
    values: list[list[str]]
    """Of each run, in the order of ``keys``; empty for what a run does not have."""


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
    runs: Table | None = None
    """The runs behind ``table``, where that one's rows are something else."""
    origin: Table | None = None
    settings: Compared | None = None


def settings_of(runs: Sequence[RunData]) -> Compared | None:
    """What two runs can be compared by; None where there are no two, or nothing differs."""
    keys = differing(runs)
    if len(runs) < 2 or not keys:
        return None
    return Compared([run.named for run in runs], keys, [[run.setting(key) or "" for key in keys] for run in runs])


class Album:
    """Embeds pictures as long as there is room on the page.

    Args:
        client: of the tracking store.
        limit: most pictures of each run.
        runs: number of all runs on the page.
    """

    def __init__(self, client: MlflowClient, limit: int, runs: int) -> None:
        self._client = client
        self._limit = limit
        self._left_bytes = MAX_PAGE_BYTES - _PACKED_PLOTLY_BYTES - _FRAME_BYTES - _BYTES_PER_RUN * runs

    def of(self, run: RunData) -> Iterator[Picture]:
        """The pictures of a run's evaluations that fit."""
        for path, content in pictures(self._client, run.run_id, self._limit):
            source = _embedded(content)
            if source and len(source) <= self._left_bytes:
                self._left_bytes -= len(source)
                yield Picture(source, f"{run.name}: {path.removeprefix('evaluation/')}")


def run_section(runs: Sequence[RunData], ui: str, album: Album) -> Section:
    """The trainings that stand alone; the pictures of the best come first."""
    ranked = sorted(runs, key=lambda run: -1.0 if run.figure is None else run.figure, reverse=True)
    return Section(
        "Training runs",
        "runs",
        [
            "Only settings that differ between the runs are listed. A heading sorts the table by its column.",
            *_cost(runs),
        ],
        run_table(runs),
        charts=_drawn(run_charts(runs)),
        pictures=[picture for run in ranked for picture in album.of(run)],
        origin=origin_table(runs, ui),
        settings=settings_of(runs),
    )


def search_section(client: MlflowClient, search: RunData, trials: Sequence[RunData], ui: str) -> Section:
    """A search and its trials."""
    content = load_json(client, search.run_id, STUDY_FILE)
    texts = [_summary(content, trials), *_cost(trials)]
    names = _names(content) if content else {}
    charts = study_charts(study_from_json(content), names) if content else []
    best = next((t for t in trials if t.tags.get("efafnet.trial") == search.tags.get("efafnet.best_trial")), None)
    code = f"efafnet train {search.tags.get('efafnet.run_dir', '')}/best.yaml name=… seed=1" if best else ""
    return Section(
        f"Search “{search.name}”",
        f"search-{search.run_id[:8]}",
        texts,
        run_table(trials) if trials else None,
        code,
        f"The best complete trial is {best.name}. To train its settings as they are, with another seed:"
        if best
        else "",
        _drawn([*charts, *[chart for chart in run_charts(trials) if chart.title != "Validation AP" or not charts]]),
        origin=origin_table([search, *trials], ui),
        settings=settings_of(trials),
    )


def study_section(client: MlflowClient, study: RunData, repeats: Sequence[RunData], ui: str) -> Section:
    """A study: the table and the picture that compare its rows, and its runs."""
    content, anchor = load_json(client, study.run_id, SHEET_FILE), f"study-{study.run_id[:8]}"
    title = f"Study “{study.name}”"
    runs = run_table(repeats) if repeats else None
    charts, origin = _drawn(run_charts(repeats)), origin_table([study, *repeats], ui)
    differences = settings_of(repeats)
    if content is None:
        count = f"{len(repeats)} {'run' if len(repeats) == 1 else 'runs'}"
        told = [f"{count} so far. The study has not yet put its table into MLflow."]
        return Section(title, anchor, told, runs, charts=charts, origin=origin, settings=differences)
    sheet = content["sheet"]
    rows = [Row([_cell(text) for text in row], best=False) for row in sheet["rows"]]
    table = Table([Column(name, about) for name, about in sheet["columns"]], rows)
    texts = [sheet["title"], *sheet["texts"], *_cost(repeats)]
    charts = [*_drawn([forest(content)] if "rows" in content else []), *charts]
    return Section(title, anchor, texts, table, charts=charts, runs=runs, origin=origin, settings=differences)


def _cell(text: str) -> Cell:
    try:
        return Cell(text, str(float(text)), "number")
    except ValueError:
        return Cell(text, text)


def _cost(runs: Sequence[RunData]) -> list[str]:
    """What runs took together, as a sentence; none where no run says."""
    taken = taken_by(runs)
    if taken is None:
        return []
    told = [f"Cost: {taken.text(runs[0].currency)}, all runs added up."]
    gained = _gained(runs)
    if gained is not None:
        told.append(f"{taken.per_point(gained, runs[0].currency)} per point of AP gained over trial #0.")
    return [" ".join(told)]


def _gained(runs: Sequence[RunData]) -> float | None:
    """Points between a search's first trial and its best complete one; None for other runs, or if none was gained."""
    whole = {run.tags["efafnet.trial"]: run.figure for run in runs
             if run.tags.get("efafnet.trial_state") == "complete" and run.figure is not None}  # fmt: skip
    first = whole.get("0")
    points = None if first is None else 100 * (max(whole.values()) - first)
    return points if points else None


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
    return [Drawn(c.title, c.note, c.drawing(), c.title in _WIDE) for c in charts]


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
    _, encoded = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 80])
    return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode()
