"""A study's picture: every row's difference from the baseline with its interval, and each seed's as a dot."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from efafnet.pipelines.runs.chart import GREY, PALETTE, Chart, styled

_TOLD, _OPEN = PALETTE[0], "#8a94a3"
_ROW_PX, _FRAME_PX = 44, 110
_METRICS = {"ap": "AP", "ap_50": "AP50", "ap_75": "AP75", "ar": "AR", "pckh": "PCKh"}
"""What the page calls the figures that studies compare."""


def forest(content: Mapping[str, Any]) -> Chart:
    """Draw the differences of a study.

    Args:
        content: what ``study.sheet.to_json`` wrote.
    """
    rows = {row["name"]: row for row in content["rows"]}
    base = rows.get(content["baseline"], {}).get("figures", {})
    judged = [row for row in content["rows"] if row.get("difference") is not None]
    title = "Differences from the baseline"
    if not judged:
        return Chart(title, f"No row has a seed in common with {content['baseline']}: there is nothing to draw.", None)
    figure = go.Figure()
    for row in judged:
        _add_seeds(figure, row, base)
    for told, colour, name in ((True, _TOLD, "told apart"), (False, _OPEN, "not told apart")):
        some = [row for row in judged if bool(row["difference"].get("distinguishable")) is told]
        if some:
            figure.add_trace(_intervals(some, colour, name))
    metric = _METRICS.get(content["metric"], content["metric"])
    styled(figure, f"difference in {metric}, points", height=_FRAME_PX + _ROW_PX * len(judged))
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[label_of(row) for row in reversed(judged)],
        automargin=True,
        showgrid=False,
    )
    figure.update_xaxes(zeroline=True, zerolinewidth=2)
    mass = f"{100 * content['confidence']:g} %"
    note = (
        f"Each row minus {content['baseline']}: the mark is the mean difference, the bar its {mass} interval (of this "
        "difference alone), each dot one seed. Whether a row is told apart is judged over the whole table, more "
        "strictly than by a bar that keeps clear of the line at zero."
    )
    return Chart(title, note, figure)


def label_of(row: Mapping[str, Any]) -> str:
    """A row's name in lines short enough for a phone."""
    text = str(row["name"]).replace("&", "&amp;").replace("<", "&lt;")
    return "<br>".join(textwrap.wrap(text, 22, max_lines=2, placeholder=" …"))


def _add_seeds(figure: go.Figure, row: Mapping[str, Any], base: Mapping[str, float]) -> None:
    """The difference of each seed that the row and the baseline both have."""
    differences = {seed: value - base[seed] for seed, value in row["figures"].items() if seed in base}
    figure.add_trace(
        go.Scatter(
            x=list(differences.values()),
            y=[label_of(row)] * len(differences),
            customdata=list(differences),
            mode="markers",
            marker={"size": 6, "color": GREY, "symbol": "circle", "line": {"width": 1, "color": _OPEN}},
            showlegend=False,
            hovertemplate="seed %{customdata}: %{x:+.2f}<extra></extra>",
        )
    )


def _intervals(rows: list[Mapping[str, Any]], colour: str, name: str) -> go.Scatter:
    """Differences with their intervals; a row of one pair has none."""
    found = [row["difference"] for row in rows]
    spans = [each.get("span") or {"low": each["value"], "high": each["value"]} for each in found]
    return go.Scatter(
        x=[each["value"] for each in found],
        y=[label_of(row) for row in rows],
        customdata=[f"{span['low']:+.2f} to {span['high']:+.2f}" for span in spans],
        mode="markers",
        name=name,
        # A stroke and no block: on a telephone a block hides the seeds, which lie close to their mean.
        marker={"symbol": "line-ns", "size": 20, "color": colour, "line": {"width": 3, "color": colour}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [span["high"] - each["value"] for span, each in zip(spans, found, strict=True)],
            "arrayminus": [each["value"] - span["low"] for span, each in zip(spans, found, strict=True)],
            "thickness": 2,
            "width": 6,
            "color": colour,
        },
        hovertemplate="%{x:+.2f} (%{customdata})<extra>%{y}</extra>",
    )
