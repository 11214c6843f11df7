"""Poses drawn on pictures: a person with joints and limbs, prediction beside annotation, sheets of many persons.

Pictures are uint8 (H, W, 3) RGB. Joints are in pixels of the picture they are drawn on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from efafnet.models.skeleton import Skeleton

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
Strength = Literal["sure", "unsure", "absent"]

# The person's left, right and middle: apart for every common colour blindness, and from skin, grass and sky.
LEFT: Colour = (255, 159, 28)
RIGHT: Colour = (46, 168, 255)
MIDDLE: Colour = (240, 240, 240)
WRONG: Colour = (255, 40, 90)
_DARK: Colour = (16, 16, 16)
_PAPER: Colour = (250, 250, 250)
_INK: Colour = (30, 30, 30)
_FAINT: Colour = (110, 110, 110)

# Positions are handed to OpenCV in sixteenths of a pixel.
_SHIFT = 4


@dataclass(frozen=True)
class Cell:
    """One person of a sheet."""

    prediction: Picture
    """(H, W, 3), with the predicted pose drawn."""
    annotation: Picture
    """(H, W, 3), with the annotated pose drawn."""
    caption: str
    """One line, for example the OKS."""
    detail: str
    """A second, fainter line, for example the ids."""


def side_colours(skeleton: Skeleton) -> list[Colour]:
    """Colour of each joint: by the side of the body it belongs to, told by its name."""
    return [LEFT if "left" in name else RIGHT if "right" in name else MIDDLE for name in skeleton.joints]


def draw_person(
    picture: Picture,
    joints_px: NDArray[np.floating],
    strength: Sequence[Strength],
    skeleton: Skeleton,
    *,
    guesses: bool = False,
    unit: float | None = None,
) -> Picture:
    """A copy of ``picture`` with a pose: joints (K, 2) filled where sure, hollow where unsure, left out where absent.

    A limb has the colour of its side, is drawn only between joints that are there, and thin where one is unsure; with
    ``guesses`` not at all where both are, since nothing is known of it. Everything has a dark outline, so that it shows
    on any background. ``unit`` is half the thickness of a limb in pixels, by default that of a picture of one person.
    """
    drawn = np.ascontiguousarray(picture).copy()
    colours = side_colours(skeleton)
    unit = max(1.0, drawn.shape[0] / 256) if unit is None else unit
    limbs = [(a, b) for a, b in skeleton.limbs if "absent" not in (strength[a], strength[b])]
    if guesses:
        limbs = [(a, b) for a, b in limbs if "sure" in (strength[a], strength[b])]
    for outline in (True, False):
        for a, b in limbs:
            weight = 1.0 if "unsure" in (strength[a], strength[b]) else 2.0
            colour = colours[a] if colours[a] == colours[b] else MIDDLE
            thickness = round(weight * unit) + (max(2, round(unit)) if outline else 0)
            _line(drawn, joints_px[a], joints_px[b], _DARK if outline else colour, thickness)
    for joint, place in enumerate(joints_px):
        if strength[joint] != "absent":
            _joint(drawn, place, colours[joint], unit, hollow=strength[joint] == "unsure")
    return drawn


def draw_box(picture: Picture, corners_px: NDArray[np.floating]) -> Picture:
    """A copy with the box between two corners (2, 2): thin and pale, it only says who is meant."""
    drawn = np.ascontiguousarray(picture).copy()
    start, end = _fixed(corners_px[0]), _fixed(corners_px[1])
    for colour, width in ((_DARK, 2), (_PAPER, 1)):
        cv2.rectangle(drawn, start, end, colour, width, cv2.LINE_AA, _SHIFT)
    return drawn


def draw_mistakes(
    picture: Picture, predicted_px: NDArray[np.floating], true_px: NDArray[np.floating], wrong: NDArray[np.bool_]
) -> Picture:
    """A copy with a line from each ``wrong`` (K,) predicted joint (K, 2) to a cross where it should be."""
    drawn = np.ascontiguousarray(picture).copy()
    unit = max(1.0, drawn.shape[0] / 256)
    arm = 3.2 * unit
    for start, end in zip(predicted_px[wrong], true_px[wrong], strict=True):
        for colour, extra in ((_DARK, 2), (WRONG, 0)):
            _line(drawn, start, end, colour, round(unit) + extra)
            for slope in (-1, 1):
                reach = np.array([arm, slope * arm])
                _line(drawn, end - reach, end + reach, colour, round(1.3 * unit) + extra)
    return drawn


def _joint(picture: Picture, place: NDArray[np.floating], colour: Colour, unit: float, *, hollow: bool) -> None:
    radius = 3.0 * unit
    _circle(picture, place, radius + max(1.0, 0.6 * unit), _DARK)
    _circle(picture, place, radius, colour)
    if hollow:
        _circle(picture, place, 0.55 * radius, _DARK)


def _fixed(place: NDArray[np.floating]) -> tuple[int, int]:
    # Far outside the picture is far outside, whatever the distance; OpenCV's fixed-point numbers would overflow.
    x, y = np.clip(np.nan_to_num(place, nan=-1e4), -1e4, 1e4) * 2**_SHIFT
    return round(float(x)), round(float(y))


def _line(picture: Picture, a: NDArray[np.floating], b: NDArray[np.floating], colour: Colour, width: int) -> None:
    cv2.line(picture, _fixed(a), _fixed(b), colour, width, cv2.LINE_AA, _SHIFT)


def _circle(picture: Picture, place: NDArray[np.floating], radius: float, colour: Colour) -> None:
    cv2.circle(picture, _fixed(place), round(radius * 2**_SHIFT), colour, -1, cv2.LINE_AA, _SHIFT)


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib carries this font on every system.
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


def contact_sheet(cells: Sequence[Cell], title: str, columns: int = 4) -> Picture:
    """All cells in rows of ``columns`` under a title and a legend; every cell shows prediction, then annotation."""
    assert cells, "a sheet needs at least one person"
    blocks = [_block(cell) for cell in cells]
    height, width = blocks[0].shape[:2]
    gap = 14
    columns = min(columns, len(blocks))
    rows = -(-len(blocks) // columns)
    header = 74
    sheet_width = max(columns * (width + gap) + gap, 880)
    sheet = np.full((header + rows * (height + gap), sheet_width, 3), _PAPER, np.uint8)
    for index, block in enumerate(blocks):
        top = header + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = block
    return _with_header(sheet, title, gap)


def _block(cell: Cell) -> Picture:
    pictures = np.concatenate(
        [cell.prediction, np.full((cell.prediction.shape[0], 3, 3), _PAPER, np.uint8), cell.annotation], axis=1
    )
    caption = Image.new("RGB", (pictures.shape[1], 40), _PAPER)
    pen = ImageDraw.Draw(caption)
    pen.text((2, 3), cell.caption, _INK, _font(14, bold=True))
    pen.text((2, 21), cell.detail, _FAINT, _font(12))
    return np.concatenate([pictures, np.asarray(caption)])


def _with_header(sheet: Picture, title: str, left: int) -> Picture:
    canvas = Image.fromarray(sheet)
    pen = ImageDraw.Draw(canvas)
    pen.text((left, 10), title, _INK, _font(18, bold=True))
    x = float(left)
    for mark, words in (
        (None, "each pair: prediction, annotation"),
        (LEFT, "person's left"),
        (RIGHT, "person's right"),
        (MIDDLE, "middle"),
        ("hollow", "unsure / hidden"),
        (WRONG, "should be at the cross"),
    ):
        x = _legend_entry(pen, x, 50.0, mark, words)
    return np.asarray(canvas)


def _legend_entry(pen: ImageDraw.ImageDraw, x: float, y: float, mark: Colour | str | None, words: str) -> float:
    if mark == WRONG:
        pen.line((x, y - 4, x + 9, y + 5), WRONG, 3)
        pen.line((x, y + 5, x + 9, y - 4), WRONG, 3)
    elif isinstance(mark, tuple):
        pen.ellipse((x, y - 5, x + 11, y + 6), mark, _DARK, 2)
    elif mark == "hollow":
        pen.ellipse((x, y - 5, x + 11, y + 6), _DARK, _FAINT, 3)
    x += 17 if mark is not None else 0
    pen.text((x, y - 8), words, _FAINT, _font(13))
    return x + pen.textlength(words, _font(13)) + 22


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture; the suffix (.png, .jpg) says the format. Raises OSError where it cannot be written."""
    Image.fromarray(picture).save(path, quality=90)
