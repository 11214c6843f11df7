"""What a detector's boxes look like beside the persons that are annotated on the same images.

Legend: D boxes, G annotated persons, P pairs of both on one image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.crops.geometry import box_iou
from efafnet.pipelines.formats.annotations import Annotation
from efafnet.pipelines.formats.detections import Detections

_LOOKED_AT = 5000
"""Boxes that are compared: a convention is the same throughout a file."""
_SAME_FROM_IOU = 0.5
_FEW = 3


def beside_annotations(found: Detections, annotations: Sequence[Annotation], offset: int) -> list[str]:
    """Remarks on detections whose image ids are those of ``annotations`` less ``offset``.

    Images of persons without any box, whose persons nobody can find; boxes that lie on persons only if they are read
    as corners.
    """
    people = [a for a in annotations if not a.is_crowd]
    images = {a.image_id - offset for a in people if a.num_keypoints > 0}
    empty = len(images - set(found.image_id.tolist()))
    remarks = []
    if empty and len(found):
        remarks.append(
            f"{empty} of {len(images)} images with persons have no detection: their persons count as not found"
        )
    by_image: dict[int, list[int]] = {}
    for n, annotation in enumerate(people):
        by_image.setdefault(annotation.image_id - offset, []).append(n)
    boxes = found.box_xywh_px[:_LOOKED_AT]
    pairs = [(d, n) for d, image in enumerate(found.image_id[:_LOOKED_AT].tolist()) for n in by_image.get(image, ())]
    true = np.array([a.box_xywh for a in people], np.float64).reshape(-1, 4)
    return remarks + corner_boxes(boxes, true, np.array(pairs, np.int64).reshape(-1, 2))


def corner_boxes(
    boxes_px: NDArray[np.float64], true_xywh_px: NDArray[np.float64], pairs: NDArray[np.int64]
) -> list[str]:
    """A remark where boxes (D, 4) lie on true ones (G, 4) only if they are read as corners.

    ``pairs`` int64 (P, 2) are the indices of a box and a true one that share an image.
    """
    box, person = pairs.T
    corners = np.concatenate([boxes_px[:, :2], np.maximum(boxes_px[:, 2:] - boxes_px[:, :2], 0.0)], axis=1)
    shares, counts = [], []
    for reading in (boxes_px, corners):
        best = np.zeros(len(boxes_px))
        np.maximum.at(best, box, box_iou(reading[box], true_xywh_px[person]))
        on = best >= _SAME_FROM_IOU
        shares.append(100 * on.mean() if len(on) else 0.0)
        counts.append(int(on.sum()))
    if counts[1] < max(_FEW, 2 * counts[0]):
        return []
    return [
        f"{shares[1]:.0f} % of boxes lie on an annotated person if read as x1, y1, x2, y2, {shares[0]:.0f} % as x, y, "
        "width, height: corners instead of width and height?"
    ]
