"""What annotations look like when an exporter got a convention wrong: said by share of persons, never refused.

Legend: N persons, K joints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.formats.annotations import Annotations
from efafnet.pipelines.formats.values import MAX_PX, number_rows

# Shares of persons from which a convention, and not a person, is odd.
_MOST, _SOME = 0.5, 0.25
# Joints may lie outside their box by this share of its longer side: boxes are drawn around what is seen.
_SLACK = 0.25
_PERCENT = 100
# Persons of whom not all stand in one corner of their images by chance.
_FEW = 3
# Numbers of a result's keypoints by which it is known again.
_TELLING = 6
# Boxes that say something of the area in them; a segment's edge pixels may reach beyond a box of whole pixels.
_LEAST_BOX_PX2, _MOST_AREA = 16, 1.1
# COCO's largest sigma is .107, mmpose's of MPII .179.
_LARGEST_SIGMA = 0.5


@dataclass(frozen=True)
class Persons:
    """Persons as they were annotated."""

    box_xywh_px: NDArray[np.float64]
    """float64 (N, 4)."""
    area_px2: NDArray[np.float64]
    """float64 (N,)."""
    joints_px: NDArray[np.float64]
    """float64 (N, K, 2)."""
    seen: NDArray[np.bool_]
    """bool (N, K): annotated, hidden or not."""
    image_size_px: NDArray[np.float64]
    """float64 (N, 2): width and height; NaN where nobody says."""


def plausibility_of(content: Annotations, where: str) -> list[str]:
    """Remarks on the persons of an annotation file."""
    sizes = {image.image_id: (image.width, image.height) for image in content.images}
    people = [a for a in content.annotations if not a.is_crowd]
    if not people:
        return []
    keypoints = np.array([a.keypoints for a in people], np.float64).reshape(-1, content.skeleton.num_joints, 3)
    persons = Persons(
        np.array([a.box_xywh for a in people], np.float64),
        np.array([a.area for a in people], np.float64),
        keypoints[:, :, :2],
        np.asarray(keypoints[:, :, 2] > 0),
        np.array([sizes[a.image_id] for a in people], np.float64),
    )
    # MPII's boxes follow from a centre and a scale and reach out of the image by design.
    remarks = odd_persons(persons, boxes_are_drawn=content.format == "coco")
    with_joints = np.asarray(persons.seen.any(axis=1))
    counted = np.array([a.num_keypoints for a in people]) > 0
    remarks += _remark(
        with_joints & ~counted,
        "of persons with joints have num_keypoints 0: nobody has to find them; leave it out, and joints are counted",
        among=with_joints,
    )
    remarks += _remark(
        counted & ~with_joints,
        "of persons with num_keypoints above 0 have no joint of v above 0: their joints count as not annotated, and "
        "whoever is near their box is right",
        among=counted,
    )
    formless = int((counted & (persons.area_px2 == 0)).sum())
    if formless:
        remarks.append(
            f"{formless} of {len(people)} persons have the area 0, by which OKS divides: only who hits every joint "
            "exactly finds them; leave area out, and 0.53 of the box is taken"
        )
    return [f"{where}: {remark}" for remark in (*remarks, *odd_skeleton(content.skeleton))]


def odd_boxes(
    box_xywh_px: NDArray[np.float64], image_id: NDArray[np.int64], size_px: Mapping[int, tuple[int | None, int | None]]
) -> list[str]:
    """Remarks on boxes (N, 4) without joints, on images (N,) of the sizes that are known."""
    count, unknown = len(box_xywh_px), (None, None)
    sizes = np.array([size_px.get(image, unknown) for image in image_id.tolist()], np.float64).reshape(-1, 2)
    area = box_xywh_px[:, 2] * box_xywh_px[:, 3]
    return odd_persons(Persons(box_xywh_px, area, np.zeros((count, 1, 2)), np.zeros((count, 1), bool), sizes))


def odd_scores(scores: NDArray[np.floating]) -> list[str]:
    """Remarks on the scores (N,) of a detector's boxes."""
    return [
        *_remark(np.asarray(scores > 1), "of scores are above 1: percent?"),
        *_remark(np.asarray(scores < 0), "of scores are below 0: before the sigmoid?"),
    ]


def odd_persons(persons: Persons, *, boxes_are_drawn: bool = True) -> list[str]:
    """One sentence for each convention that most persons seem to break."""
    seen = persons.seen
    with_joints = np.asarray(seen.any(axis=1))
    if not len(seen):
        return []
    boxes, joints = persons.box_xywh_px, persons.joints_px
    unit_boxes = np.asarray((np.abs(boxes) <= 1).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1))
    unit_joints = with_joints & (~seen | (np.abs(joints) <= 1).all(axis=2)).all(axis=1)
    remarks = [
        *_remark(unit_boxes, "of boxes lie within 0 to 1: shares, not pixels?", from_share=_MOST),
        *_remark(
            unit_joints,
            "of persons have all joints within 0 to 1: shares, not pixels?",
            among=with_joints,
            from_share=_MOST,
        ),
    ]
    if boxes_are_drawn and not unit_boxes.mean() >= _MOST:
        remarks += _odd_boxes(persons, seen, with_joints) or _in_percent(persons) or _whole_images(persons, seen)
    area, box_area = persons.area_px2, boxes[:, 2] * boxes[:, 3]
    boxed = with_joints & (box_area > _LEAST_BOX_PX2)
    remarks += _remark(
        boxed & (area > _MOST_AREA * box_area),
        "of persons have an area larger than their box: OKS is measured by it, and forgives the more; leave area out, "
        "and 0.53 of the box is taken",
        among=with_joints,
    )
    return remarks + _remark(
        boxed & (area > 0) & (area <= 1),
        "of persons have an area of at most 1 px² in a larger box: no area at all? Leave it out, and 0.53 of the box "
        "is taken; OKS is measured by it",
        among=with_joints,
    )


def _odd_boxes(persons: Persons, seen: NDArray[np.bool_], with_joints: NDArray[np.bool_]) -> list[str]:
    """Remarks on boxes that hold corners in place of sizes, and on boxes that hold the joints of another person."""
    boxes = persons.box_xywh_px
    outside = (boxes[:, :2] + boxes[:, 2:] > persons.image_size_px + 1).any(axis=1)
    corners = _as_corners(persons, seen) & with_joints
    share = outside.mean()
    if share >= _MOST or (with_joints.any() and corners.sum() / with_joints.sum() >= _SOME):
        fitting = 100 * corners.sum() / max(1, with_joints.sum())
        of_joints = f", {fitting:.0f} % fit their joints as x1, y1, x2, y2" if with_joints.any() else ""
        guess = "corners instead of width and height"
        if with_joints.any() and fitting < 100 * _SOME:
            guess = f"images of another size, or {guess}"
        return [f"{100 * share:.0f} % of boxes end outside the image{of_joints}: {guess}?"]
    return _remark(
        np.asarray(_beyond(persons, seen).any(axis=1)),
        "of persons have joints far outside their boxes: boxes and joints of different persons, images of another "
        "size, or other units?",
        among=with_joints,
    )


def _in_percent(persons: Persons) -> list[str]:
    """Boxes that all end within 100 in images of twice that: Label Studio's own numbers are percent of the image."""
    large = (persons.image_size_px >= 2 * _PERCENT).all(axis=1)
    ends = (persons.box_xywh_px[:, :2] + persons.box_xywh_px[:, 2:])[large]
    if len(ends) < _FEW or not ends.max() <= _PERCENT:
        return []
    return [
        f"all {len(ends)} boxes in images of {2 * _PERCENT} pixels and more end by {_PERCENT}: percent, not pixels?"
    ]


def _whole_images(persons: Persons, seen: NDArray[np.bool_]) -> list[str]:
    """Boxes that are the image, of persons who fill less than half of it: a tool's way to say that it has no boxes."""
    low, high = _extent(persons, seen)
    with_joints, boxes, size = np.asarray(seen.any(axis=1)), persons.box_xywh_px, persons.image_size_px
    whole = (boxes[:, :2] <= 1).all(axis=1) & (boxes[:, 2:] >= size - 2).all(axis=1)
    small = (high - low < 0.5 * size).all(axis=1)
    return _remark(
        np.asarray(with_joints & whole & small),
        "of boxes are the whole image, though their joints reach over less than half of it: no persons' boxes?",
        among=with_joints,
        from_share=_MOST,
    )


def _extent(persons: Persons, seen: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and greatest x and y of each person's joints (N, 2); inf and -inf where there is none."""
    low = np.where(seen[..., None], persons.joints_px, np.inf).min(axis=1)
    return low, np.where(seen[..., None], persons.joints_px, -np.inf).max(axis=1)


def _as_corners(persons: Persons, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the box read as x1, y1, x2, y2 is a sound one, holds all joints, and is much closer to them (N,)."""
    boxes, joints = persons.box_xywh_px, persons.joints_px
    near, far = boxes[:, None, :2] - 1, boxes[:, None, 2:] + 1
    inside = (~seen | ((joints >= near) & (joints <= far)).all(axis=2)).all(axis=1)
    sound = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, :2].min(axis=1) > 0)
    low, high = _extent(persons, seen)
    extent = np.where(np.isfinite(high - low), high - low, 0)
    # As width and height the box reaches further beyond the last joint than the joints are apart.
    as_sizes = boxes[:, :2] + boxes[:, 2:] - np.where(np.isfinite(high), high, 0)
    as_corners = boxes[:, 2:] - np.where(np.isfinite(high), high, 0)
    loose = (as_sizes > np.maximum(2 * as_corners, 0.25 * extent + as_corners)).any(axis=1)
    tight = (as_corners <= 0.5 * extent + 2).all(axis=1)
    return np.asarray(inside & sound & loose & tight)


def _beyond(persons: Persons, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which joints lie further outside their boxes than clothes and guesses explain (N, K)."""
    boxes = persons.box_xywh_px[:, None]
    slack = _SLACK * boxes[..., 2:].max(axis=2, keepdims=True)
    low, high = boxes[..., :2] - slack, boxes[..., :2] + boxes[..., 2:] + slack
    return np.asarray(((persons.joints_px < low) | (persons.joints_px > high)).any(axis=2) & seen)


def odd_results(results: Sequence[Mapping[str, Any]], num_joints: int) -> list[str]:
    """Remarks on the joints and boxes of results; entries that cannot be read are left to ``parse_results``."""
    values, sound = number_rows([result.get("keypoints") for result in results], 3 * num_joints)
    joints = values.reshape(-1, num_joints, 3)[:, :, :2]
    inside = np.asarray((np.abs(joints[sound]) <= 1).all(axis=(1, 2)))
    remarks = _remark(inside, "of results have all joints within 0 to 1: shares, not pixels?", from_share=_MOST)
    boxes, boxed = number_rows([result.get("bbox") for result in results], 4)
    near = (np.abs(boxes) <= MAX_PX).all(axis=1) & (np.abs(joints) <= MAX_PX).all(axis=(1, 2))
    both = sound & boxed & near
    if remarks or not both.any():
        return remarks
    boxes, joints = boxes[both], joints[both]
    every, unknown = np.ones(joints.shape[:2], bool), np.full((len(boxes), 2), np.nan)
    people = Persons(boxes, boxes[:, 2] * boxes[:, 3], joints, every, unknown)
    return _odd_boxes(people, every, every[:, 0])


def repeated_results(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A remark where many results say the same of the same image, so that all but one of them are wrong."""
    rows = [result for result in results if isinstance(result.get("keypoints"), list)]
    told = {repr((row.get("image_id"), row.get("score"), row["keypoints"][:_TELLING])) for row in rows}
    # As many as there are more results than different ones.
    repeated = np.arange(len(rows)) >= len(told)
    return _remark(repeated, "of results repeat another one: was a file joined to itself?")


def equal_scores(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A remark where all results have one score, so that AP ranks them by their place in the file."""
    scores = {repr(result.get("score")) for result in results}
    if len(results) < _FEW or len(scores) > 1:
        return []
    return [
        f"all {len(results)} results have the score {scores.pop()}: AP ranks persons by it, equal ones as they stand"
    ]


def odd_skeleton(skeleton: Skeleton) -> list[str]:
    """Remarks on a skeleton: names that say left or right without a partner, sigmas too large to measure by."""
    remarks, lonely = list[str](), skeleton.sided_without_partner
    if lonely:
        remarks.append(
            f"joints named like sides have no partner in flip_pairs: {', '.join(lonely[:6])}{', …' * (len(lonely) > 6)}"
            "; give flip_pairs in the category, or a skeleton file"
        )
    if max(skeleton.sigmas) > _LARGEST_SIGMA:
        remarks.append(
            f"sigmas go up to {max(skeleton.sigmas):g}, COCO's to 0.107: with such OKS forgives everything; percent?"
        )
    return remarks


def _remark(
    odd: NDArray[np.bool_], what: str, *, among: NDArray[np.bool_] | None = None, from_share: float = _SOME
) -> list[str]:
    """One remark where at least ``from_share`` of those ``among`` (N,), or of all, are ``odd`` (N,); else none."""
    share = odd.sum() / max(1, len(odd) if among is None else among.sum())
    return [f"{100 * share:.0f} % {what}"] if share >= from_share else []
