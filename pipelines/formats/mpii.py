"""MPII Human Pose: the JSON distributed with simple baselines and HRNet, and the original MATLAB release.

Coordinates in both count from 1; centre and scale become the box that simple baselines crop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from efafnet.models.skeleton import MPII_16
from efafnet.pipelines.formats.annotations import AREA_OF_BOX, Annotation, Annotations, ImageEntry
from efafnet.pipelines.formats.rejects import Reject
from efafnet.pipelines.formats.values import MAX_PX, flag, number, shown, text

# A person of scale s is 200 s pixels tall; the centre is moved down so that limbs are not cut (simple baselines).
_PIXELS_PER_SCALE = 200.0
_CENTRE_SHIFT = 15.0
# MPII's head size: this share of the head box's diagonal.
HEAD_SHARE = 0.6
_CATEGORY_ID = 1


@dataclass(frozen=True)
class _Person:
    """One person as MPII writes it: coordinates count from 1."""

    number: int
    image_id: int
    file_name: str
    centre: Any
    scale: Any
    joints: list[tuple[Any, Any, int]] | None
    """x, y, v for the 16 joints; None where the file holds none that can be read."""
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
    persons: list[_Person | Reject] = []
    for place, entry in enumerate(content):
        name = text(entry["image"])
        if name is None:
            detail = f"person {place} has the image {shown(entry['image'])}; it must be a file name"
            persons.append(Reject("image_entry_invalid", detail, None, place))
            continue
        image_id = image_ids.setdefault(name, len(image_ids))
        persons.append(_Person(place, image_id, name, entry["center"], entry["scale"], _triples(entry)))
    return _collect(persons, ((image_id, name) for name, image_id in image_ids.items()), "mpii_json")


def _triples(entry: dict[str, Any]) -> list[tuple[Any, Any, int]] | None:
    """x, y, v of the joints as the JSON has them; None where they are no pairs with a flag each."""
    joints = entry.get("joints") or [[0, 0]] * MPII_16.num_joints
    seen = entry.get("joints_vis") or [0] * MPII_16.num_joints
    if entry.get("joints") and not entry.get("joints_vis"):
        return None
    if not isinstance(joints, list) or not isinstance(seen, list) or len(joints) != len(seen):
        return None
    # The JSON says which joints are annotated, not which are hidden.
    flags = [flag(v) for v in seen]
    if None in flags or not all(isinstance(joint, list) and len(joint) == 2 for joint in joints):
        return None
    return [(x, y, 2 if v else 0) for (x, y), v in zip(joints, flags, strict=True)]


def read_mpii_mat(path: Path) -> Annotations:
    """The original release, ``mpii_human_pose_v1_u12_1.mat``: every annotated person, with head sizes."""
    import scipy.io  # here, because every training imports this module, and few read MATLAB files

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
    return HEAD_SHARE * float(np.hypot(x2 - x1, y2 - y1))


def _collect(persons: Iterable[_Person | Reject], images: Iterable[tuple[int, str]], form: str) -> Annotations:
    result = Annotations(MPII_16, [ImageEntry(image_id, name, None, None) for image_id, name in images], [], [], form)
    for person in persons:
        parsed = person if isinstance(person, Reject) else _annotation(person)
        (result.rejects if isinstance(parsed, Reject) else result.annotations).append(parsed)  # type: ignore[arg-type]
    return result


def _annotation(person: _Person) -> Annotation | Reject:
    def reject(reason: str, detail: str) -> Reject:
        return Reject(reason, f"person {person.number}: {detail}", person.image_id, person.number, person.file_name)

    given = person.centre
    centre = [_number(value) for value in given] if isinstance(given, list | tuple) else []
    scale = _number(person.scale)
    if len(centre) != 2 or centre[0] is None or centre[1] is None or scale is None or scale <= 0:
        return reject(
            "box_invalid",
            f"center and scale must be finite, scale positive; got {shown(given)}, {shown(person.scale)}",
        )
    joints = _checked_joints(person.joints)
    if joints is None:
        return reject("keypoints_invalid", "joints must be 16 finite pairs, and joints_vis 16 flags of 0 or 1")
    keypoints = [value for x, y, v in joints for value in ((x - 1.0, y - 1.0, float(v)) if v else (0.0, 0.0, 0.0))]
    box = box_of((centre[0], centre[1]), scale)
    area, labelled = AREA_OF_BOX * box[2] * box[3], sum(v > 0 for _, _, v in joints)
    return Annotation(
        person.number, person.image_id, _CATEGORY_ID, box, area, False, labelled, tuple(keypoints), person.head_size
    )


def _checked_joints(joints: list[tuple[Any, Any, int]] | None) -> list[tuple[float, float, int]] | None:
    if joints is None or len(joints) != MPII_16.num_joints:
        return None
    found = [(_number(x), _number(y), v) for x, y, v in joints]
    return None if any(x is None or y is None for x, y, _ in found) else found  # type: ignore[return-value]


def _number(value: Any) -> float | None:
    """A finite number of a size that pictures have, as JSON or MATLAB give it."""
    found = number(float(value) if isinstance(value, np.number) else value)
    return found if found is not None and abs(found) <= MAX_PX else None
