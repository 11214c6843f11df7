"""What a chart of runs is, and how charts look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8f68ad", "#6b7f99", "#b8860b", "#a0665a")
"""Colours that most colour-blind readers can tell apart (after Okabe and Ito), on white and on black."""
GREY = "#a9b2be"
_HEIGHT_PX = 380


@dataclass(frozen=True)
class Chart:
    """One chart with its heading, and a sentence on how to read it."""

    title: str
    note: str
    figure: go.Figure | None
    """None where the note says why there is no chart."""
    axes: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    """Titles of the x axes to choose from, each with the x of every trace; the first is drawn. Empty for no choice."""

    def drawing(self) -> dict[str, Any] | None:
        """What the page's script draws, as plain JSON values; None where there is no chart."""
        if self.figure is None:
            return None
        content = json.loads(self.figure.to_json())
        return {"data": content["data"], "layout": content["layout"], "axes": dict(self.axes)}


def styled(figure: go.Figure, x: str = "", y: str = "", height: int = _HEIGHT_PX) -> go.Figure:
    """The page's look."""
    figure.layout.template = None  # the page has one of its own, in light and dark
    figure.update_layout(
        title=None,
        autosize=True,
        width=None,
        height=height,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        colorway=PALETTE,
        legend={"orientation": "h", "font": {"size": 11}, "yref": "container", "y": 0, "yanchor": "bottom"},
        hoverlabel={"namelength": -1},
    )
    figure.update_yaxes(exponentformat="none", separatethousands=True, automargin=True)
    figure.update_xaxes(exponentformat="none", automargin=True)
    if x:
        figure.update_xaxes(title_text=x)
    if y:
        figure.update_yaxes(title_text=y)
    return figure
