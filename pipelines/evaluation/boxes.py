"""Person boxes of a detector: read, checked, and measured where there is ground truth.

Top-down AP is bounded by its boxes, so results on detections name the detector's own AP.

Legend: D boxes, G true persons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from efafnet.pipelines.crops.detection_checks import corner_boxes
from efafnet.pipelines.crops.geometry import box_iou
from efafnet.pipelines.evaluation.columns import Detections, Truth, index_of_images
from efafnet.pipelines.evaluation.matching import OKS_THRESHOLDS, Pairs, counting, match_pairs, pairs_of
from efafnet.pipelines.evaluation.metrics import curves, summary
from efafnet.pipelines.formats.categories import Chosen
from efafnet.pipelines.formats.detections import parse_detections
from efafnet.platform import console

MAX_BOXES = 100
"""Boxes per image that count (COCO detection)."""
_RANGES_PX2 = [(0.0, 1e5**2), (32.0**2, 96.0**2), (96.0**2, 1e5**2)]


def box_figures(boxes: Sequence[dict[str, Any]], truth: Truth) -> dict[str, float]:
    """COCO's bounding-box AP of person boxes: box_ap, box_ap_50, box_ap_75, box_ap_medium, box_ap_large, box_ar.

    ``boxes`` are COCO results with ``bbox``; entries of other categories are left out. Raises ValueError for unknown
    images, missing fields, NaN, boxes without size, or no person box at all, naming the first three.
    """
    ids = frozenset(truth.category_ids or (truth.category_id,))
    chosen = Chosen(ids, truth.category_id, dict.fromkeys(ids, "person"))
    read = parse_detections(list(boxes), "the boxes", chosen, scores="needed")
    read.refuse_rejects()
    for remark in read.remarks:
        console.warn(remark)
    if not len(read):
        raise ValueError(
            f"no detection of category {truth.category_id} (person) among {len(boxes)}; category_id says what a box "
            "holds"
        )
    xywh, scores = read.box_xywh_px, read.score
    image = index_of_images(read.image_id, truth, "detection", read.entry)
    found = Detections(image, np.zeros((len(image), 0, 2)), scores, xywh[:, 2] * xywh[:, 3])
    counted = counting(image, scores, MAX_BOXES)
    pair_d, pair_g = pairs_of(image[counted], truth.image, len(truth.image_ids))
    iou = box_iou(xywh[counted[pair_d]], truth.box_xywh_px[pair_g], truth.crowd[pair_g])
    # Unlike OKS, IoU asks for persons without annotated joints too: only crowds may go unfound.
    table = match_pairs(
        Pairs(pair_d, pair_g, iou),
        counted,
        found,
        truth,
        ignored=truth.crowd,
        ranges=_RANGES_PX2,
        thresholds=OKS_THRESHOLDS,
    )
    figures = summary(curves(table))
    if figures["ap"] == 0:
        odd = corner_boxes(xywh[counted], truth.box_xywh_px, np.stack([pair_d, pair_g], axis=1))
        other = "pixels of images of another size, or corners in the place of width and height?"
        console.warn(f"the boxes: {odd[0] if odd else f'none lies on a person of its image: {other}'}")
    names = ("ap", "ap_50", "ap_75", "ap_medium", "ap_large", "ar")
    return {f"box_{name}": figures[name] for name in names}
