"""CrowdPose's figures: AP over all images, and over easy, medium and hard ones by how crowded they are."""

from __future__ import annotations

import numpy as np

from efafnet.pipelines.evaluation.columns import Truth
from efafnet.pipelines.evaluation.config import CrowdSplit
from efafnet.pipelines.evaluation.matching import MatchTable
from efafnet.pipelines.evaluation.metrics import METRIC_NAMES, curves, summary

BOUNDS: dict[CrowdSplit, tuple[float, float]] = {"tool": (0.2, 0.8), "paper": (0.1, 0.8)}
"""Crowd index from which an image is medium, and from which it is hard: the official tool's, and CrowdPose's text's."""

_SIZE_FIGURES = ("ap_medium", "ap_large", "ar_medium", "ar_large")
CROWDPOSE_NAMES = (
    *(name for name in METRIC_NAMES if name not in _SIZE_FIGURES),
    "ap_crowd_easy", "ap_crowd_medium", "ap_crowd_hard",
)  # fmt: skip
"""CrowdPose's figures, in their order."""


def crowdpose_figures(table: MatchTable, truth: Truth, split: CrowdSplit = "tool") -> dict[str, float]:
    """ap, ap_50, ap_75, ar, ar_50, ar_75 and ap_crowd_easy, ap_crowd_medium, ap_crowd_hard; -1 without such persons.

    No figures by size of person: CrowdPose has none, since its annotations have boxes only. Raises ValueError where
    images have no crowd index.
    """
    crowding = truth.crowd_index
    if np.isnan(crowding).any():
        image = truth.image_ids[np.isnan(crowding)][0]
        raise ValueError(f"image {image} has no crowdIndex: not annotations of CrowdPose; score with format=coco")
    figures = {name: value for name, value in summary(curves(table)).items() if name not in _SIZE_FIGURES}
    medium, hard = BOUNDS[split]
    classes = {"easy": crowding < medium, "medium": (crowding >= medium) & (crowding < hard), "hard": crowding >= hard}
    for name, members in classes.items():
        figures[f"ap_crowd_{name}"] = summary(curves(table, members.astype(np.int64)))["ap"]
    return figures
