"""Words on pictures: labels of persons, legends, captions."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from efafnet.pipelines.drawing.poses import DARK, LEFT, MIDDLE, PAPER, RIGHT, WRONG, Colour, Picture

INK: Colour = (30, 30, 30)
FAINT: Colour = (110, 110, 110)

Mark = Colour | str | None
"""What stands before the words of a legend: a joint's colour, "hollow", "cross", or nothing."""
Legend = tuple[tuple[Mark, str], ...]

SIDES: Legend = ((LEFT, "person's left"), (RIGHT, "person's right"), (MIDDLE, "middle"))
UNSURE: Legend = (("hollow", "unsure"),)
HIDDEN: Legend = (("hollow", "hidden"),)
COMPARED: Legend = (
    (None, "each pair: prediction, annotation"),
    *SIDES,
    ("hollow", "unsure / hidden"),
    ("cross", "should be at the cross"),
)


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of every picture, ``size`` pixels high."""
    # matplotlib carries this font on every system.
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)


@lru_cache(maxsize=4096)
def label(text: str, size: int, colour: Colour) -> Picture:
    """A plate of ``colour`` with dark words on it, as small as it can be. Shared: not to be changed."""
    letters = font(size)
    plate = Image.new("RGB", (round(letters.getlength(text)) + 4, size + 4), colour)
    ImageDraw.Draw(plate).text((2, size // 2 + 2), text, DARK, letters, anchor="lm")
    return np.asarray(plate)


def shortened(text: str, size: int, width: int, *, bold: bool = False) -> str:
    """``text``, with its middle left out where it is wider than ``width`` pixels: a path's end says most.

    Names of files may hold line ends and halves of characters, which no font has: a blank stands for each.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    letters = font(size, bold=bold)
    if letters.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: kept // 3]}…{text[len(text) - (kept - kept // 3) :]}"
        if letters.getlength(short) <= width:
            return short
    return "…"


def draw_legend(pen: ImageDraw.ImageDraw, x: float, y: float, legend: Legend) -> float:
    """Write marks with their words from ``x`` on, around the height ``y``; where they end."""
    for mark, words in legend:
        x = _entry(pen, x, y, mark, words)
    return x


def _entry(pen: ImageDraw.ImageDraw, x: float, y: float, mark: Mark, words: str) -> float:
    if mark == "cross":
        pen.line((x, y - 4, x + 9, y + 5), WRONG, 3)
        pen.line((x, y + 5, x + 9, y - 4), WRONG, 3)
    elif mark == "hollow":
        pen.ellipse((x, y - 5, x + 11, y + 6), DARK, FAINT, 3)
    elif isinstance(mark, tuple):
        pen.ellipse((x, y - 5, x + 11, y + 6), mark, DARK, 2)
    x += 17 if mark is not None else 0
    pen.text((x, y - 8), words, FAINT, font(13))
    return x + pen.textlength(words, font(13)) + 22


def with_footer(picture: Picture, words: str, legend: Legend) -> Picture:
    """A copy with a strip below that says whose picture it is and what its marks mean, as far as there is room."""
    height, width = picture.shape[:2]
    strip = Image.new("RGB", (width, 24), PAPER)
    pen = ImageDraw.Draw(strip)
    name = shortened(words, 13, width - 16)
    pen.text((8, 4), name, INK, font(13))
    needed = sum(17 * (mark is not None) + 22 + font(13).getlength(text) for mark, text in legend)
    start = 8 + pen.textlength(name, font(13)) + 24
    if start + needed <= width:
        draw_legend(pen, start, 12.0, legend)
    whole = np.empty((height + 24, width, 3), np.uint8)
    whole[:height], whole[height:] = picture, np.asarray(strip)
    return whole
