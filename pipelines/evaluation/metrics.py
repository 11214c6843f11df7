"""COCO keypoint AP and AR of predictions, by any skeleton, equal to pycocotools' figures to the last bit.

Matching is done once (`matching.py`) and kept, so that AP of a subset of images (CrowdPose's easy, medium, hard) or of
a resampling of them (confidence intervals) costs a sort and a sum. faster-coco-eval leaves out pycocotools' epsilon in
the precision, so that its figures differ in the last bit on some sets, and keeps no matches.

Legend: I images, A size classes, T OKS thresholds, R recall levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.matching import AREA_RANGES_PX2, OKS_THRESHOLDS, MatchTable

RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
METRIC_NAMES = (
    "ap", "ap_50", "ap_75", "ap_medium", "ap_large", "ar", "ar_50", "ar_75", "ar_medium", "ar_large",
)  # fmt: skip
NO_PERSONS = -1.0
"""What COCO reports for a class of persons that the ground truth does not hold."""


@dataclass(frozen=True)
class Curves:
    """What AP and AR are means of; -1 throughout for a size class without true persons."""

    precision: NDArray[np.float64]
    """float64 (A, T, R), the highest precision at a recall of at least each level."""
    recall: NDArray[np.float64]
    """float64 (A, T), share of true persons found."""


def summary(of: Curves) -> dict[str, float]:
    """COCO's ten keypoint figures: means over thresholds and recall levels."""
    everyone, medium, large = range(len(AREA_RANGES_PX2))
    at_50, at_75 = (int(np.flatnonzero(t == OKS_THRESHOLDS)[0]) for t in (0.5, 0.75))
    precision, recall = of.precision, of.recall
    figures = (
        _mean(precision[everyone]),
        _mean(precision[everyone, at_50]),
        _mean(precision[everyone, at_75]),
        _mean(precision[medium]),
        _mean(precision[large]),
        _mean(recall[everyone]),
        _mean(recall[everyone, at_50]),
        _mean(recall[everyone, at_75]),
        _mean(recall[medium]),
        _mean(recall[large]),
    )
    return dict(zip(METRIC_NAMES, figures, strict=True))


def average_precision(table: MatchTable) -> float:
    """AP over persons of the first size class of a match table."""
    return _mean(curves(table).precision[0])


def _mean(values: NDArray[np.float64]) -> float:
    present = values[values > NO_PERSONS]
    return float(present.mean()) if present.size else NO_PERSONS


def curves(table: MatchTable, image_count: NDArray[np.int64] | None = None) -> Curves:
    """Precision and recall of a match table, each image counted ``image_count`` (I,) times (once if not given)."""
    order = np.argsort(-table.scores, kind="stable")
    num_true = table.num_true
    if image_count is not None:
        order = np.repeat(order, image_count[table.image[order]])
        num_true = num_true * image_count
    right = ((table.match >= 0) & ~table.ignored)[:, :, order]
    wrong = ((table.match < 0) & ~table.ignored)[:, :, order]
    classes, thresholds = right.shape[:2]
    precision = np.full((classes, thresholds, len(RECALL_LEVELS)), NO_PERSONS)
    recall = np.full((classes, thresholds), NO_PERSONS)
    for a, total in enumerate(num_true.sum(axis=1)):
        if total:
            for t in range(thresholds):
                precision[a, t], recall[a, t] = _curve(right[a, t], wrong[a, t], int(total))
    return Curves(precision, recall)


def _curve(right: NDArray[np.bool_], wrong: NDArray[np.bool_], total: int) -> tuple[NDArray[np.float64], float]:
    """Precision (R,) and final recall of predictions in falling order of score (source: pycocotools, `accumulate`)."""
    found = np.cumsum(right, dtype=np.float64)
    recall = found / total
    precision = found / (np.cumsum(wrong, dtype=np.float64) + found + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALL_LEVELS, side="left")
    reached = at < len(recall)
    levels = np.zeros(len(RECALL_LEVELS))
    levels[reached] = envelope[at[reached]]
    return levels, float(recall[-1]) if len(recall) else 0.0
