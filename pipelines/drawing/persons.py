"""All persons of one picture: boxes in colours of their ids, poses, labels with id, name and score.

Legend: K joints. Coordinates are pixels of the image as it is given, x to the right and y down, the centre of the first
pixel at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.drawing.poses import (
    PAPER,
    Colour,
    Picture,
    Strength,
    copied,
    line_unit,
    paint_box,
    paint_person,
)
from efafnet.pipelines.drawing.text import label

Label = Literal["name", "id", "score", "joints"]
"""What is written at a person: its name, its id, its score, and its joints' names."""

# Paul Tol's light scheme: told apart with every common colour blindness, and pale enough for dark letters.
_IDENTITIES: tuple[Colour, ...] = (
    (153, 221, 255), (238, 221, 136), (255, 170, 187), (187, 204, 51), (119, 170, 221), (238, 136, 102),
    (68, 187, 153), (221, 221, 221), (170, 170, 0),
)  # fmt: skip
_READABLE_PX = 96
"""Size from which a drawn person's joints can be told apart."""
VISIBLE_FROM = 0.5
"""Probability from which a joint is shown as visible."""
_MOST_ENLARGED = 4
_WIDEST_PX = 2560
"""No picture is enlarged beyond this."""
_NAMED_FROM_PX = 180
"""Size from which joints' names do not hide the person."""

Rectangle = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Pose:
    """One person to draw."""

    joints_px: NDArray[np.floating]
    """(K, 2), x and y."""
    joint_scores: NDArray[np.floating]
    """(K,), about 0 to 1."""
    box_xywh_px: NDArray[np.floating] | None = None
    """(4,): left, top, width, height."""
    score: float | None = None
    identity: int | None = None
    """Its id, for example that of a track; persons of one id have one colour."""
    name: str = ""
    visible: NDArray[np.floating] | None = None
    """(K,), probability that each joint is visible, NaN where it is not known; decides what is sure, if given."""


def readable_scale(sizes_px: Sequence[float], width: int, height: int) -> int:
    """How many times an image of ``width`` x ``height`` is enlarged so that most of its persons can be made out.

    ``sizes_px`` are the longer sides of the persons' boxes.
    """
    if not len(sizes_px):
        return 1
    small = max(1.0, float(np.quantile(np.asarray(sizes_px), 0.25)))
    return int(max(1, min(np.ceil(_READABLE_PX / small), _MOST_ENLARGED, _WIDEST_PX // max(width, height))))


def draw_poses(
    image_rgb: Picture,
    poses: Sequence[Pose],
    skeleton: Skeleton,
    *,
    sure_from: float,
    labels: Sequence[Label] = ("name", "id", "score"),
    scale: int | Literal["auto"] = 1,
) -> Picture:
    """A copy of an image with all persons, the best on top; joints scored below ``sure_from`` are hollow.

    Where probabilities of being visible are given, joints below :data:`VISIBLE_FROM` are hollow instead. Joints scored
    0 or less are left out.

    ``scale`` enlarges the picture that many times before it is drawn on, auto as far as small persons need it. Lines
    and letters follow the size of each person.
    """
    height, width = image_rgb.shape[:2]
    sizes = [_size(pose) for pose in poses]
    factor = readable_scale(sizes, width, height) if scale == "auto" else scale
    drawn = copied(image_rgb)
    if factor > 1:
        drawn = np.asarray(cv2.resize(drawn, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)
    order = sorted(range(len(poses)), key=lambda n: (poses[n].score or 0.0, -sizes[n]))
    for n in order:
        pose = poses[n]
        if pose.box_xywh_px is not None:
            paint_box(drawn, _enlarged(_corners(pose.box_xywh_px), factor), _colour(pose.identity))
        joints = _enlarged(pose.joints_px, factor)
        paint_person(
            drawn, joints, _strengths(pose, sure_from), skeleton, guesses=True, unit=line_unit(factor * sizes[n])
        )
    taken: list[Rectangle] = []
    for n in reversed(order):
        _paint_labels(drawn, poses[n], skeleton, labels, factor, sure_from, taken)
    return drawn


def _strengths(pose: Pose, sure_from: float) -> list[Strength]:
    """A joint scored 0 or less was not found, and its place means nothing."""
    found = zip(pose.joint_scores.tolist(), _is_sure(pose, sure_from), strict=True)
    return ["absent" if score <= 0 else "sure" if sure else "unsure" for score, sure in found]


def _is_sure(pose: Pose, sure_from: float) -> list[bool]:
    if pose.visible is None:
        return [score >= sure_from for score in pose.joint_scores.tolist()]
    return [chance >= VISIBLE_FROM for chance in pose.visible.tolist()]


def _corners(box_xywh_px: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.stack([box_xywh_px[:2], box_xywh_px[:2] + box_xywh_px[2:]])


def _enlarged(places_px: NDArray[np.floating], factor: int) -> NDArray[np.floating]:
    """Positions on the enlarged picture: the image's outer edge is at -0.5 before and after."""
    return np.asarray((places_px + 0.5) * factor - 0.5)


def _size(pose: Pose) -> float:
    """The longer side of the box, or of the joints' extent, in pixels."""
    if pose.box_xywh_px is not None:
        return float(np.max(pose.box_xywh_px[2:]))
    return float(np.ptp(pose.joints_px, axis=0).max())


def _colour(identity: int | None) -> Colour:
    return PAPER if identity is None else _IDENTITIES[identity % len(_IDENTITIES)]


def _paint_labels(
    picture: Picture,
    pose: Pose,
    skeleton: Skeleton,
    labels: Sequence[Label],
    factor: int,
    sure_from: float,
    taken: list[Rectangle],
) -> None:
    size, colour = factor * _size(pose), _colour(pose.identity)
    letters = int(np.clip(round(size / 14), 9, 18))
    if text := _text(pose, labels):
        corners = _corners(pose.box_xywh_px) if pose.box_xywh_px is not None else _extent(pose.joints_px)
        (left, top), (right, bottom) = np.rint(_enlarged(corners, factor)).astype(int).tolist()
        plate = label(text, letters, colour)
        high, wide = plate.shape[:2]
        # Above the box, below it, at its right: where no other label is, and what is below stays seen.
        places = [(left, top - high), (left, bottom), (right, top), (right - wide, top - high), (left, top)]
        _put(picture, plate, places, taken)
    if "joints" in labels and size >= _NAMED_FROM_PX:
        points = np.rint(_enlarged(pose.joints_px, factor)).astype(int).tolist()
        for (x, y), name, sure in zip(points, skeleton.joints, _is_sure(pose, sure_from), strict=True):
            if sure:
                _put(picture, label(name, 9, PAPER), [(x + 6, y - 6)], taken)


def _extent(joints_px: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.stack([joints_px.min(axis=0), joints_px.max(axis=0)])


def _text(pose: Pose, labels: Sequence[Label]) -> str:
    words = [pose.name] if "name" in labels and pose.name else []
    words += [f"{pose.identity}"] if "id" in labels and pose.identity is not None else []
    words += [f"{pose.score:.2f}"] if "score" in labels and pose.score is not None else []
    return " ".join(words)


def _put(picture: Picture, plate: Picture, places: Sequence[tuple[int, int]], taken: list[Rectangle]) -> None:
    """Lay a label on the first of the ``places`` (left, top) that is free, else on the first; never outside."""
    high, wide = plate.shape[:2]
    bottom, right = picture.shape[0] - high, picture.shape[1] - wide
    if bottom < 0 or right < 0:
        return
    inside = [(min(max(x, 0), right), min(max(y, 0), bottom)) for x, y in places]
    free = (place for place in inside if not any(_meet(place, wide, high, other) for other in taken))
    x, y = next(free, inside[0])
    picture[y : y + high, x : x + wide] = plate
    taken.append((x, y, x + wide, y + high))


def _meet(place: tuple[int, int], wide: int, high: int, other: Rectangle) -> bool:
    x, y = place
    return x < other[2] and other[0] < x + wide and y < other[3] and other[1] < y + high
