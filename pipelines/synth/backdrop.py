"""What stands behind people: textured walls, floors, skies and clutter. Colours are 0 to 255, red first."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.synth.body import Rng, pick
from efafnet.pipelines.synth.outfit import muted_colour
from efafnet.pipelines.synth.textures import TILE, Bank

Image = NDArray[np.uint8]

_LEAVES = (60, 500)
"""How many shapes a busy background has."""
_LEAST_LEAF_PX = 3.0
"""Radius of the smallest of them."""
_PALETTE = 12
"""Colours of a busy background: things in one place go together."""


def paint_backdrop(rng: Rng, width: int, height: int, horizon: float, noise: Bank, *, busy: bool = False) -> Image:
    """Paint (height, width, 3). What is below row ``horizon`` is ground; ``busy``: as full of edges as photographs."""
    edge = round(min(max(horizon, 0), height))
    kind = pick(rng, (0.78, 0.22))
    image = np.empty((height, width, 3), dtype=np.uint8)
    if kind == 1:
        image[:] = _noise_texture(rng, width, height, noise)
        _clutter(rng, image, height, int(rng.integers(4, 16)))
    else:
        if edge > 0:
            image[:edge] = _wall(rng, width, edge, noise)
            _clutter(rng, image, edge, int(rng.integers(2, 14)))
        if edge < height:
            image[edge:] = _ground(rng, width, height - edge, noise)
    if busy:
        image = _leaves(rng, image, noise)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 2.0))).astype(np.uint8, copy=False)
    return image


def _ramp(rng: Rng) -> NDArray[np.uint8]:
    """A table (256, 1, 3) from noise values to a few colours."""
    knots = int(rng.integers(2, 5))
    base = np.array(muted_colour(rng)) * 255
    contrast = float(rng.uniform(10, 60))
    colours = np.clip(base + rng.normal(0, contrast, (knots, 1)) + rng.normal(0, 0.35 * contrast, (knots, 3)), 0, 255)
    at = np.linspace(0, 255, knots)
    table = np.stack([np.interp(np.arange(256), at, colours[:, c]) for c in range(3)], axis=1)
    return table.astype(np.uint8)[:, None, :]


def _noise_texture(rng: Rng, width: int, height: int, noise: Bank) -> Image:
    tile = noise.clouds[int(rng.integers(len(noise.clouds)))]
    side = int(rng.integers(64, TILE + 1))
    x, y = (int(v) for v in rng.integers(0, TILE - side + 1, 2))
    patch = tile[y : y + side, x : x + side]
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    if rng.random() < 0.5:
        patch = patch.T
    levels = np.clip(patch * 48 + 128, 0, 255).astype(np.uint8)
    large = cv2.resize(levels, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.LUT(cv2.merge((large, large, large)), _ramp(rng)), dtype=np.uint8)


def _wall(rng: Rng, width: int, height: int, noise: Bank) -> Image:
    image = _noise_texture(rng, width, height, noise)
    kind = pick(rng, (0.45, 0.2, 0.2, 0.15))
    if kind == 0:
        return image
    x, y = np.arange(width), np.arange(height)[:, None]
    period = int(rng.integers(8, 48))
    if kind == 1:  # bricks or tiles
        low = max(4, period // 2)
        shift = (y // low % 2) * (period // 2)
        lines = ((x + shift) % period < 1 + period // 24) | (y % low < 1 + period // 24)
    elif kind == 2:  # planks or stripes
        lines = np.broadcast_to(x % period < max(1, int(period * rng.uniform(0.05, 0.5))), (height, width))
    else:
        lines = np.broadcast_to(y % period < max(1, int(period * rng.uniform(0.05, 0.5))), (height, width))
    image[lines] = (image[lines] * float(rng.uniform(0.45, 0.9))).astype(np.uint8)
    return image


def _ground(rng: Rng, width: int, height: int, noise: Bank) -> Image:
    """A floor that runs to the horizon: the texture shrinks with the distance."""
    # Half the resolution is enough for a floor, and four times faster.
    rows, columns = (height + 1) // 2, (width + 1) // 2
    depth = np.float32(1) / (np.arange(rows, dtype=np.float32)[:, None] / rows + np.float32(0.04))
    across = (np.arange(columns, dtype=np.float32) - columns / 2) * np.float32(2.0 / columns) * depth
    zoom = np.float32(rng.uniform(20, 90))
    tile = noise.clouds[int(rng.integers(len(noise.clouds)))]
    fine = tile[(depth * zoom).astype(np.int32) & (TILE - 1), (across * zoom).astype(np.int32) & (TILE - 1)]
    levels = fine * (48 / np.sqrt(depth))
    if rng.random() < 0.35:
        squares = np.float32(rng.uniform(0.6, 2.5))
        odd = ((depth * squares).astype(np.int32) + np.floor(across * squares).astype(np.int32)) & 1
        levels += np.float32(rng.uniform(-90, 90)) * (odd - np.float32(0.5))
    grey = cv2.resize(np.clip(levels + 128, 0, 255).astype(np.uint8), (width, height))
    return np.asarray(cv2.LUT(cv2.merge((grey, grey, grey)), _ramp(rng)), dtype=np.uint8)


def _clutter(rng: Rng, image: Image, height: int, count: int) -> None:
    """Windows, posters, panels, pipes and blobs on a wall of ``height`` rows."""
    width = image.shape[1]
    view = image[:height]
    for _ in range(count):
        colour = tuple(int(255 * c) for c in muted_colour(rng))
        x, y = int(rng.integers(-20, width)), int(rng.integers(-20, max(1, height)))
        w, h = (int(v) for v in rng.exponential((0.14 * width, 0.14 * image.shape[0])) + 4)
        kind = pick(rng, (0.45, 0.15, 0.2, 0.2))
        if kind == 0:
            cv2.rectangle(view, (x, y), (x + w, y + h), colour, -1)
            if rng.random() < 0.6:
                edge = tuple(int(255 * c) for c in muted_colour(rng))
                cv2.rectangle(view, (x, y), (x + w, y + h), edge, int(rng.integers(1, 4)))
        elif kind == 1:
            cv2.ellipse(view, (x, y), (w, h), float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
        elif kind == 2:
            end = (x + int(rng.normal(0, 60)), y + int(rng.normal(0, 60)))
            cv2.line(view, (x, y), end, colour, int(rng.integers(1, 12)), cv2.LINE_AA)
        else:
            corners = np.array((x, y)) + rng.normal(0, 1, (int(rng.integers(3, 7)), 2)) * (w, h)
            cv2.fillPoly(view, [corners.astype(np.int32)], colour, cv2.LINE_AA)


def _leaves(rng: Rng, image: Image, noise: Bank) -> Image:
    """Lay textured shapes of all sizes over each other: the dead leaves model of natural images.

    Lee, Mumford and Huang (2001), Occlusion models for natural images: with radii of density r^-3 the picture has the
    same statistics at every scale. What photographs show behind people has as many edges as the people.
    """
    height, width = image.shape[:2]
    count, most = int(rng.integers(*_LEAVES)), 0.4 * height
    sides = (leaf_radii(rng, count, most)[:, None] * np.exp(rng.normal(0, 0.45, (count, 2)))).astype(np.int64) + 1
    places = rng.integers((0, 0), (width, height), (count, 2))
    palette = np.array([muted_colour(rng) for _ in range(_PALETTE)]) * 255
    colours = palette[rng.integers(0, _PALETTE, count)] * np.exp(rng.normal(0, 0.35, (count, 1)))
    paints = np.clip(np.column_stack((colours, rng.exponential(70, count))), 0, 255)
    upright, turned = rng.random(count) < 0.55, rng.uniform(0, 180, count)
    # The fourth channel is the strength of the leaf's texture.
    layered = np.dstack((image, np.full((height, width), 40, dtype=np.uint8)))
    rows = zip(places.tolist(), sides.tolist(), paints.tolist(), upright.tolist(), turned.tolist(), strict=True)
    for (x, y), (w, h), paint, straight, angle in rows:
        if straight:
            cv2.rectangle(layered, (x - w, y - h), (x + w, y + h), paint, -1)
        else:
            cv2.ellipse(layered, (x, y), (w, h), angle, 0, 360, paint, -1)
    return _textured(rng, layered, noise)


def leaf_radii(rng: Rng, count: int, most_px: float) -> NDArray[np.float64]:
    """Draw radii (count,) of density r^-3 between those of the smallest leaf and ``most_px``."""
    smallest, largest = _LEAST_LEAF_PX**-2, most_px**-2
    radii: NDArray[np.float64] = (smallest - rng.random(count) * (smallest - largest)) ** -0.5
    return radii


def _textured(rng: Rng, layered: Image, noise: Bank) -> Image:
    """Colours (height, width, 3) of an image whose fourth channel says how strong its texture is."""
    height, width = layered.shape[:2]
    x, y = (int(v) for v in rng.integers(0, TILE, 2))
    tile = np.roll(noise.clouds[int(rng.integers(len(noise.clouds)))], (y, x), axis=(0, 1))
    grain = np.tile(tile, (-(-height // TILE), -(-width // TILE)))[:height, :width]
    factor = 1 + grain * (layered[..., 3] * np.float32(0.5 / 255))
    textured: Image = np.clip(layered[..., :3] * factor[..., None], 0, 255).astype(np.uint8)
    return textured
