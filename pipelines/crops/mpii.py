"""MPII Human Pose: the JSON distributed with simple baselines and HRNet, and the original MATLAB release.

Coordinates in both count from 1; centre and scale become the box that simple baselines crop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from efafnet.models.skeleton import MPII_16
from efafnet.pipelines.crops.annotations import (
    AREA_OF_BOX,
    Annotation,
    Annotations,
    ImageEntry,
    Reject,
    finite,
    read_json,
)

# A person of scale s is 200 s pixels tall; the centre is moved down so that limbs are not cut (simple baselines).
_PIXELS_PER_SCALE = 200.0
_CENTRE_SHIFT = 15.0
# MPII's head size: this share of the head box's diagonal.
_HEAD_SHARE = 0.6
_CATEGORY_ID = 1


@dataclass(frozen=True)
class _Person:
    """One person as MPII writes it: coordinates count from 1."""

    number: int
    image_id: int
    file_name: str
    centre: Any
    scale: Any
    joints: list[tuple[float, float, int]]
    """x, y, v for the 16 joints."""
    head_size: float | None = None


def box_of(centre: tuple[float, float], scale: float) -> tuple[float, float, float, float]:
    """x, y, width, height in 0-based pixels of a person's square, before padding."""
    side = _PIXELS_PER_SCALE * scale
    return centre[0] - 1 - side / 2, centre[1] + _CENTRE_SHIFT * scale - 1 - side / 2, side, side


def parse_mpii_json(content: Any, path: Path) -> Annotations:
    """MPII's ``train.json`` / ``valid.json``: a list of persons with image, center, scale, joints, joints_vis."""
    keys = {"image", "center", "scale"}
    if not isinstance(content, list) or not all(isinstance(entry, dict) and keys <= set(entry) for entry in content):
        raise ValueError(f"{path} is not MPII's JSON: it needs a list of objects with image, center, scale, joints")
    image_ids: dict[str, int] = {}
    persons = []
    for number, entry in enumerate(content):
        name = str(entry["image"])
        joints = entry.get("joints") or [[0, 0]] * 16
        seen = entry.get("joints_vis") or [0] * 16
        # The JSON says which joints are annotated, not which are hidden.
        triples = [(x, y, 2 if v else 0) for (x, y), v in zip(joints, seen, strict=False)]
        image_id = image_ids.setdefault(name, len(image_ids))
        persons.append(_Person(number, image_id, name, tuple(entry["center"]), entry["scale"], triples))
    return _collect(persons, ((image_id, name) for name, image_id in image_ids.items()), "mpii_json")


def read_mpii_mat(path: Path) -> Annotations:
    """The original release, ``mpii_human_pose_v1_u12_1.mat``: every annotated person, with head sizes."""
    try:
        release = scipy.io.loadmat(str(path), struct_as_record=False, squeeze_me=True)["RELEASE"]
        images = [(i, str(entry.image.name)) for i, entry in enumerate(np.atleast_1d(release.annolist))]
    except (OSError, KeyError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{path} is not MPII's MATLAB release ({error}); give mpii_human_pose_v1_u12_1.mat") from error
    return _collect(_persons_of_release(release), images, "mpii_mat")


def _persons_of_release(release: Any) -> Iterator[_Person]:
    number = 0
    for image_id, entry in enumerate(np.atleast_1d(release.annolist)):
        for person in np.atleast_1d(getattr(entry, "annorect", [])):
            points = np.atleast_1d(getattr(getattr(person, "annopoints", None), "point", []))
            # Images of the test set have rectangles without joints.
            if not len(points):
                continue
            joints = [(0.0, 0.0, 0)] * 16
            for point in points:
                hidden = str(getattr(point, "is_visible", "")) == "0"
                joints[int(point.id)] = (float(point.x), float(point.y), 1 if hidden else 2)
            place = getattr(person, "objpos", None)
            centre = (getattr(place, "x", None), getattr(place, "y", None))
            scale = getattr(person, "scale", None)
            name = str(entry.image.name)
            yield _Person(number, image_id, name, centre, scale, joints, _head_size(person))
            number += 1


def _head_size(person: Any) -> float | None:
    corners = [_number(getattr(person, name, None)) for name in ("x1", "y1", "x2", "y2")]
    known = [corner for corner in corners if corner is not None]
    if len(known) < 4:
        return None
    x1, y1, x2, y2 = known
    return _HEAD_SHARE * float(np.hypot(x2 - x1, y2 - y1))


def _collect(persons: Iterable[_Person], images: Iterable[tuple[int, str]], form: str) -> Annotations:
    result = Annotations(MPII_16, [ImageEntry(image_id, name, None, None) for image_id, name in images], [], [], form)
    for person in persons:
        parsed = _annotation(person)
        (result.rejects if isinstance(parsed, Reject) else result.annotations).append(parsed)  # type: ignore[arg-type]
    return result


def _annotation(person: _Person) -> Annotation | Reject:
    def reject(reason: str, detail: str) -> Reject:
        return Reject(reason, detail, person.image_id, person.number, person.file_name)

    centre = tuple(_number(value) for value in person.centre)
    scale = _number(person.scale)
    if len(centre) != 2 or None in centre or scale is None or scale <= 0:
        return reject("box_invalid", f"center and scale must be finite, scale positive; got {centre}, {scale}")
    if len(person.joints) != MPII_16.num_joints or not all(finite(x) and finite(y) for x, y, _ in person.joints):
        return reject("keypoints_invalid", "joints must be 16 finite pairs")
    keypoints: list[float] = []
    for x, y, v in person.joints:
        keypoints += [x - 1.0, y - 1.0, float(v)] if v else [0.0, 0.0, 0.0]
    box = box_of((centre[0], centre[1]), scale)  # type: ignore[arg-type]
    area, labelled = AREA_OF_BOX * box[2] * box[3], sum(v > 0 for _, _, v in person.joints)
    return Annotation(
        person.number, person.image_id, _CATEGORY_ID, box, area, False, labelled, tuple(keypoints), person.head_size
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) and np.isfinite(value) else None


def read_mpii_json(path: Path) -> Annotations:
    """Read and parse MPII's JSON."""
    return parse_mpii_json(read_json(path), path)
