"""Annotation files as one neutral form: images, annotations, rejects. COCO's layout here, MPII's in mpii.py.

Legend: K joints. Coordinates are in pixels of the image as stored, the first pixel's centre at 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from efafnet.models.skeleton import SKELETONS, Skeleton

# CrowdPose has no areas; its official evaluation uses this share of the box.
AREA_OF_BOX = 0.53
# Sigma of a joint that nobody has measured: near the mean of COCO's (.062).
_DEFAULT_SIGMA = 0.05
# Ids of further sources are shifted by this much each, so that merged ids stay unique and can be read back.
SOURCE_STRIDE = 10**12


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of a source."""

    image_id: int
    file_name: str
    width: int | None
    """Pixels; None where the annotation file does not say."""
    height: int | None
    crowd_index: float | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated person, or crowd."""

    annotation_id: int
    image_id: int
    category_id: int
    box_xywh: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    num_keypoints: int
    keypoints: tuple[float, ...]
    """x, y, v per joint: 3K numbers, v being 0 absent, 1 hidden, 2 visible."""
    head_size: float | None = None
    """MPII's head size in pixels."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Something left out, and why."""

    reason: str
    detail: str
    image_id: int | None = None
    annotation_id: int | None = None
    file_name: str | None = None
    persons: int = 1


@dataclass(frozen=True)
class Annotations:
    """What one annotation file says."""

    skeleton: Skeleton
    images: list[ImageEntry]
    annotations: list[Annotation]
    rejects: list[Reject]
    format: str
    remarks: list[str] = field(default_factory=list)
    """What a user should be told."""

    def shifted(self, source: int) -> Annotations:
        """The same with ids of source number ``source`` in a merged store; ValueError where they are too large."""
        if source == 0:
            return self
        offset = source * SOURCE_STRIDE

        def moved(number: int | None) -> int | None:
            return None if number is None else _shift(number, offset)

        return replace(
            self,
            images=[replace(image, image_id=_shift(image.image_id, offset)) for image in self.images],
            annotations=[
                replace(a, image_id=_shift(a.image_id, offset), annotation_id=_shift(a.annotation_id, offset))
                for a in self.annotations
            ],
            rejects=[
                replace(r, image_id=moved(r.image_id), annotation_id=moved(r.annotation_id)) for r in self.rejects
            ],
        )


def _shift(number: int, offset: int) -> int:
    if not 0 <= number < SOURCE_STRIDE:
        raise ValueError(f"id {number} cannot be merged: ids of merged sources must lie in 0..{SOURCE_STRIDE - 1}")
    return number + offset


def read_json(path: Path) -> Any:
    """Content of a JSON file; one clear error where it is missing or not JSON."""
    if not path.is_file():
        raise ValueError(f"annotation file {path} does not exist; give the path of a JSON file")
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); it may be truncated or another format") from error


def finite(value: Any) -> bool:
    """Whether ``value`` is an ordinary number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parse_coco(content: Any, path: Path, skeleton: Skeleton | None = None) -> Annotations:
    """COCO keypoint annotations (CrowdPose, OCHuman and custom sets alike); ``skeleton`` overrides the file's own.

    Raises ValueError where ``content`` is not COCO's layout at all; single bad entries become rejects.
    """
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise ValueError(
                f"{path} is not in COCO's layout: it needs the lists images, annotations and categories; {name!r} is "
                "missing. MPII's own JSON is read with format=mpii_json"
            )
    category_id, found, remarks = _person_category(content.get("categories"), path, skeleton)
    images, rejects = _images(content["images"])
    result = Annotations(found, list(images.values()), [], rejects, "coco", remarks)
    seen: set[int] = set()
    for entry in content["annotations"]:
        if isinstance(entry, dict) and entry.get("category_id", category_id) != category_id:
            continue
        parsed = _annotation(entry, category_id, found.num_joints, images, seen)
        if isinstance(parsed, Reject):
            rejects.append(parsed)
        else:
            seen.add(parsed.annotation_id)
            result.annotations.append(parsed)
    return result


def _images(entries: list[Any]) -> tuple[dict[int, ImageEntry], list[Reject]]:
    images: dict[int, ImageEntry] = {}
    rejects = []
    for entry in entries:
        problem = _image_problem(entry)
        if problem is not None:
            rejects.append(Reject("image_entry_invalid", problem, persons=0))
        elif entry["id"] in images:
            known = images[entry["id"]].file_name
            detail = f"image id {entry['id']} is already taken by {known}"
            rejects.append(Reject("duplicate_image_id", detail, entry["id"], None, entry["file_name"], persons=0))
        else:
            crowd = entry.get("crowdIndex")
            images[entry["id"]] = ImageEntry(
                entry["id"],
                entry["file_name"],
                entry["width"],
                entry["height"],
                float(crowd) if finite(crowd) else None,
            )
    return images, rejects


def _image_problem(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"an image entry must be an object; got {str(entry)[:80]}"
    if not _is_id(entry.get("id")):
        return f"an image id must be an integer; got {entry.get('id')!r}"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        return f"image {entry['id']} has no file_name"
    for side in ("width", "height"):
        if not (_is_id(entry.get(side)) and entry[side] > 0):
            return f"image {entry['id']}: {side} must be a positive integer; got {entry.get(side)!r}"
    return None


def _annotation(
    entry: Any, category_id: int, num_joints: int, images: dict[int, ImageEntry], seen: set[int]
) -> Annotation | Reject:
    if not isinstance(entry, dict) or not _is_id(entry.get("id")):
        return Reject("annotation_invalid", f"an annotation needs an integer id; got {str(entry)[:80]}")
    number, image_id = entry["id"], entry.get("image_id")
    image = images.get(image_id) if isinstance(image_id, int) else None
    if image is None:
        detail = f"annotation {number} refers to image {image_id!r}, which is not in the file"
        return Reject("unknown_image", detail, image_id if _is_id(image_id) else None, number)

    def reject(reason: str, detail: str) -> Reject:
        return Reject(reason, detail, image.image_id, number, image.file_name)

    if number in seen:
        return reject("duplicate_annotation_id", f"annotation id {number} occurs more than once")
    box = entry.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(finite(value) for value in box)):
        return reject("box_invalid", f"bbox must be four finite numbers; got {str(box)[:80]}")
    keypoints = entry.get("keypoints") or [0] * (3 * num_joints)
    if not _keypoints_valid(keypoints, num_joints):
        return reject("keypoints_invalid", f"keypoints must be {num_joints} finite triples x, y, v with v in 0, 1, 2")
    area = entry.get("area", AREA_OF_BOX * box[2] * box[3])
    if not finite(area):
        return reject("area_invalid", f"area must be a finite number; got {area!r}")
    labelled = entry.get("num_keypoints")
    x, y, width, height = (float(value) for value in box)
    return Annotation(
        number,
        image.image_id,
        category_id,
        (x, y, width, height),
        float(area),
        bool(entry.get("iscrowd", 0)),
        labelled if isinstance(labelled, int) else sum(v > 0 for v in keypoints[2::3]),
        tuple(float(value) for value in keypoints),
    )


def _keypoints_valid(keypoints: Any, num_joints: int) -> bool:
    return (
        isinstance(keypoints, list)
        and len(keypoints) == 3 * num_joints
        and all(finite(value) for value in keypoints)
        and all(v in (0, 1, 2) for v in keypoints[2::3])
    )


def _person_category(categories: Any, path: Path, wanted: Skeleton | None) -> tuple[int, Skeleton, list[str]]:
    """Id of the category with keypoints, its skeleton, and remarks."""
    named = [c for c in categories or [] if isinstance(c, dict) and c.get("keypoints") and _is_id(c.get("id"))]
    if len(named) > 1:
        names = ", ".join(str(c.get("name")) for c in named)
        raise ValueError(f"{path} has keypoints in several categories ({names}); split it, one category per file")
    if not named:
        if wanted is None:
            raise ValueError(
                f"{path}: no category lists its keypoints, so the joints are unknown; give the skeleton, for example "
                "skeleton=coco17"
            )
        return 1, wanted, [f"{path.name} names no joints: taken for {wanted.name}"]
    category = named[0]
    joints = tuple(str(joint) for joint in category["keypoints"])
    if wanted is not None:
        if len(joints) != wanted.num_joints:
            raise ValueError(
                f"{path} has {len(joints)} joints, {wanted.name!r} has {wanted.num_joints}; leave skeleton=auto"
            )
        return category["id"], wanted, []
    known = next((s for s in SKELETONS.values() if s.joints == joints), None)
    if known is not None:
        return category["id"], known, []
    custom, remarks = custom_skeleton(category, path)
    return category["id"], custom, remarks


def custom_skeleton(category: dict[str, Any], path: Path) -> tuple[Skeleton, list[str]]:
    """Skeleton of a COCO category of its own, and what had to be assumed.

    Beside COCO's ``keypoints`` and ``skeleton`` (1-based limbs) the category may give ``sigmas``, ``flip_pairs``
    (0-based) and ``upper_body`` (0-based).
    """
    joints = tuple(str(joint) for joint in category["keypoints"])
    remarks = []
    sigmas = category.get("sigmas")
    if sigmas is None:
        sigmas = [_DEFAULT_SIGMA] * len(joints)
        remarks.append(f"{path.name}: joints of its own without sigmas; OKS uses {_DEFAULT_SIGMA} for every joint")
    pairs = category.get("flip_pairs")
    if pairs is None:
        pairs = _pairs_by_name(joints)
        shown = ", ".join(f"{joints[a]}/{joints[b]}" for a, b in pairs) or "none"
        remarks.append(f"{path.name}: flip pairs taken from the joints' names: {shown}")
    limbs = [(a - 1, b - 1) for a, b in category.get("skeleton") or []]
    skeleton = Skeleton(
        name=str(category.get("name", "custom")),
        joints=joints,
        flip_pairs=tuple((int(a), int(b)) for a, b in pairs),
        limbs=tuple((a, b) for a, b in limbs if 0 <= a < len(joints) and 0 <= b < len(joints)),
        sigmas=tuple(float(sigma) for sigma in sigmas),
        upper_body=tuple(category.get("upper_body") or ()),
    )
    return skeleton, remarks


def _pairs_by_name(joints: Sequence[str]) -> list[tuple[int, int]]:
    pairs = []
    for index, joint in enumerate(joints):
        mirrored = joint.replace("left", "right").replace("Left", "Right")
        if mirrored != joint and mirrored in joints:
            pairs.append((index, joints.index(mirrored)))
    return pairs
