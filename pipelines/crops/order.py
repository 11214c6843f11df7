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

_GROUPS, _ROWS, _PHASES, _DRAWN = 3, 4, 5, 6
_GOLDEN = (5**0.5 - 1) / 2
# Share of the window by which a row may miss its place in the spread of its group.
_JITTER = 0.1


@dataclass(frozen=True)
class EpochOrder:
    """One epoch's order of row groups: G groups, V windows."""

    place: Int64
    """(G,) place of each row group in the order in which groups are visited."""
    window: Int64
    """(G,) window in which each row group is visited."""
    first_sample: Int64
    """(V,) samples of the epoch before each window."""


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


def slice_bounds(count: int, rank: int, world_size: int, unit: int = 1) -> tuple[int, int]:
    """First and one past the last of ``rank``'s near-equal slice of ``count``, larger slices first.

    Slices begin at multiples of ``unit``, so that the parts of ``unit`` that they are cut into are the same whatever
    the number of slices.
    """
    size, longer = divmod(-(-count // unit), world_size)
    first = rank * size + min(rank, longer)
    return first * unit, min(count, (first + size + (rank < longer)) * unit)


def slice_of(index: Int64, count: int, slices: int) -> Int64:
    """Which of the near-equal slices of :func:`slice_bounds` each ``index`` (N,) below ``count`` lies in."""
    ends = [slice_bounds(count, number, slices)[1] for number in range(slices)]
    return np.searchsorted(ends, index, side="right")


class SampleOrder:
    """The stream of one training.

    Row groups are permuted and cut into windows of near-equal size, and the rows of a window are shuffled. Rows of one
    group are neighbours in the source, often persons of one image: each group is spread over its window (golden-ratio
    steps from a random phase, with some jitter) rather than left to chance, so that they meet in a batch about as
    rarely as in a shuffle of the whole store. Every row is equally likely to stand anywhere in its window.

    Within a global batch the samples are put in the order in which their row groups are visited: a rank's slice then
    touches a contiguous part of the window, and W ranks read the store about once instead of W times. What is kept in
    memory grows with the number of row groups, not of rows.

    A resampled stream is that of another store of as many row groups, each drawn from all with replacement: a
    bootstrap of clusters, since persons of one image lie in one group. ``EpochOrder`` and windows are of drawn groups.
    """

    def __init__(
        self, groups: RowGroups, digest: str, seed: int, window_groups: int, *, resampled: bool = False
    ) -> None:
        self._key = philox.key_of("order", digest, seed)
        self._store = groups
        self.drawn = _drawn(len(groups), self._key) if resampled else np.arange(len(groups))
        """int64 (G,): the store's row group in each place of the stream's."""
        self._groups = groups.chosen(self.drawn) if resampled else groups
        self._num_windows = max(1, -(-len(groups) // window_groups))
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self.window = lru_cache(maxsize=4)(self._window)

    def _epoch(self, epoch: int) -> EpochOrder:
        count = len(self._groups)
        visited = philox.permutation(count, epoch, _GROUPS, self._key)
        place, window = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        place[visited] = np.arange(count)
        window[visited] = slice_of(np.arange(count), count, self._num_windows)
        sizes = np.bincount(window, weights=self._groups.rows, minlength=self._num_windows).astype(np.int64)
        return EpochOrder(place, window, np.cumsum(sizes) - sizes)

    def _window(self, epoch: int, number: int) -> Int64:
        """Rows of window ``number`` of an epoch in the order they are seen."""
        members = np.flatnonzero(self.epoch(epoch).window == number)
        sizes = self._groups.rows[members]
        index = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = np.repeat(self._groups.first_row[members], sizes) + index
        phase = philox.uniforms(members, epoch, (_PHASES,), self._key)[0, :, 0]
        jitter = philox.uniforms(rows, epoch, (_ROWS,), self._key)[0, :, 0]
        spread = (np.repeat(phase, sizes) + _GOLDEN * index + _JITTER * jitter) % 1.0
        order: Int64 = rows[np.argsort(spread, kind="stable")]
        return order

    def batch(self, step: int, global_batch: int, rank: int = 0, world_size: int = 1, unit: int = 1) -> Planned:
        """``rank``'s samples of global batch ``step``, cut as :func:`slice_bounds` cuts."""
        position = step * global_batch + np.arange(global_batch, dtype=np.int64)
        epochs, offsets = np.divmod(position, self._groups.num_rows)
        rows, places, windows = (np.empty(global_batch, dtype=np.int64) for _ in range(3))
        for epoch in np.unique(epochs).tolist():
            order, chosen = self.epoch(epoch), epochs == epoch
            numbers = np.searchsorted(order.first_sample, offsets[chosen], side="right") - 1
            inside = offsets[chosen] - order.first_sample[numbers]
            parts = [self.window(epoch, n)[inside[numbers == n]] for n in np.unique(numbers).tolist()]
            rows[chosen] = np.concatenate(parts)
            places[chosen] = order.place[self._groups.group_of(rows[chosen])]
            windows[chosen] = numbers + epoch * self._num_windows
        by_place = np.lexsort((rows, places, epochs))
        mine = by_place[slice(*slice_bounds(global_batch, rank, world_size, unit))]
        places_drawn = self._groups.group_of(rows[mine])
        in_store = self.drawn[places_drawn]
        own_rows = rows[mine] - self._groups.first_row[places_drawn] + self._store.first_row[in_store]
        return Planned(step, own_rows, epochs[mine], in_store, windows[mine])


def _drawn(count: int, key: int) -> Int64:
    """(count,) numbers below ``count``, drawn with replacement."""
    draws = philox.uniforms(np.arange(count), 0, (_DRAWN,), key)[0, :, 0]
    return np.floor(draws * count).astype(np.int64)
