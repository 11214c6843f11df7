"""Joints of annotations: x, y, v of each, whole files at once and odd ones one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.formats.values import MAX_PX, number, number_rows, shown


@dataclass(frozen=True)
class KeypointColumns:
    """Joints of N annotations."""

    values: NDArray[np.float64]
    """float64 (N, 3K): x, y, v; v is 0, 1 or 2."""
    sound: NDArray[np.bool_]
    """bool (N,): the row is as it should be; others may still be read by ``keypoints_of``."""
    fractions: NDArray[np.bool_]
    """bool (N, K): v lay between 0, 1 and 2, and is taken for 2."""


def keypoint_columns(rows: Sequence[Any], num_joints: int) -> KeypointColumns:
    """Check and convert the ``keypoints`` of all annotations."""
    values, sound = number_rows(rows, 3 * num_joints)
    triples = values.reshape(-1, num_joints, 3)
    v = triples[:, :, 2]
    near = (np.abs(triples[:, :, :2]) <= MAX_PX).all(axis=2)
    sound &= ((v >= 0) & (v <= 2) & near).all(axis=1)
    fractions = (v % 1 != 0) & sound[:, None]
    triples[:, :, 2] = np.where(fractions, 2.0, v)
    return KeypointColumns(values, sound, fractions)


def keypoints_of(value: Any, skeleton: Skeleton) -> list[float] | str:
    """3K numbers of one annotation, or what is wrong with them.

    Text that says numbers counts, and a list for each joint. A joint with v = 0 is absent whatever its place says:
    null, NaN; and so is one of which all three are null or NaN.
    """
    if not isinstance(value, list):
        return f"has keypoints {shown(value)}; it must be a list of numbers"
    if value and all(isinstance(joint, list) for joint in value):
        value = [item for joint in value for item in joint]
    needed = 3 * skeleton.num_joints
    if len(value) != needed:
        what = "" if not value or number(value[0]) is not None else f" ({shown(value[0], 30)}, …)"
        hint = "" if what else _hint(len(value), skeleton)
        return (
            f"has {len(value)} keypoint values{what}; skeleton {skeleton.name} needs {needed} (x, y, visibility of "
            f"{skeleton.num_joints} joints){hint}"
        )
    found: list[float] = []
    for joint, name in enumerate(skeleton.joints):
        given = value[3 * joint : 3 * joint + 3]
        x, y, v = (0.0, 0.0, 0.0) if all(map(_is_nothing, given)) else map(number, given)
        if v is None or not 0 <= v <= 2:
            absent = ". AI Challenger writes 3 for absent joints: make it 0" if v == 3 else ""
            rule = "v must be 0 (absent), 1 (hidden) or 2 (visible)"
            return f"has v={shown(given[2])} at joint {joint} ({name}); {rule}{absent}"
        places = [place if place is not None and abs(place) <= MAX_PX else None for place in (x, y)]
        if v > 0 and None in places:
            return (
                f"has x={shown(given[0])}, y={shown(given[1])} at joint {joint} ({name}); both must be finite numbers, "
                "or v 0 where it is absent"
            )
        found += [*(place or 0.0 for place in places), v if v % 1 == 0 else 2.0]
    return found


def _hint(length: int, skeleton: Skeleton) -> str:
    """What ``length`` numbers may be instead."""
    if length == 2 * skeleton.num_joints:
        return ": x and y without visibility?"
    if length > 0 and length % 3 == 0:
        return f": {length // 3} joints? The category's keypoints must name each, or skeleton=FILE"
    return ""


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
