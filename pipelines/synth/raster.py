"""Drawing of solids by depth: for each pixel the nearest solid, and how near."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.synth.solids import Float32, Screen


@dataclass(frozen=True)
class Depth:
    """What a thing covers inside one window of the picture, ``oversampling`` x ``oversampling`` samples per pixel."""

    left: int
    """First column of the window in the picture, px."""
    top: int
    """First row of the window in the picture, px."""
    oversampling: int
    z: Float32
    """(h, w): nearness in px, -inf where nothing is."""
    solid: NDArray[np.int16]
    """(h, w): index of the nearest solid, -1 where nothing is."""


def draw(screen: Screen, width: int, height: int, oversampling: int) -> Depth | None:
    """Draw solids into the part of a ``width`` x ``height`` picture that they reach; None when they miss it.

    Pixel (x, y) covers [x - ½, x + ½) x [y - ½, y + ½), so joints and samples share the pixel-centre convention.
    """
    left, top = max(0, int(screen.boxes[:, 0].min())), max(0, int(screen.boxes[:, 1].min()))
    right, bottom = min(width, int(screen.boxes[:, 2].max())), min(height, int(screen.boxes[:, 3].max()))
    if right <= left or bottom <= top:
        return None
    n = oversampling
    z = np.full(((bottom - top) * n, (right - left) * n), -np.inf, dtype=np.float32)
    solid = np.full(z.shape, -1, dtype=np.int16)
    offset = (np.arange(n) + 0.5) / n - 0.5
    columns = (np.arange(left, right)[:, None] + offset).ravel().astype(np.float32)
    rows = (np.arange(top, bottom)[:, None] + offset).ravel().astype(np.float32)
    limits = (right - left, bottom - top, right - left, bottom - top)
    windows = np.clip(screen.boxes - (left, top, left, top), 0, limits) * n
    terms = _terms(screen, columns, rows)
    depth = Depth(left, top, n, z, solid)
    with np.errstate(invalid="ignore"):
        for index in np.flatnonzero((windows[:, 2:] > windows[:, :2]).all(axis=1)).tolist():
            (_paint_face if terms.flat[index] else _paint_quadric)(depth, terms, index, windows[index].tolist())
    return depth


_Edges = tuple[Float32, Float32, float, Float32, Float32, float]


@dataclass(frozen=True)
class _Terms:
    """The polynomials of every solid, split by what depends on the column x, the row y, or both. Legend: S, w, h.

    z = line_x + line_y + sqrt(square_x + square_y + cross_y · x), and along the solid's axis a(x, y, z) = along_x +
    along_y + along_z · z within ±half.
    """

    flat: list[bool]
    x: Float32
    square_x: Float32
    square_y: Float32
    cross_y: Float32
    line_x: Float32
    line_y: Float32
    along_x: Float32
    along_y: Float32
    along_z: list[float]
    half: list[float]
    faces: dict[int, _Edges]


def _terms(screen: Screen, columns: Float32, rows: Float32) -> _Terms:
    m, g, k = screen.quadratic, screen.linear, screen.constant
    curved = ~screen.flat
    a = np.where(curved, m[:, 2, 2], 1.0)
    gz = np.where(curved, a, g[:, 2])
    slope_x = -np.where(curved, m[:, 0, 2], g[:, 0]) / gz
    slope_y = -np.where(curved, m[:, 1, 2], g[:, 1]) / gz
    # The discriminant over M_zz²: (M_xz² - M_zz·M_xx) x² + … and so on, from q·M·q + 2 g·q + k = 0 solved for z.
    inverse = np.where(curved, 1 / (a * a), 0.0)
    quadratic = np.array((
        m[:, 0, 2] ** 2 - a * m[:, 0, 0], m[:, 1, 2] ** 2 - a * m[:, 1, 1],
        2 * (m[:, 0, 2] * m[:, 1, 2] - a * m[:, 0, 1]),
        2 * (m[:, 0, 2] * g[:, 2] - a * g[:, 0]), 2 * (m[:, 1, 2] * g[:, 2] - a * g[:, 1]), g[:, 2] ** 2 - a * k,
    ))  # fmt: skip
    axis = screen.slab_axes[:, 0]
    offset = screen.centres[:, 2] - np.where(curved, g[:, 2] / a, 0.0)
    start = -screen.slab_middle[:, 0] - axis[:, 2] * screen.centres[:, 2]
    table = (*(quadratic * inverse), slope_x, slope_y, offset, axis[:, 0], axis[:, 1], start)
    xx, yy, xy, x1, y1, k0, lx, ly, l0, ax, ay, a0 = np.array(table).astype(np.float32)[:, :, None]
    middle = screen.centres.astype(np.float32)
    x, y = columns - middle[:, :1], rows - middle[:, 1:2]
    return _Terms(
        screen.flat.tolist(), x, (xx * x + x1) * x + k0, (yy * y + y1) * y, xy * y, lx * x + l0, ly * y, ax * x + a0,
        ay * y, axis[:, 2].tolist(), screen.slab_half[:, 0].tolist(), _face_terms(screen, x, y),
    )  # fmt: skip


def _face_terms(screen: Screen, x: Float32, y: Float32) -> dict[int, _Edges]:
    """Per face: its two edge coordinates, each as (per column, per row), and how far they reach."""
    found: dict[int, _Edges] = {}
    for index in np.flatnonzero(screen.flat).tolist():
        (a0, a1, _), (b0, b1, _) = screen.slab_axes[index].tolist()
        area = a0 * b1 - a1 * b0
        area = area if abs(area) > 1e-6 else 1e-6
        first = (b1 / area * x[index], -b0 / area * y[index])
        second = (-a1 / area * x[index], a0 / area * y[index])
        reach = screen.slab_half[index].tolist()
        found[index] = (*first, reach[0], *second, reach[1])
    return found


def _paint_quadric(depth: Depth, terms: _Terms, index: int, window: list[int]) -> None:
    x0, y0, x1, y1 = window
    near = terms.square_y[index, y0:y1, None] + terms.square_x[index, x0:x1]
    near += terms.cross_y[index, y0:y1, None] * terms.x[index, x0:x1]
    np.sqrt(near, out=near)  # NaN outside the outline, and NaN is never nearer
    near += terms.line_y[index, y0:y1, None]
    near += terms.line_x[index, x0:x1]
    nearest = depth.z[y0:y1, x0:x1]
    closer = near > nearest
    if terms.half[index]:
        along = near * terms.along_z[index]
        along += terms.along_y[index, y0:y1, None]
        along += terms.along_x[index, x0:x1]
        closer &= np.abs(along, out=along) <= terms.half[index]
    np.copyto(nearest, near, where=closer)
    np.copyto(depth.solid[y0:y1, x0:x1], index, where=closer, casting="unsafe")


def _paint_face(depth: Depth, terms: _Terms, index: int, window: list[int]) -> None:
    x0, y0, x1, y1 = window
    x_first, y_first, first, x_second, y_second, second = terms.faces[index]
    near = terms.line_y[index, y0:y1, None] + terms.line_x[index, x0:x1]
    nearest = depth.z[y0:y1, x0:x1]
    closer = near > nearest
    closer &= np.abs(x_first[x0:x1] + y_first[y0:y1, None]) <= first
    closer &= np.abs(x_second[x0:x1] + y_second[y0:y1, None]) <= second
    np.copyto(nearest, near, where=closer)
    np.copyto(depth.solid[y0:y1, x0:x1], index, where=closer, casting="unsafe")
