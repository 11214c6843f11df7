"""The error analysis as a picture: mistakes by joint, and what each kind costs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.errors_taxonomy import KINDS, ErrorAnalysis

# Okabe and Ito's colours: distinguishable with every common colour blindness, and in grey by their order.
COLOURS = {
    "good": "#d9d9d9",
    "jitter": "#56b4e9",
    "inversion": "#e69f00",
    "swap": "#cc79a7",
    "miss": "#d55e00",
    "scores": "#009e73",
    "background": "#f0e442",
    "not found": "#7f7f7f",
}
_MEANINGS = {
    "miss": "miss\n(near no joint)",
    "swap": "swap\n(another person's)",
    "inversion": "inversion\n(left for right)",
    "jitter": "jitter\n(near its place)",
    "scores": "scores\n(not in order of OKS)",
    "background": "background\n(matching nobody)",
}

_SIZE_IN = (13.0, 5.2)


def plot_errors(analysis: ErrorAnalysis, path: Path, title: str = "") -> None:
    """Write the picture to ``path`` (its suffix says the format)."""
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=_SIZE_IN)
        left, right = _two_axes(figure, max(map(len, by_body_part(analysis)), default=0))
        _by_joint(left, analysis)
        _cost(right, analysis)
        if title:
            figure.suptitle(title, fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=110)


def _two_axes(figure: Figure, longest: int) -> tuple[Axes, Axes]:
    """Axes with room for the names on their left, of up to ``longest`` characters, and for the legend above them.

    By arithmetic: matplotlib's own layouts draw the whole picture once more to see how large everything is.
    """
    width, height = _SIZE_IN
    bottom, upper = 0.6 / height, (height - 0.8) / height
    left_names, right_names, edge = 0.25 + 0.08 * max(longest, len("all joints")), 1.75, 0.2
    free = width - left_names - right_names - 2 * edge
    first, second = 0.55 * free, 0.45 * free
    places = ((left_names, first), (left_names + first + edge + right_names, second))
    left, right = (figure.add_axes((x / width, bottom, w / width, upper - bottom)) for x, w in places)
    return left, right


def by_body_part(analysis: ErrorAnalysis) -> dict[str, NDArray[np.int64]]:
    """Counts (5,) by kind, left and right joints together, in order of appearance."""
    parts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(len(KINDS), np.int64))
    for joint, counts in zip(analysis.joints, analysis.counts, strict=True):
        parts[joint.removeprefix("left_").removeprefix("right_").replace("_", " ")] += counts
    return dict(parts)


def _by_joint(axes: Axes, analysis: ErrorAnalysis) -> None:
    parts = {"all joints": analysis.counts.sum(axis=0), **by_body_part(analysis)}
    names = list(parts)[::-1]
    start = np.zeros(len(names))
    for kind, name in enumerate(KINDS):
        share = np.array([100 * parts[n][kind] / max(1, parts[n].sum()) for n in names])
        bars = axes.barh(names, share, left=start, color=COLOURS[name], label=name, height=0.72)
        labels = [f"{value:.0f}" if value >= 4 else "" for value in share]
        axes.bar_label(bars, labels, label_type="center", fontsize=8.5)
        start += share
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of annotated joints of the persons found (%)")
    axes.legend(ncols=len(KINDS), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _cost(axes: Axes, analysis: ErrorAnalysis) -> None:
    steps = list(analysis.ap_after.items())
    _, before = steps[0]
    axes.barh("AP as predicted", before, color="#404040", height=0.72)
    axes.text(before + 0.01, 0, f"{before:.3f}", va="center")
    for row, (kind, after) in enumerate(steps[1:], start=1):
        axes.barh(_MEANINGS[kind], after - before, left=before, color=COLOURS[kind], height=0.72)
        axes.text(max(before, after) + 0.01, row, f"{after - before:+.3f}", va="center")
        before = after
    axes.barh("persons not found", 1 - before, left=before, color=COLOURS["not found"], height=0.72)
    axes.text(before - 0.01, len(steps), f"{1 - before:+.3f}", va="center", ha="right")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("AP, one kind of mistake after the other put right by as little as is needed", loc="right")
    axes.set_title(
        f"{analysis.matched} of {analysis.persons} persons found, {analysis.unmatched} predictions of nobody",
        fontsize=10,
    )
