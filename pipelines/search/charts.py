"""Optuna's own views of a search, for the report and for the search's run in MLflow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState
from plotly.io import to_html

from efafnet.pipelines.runs.chart import GREY, PALETTE, Chart, styled
from efafnet.pipelines.search.naming import short_names
from efafnet.pipelines.search.pareto import COST, both_objectives

_STYLE = "<style>body{font:15px system-ui,sans-serif;max-width:70em;margin:1em auto;padding:0 1em}</style>"
ENOUGH_FOR_IMPORTANCE = 10
"""Complete trials below which shares of importance would say more of chance than of the settings."""


def study_charts(study: optuna.Study, names: dict[int, str]) -> list[Chart]:
    """Optuna's views of a search.

    Args:
        study: its trials carry their number in the search as the attribute ``number``.
        names: what differs in each trial, by that number.
    """
    view = optuna.visualization
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    pruned = sum(trial.state == TrialState.PRUNED for trial in study.trials)
    charts = [
        _view("Search history", "Each point is a trial that ran to its end; the line is the best so far.",
              lambda: view.plot_optimization_history(study, target_name="AP"), bool(complete)),
        Chart("Trials over their budget",
              f"AP at each validation, by training samples. {_coloured(len(complete))}{_stopped(pruned)}",
              _intermediate(study, names)),
        _view("What mattered", "Share of the variance in AP that each setting explains, among complete trials. "
              "It is estimated from a few trials: a hint, not a finding.",
              lambda: _importances(study), len(complete) >= ENOUGH_FOR_IMPORTANCE),
        _view("Settings against AP", "Each panel shows one setting; darker points are later trials.",
              lambda: view.plot_slice(study, target_name="AP"), len(complete) >= 2),
    ]  # fmt: skip
    weighed = [trial for trial in complete if COST in trial.user_attrs]
    if weighed:
        charts.insert(1, _view("Figure against cost", "Each point is a complete trial, one run each. On the front no "
                               "other trial is better in both.",
                               lambda: view.plot_pareto_front(both_objectives(weighed), target_names=["AP", "cost"]),
                               enough=True))  # fmt: skip
    parallel = Chart(
        "Settings together",
        "One line per trial, from setting to setting, coloured by AP (stopped trials by their last). Drag along an "
        "axis to select.",
        _parallel(study) if len(study.trials) >= 2 else None,
    )
    return [*charts, parallel]


def _importances(study: optuna.Study) -> go.Figure:
    """Optuna's bars, without its titles of the axes: the page has said what they are."""
    return optuna.visualization.plot_param_importances(study).update_layout(xaxis_title=None, yaxis_title=None)


def _coloured(complete: int) -> str:
    return "The ten best are coloured. " if complete > len(PALETTE) else ""


def _stopped(count: int) -> str:
    if count == 0:
        return "No trial was stopped early."
    return f"{count} {'trial was' if count == 1 else 'trials were'} stopped early: grey, with a cross at the end."


def _view(title: str, note: str, draw: Callable[[], go.Figure], enough: bool) -> Chart:
    if not enough:
        return Chart(title, "Too few complete trials for this chart.", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few trials make importance uncertain stands beside the chart
            return Chart(title, note, styled(draw()))
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        # Optuna cannot rate importance where all figures or all values of a setting are equal.
        return Chart(title, f"Optuna cannot draw this chart here: {error}", None)


def _intermediate(study: optuna.Study, names: dict[int, str]) -> go.Figure:
    """Validation figures of every trial over the samples it had seen: complete ones in colour, stopped ones grey."""
    figure = go.Figure()
    ranked = sorted(study.trials, key=_value, reverse=True)
    complete = [trial for trial in ranked if trial.state == TrialState.COMPLETE]
    colours = {trial.number: colour for trial, colour in zip(complete, PALETTE, strict=False)}
    for trial in ranked:
        points = sorted(trial.intermediate_values.items())
        if not points:
            continue
        number = trial.user_attrs.get("number", trial.number)
        ended = trial.state == TrialState.COMPLETE
        label = f"#{number} {names.get(number, '')}".strip()
        figure.add_trace(
            go.Scatter(
                x=[samples for samples, _ in points],
                y=[value for _, value in points],
                name=f"#{number}",
                showlegend=trial.number in colours,
                mode="lines+markers",
                line={"color": colours.get(trial.number, GREY), "width": 2 if ended else 1.5},
                marker={"symbol": ["circle"] * (len(points) - 1) + ["circle" if ended else "x"], "size": 7},
                hovertemplate=f"AP %{{y:.3f}} after %{{x}} samples<extra>{label}</extra>",
            )
        )
    return styled(figure, "training samples seen", "AP")


def _value(trial: optuna.trial.FrozenTrial) -> float:
    return trial.value if trial.values and trial.value is not None else -1.0


def _parallel(study: optuna.Study) -> go.Figure:
    """Parallel coordinates over all trials with a figure; a setting that a trial does not have stands at "none".

    Optuna's own view leaves out every trial that lacks one of the settings, which in a conditional space is most.
    """
    trials = [trial for trial in study.trials if trial.values]
    values = [_value(trial) for trial in trials]
    labels = short_names(name for trial in trials for name in trial.params)
    axes: list[dict[str, Any]] = [_axis(name, label, trials) for name, label in labels.items()]
    axes.append({"label": "AP", "values": values})
    figure = go.Figure(
        go.Parcoords(
            dimensions=axes,
            line={"color": values, "colorscale": "Viridis", "showscale": True, "colorbar": {"title": {"text": "AP"}}},
        )
    )
    styled(figure, height=420)
    return figure.update_layout(margin={"l": 80, "r": 40, "t": 60, "b": 30})


def _axis(name: str, label: str, trials: Sequence[optuna.trial.FrozenTrial]) -> dict[str, Any]:
    """One axis: numbers as they are (a log range in powers of ten), everything else as categories."""
    domain: Any = next(trial.distributions[name] for trial in trials if name in trial.distributions)
    if isinstance(domain, optuna.distributions.CategoricalDistribution):
        marks: dict[float, str] = {float(place): _text(choice) for place, choice in enumerate(domain.choices)}
        place_of: Callable[[Any], float] = domain.choices.index
    else:
        scale: Callable[[float], float] = math.log10 if domain.log else float
        low, high = scale(domain.low), scale(domain.high)
        places = [low + (high - low) * step / 4 for step in range(5)]
        marks = {place: _text(10**place if domain.log else place) for place in places}
        place_of = scale
    low, high = min(marks), max(max(marks), min(marks) + 1e-9)
    absent = low - 0.18 * (high - low)
    if any(name not in trial.params for trial in trials):
        marks = {absent: "none", **marks}
    return {
        "label": label,
        "values": [place_of(trial.params[name]) if name in trial.params else absent for trial in trials],
        "tickvals": list(marks),
        "ticktext": list(marks.values()),
        "range": [min(marks), max(marks) if max(marks) > min(marks) else min(marks) + 1],
    }


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def page_of(charts: Sequence[Chart], title: str) -> str:
    """The charts on a page of their own, which needs no network."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title>", _STYLE, f"<h1>{escape(title)}</h1>"]
    plotly: bool = True
    for chart in charts:
        parts.append(f"<h2>{escape(chart.title)}</h2><p>{escape(chart.note)}</p>")
        if chart.figure is not None:
            parts.append(to_html(chart.figure, include_plotlyjs=plotly, full_html=False))
            plotly = False
    return "\n".join(parts) + "\n"
