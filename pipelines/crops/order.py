"""The order of samples: an endless stream that is a pure function of (store digest, seed, epoch).

The stream is the concatenation of every epoch's permutation of the rows. Global batch k is its slice
[k * B, (k + 1) * B), so batches run across epoch borders, all are full, every epoch sees every row once, and the
position of a training is one integer, the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from efafnet.pipelines.crops import philox
from efafnet.pipelines.crops.store import RowGroups

Int64 = npt.NDArray[np.int64]

_GROUPS, _ROWS = 3, 4


@dataclass(frozen=True)
class EpochOrder:
    """One epoch's permutation."""

    rows: Int64
    """(num_rows,) the rows in the order they are seen."""
    place: Int64
    """(G,) place of each row group in the order in which groups are visited."""
    window: Int64
    """(G,) window in which each row group is visited."""


@dataclass(frozen=True)
class Planned:
    """N samples of one step, for one rank."""

    step: int
    """Global step."""
    rows: Int64
    """(N,) rows in the store."""
    epochs: Int64
    """(N,) epoch of each sample."""
    groups: Int64
    """(N,) row group of each sample."""
    windows: Int64
    """(N,) window in which the row group is visited, counted from the beginning of the stream."""


def slice_bounds(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and one past the last of ``rank``'s near-equal slice of ``count``, larger slices first."""
    size, longer = divmod(count, world_size)
    first = rank * size + min(rank, longer)
    return first, first + size + (rank < longer)


class SampleOrder:
    """The stream of one training.

    Row groups are permuted, cut into windows of near-equal size, and the rows of a window are permuted; a store that
    fits in one window is shuffled fully. Within a global batch the samples are put in the order in which their row
    groups are visited: a rank's slice then touches a contiguous part of the window, and W ranks read the store about
    once instead of W times.
    """

    def __init__(self, groups: RowGroups, digest: str, seed: int, window_groups: int) -> None:
        self._groups = groups
        self._key = philox.key_of("order", digest, seed)
        self._num_windows = max(1, -(-len(groups) // window_groups))
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> EpochOrder:
        groups = self._groups
        visited = philox.permutation(len(groups), epoch, _GROUPS, self._key)
        window = np.empty(len(groups), dtype=np.int64)
        parts = []
        # One permutation of all rows, restricted to each window: the rows of a window in the order of their keys.
        keys = np.empty(groups.num_rows, dtype=np.int64)
        keys[philox.permutation(groups.num_rows, epoch, _ROWS, self._key)] = np.arange(groups.num_rows)
        for number, members in enumerate(np.array_split(visited, self._num_windows)):
            window[members] = number
            rows = np.concatenate([groups.first_row[g] + np.arange(groups.rows[g]) for g in members])
            parts.append(rows[np.argsort(keys[rows], kind="stable")])
        place = np.empty(len(groups), dtype=np.int64)
        place[visited] = np.arange(len(groups))
        return EpochOrder(rows=np.concatenate(parts), place=place, window=window)

    def batch(self, step: int, global_batch: int, rank: int = 0, world_size: int = 1) -> Planned:
        """``rank``'s samples of global batch ``step``."""
        position = step * global_batch + np.arange(global_batch, dtype=np.int64)
        epochs, offsets = np.divmod(position, self._groups.num_rows)
        rows, places, windows = (np.empty(global_batch, dtype=np.int64) for _ in range(3))
        for epoch in np.unique(epochs):
            order, chosen = self.epoch(int(epoch)), epochs == epoch
            rows[chosen] = order.rows[offsets[chosen]]
            group = self._groups.group_of(rows[chosen])
            places[chosen], windows[chosen] = order.place[group], order.window[group] + epoch * self._num_windows
        by_place = np.lexsort((rows, places, epochs))
        mine = by_place[slice(*slice_bounds(global_batch, rank, world_size))]
        return Planned(step, rows[mine], epochs[mine], self._groups.group_of(rows[mine]), windows[mine])
