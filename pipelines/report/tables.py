"""The report's tables: which runs stand in them, which settings are columns, and how cells read."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from efafnet.pipelines.report.data import RunData, differing
from efafnet.pipelines.search.naming import short_names, short_value
from efafnet.platform.mlflow_pages import TRAINING_VIEW
from efafnet.platform.provenance import COMMAND_TAG

MAX_SETTINGS = 16
"""Columns of differing settings; unrelated runs differ in dozens, which no one reads."""


@dataclass(frozen=True)
class Column:
    """A column's heading and what it means."""

    name: str
    help: str


@dataclass(frozen=True)
class Cell:
    """A cell: its text, what it is sorted by, and its class."""

    text: str
    order: str = ""
    kind: str = ""
    title: str = ""
    link: str = ""
    """Address that the text leads to."""


@dataclass(frozen=True)
class Row:
    """A row; the best one is marked."""

    cells: list[Cell]
    best: bool


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by its headings."""

    columns: list[Column]
    rows: list[Row]

    def numeric(self, index: int) -> bool:
        """Whether a column holds numbers, which stand to the right."""
        return any("number" in row.cells[index].kind for row in self.rows)


@dataclass(frozen=True)
class Grouped:
    """The runs of a report by what they belong to."""

    plain: list[RunData]
    """Trainings that stand alone."""
    searches: list[tuple[RunData, list[RunData]]]
    """Each search with its trials."""
    studies: list[tuple[RunData, list[RunData]]]
    """Each study (a search's finals are one) with its runs."""


def grouped(runs: Sequence[RunData]) -> Grouped:
    """Split runs into trainings that stand alone, searches with their trials, and studies with their runs."""
    searches = [run for run in runs if run.stage == "search"]
    studies = [run for run in runs if run.stage == "study"]
    parents = {run.run_id for run in (*searches, *studies)}
    plain = [run for run in runs if run.run_id not in parents and run.parent_id not in parents]
    return Grouped(
        plain,
        [(each, [r for r in runs if r.parent_id == each.run_id and r.stage == "trial"]) for each in searches],
        [(each, [r for r in runs if r.parent_id == each.run_id]) for each in studies],
    )


def varied_settings(runs: Sequence[RunData]) -> list[str]:
    """Settings that differ among the runs and matter: what follows from them or only names them is left out."""
    keys = [key for key in differing(runs) if not key.startswith("validation.")]
    return keys[:MAX_SETTINGS]


def run_table(runs: Sequence[RunData]) -> Table:
    """All runs, best first, with the settings that differ."""
    keys = varied_settings(runs)
    names = short_names(keys)
    stores = list(dict.fromkeys(name for run in runs for name in run.evaluations))
    columns = [
        Column("run", "its name in MLflow"),
        Column("end", "how it ended"),
        Column(figure_name(runs), "of the last validation"),
        Column(f"best {figure_name(runs)}", "largest of any validation; the largest of several is a little too good"),
        Column("AP50", "AP at OKS 0.50, last validation"),
        Column("AP75", "AP at OKS 0.75, last validation"),
        Column("AR", "average recall, last validation"),
        *(Column(f"AP on {name}", f"evaluation of the checkpoint on {name}") for name in stores),
        Column("loss", "training loss at the end; losses of different kinds do not compare"),
        Column("samples", "training samples seen"),
        Column("samples/s", "training speed at the end, all workers together"),
        Column("time", "from start to end"),
        *cost_columns(runs),
        *(Column(names[key], key) for key in keys),
    ]
    ranked = sorted(runs, key=lambda run: run.figure if run.figure is not None else -1.0, reverse=True)
    finished = [run for run in ranked if run.figure is not None and run.status == "FINISHED"]
    best = finished[0].run_id if len(finished) > 1 else None
    rows = []
    for run in ranked:
        settings = [_setting(run.setting(key)) for key in keys]
        rows.append(Row([*_figures(run, stores), *cost_cells(run, runs), *settings], run.run_id == best))
    return Table(columns, rows)


def figure_name(runs: Sequence[RunData]) -> str:
    """What the runs are compared by."""
    return "PCKh" if any("val/pckh" in run.metrics and "val/ap" not in run.metrics for run in runs) else "AP"


def origin_table(runs: Sequence[RunData], ui: str) -> Table:
    """Where each run comes from: its id, its code, its command and where it lies.

    Args:
        runs: in the order of their start.
        ui: address of MLflow's pages, which the ids lead to.
    """
    columns = [
        Column("run", "its name in MLflow"),
        Column("id", "start of its id in MLflow, and the way there"),
        Column("started", "local time of the machine that wrote this page"),
        Column("host", "machine of the first worker"),
        Column("commit", "of the code; + where files were changed since. Without git, the digest of the files"),
        Column("command", "as it was typed; of a trial or a study's run, the command of the whole"),
        Column("directory", "of its checkpoints, settings and log"),
    ]
    commands = {run.run_id: run.tags.get(COMMAND_TAG, "") for run in runs}
    rows = [
        Row([
            Cell(run.short_name, run.name, "", run.name),
            Cell(run.run_id[:8], run.run_id, "", run.run_id, _address(run, ui)),
            Cell(time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started_ms / 1000)), str(run.started_ms)),
            Cell(run.tags.get("env.host", "")),
            Cell(_commit(run), "", "", run.tags.get("mlflow.source.git.commit", "")),
            Cell(commands[run.run_id] or commands.get(run.parent_id or "", ""), "", "code"),
            Cell(run.tags.get("efafnet.run_dir", ""), "", "code"),
        ], best=False)
        for run in runs
    ]  # fmt: skip
    return Table(columns, rows)


def _address(run: RunData, ui: str) -> str:
    """Where MLflow shows a run."""
    return f"{ui}/#/experiments/{run.experiment_id}/runs/{run.run_id}?{TRAINING_VIEW}"


def _commit(run: RunData) -> str:
    commit = run.tags.get("mlflow.source.git.commit", "")
    if not commit:
        return f"files {run.tags['code.digest'][:8]}" if "code.digest" in run.tags else ""
    return commit[:8] + ("+" if run.tags.get("code.git_dirty") == "true" else "")


def _figures(run: RunData, stores: Sequence[str]) -> list[Cell]:
    last = run.metrics.get
    end = run.tags.get("efafnet.trial_state", run.status.lower())
    return [
        Cell(run.short_name, run.name, "", run.name),
        Cell({"pruned": "stopped early"}.get(end, end), end, run.status, run.tags.get("efafnet.trial_reason", "")),
        _number(run.figure),
        _number(run.best_figure),
        *(_number(last(f"val/{name}")) for name in ("ap_50", "ap_75", "ar")),
        *(_number(run.evaluations.get(name)) for name in stores),
        _number(last("train/loss"), 5),
        _number(last("train/samples"), 0),
        _number(last("speed/samples_per_s"), 0),
        Cell(duration(run.duration_s), str(run.duration_s or ""), "number"),
    ]


_COSTS: tuple[tuple[str, str, str, float, int], ...] = (
    ("gpu_s", "GPU h", "hours of GPUs that the run had, over all restarts", 3600, 3),
    ("core_s", "core h", "hours of cores that the run had, over all restarts", 3600, 3),
    ("cpu_s", "CPU h", "hours of processor time that it used, user and system", 3600, 3),
    ("energy_wh", "kWh", "energy of its GPUs, as they count it", 1000, 3),
    ("money", "cost", "at the prices of the settings (cost.…)", 1, 2),
)
"""Field, heading, meaning, divisor and digits of what a run took."""


def _shown_costs(runs: Sequence[RunData]) -> list[tuple[str, str, str, float, int]]:
    """The entries of ``_COSTS`` that any run has a value of."""
    known = [run.taken for run in runs if run.taken is not None]
    return [each for each in _COSTS if any(getattr(taken, each[0]) for taken in known)]


def cost_columns(runs: Sequence[RunData]) -> list[Column]:
    """What the runs took, where any told: hours of GPUs and cores, processor time, energy, money."""
    currency = "/".join(sorted({run.currency for run in runs if run.taken is not None}))
    return [Column(currency if key == "money" else name, about) for key, name, about, _, _ in _shown_costs(runs)]


def cost_cells(run: RunData, runs: Sequence[RunData]) -> list[Cell]:
    """What a run took, under ``cost_columns``."""
    taken = [(getattr(run.taken, key, None), scale, digits) for key, _, _, scale, digits in _shown_costs(runs)]
    return [_number(None if value is None else value / scale, digits) for value, scale, digits in taken]


def _number(value: float | None, digits: int = 3) -> Cell:
    return Cell(figure_text(value, digits), "" if value is None else repr(value), "number")


def _setting(text: str | None) -> Cell:
    if text is None:
        return Cell("", "", "value")
    return Cell(setting_text(text), text, "value number" if _is_number(text) else "value", text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def setting_text(text: str | None, limit: int = 28) -> str:
    """A setting in few characters: numbers with three digits."""
    if text is None:
        return ""
    if not _is_number(text):
        return text if len(text) <= limit else text[: limit - 1] + "…"
    number = float(text)
    if not math.isfinite(number):
        return text
    return short_value(int(number) if number == int(number) and abs(number) < 1e6 else number)


def figure_text(value: float | None, digits: int = 3) -> str:
    """A figure with a fixed number of digits; empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds as 42 s, 3:07 min or 2:05 h."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"
