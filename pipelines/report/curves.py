"""The curves of runs: a line for each, and for runs that differ in their seed alone their mean in a band."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from efafnet.pipelines.report.data import Axis, RunData, axes_of, differing
from efafnet.pipelines.runs.chart import GREY, PALETTE, Chart, styled

MOST_POINTS = 300
"""Points drawn of a curve; of a longer one every second, third, …, and the last."""
_TITLES: dict[Axis, str] = {
    "epochs": "epoch", "steps": "optimizer step", "samples": "training samples seen", "minutes": "minutes of training",
}  # fmt: skip
_BAND = "33"  # opacity of a band, as a hexadecimal byte


@dataclass(frozen=True)
class Group:
    """Runs of the same settings and data but for the seed; often one alone."""

    runs: tuple[RunData, ...]

    @property
    def name(self) -> str:
        """The run's name, or what the names of all begin with and how many they are."""
        if len(self.runs) == 1:
            return self.runs[0].short_name
        return f"{_beginning([run.short_name for run in self.runs])} ({len(self.runs)} seeds)"

    @property
    def figure(self) -> float | None:
        """Mean of the runs' last figures; None where no run has one."""
        figures = [run.figure for run in self.runs if run.figure is not None]
        return sum(figures) / len(figures) if figures else None


def _beginning(names: Sequence[str]) -> str:
    """What all names begin with, without a trailing ``seed`` or separator; the first name where that is nothing."""
    shared = 0
    while shared < min(map(len, names)) and len({name[shared] for name in names}) == 1:
        shared += 1
    text = names[0][:shared].rstrip(" ,_-=.:0123456789").removesuffix("seed").removesuffix("-s").rstrip(" ,_-=.:")
    return text or names[0]


def by_settings(runs: Sequence[RunData]) -> list[Group]:
    """Group runs that differ in their seed alone; what has not finished, and trials, stand alone."""
    keys = [key for key in differing(runs) if key != "seed"]
    groups: dict[object, list[RunData]] = {}
    for run in runs:
        alone = run.status != "FINISHED" or run.stage == "trial" or run.params.get("seed") is None
        data = (run.datasets.get("training"), run.datasets.get("validation"))
        same = run.run_id if alone else (tuple(run.params.get(key) for key in keys), data, run.stage)
        groups.setdefault(same, []).append(run)
    return [group for each in groups.values() for group in _apart(each)]


def _apart(runs: Sequence[RunData]) -> list[Group]:
    """One group, unless a seed stands twice: then these are no repetitions."""
    seeds = {run.params.get("seed") for run in runs}
    return [Group(tuple(runs))] if len(seeds) == len(runs) else [Group((run,)) for run in runs]


def run_charts(runs: Sequence[RunData]) -> list[Chart]:
    """Validation and training curves of the runs that have any."""
    groups = sorted(by_settings(runs), key=lambda group: -1.0 if group.figure is None else group.figure, reverse=True)
    more = " The ten best are coloured, the others grey." if len(groups) > len(PALETTE) else ""
    if any(len(group.runs) > 1 for group in groups):
        more += " A band reaches from the lowest to the highest of the seeds, the line is their mean."
    wanted = [
        ("Validation AP", "val/ap", "AP", False, f"OKS AP on the validation persons.{more}"),
        ("Validation PCKh", "val/pckh", "PCKh", False, f"PCKh@0.5 on the validation persons.{more}"),
        ("Training loss", "train/loss", "loss", True, "What was minimised; losses of different kinds do not compare."),
        ("Learning rate", "train/lr", "learning rate", False, "As it was in force."),
    ]
    return [
        curves(title, note, groups, metric, y, log=log)
        for title, metric, y, log, note in wanted
        if any(run.curves.get(metric) for run in runs)
    ]


def curves(title: str, note: str, groups: Sequence[Group], metric: str, y: str, *, log: bool) -> Chart:
    """One line per group, best first in the legend; groups beyond the colours are grey, below the others, without one.

    Every trace can be drawn over each axis that all runs recorded.
    """
    axes = axes_of([run for group in groups for run in group.runs], metric)
    figure = go.Figure()
    positions: dict[str, list[list[float]]] = {_TITLES[axis]: [] for axis in axes}
    places = [*range(len(PALETTE), len(groups)), *range(min(len(PALETTE), len(groups)))]
    for place in places:
        group, colour = groups[place], PALETTE[place] if place < len(PALETTE) else None
        steps = _common_steps(group, metric)
        if not steps:
            continue
        traces = _traces(group, metric, steps, colour, y)
        figure.add_traces(traces)
        for axis in axes:
            line = _over(group, axis, steps)
            positions[_TITLES[axis]] += [[*line, *reversed(line)], line] if len(traces) == 2 else [line]
    first = next(iter(positions))
    for trace, line in zip(figure.data, positions[first], strict=True):
        trace.x = line
    styled(figure, first, y)
    figure.update_xaxes(rangemode="tozero")
    if log:
        figure.update_yaxes(type="log")
    return Chart(title, note, figure, positions)


def _common_steps(group: Group, metric: str) -> list[float]:
    """Steps at which all runs of a group have a point, thinned."""
    known = [{step for step, _ in run.curves.get(metric, [])} for run in group.runs]
    return thinned(sorted(set.intersection(*known)))


def thinned(steps: Sequence[float]) -> list[float]:
    """At most ``MOST_POINTS`` of them, evenly taken, the last always."""
    every = -(-len(steps) // MOST_POINTS)
    return list(steps[::-1][::every][::-1]) if steps else []


def _over(group: Group, axis: Axis, steps: Iterable[float]) -> list[float]:
    """Where steps stand on an axis; for several runs in the mean."""
    places = [run.positions(axis) or {} for run in group.runs]
    return [_rounded(sum(each[step] for each in places) / len(places)) for step in steps]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _traces(group: Group, metric: str, steps: Sequence[float], colour: str | None, y: str) -> list[go.Scatter]:
    """The line of a group, after its band if it has several runs; x is filled in by the caller."""
    known = [dict(run.curves[metric]) for run in group.runs]
    columns = [[each[step] for each in known] for step in steps]
    line = go.Scatter(
        y=[_rounded(sum(column) / len(column)) for column in columns],
        name=group.name,
        legendgroup=group.name,
        mode="lines+markers" if len(steps) <= 40 else "lines",
        line={"color": colour or GREY, "width": 2 if colour else 1},
        marker={"size": 5},
        showlegend=colour is not None,
        hovertemplate=f"{y} %{{y:.4g}} at %{{x:.4g}}<extra>{_escaped(group.name)}</extra>",
    )
    if len(group.runs) == 1:
        return [line]
    band = go.Scatter(
        y=[_rounded(max(column)) for column in columns] + [_rounded(min(column)) for column in reversed(columns)],
        fill="toself",
        fillcolor=(colour or GREY) + _BAND,
        legendgroup=group.name,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
    )
    return [band, line]


def _escaped(text: str) -> str:
    """A name as plotly shows it, which reads a few tags of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
