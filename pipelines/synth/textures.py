"""Noise for textures: tiles that repeat without a seam, made once per process and data set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.synth.body import Rng
from efafnet.pipelines.synth.solids import Float32

TILE = 256
"""Side of every tile in pixels; a power of two, so that indices wrap with a mask."""


@dataclass(frozen=True)
class Bank:
    """Tiles of noise with mean 0 and deviation 1. They depend on the data set's seed alone, never on what was drawn."""

    cloth: Float32
    """(TILE, TILE) fine grain and longer folds."""
    clouds: NDArray[np.float32]
    """(n, TILE, TILE) noise of several octaves, from coarse to fine."""
    sensor: NDArray[np.int16]
    """(n, 2 · TILE, 2 · TILE, 3) white noise of deviation 1, 2, … n: a camera's, from good light to bad."""


@lru_cache(maxsize=2)
def bank(seed: int) -> Bank:
    """Make the tiles of one data set."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 0xBA))))
    slopes = (0.5, 0.8, 1.1, 1.4, 1.7, 2.0)
    clouds = np.stack([_octaves(rng, slope) for slope in (*slopes, *slopes)])
    white = rng.standard_normal((2 * TILE, 2 * TILE, 3), dtype=np.float32)
    sensor = np.stack([np.round(white * np.float32(deviation)) for deviation in range(1, 7)]).astype(np.int16)
    folds = _stretched(rng, 8, 24) + 0.6 * _stretched(rng, 20, 40)
    cloth = _normal(0.6 * _tile(rng, TILE) + 0.4 * _tile(rng, TILE // 2) + 0.5 * _normal(folds))
    return Bank(cloth, clouds, sensor)


def _tile(rng: Rng, cells: int) -> Float32:
    """Smooth noise with ``cells`` x ``cells`` independent values, repeating."""
    return _stretched(rng, cells, cells)


def _stretched(rng: Rng, rows: int, columns: int) -> Float32:
    values = rng.standard_normal((rows, columns), dtype=np.float32)
    # Two cells around the border make the enlarged tile meet itself.
    wrapped = np.pad(values, 2, mode="wrap")
    size = (TILE * (columns + 4) // columns, TILE * (rows + 4) // rows)
    large = cv2.resize(wrapped, size, interpolation=cv2.INTER_CUBIC)
    x, y = 2 * TILE // columns, 2 * TILE // rows
    return np.ascontiguousarray(large[y : y + TILE, x : x + TILE], dtype=np.float32)


def _octaves(rng: Rng, slope: float) -> Float32:
    total = np.zeros((TILE, TILE), dtype=np.float32)
    for octave in range(2, 9):
        total += np.float32(2.0 ** (-slope * (octave - 2) * 0.5)) * _tile(rng, 2**octave)
    return _normal(total)


def _normal(values: Float32) -> Float32:
    scaled: Float32 = (values - values.mean()) / values.std()
    return scaled


def look_up(tile: Float32, u: Float32, v: Float32) -> Float32:
    """Values of a tile at columns ``u`` and rows ``v`` (any range; one unit is one sample of the tile), without
    interpolation."""
    mask = TILE - 1
    found: Float32 = tile[v.astype(np.int32) & mask, u.astype(np.int32) & mask]
    return found
