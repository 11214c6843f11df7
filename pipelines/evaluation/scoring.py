"""From results and ground truth to figures, intervals and an error analysis: what `score` and `evaluate` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from efafnet.pipelines.evaluation.bootstrap import FEWEST_IMAGES, Interval, bootstrap, bootstrap_difference
from efafnet.pipelines.evaluation.columns import Truth, detections
from efafnet.pipelines.evaluation.config import ScoringConfig
from efafnet.pipelines.evaluation.crowdpose import CROWDPOSE_NAMES, crowdpose_figures
from efafnet.pipelines.evaluation.errors_taxonomy import KINDS, ErrorAnalysis, analyse
from efafnet.pipelines.evaluation.matching import MatchTable, match
from efafnet.pipelines.evaluation.metrics import METRIC_NAMES, NO_PERSONS, curves, summary
from efafnet.pipelines.evaluation.mpii import MPII_NAMES, pckh
from efafnet.pipelines.evaluation.results_file import Reference, ScoredAs
from efafnet.platform import console


@dataclass(frozen=True)
class Scored:
    """What is known of a set of predictions."""

    figures: dict[str, float]
    """ap, ap_50, …; pckh, …; box_ap, …; by what the data allow. -1 where there is no person to measure on."""
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Confidence intervals of some of the figures."""
    difference: dict[str, Interval] = field(default_factory=dict)
    """Intervals of the figures minus those of the predictions compared with, on the same images."""
    other: dict[str, float] = field(default_factory=dict)
    """Figures of the predictions compared with."""
    errors: ErrorAnalysis | None = None
    """Mistakes by kind."""

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, at full precision."""
        tree: dict[str, Any] = {"figures": self.figures}
        for name in ("intervals", "difference"):
            if intervals := getattr(self, name):
                tree[name] = {figure: asdict(interval) for figure, interval in intervals.items()}
        if self.other:
            tree["compared_with"] = self.other
        if self.errors is not None:
            tree["errors"] = _errors_tree(self.errors)
        return tree


def _errors_tree(errors: ErrorAnalysis) -> dict[str, Any]:
    joints = {
        joint: dict(zip(KINDS, row.tolist(), strict=True))
        for joint, row in zip(errors.joints, errors.counts, strict=True)
    }
    return {
        "persons": errors.persons,
        "found": errors.matched,
        "predictions_of_nobody": errors.unmatched,
        "ap_after_putting_right": errors.ap_after,
        "joints": joints,
    }


FIGURES_OF: dict[ScoredAs, tuple[str, ...]] = {
    "coco": METRIC_NAMES, "crowdpose": CROWDPOSE_NAMES, "mpii": MPII_NAMES,
}  # fmt: skip
"""The figures of a data set, by the rules it is scored by."""
FIGURE_NAMES = tuple(dict.fromkeys(name for names in FIGURES_OF.values() for name in names))
"""All of them, each once, in their order."""


def score_results(
    results: Sequence[Mapping[str, Any]],
    reference: Reference,
    config: ScoringConfig,
    *,
    area_from_box: bool = False,
    against: Sequence[Mapping[str, Any]] | None = None,
) -> Scored:
    """Score COCO results by the rules of the reference's data set.

    OKS AP and AR beside those of ``against`` if given, on CrowdPose by crowding; on MPII PCKh. Raises ValueError for
    results that do not fit the truth, and for ``against`` where figures have no intervals (PCKh).
    """
    if reference.by_person:
        if against is not None:
            raise ValueError("PCKh has no intervals, so nothing is compared with against=; leave it out")
        return score_persons(results, reference.truth, reference.head_size_px)
    truth = reference.truth
    found = detections(results, truth, area_from_box=area_from_box)
    table = match(truth, found)
    figures = _figures(table, reference, config)
    resampling: dict[str, Any] = {
        "replicates": config.bootstrap,
        "confidence": config.confidence,
        "seed": config.seed,
    }
    intervals = bootstrap(table, **resampling) if config.bootstrap else {}
    difference: dict[str, Interval] = {}
    other: dict[str, float] = {}
    if against is not None:
        rival = match(truth, detections(against, truth, area_from_box=area_from_box))
        other = _figures(rival, reference, config)
        difference = bootstrap_difference(table, rival, **resampling) if config.bootstrap else {}
    return Scored(figures, intervals, difference, other, analyse(truth, found) if config.errors else None)


def _figures(table: MatchTable, reference: Reference, config: ScoringConfig) -> dict[str, float]:
    """The figures of OKS of a data set that is not scored by person."""
    if reference.format == "crowdpose":
        return crowdpose_figures(table, reference.truth, config.crowd_split)
    return summary(curves(table))


def score_persons(results: Sequence[Mapping[str, Any]], truth: Truth, head_size_px: Mapping[int, float]) -> Scored:
    """PCKh of results whose ``person_id`` names the annotation of each, by head sizes of annotations in pixels.

    Without any ``person_id`` they are taken in the annotations' order. Every annotation with joints must have exactly
    one result. Raises ValueError otherwise.
    """
    detections(results, truth)
    persons = np.flatnonzero(~truth.ignored)
    if len(results) == len(truth.image) and not any("person_id" in r for r in results):
        results = [results[int(g)] for g in persons]
    by_id = {int(truth.annotation_id[g]): n for n, g in enumerate(persons)}
    order = _persons_of(results, by_id)
    predicted = np.array([r["keypoints"] for r in results], np.float64).reshape(len(results), -1, 3)
    at = np.empty(len(persons), np.int64)
    at[order] = np.arange(len(results))
    sizes = np.array([head_size_px.get(int(i), np.nan) for i in truth.annotation_id[persons]])
    return Scored(pckh(predicted[at, :, :2], truth.joints_px[persons], truth.visibility[persons], sizes))


def _persons_of(results: Sequence[Mapping[str, Any]], by_id: Mapping[int, int]) -> list[int]:
    """Position among the annotated persons of each result."""
    if any("person_id" in r for r in results):
        unknown = next((r.get("person_id") for r in results if r.get("person_id") not in by_id), None)
        if unknown is not None or any("person_id" not in r for r in results):
            raise ValueError(f"person_id {unknown} is not an annotated person; PCKh needs one result per annotation")
        order = [by_id[r["person_id"]] for r in results]
    else:
        order = list(range(len(results)))
    if sorted(order) != list(range(len(by_id))):
        raise ValueError(
            f"PCKh needs exactly one result for each of the {len(by_id)} annotated persons; got {len(results)} "
            f"results for {len(set(order))} of them"
        )
    return order


def show(scored: Scored, config: ScoringConfig) -> None:
    """Print figures, intervals and mistakes."""
    columns = ["figure", "value"]
    columns += [f"{100 * config.confidence:g} % interval"] if scored.intervals else []
    columns += ["other", "difference", "of the difference"] if scored.other else []
    rows = []
    for name, value in scored.figures.items():
        row = [name, _number(value)]
        if scored.intervals:
            row.append(_ends(scored.intervals.get(name)))
        if scored.other:
            row += _compared(value, scored.other.get(name, NO_PERSONS), scored.difference.get(name))
        rows.append(row)
    console.table(columns, rows)
    if any(i.approximate for i in (*scored.intervals.values(), *scored.difference.values())):
        console.note(
            "~: this interval may hold the truth less often than it says: too few images with persons (less than "
            f"{FEWEST_IMAGES} of equal weight), a figure that no draw of these images moves (0 or 1), or one of a "
            "single threshold known more closely than the steps of its recall levels"
        )
    if scored.errors is not None:
        _show_errors(scored.errors)


def _compared(value: float, other: float, difference: Interval | None) -> list[str]:
    if value < 0 or other < 0:
        return [_number(other), "", ""]
    return [_number(other), f"{value - other:+.4f}", _ends(difference)]


def _number(value: float) -> str:
    return f"{value:.4f}" if value >= 0 else "none"


def _ends(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.low:.4f} to {interval.high:.4f}{' ~' if interval.approximate else ''}"


def _show_errors(errors: ErrorAnalysis) -> None:
    total = max(1, int(errors.counts.sum()))
    by_kind = dict(zip(KINDS, errors.counts.sum(axis=0).tolist(), strict=True))
    steps = list(errors.ap_after.items())
    rows: list[list[object]] = [["good", f"{100 * by_kind['good'] / total:.1f} %", ""]]
    for (_, before), (kind, after) in pairwise(steps):
        share = f"{100 * by_kind[kind] / total:.1f} %" if kind in by_kind else ""
        rows.append([kind, share, f"{after - before:+.4f}"])
    rows.append(["persons not found", "", f"{1 - steps[-1][1]:+.4f}"])
    console.table(["mistake", "of the joints", "AP if put right, in this order"], rows)
    console.say(
        f"{errors.matched} of {errors.persons} persons found; {errors.unmatched} predictions mean nobody or somebody "
        "already found"
    )


def write_picture(scored: Scored, path: Path, title: str) -> None:
    """Draw the error analysis, if there is one."""
    if scored.errors is not None:
        # matplotlib takes a second to import: only where a picture is wanted.
        from efafnet.pipelines.evaluation.errors_plot import plot_errors

        plot_errors(scored.errors, path, title)
