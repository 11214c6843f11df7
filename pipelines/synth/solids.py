"""Solids made of quadrics and flat faces: ellipsoids, tapered cones, boxes; how they are seen, and drawn by depth.

A solid is built in metres in the world of ``kinematics`` and seen by a camera; the drawing gives, for each pixel, which
solid is nearest and how near. Screen axes: x to the right, y DOWN, z to the viewer, all in pixels.

Legend: S solids, B frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Float32 = NDArray[np.float32]

Spot = tuple[int, float, float, float]
"""A place: the index of a frame, then x, y and z in it, metres."""
Tag = tuple[int, int, int]
"""Surface kind, fabric, and the frame that the texture follows."""


@dataclass
class Model:
    """A thing being built out of solids, each placed in one of the thing's frames. Lengths in metres.

    Rows are plain numbers because a person has sixty solids: they become arrays once, in ``see``.
    """

    ellipsoids: list[tuple[float, ...]] = field(default_factory=list)
    """spot (4), frame of the axes, radii (3), tag (3)"""
    cones: list[tuple[float, ...]] = field(default_factory=list)
    """spot of the start (4), spot of the end (4), frame and axis of the width, radii (2), flatness, tag (3)"""
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    """spot of the centre (4), half edges (3), tag (3)"""

    def ellipsoid(self, spot: Spot, radii: tuple[float, float, float], tag: Tag, axes: int | None = None) -> None:
        """Add an ellipsoid along the axes of its frame, or of frame ``axes``."""
        self.ellipsoids.append((*spot, spot[0] if axes is None else axes, *radii, *tag))

    def cone(
        self, start: Spot, end: Spot, radii: tuple[float, float], tag: Tag, flatness: float = 1.0, width: int = 0
    ) -> None:
        """Add the side of a cone; its ends are open, so put an ellipsoid on each.

        ``width`` is the axis of the start's frame that the radii are measured along; across it they are ``flatness``
        times as large.
        """
        self.cones.append((*start, *end, start[0], width, *radii, flatness, *tag))

    def box(self, spot: Spot, half: tuple[float, float, float], tag: Tag) -> None:
        """Add a box with half edges ``half`` along the axes of its frame."""
        self.boxes.append((*spot, *half, *tag))


@dataclass(frozen=True)
class Frames:
    """The frames of a thing: origins (B, 3) in metres and axes (B, 3, 3) as columns, in the world."""

    origins: Array
    rotations: Array

    def resolve(self, spots: Array) -> Array:
        """World points (N, 3) of spots (N, 4)."""
        frame = spots[:, 0].astype(np.intp)
        points: Array = self.origins[frame] + (self.rotations[frame] @ spots[:, 1:, None])[..., 0]
        return points


@dataclass(frozen=True)
class Camera:
    """A camera aimed at one thing: it turns the world by ``rotation`` and looks along -z from ``distance`` metres."""

    rotation: Array
    """(3, 3), world to camera axes."""
    centre: Array
    """(3,), the point of the world that the camera is aimed at, metres."""
    distance: float
    """From the camera to ``centre``, metres."""
    scale: float
    """Pixels per metre at ``centre``."""
    principal: tuple[float, float]
    """Where ``centre`` appears, x and y in pixels."""

    def project(self, points: Array) -> tuple[Array, Array]:
        """Project points (N, 3) to screen points (N, 3) in pixels; also the scale (N,) in px/m at each of them."""
        seen = (points - self.centre) @ self.rotation.T
        # Nothing comes nearer than a fifth of the distance: a hand stretched to the lens must not explode.
        scale = self.scale * self.distance / np.maximum(self.distance - seen[:, 2], 0.2 * self.distance)
        screen = np.empty_like(seen)
        screen[:, 0] = self.principal[0] + scale * seen[:, 0]
        screen[:, 1] = self.principal[1] - scale * seen[:, 1]
        screen[:, 2] = self.scale * seen[:, 2]
        return screen, scale

    def lens(self, screen: Array, scale: Array) -> tuple[Array, Array]:
        """The projection near screen points (N, 3) as linear maps (N, 3, 3): camera axes to screen, and back.

        Derivatives of ``project``: what lies off the camera's axis is seen obliquely, so depth shifts it outwards.
        """
        reach = self.scale * self.distance
        tilt_x, tilt_y = (screen[:, 0] - self.principal[0]) / reach, (self.principal[1] - screen[:, 1]) / reach
        forth, back = np.zeros((2, len(scale), 3, 3))
        forth[:, 0, 0], forth[:, 1, 1], forth[:, 2, 2] = scale, -scale, self.scale
        forth[:, 0, 2], forth[:, 1, 2] = scale * tilt_x, -scale * tilt_y
        back[:, 0, 0], back[:, 1, 1], back[:, 2, 2] = 1 / scale, -1 / scale, 1 / self.scale
        back[:, 0, 2], back[:, 1, 2] = -tilt_x / self.scale, -tilt_y / self.scale
        return forth, back


@dataclass(frozen=True)
class Screen:
    """Solids as a camera sees them, in pixels. Quadric: q·M·q + 2 g·q + k = 0 with q = p - centre."""

    centres: Array
    """(S, 3)"""
    quadratic: Array
    """(S, 3, 3), M; zero for faces."""
    linear: Array
    """(S, 3), g; a face's normal."""
    constant: Array
    """(S,), k"""
    slab_axes: Array
    """(S, 2, 3): a solid ends where |q·axis - middle| > half; a zero axis never ends it. A face's edges."""
    slab_middle: Array
    """(S, 2)"""
    slab_half: Array
    """(S, 2)"""
    boxes: NDArray[np.int64]
    """(S, 4): left, top, right, bottom in pixels, right and bottom exclusive."""
    tags: NDArray[np.int64]
    """(S, 3): surface, fabric, frame."""
    forth: Array
    """(S, 3, 3): from camera axes in metres to the screen, near each solid."""
    flat: NDArray[np.bool_]
    """(S,): the solid is a face."""
    scale: float
    """Pixels per metre at the middle of the thing."""

    def without(self, dropped: NDArray[np.bool_]) -> Screen:
        """The same without some solids."""
        kept = ~dropped
        return Screen(
            self.centres[kept], self.quadratic[kept], self.linear[kept], self.constant[kept], self.slab_axes[kept],
            self.slab_middle[kept], self.slab_half[kept], self.boxes[kept], self.tags[kept], self.forth[kept],
            self.flat[kept], self.scale,
        )  # fmt: skip


def see(model: Model, frames: Frames, camera: Camera) -> Screen:
    """Look at a model. Each solid is projected linearly, with the size and the obliqueness of its own place."""
    ellipsoids, cones, boxes = (
        np.array(rows, dtype=np.float64).reshape(-1, columns)
        for rows, columns in ((model.ellipsoids, 11), (model.cones, 16), (model.boxes, 10))
    )
    spots = np.concatenate((ellipsoids[:, :4], cones[:, :4], cones[:, 4:8], boxes[:, :4]))
    points, scale = camera.project(frames.resolve(spots))
    e, c = len(ellipsoids), len(cones)
    forth, back = camera.lens(points, scale)
    # Row k is axis k of a frame, in camera axes.
    axes = frames.rotations.transpose(0, 2, 1) @ camera.rotation.T
    parts = []
    if e:
        parts.append(_see_ellipsoids(ellipsoids, axes, points[:e], forth[:e], back[:e]))
    if c:
        ends = slice(e, e + c), slice(e + c, e + 2 * c)
        pair = [(points[end], scale[end]) for end in ends]
        middle = camera.lens(0.5 * (points[ends[0]] + points[ends[1]]), 0.5 * (scale[ends[0]] + scale[ends[1]]))
        parts.append(_see_cones(cones, axes, pair, *middle))
    if len(boxes):
        at = slice(e + 2 * c, None)
        parts.append(_see_boxes(boxes, axes, points[at], forth[at], back[at]))
    centres, quadratic, linear, constant, slabs, slab_middle, half, windows, tags, maps = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    flat = np.zeros(len(centres), dtype=np.bool_)
    flat[e + c :] = True
    screen = Screen(
        centres, quadratic, linear, constant, slabs, slab_middle, half, _grid(windows), tags.astype(np.int64), maps,
        flat, camera.scale,
    )  # fmt: skip
    return screen.without(flat & (linear[:, 2] <= 1e-9)) if len(boxes) else screen


def _grid(boxes: Array) -> NDArray[np.int64]:
    low, high = np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:]) + 1
    return np.concatenate((low, high), axis=1).astype(np.int64)


Part = tuple[Array, Array, Array, Array, Array, Array, Array, Array, Array, Array]


def _see_ellipsoids(rows: Array, axes: Array, centres: Array, forth: Array, back: Array) -> Part:
    seen, radii = axes[rows[:, 4].astype(np.intp)], np.maximum(rows[:, 5:8], 1e-4)[:, :, None]
    count = len(rows)
    # |A q| = 1 on the surface, where A divides by the radii what it measures along the axes.
    measure = (seen / radii) @ back
    quadratic = measure.transpose(0, 2, 1) @ measure
    reach = (seen * radii) @ forth[:, :2].transpose(0, 2, 1)
    extent = np.sqrt((reach * reach).sum(axis=1))
    boxes = np.concatenate((centres[:, :2] - extent, centres[:, :2] + extent), axis=1)
    zeros, linear, slabs = np.zeros((count, 2)), np.zeros((count, 3)), np.zeros((count, 2, 3))
    return centres, quadratic, linear, np.full(count, -1.0), slabs, zeros, zeros, boxes, rows[:, 8:], forth


def _see_cones(rows: Array, axes: Array, ends: list[tuple[Array, Array]], forth: Array, back: Array) -> Part:
    ((first, near), (last, far)), flatness = ends, rows[:, 12]
    middle = 0.5 * (near + far)
    r0, r1 = rows[:, 10] * near / middle, rows[:, 11] * far / middle
    axis = (back @ (last - first)[:, :, None])[..., 0]
    length = np.sqrt((axis * axis).sum(axis=1)) + 1e-6
    axis /= length[:, None]
    e1 = axes[rows[:, 8].astype(np.intp), rows[:, 9].astype(np.intp)]
    e1 = e1 - (e1 * axis).sum(axis=1)[:, None] * axis
    e1 /= (np.sqrt((e1 * e1).sum(axis=1)) + 1e-9)[:, None]
    (ax, ay, az), (bx, by, bz) = axis.T, e1.T
    e2 = np.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), axis=1)
    measure = np.stack((e1, e2 / flatness[:, None], axis), axis=1) @ back
    # Seen end on, a taper would turn the cone inside out; the ellipsoids at its ends cover it there.
    across = np.sqrt(0.7 * (measure[:, 0, 2] ** 2 + measure[:, 1, 2] ** 2))
    steepest = across / (np.abs(measure[:, 2, 2]) + 1e-9)
    slope = np.minimum(np.maximum((r1 - r0) / length, -steepest), steepest)
    r0 = 0.5 * (r0 + r1) - 0.5 * slope * length
    square = measure[:, :, :, None] * measure[:, :, None]
    quadratic = square[:, 0] + square[:, 1] - square[:, 2] * (slope**2)[:, None, None]
    quadratic[:, 2, 2] += 1e-12
    linear = -(r0 * slope)[:, None] * measure[:, 2]
    reach = np.stack((e1, e2 * flatness[:, None]), axis=1) @ forth[:, :2].transpose(0, 2, 1)
    spread = np.sqrt((reach * reach).sum(axis=1))
    at_start, at_end = np.maximum(r0, 0)[:, None] * spread, np.maximum(r0 + slope * length, 0)[:, None] * spread
    low = np.minimum(first[:, :2] - at_start, last[:, :2] - at_end)
    high = np.maximum(first[:, :2] + at_start, last[:, :2] + at_end)
    slabs = np.zeros((len(axis), 2, 3))
    slabs[:, 0] = measure[:, 2]
    half = np.stack((0.5 * length, 0 * length), axis=1)
    boxes = np.concatenate((low, high), axis=1)
    return first, quadratic, linear, -(r0**2), slabs, half, half, boxes, rows[:, 13:], forth


def _see_boxes(rows: Array, axes: Array, middle: Array, forth: Array, back: Array) -> Part:
    """Each box becomes six faces."""
    seen = axes[rows[:, 0].astype(np.intp)]
    half = (seen * rows[:, 4:7, None]) @ forth.transpose(0, 2, 1)
    outward = seen @ back
    sides = [(k, (k + 1) % 3, (k + 2) % 3, sign) for k in range(3) for sign in (1.0, -1.0)]
    centres = np.concatenate([middle + sign * half[:, k] for k, _, _, sign in sides])
    edges = np.concatenate([half[:, [a, b]] for _, a, b, _ in sides])
    normals = np.concatenate([sign * outward[:, k] for k, _, _, sign in sides])
    extent = np.abs(edges).sum(axis=1)[:, :2]
    boxes = np.concatenate((centres[:, :2] - extent, centres[:, :2] + extent), axis=1)
    length = np.sqrt((edges * edges).sum(axis=2)) + 1e-6
    count = len(centres)
    zeros, tags, maps = np.zeros((count, 2)), np.tile(rows[:, 7:], (6, 1)), np.tile(forth, (6, 1, 1))
    slabs = edges / length[:, :, None]
    return centres, np.zeros((count, 3, 3)), normals, np.zeros(count), slabs, zeros, length, boxes, tags, maps
