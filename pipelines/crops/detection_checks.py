"""What a detector's boxes look like beside the persons that are annotated on the same images.

Legend: D boxes, P pairs of a box and an annotated person of one image.
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
    as_sizes, as_corners = _on_persons(found, people, offset)
    if as_corners.sum() >= max(_FEW, 2 * as_sizes.sum()):
        remarks.append(
            f"{100 * as_corners.mean():.0f} % of boxes lie on an annotated person if read as x1, y1, x2, y2, "
            f"{100 * as_sizes.mean():.0f} % as x, y, width, height: corners instead of width and height?"
        )
    return remarks


def _on_persons(
    found: Detections, people: Sequence[Annotation], offset: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the first boxes lie on a person, read as x, y, width, height, and as x1, y1, x2, y2."""
    by_image: dict[int, list[int]] = {}
    for n, annotation in enumerate(people):
        by_image.setdefault(annotation.image_id - offset, []).append(n)
    boxes = found.box_xywh_px[:_LOOKED_AT]
    pairs = [(d, n) for d, image in enumerate(found.image_id[:_LOOKED_AT].tolist()) for n in by_image.get(image, ())]
    if not pairs:
        return np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
    box, person = np.array(pairs, np.int64).T
    true = np.array([a.box_xywh for a in people], np.float64)[person]
    corners = np.concatenate([boxes[:, :2], np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)], axis=1)
    on = []
    for reading in (boxes, corners):
        best = np.zeros(len(boxes))
        np.maximum.at(best, box, box_iou(reading[box], true))
        on.append(best >= _SAME_FROM_IOU)
    return on[0], on[1]
