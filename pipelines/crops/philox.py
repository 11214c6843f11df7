"""Counter-based random numbers: a pure function of (key, counter), so no draw depends on what was drawn before it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UInt32 = npt.NDArray[np.uint32]

# Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: npt.ArrayLike, key: int) -> UInt32:
    """Philox4x32-10 of counters (N, 4) uint32 under a 64-bit ``key``: (N, 4) uint32.

    Written out rather than taken from numpy, because numpy's generators must be built anew for every counter (about
    20 µs a sample, under the interpreter lock).
    """
    c0, c1, c2, c3 = np.asarray(counter, dtype=np.uint64).T
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def counters(index: npt.ArrayLike, epoch: npt.ArrayLike, stream: int) -> UInt32:
    """Counters (N, 4) from 64-bit indices (N,), epochs (N,) or scalar, and a ``stream`` that separates purposes."""
    index = np.asarray(index, dtype=np.uint64)
    epoch = np.broadcast_to(np.asarray(epoch, dtype=np.uint64), index.shape)
    columns = [index & _LOW, index >> _SHIFT, epoch & _LOW, np.full_like(index, stream)]
    return np.stack(columns, axis=-1).astype(np.uint32)


def uniforms(index: npt.ArrayLike, epoch: npt.ArrayLike, streams: Sequence[int], key: int) -> npt.NDArray[np.float64]:
    """Independent uniforms in the open interval (0, 1), four per stream: (S, N, 4) float64 for N indices, S streams."""
    stacked = np.concatenate([counters(index, epoch, stream) for stream in streams])
    values = (philox(stacked, key).astype(np.float64) + 0.5) / 4294967296.0
    return values.reshape(len(streams), -1, 4)


def permutation(count: int, epoch: int, stream: int, key: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(count)``: the order of 64-bit random keys, equal keys by index."""
    words = philox(counters(np.arange(count), epoch, stream), key).astype(np.uint64)
    keys = (words[:, 0] << _SHIFT) | words[:, 1]
    return np.argsort(keys, kind="stable").astype(np.int64)


def key_of(*parts: object) -> int:
    """A 64-bit key from the text of ``parts``."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little")
