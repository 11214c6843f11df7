"""Predicted persons in COCO's results layout: the one reader of them, by columns.

Legend: D predictions, K joints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.formats.categories import named
from efafnet.pipelines.formats.images import ImageTable
from efafnet.pipelines.formats.rejects import EXAMPLES
from efafnet.pipelines.formats.values import integer, no_integer, number, number_rows, numbers, shown


@dataclass(frozen=True)
class Results:
    """D predicted persons."""

    image_id: NDArray[np.int64]
    """int64 (D,)."""
    keypoints: NDArray[np.float64]
    """float64 (D, K, 3): x, y in pixels, and the joint's score."""
    score: NDArray[np.float64]
    """float64 (D,)."""
    box_xywh_px: NDArray[np.float64] | None
    """float64 (D, 4); None where they were not asked for."""


@dataclass(frozen=True)
class Names:
    """What results may call the images and the categories of annotations."""

    images: ImageTable
    categories: Mapping[int, str]
    """Names by number."""

    def numbered(self, entries: Iterable[Mapping[str, Any]]) -> list[Any]:
        """The entries with ids where they have names, as detections may have them too; what is unknown is left.

        Raises ValueError for text that is the name of one image and the id of another.
        """
        return [self._numbered(entry) if _is_named(entry) else entry for entry in entries]

    def _numbered(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(entry)
        image, category = entry.get("image_id"), entry.get("category_id")
        if isinstance(image, str):
            if why := self.images.ambiguous(image):
                raise ValueError(f"image_id {shown(image)} {why}")
            found = self.images.find_from_outside(image)
            changed["image_id"] = image if found is None else found.image_id
        if isinstance(category, str) and integer(category) is None:
            number = named(self.categories, category)
            changed["category_id"] = category if number is None else number
        return changed


def _is_named(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    return isinstance(entry.get("image_id"), str) or isinstance(entry.get("category_id"), str)


def parse_results(
    entries: Sequence[Mapping[str, Any]], skeleton: Skeleton, categories: Sequence[int], *, boxed: bool = False
) -> Results:
    """Check results of the ``categories``, with a ``bbox`` each where they must be ``boxed``.

    Raises ValueError naming the first three entries with a missing field, another category, another number of joints,
    or a value that is no finite number.
    """
    problems: list[str] = []
    # Asking a plain type first: that of a mapping takes ten times as long.
    rows = [row if type(row) is dict or isinstance(row, Mapping) else {} for row in entries]
    image_ids = [_image_id(row.get("image_id")) for row in rows]
    scores = [_score(row.get("score")) for row in rows]
    keypoints, sound = number_rows([row.get("keypoints") for row in rows], 3 * skeleton.num_joints)
    boxes: NDArray[np.float64] | None = None
    if boxed:
        boxes, sound_boxes = number_rows([row.get("bbox") for row in rows], 4)
        sound = sound & sound_boxes & (boxes[:, 2:] >= 0).all(axis=1)
    for n in np.flatnonzero(~sound).tolist():
        _repair(n, rows[n], keypoints, boxes)
    wanted = [row.get("category_id") in categories for row in rows]
    columns = (image_ids, scores, wanted, sound.tolist())
    for n, (image_id, score, is_wanted, is_sound) in enumerate(zip(*columns, strict=True)):
        if is_wanted and is_sound and image_id is not None and score is not None:
            continue
        if problem := _problem(rows[n], skeleton, categories, boxed=boxed):
            problems.append(f"results entry {n}: {problem}")
    if problems:
        more = f"; and {len(problems) - EXAMPLES} more of {len(rows)}" if len(problems) > EXAMPLES else ""
        raise ValueError("; ".join(problems[:EXAMPLES]) + more)
    return Results(
        np.array(image_ids, np.int64),
        keypoints.reshape(len(rows), skeleton.num_joints, 3),
        np.array(scores, np.float64),
        boxes,
    )


def _image_id(value: Any) -> int | None:
    return value if type(value) is int and -(2**63) <= value < 2**63 else integer(value)


def _score(value: Any) -> float | None:
    return value if type(value) is float and value - value == 0 else number(value)


def _flat(value: Any) -> Any:
    nested = isinstance(value, list) and value and all(isinstance(joint, list) for joint in value)
    return [item for joint in value for item in joint] if nested else value


def _repair(n: int, row: Mapping[str, Any], keypoints: NDArray[np.float64], boxes: NDArray[np.float64] | None) -> None:
    """Fill row ``n`` value by value where its numbers are text, or its joints lists of their own."""
    for column, value in ((keypoints, _flat(row.get("keypoints"))), (boxes, row.get("bbox"))):
        if column is not None and isinstance(value, list) and len(value) == column.shape[1]:
            found = [number(item) for item in value]
            column[n] = [0.0 if item is None else item for item in found]


def _problem(row: Mapping[str, Any], skeleton: Skeleton, categories: Sequence[int], *, boxed: bool) -> str:
    """What is wrong with one entry; empty where it only looked odd."""
    for name in ("keypoints", "category_id", "image_id", "score"):
        if row.get(name) is None:
            null = f" ({name} is null)" if name in row else ""
            return f"no {name!r}{null}; a result has image_id, category_id, keypoints and score"
    category = integer(row["category_id"])
    if category not in categories:
        wanted = ", ".join(map(str, sorted(categories)))
        return f"category {shown(row['category_id'])} is not the person category, {wanted}"
    image_id, score, keypoints = row["image_id"], row["score"], _flat(row["keypoints"])
    if integer(image_id) is None:
        unnamed = "; no single image of the annotations is called so" if isinstance(image_id, str) else ""
        got = f"got {shown(image_id)} and {shown(score)}: {no_integer(image_id)}{unnamed}"
        return f"image_id and score must be numbers; {got}"
    if not isinstance(keypoints, list):
        return f"keypoints must be a list; got {shown(keypoints)}"
    needed = 3 * skeleton.num_joints
    if len(keypoints) != needed:
        pairs = ": x and y without score?" if 3 * len(keypoints) == 2 * needed else ""
        return f"{len(keypoints)} keypoint values; the skeleton has {needed} (x, y, score of each joint){pairs}"
    for place, value in enumerate((*keypoints, score)):
        if number(value) is None:
            what = "score" if place == needed else f"{('x', 'y', 'score')[place % 3]} of {skeleton.joints[place // 3]}"
            return (
                f"NaN or infinity among keypoints or score ({score}), or no number at all: {shown(value)} as {what}; a "
                "joint that was not found has numbers too, and a low score"
            )
    return _box_problem(row.get("bbox")) if boxed else ""


def _box_problem(box: Any) -> str:
    if box is None:
        return "no bbox, though the first entry has one; give all entries one or none, or result_boxes=ignore"
    values = numbers(box, 4)
    if values is None:
        return f"bbox {shown(box)} is not four finite numbers"
    return f"bbox {shown(box)} has a negative width or height" if min(values[2:]) < 0 else ""
