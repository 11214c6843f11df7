"""What the people of a set are like: shares by which drawn people are held against photographed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from efafnet.pipelines.synth.coco import ImageRecord, crowd_index

_BORDER_PX = 1.0
"""A box that ends this near to the picture's border is taken to be cut by it."""
_ASPECT, _PADDING = 3 / 4, 1.25
"""Width to height of the crop that a network sees, and by how much it is larger than the box."""
_WHOLE_JOINTS = 12
"""Labelled joints of a person who counts as whole."""
_HEAD, _EYES, _SHOULDERS, _LEGS = slice(0, 5), slice(1, 3), slice(5, 7), slice(13, 17)
"""Of COCO's joints: nose, eyes and ears; knees and ankles."""
_FEW_JOINTS = 5
"""Most labelled joints of a person of whom only a part shows."""
CROWD_BINS = (0.2, 0.4, 0.6, 0.8)
"""Borders between the five classes of pictures in which CrowdPose counts its crowd index."""


def records_of(document: Mapping[str, Any]) -> list[ImageRecord]:
    """The pictures of a COCO annotation file, each with its people."""
    people: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        people[annotation["image_id"]].append(annotation)
    return [ImageRecord(image, people[image["id"]]) for image in document["images"]]


def census(records: Sequence[ImageRecord]) -> dict[str, float]:
    """Describe the people with labelled joints, by the names that the tables use.

    Shares are of persons, except visible, hidden and unlabelled, which are of all their joints. A person is whole and
    hardly hidden if the border does not touch the box, at least 12 joints are labelled and at most one of them is
    hidden. √area / crop width is what OKS sees of a crop: COCO's area against the 3:4 crop around the box. Eyes apart
    / crop width, of those with both eyes labelled, says how much of the crop a face is; NaN where nobody has both. Of
    whom a nose, an eye or an ear and a shoulder is labelled, and no knee or ankle, the upper body alone shows.
    """
    found = [(a, record.image) for record in records for a in record.annotations if _has_joints(a)]
    if not found:
        return {}
    boxes = np.array([a["bbox"] for a, _ in found], dtype=np.float64)
    sides = np.array([(image["width"], image["height"]) for _, image in found], dtype=np.float64)
    area = np.array([a["area"] for a, _ in found], dtype=np.float64)
    keypoints = np.array([a["keypoints"] for a, _ in found], dtype=np.float64).reshape(len(found), -1, 3)
    visibility = keypoints[..., 2]
    end = boxes[:, :2] + boxes[:, 2:]
    cut = np.concatenate((boxes[:, :2] <= _BORDER_PX, end >= sides - _BORDER_PX), axis=1)
    hidden, labelled = (visibility == 1).sum(axis=1), (visibility > 0).sum(axis=1)
    whole = ~cut.any(axis=1) & (hidden <= 1) & (labelled >= _WHOLE_JOINTS)
    crop_width = np.maximum(boxes[:, 2], boxes[:, 3] * _ASPECT) * _PADDING
    both_eyes = (visibility[:, _EYES] > 0).all(axis=1)
    apart = np.linalg.norm(np.diff(keypoints[both_eyes][:, _EYES, :2], axis=1)[:, 0], axis=1) / crop_width[both_eyes]
    above = (visibility[:, _HEAD] > 0).any(axis=1) & (visibility[:, _SHOULDERS] > 0).any(axis=1)
    return {
        "persons": float(len(found)),
        "box touches the border": float(cut.any(axis=1).mean()),
        "cut at the bottom": float(cut[:, 3].mean()),
        "whole and hardly hidden": float(whole.mean()),
        "area / box, median": float(np.median(area / boxes.prod(axis=1, where=[False, False, True, True]))),
        "√area / crop width, median": float(np.median(np.sqrt(area) / crop_width)),
        "eyes apart / crop width, median": float(np.median(apart)) if len(apart) else math.nan,
        "eyes apart / crop width, upper tenth": float(np.quantile(apart, 0.9)) if len(apart) else math.nan,
        "upper body alone": float((above & (visibility[:, _LEGS] == 0).all(axis=1)).mean()),
        "joints visible": float((visibility == 2).mean()),
        "joints hidden": float((visibility == 1).mean()),
        "joints unlabelled": float((visibility == 0).mean()),
        "labelled joints of a person": float(labelled.mean()),
        "at most 5 labelled joints": float((labelled <= _FEW_JOINTS).mean()),
        "6 to 11 labelled joints": float(((labelled > _FEW_JOINTS) & (labelled < _WHOLE_JOINTS)).mean()),
        "crowd index, mean": float(np.mean([index_of(record) for record in records])),
    }


def _has_joints(annotation: Mapping[str, Any]) -> bool:
    return not annotation.get("iscrowd", 0) and annotation.get("num_keypoints", 0) > 0


def index_of(record: ImageRecord) -> float:
    """CrowdPose's crowd index of a picture."""
    people = [a for a in record.annotations if not a.get("iscrowd", 0) and "keypoints" in a]
    boxes = [np.array(a["bbox"], dtype=np.float64) for a in people]
    return crowd_index(boxes, [np.array(a["keypoints"], dtype=np.float64).reshape(-1, 3) for a in people])


def crowd_shares(records: Sequence[ImageRecord]) -> list[float]:
    """Share of the pictures with people in each fifth of the crowd index: to .2, .4, .6, .8, and above."""
    index = [index_of(record) for record in records if any(_has_joints(a) for a in record.annotations)]
    counts = np.bincount(np.searchsorted(CROWD_BINS, index, side="right"), minlength=5)
    return [float(share) for share in counts / max(len(index), 1)]
