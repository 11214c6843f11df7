"""Sheets of many persons: pictures side by side with their captions, under a title and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from efafnet.pipelines.drawing.poses import PAPER, Picture
from efafnet.pipelines.drawing.text import FAINT, INK, Legend, draw_legend, font, shortened

_GAP_PX = 14
_HEADER_PX = 74
_LEAST_WIDTH_PX = 880
"""A legend's."""


@dataclass(frozen=True)
class Cell:
    """One person of a sheet."""

    pictures: tuple[Picture, ...]
    """(H, W, 3) each, all of one height: shown side by side."""
    caption: str
    """One line, for example the OKS and the file's name."""
    detail: str
    """A second, fainter line, for example the ids."""


def contact_sheet(cells: Sequence[Cell], title: str, legend: Legend, columns: int = 4) -> Picture:
    """All cells, of equal size, in rows of ``columns``."""
    assert cells, "a sheet needs at least one person"
    blocks = [_block(cell) for cell in cells]
    height, width = blocks[0].shape[:2]
    columns = min(columns, len(blocks))
    rows = -(-len(blocks) // columns)
    sheet_width = max(columns * (width + _GAP_PX) + _GAP_PX, _LEAST_WIDTH_PX)
    sheet = np.full((_HEADER_PX + rows * (height + _GAP_PX), sheet_width, 3), PAPER, np.uint8)
    for index, block in enumerate(blocks):
        top = _HEADER_PX + (index // columns) * (height + _GAP_PX)
        left = _GAP_PX + (index % columns) * (width + _GAP_PX)
        sheet[top : top + height, left : left + width] = block
    canvas = Image.fromarray(sheet)
    pen = ImageDraw.Draw(canvas)
    pen.text((_GAP_PX, 10), shortened(title, 18, sheet_width - 2 * _GAP_PX, bold=True), INK, font(18, bold=True))
    draw_legend(pen, _GAP_PX, 50.0, legend)
    return np.asarray(canvas)


def _block(cell: Cell) -> Picture:
    height = cell.pictures[0].shape[0]
    between = np.full((height, 3, 3), PAPER, np.uint8)
    pictures = np.concatenate([part for picture in cell.pictures for part in (between, picture)][1:], axis=1)
    width = pictures.shape[1]
    caption = Image.new("RGB", (width, 40), PAPER)
    pen = ImageDraw.Draw(caption)
    pen.text((2, 3), shortened(cell.caption, 14, width - 4, bold=True), INK, font(14, bold=True))
    pen.text((2, 21), shortened(cell.detail, 12, width - 4), FAINT, font(12))
    return np.concatenate([pictures, np.asarray(caption)])
