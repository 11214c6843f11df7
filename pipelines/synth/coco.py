"""Labels of pictures as COCO person-keypoint annotations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.synth.picture import Label
from efafnet.pipelines.synth.solids import Array

LARGE_AREA_PX = 96**2
"""COCO's border between medium and large people: area in pixels."""


@dataclass(frozen=True)
class ImageRecord:
    """One picture and the people in it, as entries of a COCO file whose ids are still to be given."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]


def image_record(index: int, name: str, width: int, height: int, labels: Sequence[Label]) -> ImageRecord:
    """Describe a picture and its labels."""
    people = [label for label in labels if not label.crowd]
    boxes, keypoints = [label.box_xywh_px for label in people], [label.keypoints for label in people]
    image = {
        "id": index + 1, "file_name": name, "width": width, "height": height, "license": 1,
        "crowdIndex": round(crowd_index(boxes, keypoints), 4),
    }  # fmt: skip
    return ImageRecord(image, [_annotation(label, width, height) for label in labels])


def _annotation(label: Label, width: int, height: int) -> dict[str, Any]:
    flat: list[float] = []
    for x, y, v in label.keypoints.tolist():
        flat += [round(x, 1), round(y, 1), int(v)]
    return {
        "bbox": [round(value, 2) for value in label.box_xywh_px.tolist()],
        "area": label.area_px,
        # Run lengths for everybody: COCO's polygons would only come near to the pixels that `area` counts.
        "segmentation": {"size": [height, width], "counts": label.runs},
        "keypoints": flat,
        "num_keypoints": int((label.keypoints[:, 2] > 0).sum()),
        "iscrowd": int(label.crowd),
        "category_id": 1,
    }


def crowd_index(boxes_xywh: Sequence[Array], keypoints: Sequence[Array]) -> float:
    """CrowdPose's crowd index of a picture (Li et al. 2019, section 3): the mean over its people of the ratio of other
    people's labelled joints inside a person's box to the person's own.

    Args:
        boxes_xywh: per person x, y, width, height in px.
        keypoints: per person (K, 3) x, y, visibility; people without labelled joints have no ratio and are left out.
    """
    labelled = [points[points[:, 2] > 0, :2] for points in keypoints]
    ratios = []
    for person, (x, y, w, h) in enumerate(boxes_xywh):
        inside = [int(((points >= (x, y)) & (points <= (x + w, y + h))).all(axis=1).sum()) for points in labelled]
        if inside[person]:
            ratios.append((sum(inside) - inside[person]) / inside[person])
    return float(np.mean(ratios)) if ratios else 0.0


def coco_document(records: Sequence[ImageRecord], split: str, settings: dict[str, Any], drawing: str) -> str:
    """Write a COCO annotation file as text: compact, and equal for equal input. ``drawing`` names the drawing code."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        for annotation in record.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": record.image["id"], **annotation})
    document = {
        "info": {
            "description": f"Synthetic people ({split}), drawn by efafnet", "version": "1.0", "settings": settings,
            "drawing": drawing,
        },
        "licenses": [{"id": 1, "name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "categories": [person_category()],
        "images": [record.image for record in records],
        "annotations": annotations,
    }  # fmt: skip
    return json.dumps(document, separators=(",", ":")) + "\n"


def person_category() -> dict[str, Any]:
    """COCO's category of persons, its limbs 1-based as in COCO's files."""
    limbs = [[a + 1, b + 1] for a, b in COCO_17.limbs]
    return {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO_17.joints), "skeleton": limbs}


def describe_people(split: str, records: Sequence[ImageRecord]) -> dict[str, str | int | float]:
    """One row of figures about a split."""
    people = [annotation for record in records for annotation in record.annotations if not annotation["iscrowd"]]
    labelled = [annotation for annotation in people if annotation["num_keypoints"]]
    visibility = np.array([v for annotation in labelled for v in annotation["keypoints"][2::3]], dtype=np.int64)
    areas = np.array([annotation["area"] for annotation in labelled])
    share = np.bincount(visibility, minlength=3) / max(len(visibility), 1)
    index = [record.image["crowdIndex"] for record in records]
    return {
        "split": split,
        "images": len(records),
        "people": len(people),
        "with joints": len(labelled),
        "visible %": round(100 * float(share[2]), 1),
        "hidden %": round(100 * float(share[1]), 1),
        "unlabelled %": round(100 * float(share[0]), 1),
        "medium %": round(100 * float((areas < LARGE_AREA_PX).mean()), 1) if len(areas) else 0.0,
        "large %": round(100 * float((areas >= LARGE_AREA_PX).mean()), 1) if len(areas) else 0.0,
        "crowd index": round(float(np.mean(index)), 3),
    }
