"""Poses drawn on pictures: a person with joints and limbs, its box and label, and mistakes beside the truth.

Pictures are uint8 (H, W, 3) RGB. Joints are in pixels of the picture they are drawn on, the centre of the first at 0.
Legend: K joints. What is called ``draw`` gives a copy; what is called ``paint`` changes the picture it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Strength = Literal["sure", "unsure", "absent"]
ANNOTATED: tuple[Strength, ...] = ("absent", "unsure", "sure")
"""How annotated joints are drawn, by COCO's visibility: 0 absent, 1 hidden, 2 visible."""
Point = tuple[int, int]
"""Position in sixteenths of a pixel, as OpenCV draws it."""

# The person's left, right and middle: apart for every common colour blindness, and from skin, grass and sky.
LEFT: Colour = (255, 159, 28)
RIGHT: Colour = (46, 168, 255)
MIDDLE: Colour = (240, 240, 240)
WRONG: Colour = (255, 40, 90)
DARK: Colour = (16, 16, 16)
PAPER: Colour = (250, 250, 250)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_SHIFT = 4
_FAR_PX = 1e4
"""Far outside the picture is far outside, whatever the distance; OpenCV's fixed-point numbers would overflow."""


def side_colours(skeleton: Skeleton) -> list[Colour]:
    """Colour of each joint: by the side of the body it belongs to, told by its name."""
    return [{"left": LEFT, "right": RIGHT, "middle": MIDDLE}[side] for side in skeleton.sides]


def line_unit(size_px: float) -> float:
    """Half the thickness of limbs, in pixels, for a person ``size_px`` long: who is far away is not painted over."""
    return float(np.clip(size_px / 200, 0.35, 4.0))


def draw_person(
    picture: Picture,
    joints_px: NDArray[np.floating],
    strength: Sequence[Strength],
    skeleton: Skeleton,
    *,
    guesses: bool = False,
) -> Picture:
    """A copy of ``picture`` with a pose; see :func:`paint_person`."""
    drawn = copied(picture)
    paint_person(drawn, joints_px, strength, skeleton, guesses=guesses)
    return drawn


def paint_person(
    picture: Picture,
    joints_px: NDArray[np.floating],
    strength: Sequence[Strength],
    skeleton: Skeleton,
    *,
    guesses: bool = False,
    unit: float | None = None,
) -> None:
    """Draw a pose: joints (K, 2) filled where sure, hollow where unsure, left out where absent.

    A limb has the colour of its side, is drawn only between joints that are there, and thin where one is unsure; with
    ``guesses`` not at all where both are, since nothing is known of it. Everything has a dark outline, so that it shows
    on any background. ``unit`` is half the thickness of a limb in pixels, by default that of a picture of one person.
    """
    colours, points = side_colours(skeleton), fixed_points(joints_px)
    unit = max(1.0, picture.shape[0] / 256) if unit is None else unit
    edge = 1 if unit < 0.6 else max(2, round(unit))
    limbs = [(a, b) for a, b in skeleton.limbs if "absent" not in (strength[a], strength[b])]
    if guesses:
        limbs = [(a, b) for a, b in limbs if "sure" in (strength[a], strength[b])]
    for outline in (True, False):
        for a, b in limbs:
            weight = 1.0 if "unsure" in (strength[a], strength[b]) else 2.0
            colour = colours[a] if colours[a] == colours[b] else MIDDLE
            thickness = max(1, round(weight * unit)) + (edge if outline else 0)
            _line(picture, points[a], points[b], DARK if outline else colour, thickness)
    for point, colour, sureness in zip(points, colours, strength, strict=True):
        if sureness != "absent":
            _joint(picture, point, colour, unit, hollow=sureness == "unsure")


def draw_box(picture: Picture, corners_px: NDArray[np.floating]) -> Picture:
    """A copy with the box between two corners (2, 2): thin and pale, it only says who is meant."""
    drawn = copied(picture)
    paint_box(drawn, corners_px, PAPER)
    return drawn


def paint_box(picture: Picture, corners_px: NDArray[np.floating], colour: Colour) -> None:
    """Draw the box between two corners (2, 2), one pixel wide on a dark edge."""
    start, end = fixed_points(corners_px)
    for tone, width in ((DARK, 2), (colour, 1)):
        cv2.rectangle(picture, start, end, tone, width, cv2.LINE_AA, _SHIFT)


def draw_mistakes(
    picture: Picture, predicted_px: NDArray[np.floating], true_px: NDArray[np.floating], wrong: NDArray[np.bool_]
) -> Picture:
    """A copy with a line from each ``wrong`` (K,) predicted joint (K, 2) to a cross where it should be."""
    drawn = copied(picture)
    unit = max(1.0, drawn.shape[0] / 256)
    arm = round(3.2 * unit * 2**_SHIFT)
    for start, (x, y) in zip(fixed_points(predicted_px[wrong]), fixed_points(true_px[wrong]), strict=True):
        for colour, extra in ((DARK, 2), (WRONG, 0)):
            _line(drawn, start, (x, y), colour, round(unit) + extra)
            for slope in (-arm, arm):
                _line(drawn, (x - arm, y - slope), (x + arm, y + slope), colour, round(1.3 * unit) + extra)
    return drawn


def copied(picture: Picture) -> Picture:
    """A copy that OpenCV can draw on."""
    return np.array(picture, np.uint8, order="C")


def fixed_points(places_px: NDArray[np.floating]) -> list[Point]:
    """Positions (N, 2) as OpenCV takes them, converted all at once; what is no number lies far outside."""
    places = np.clip(np.nan_to_num(places_px, nan=-_FAR_PX), -_FAR_PX, _FAR_PX)
    return [(x, y) for x, y in np.rint(places * 2**_SHIFT).astype(np.int64).tolist()]


def _joint(picture: Picture, point: Point, colour: Colour, unit: float, *, hollow: bool) -> None:
    radius = 3.0 * unit
    _circle(picture, point, radius + (0.5 if unit < 0.6 else max(1.0, 0.6 * unit)), DARK)
    _circle(picture, point, radius, colour)
    if hollow:
        _circle(picture, point, 0.55 * radius, DARK)


def _line(picture: Picture, a: Point, b: Point, colour: Colour, width: int) -> None:
    cv2.line(picture, a, b, colour, width, cv2.LINE_AA, _SHIFT)


def _circle(picture: Picture, point: Point, radius: float, colour: Colour) -> None:
    cv2.circle(picture, point, round(radius * 2**_SHIFT), colour, -1, cv2.LINE_AA, _SHIFT)


def encoded(picture: Picture, suffix: str) -> bytes:
    """A picture as a file's bytes; ``suffix`` says the format. Raises ValueError for one that is no picture's."""
    if suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"a picture's file ends in {', '.join(PICTURE_SUFFIXES)}; got {suffix!r}")
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix.lower() != ".png" else []
    done, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    assert done
    return data.tobytes()


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture; the suffix (.png, .jpg) says the format. Raises OSError where it cannot be written."""
    path.write_bytes(encoded(picture, path.suffix))
