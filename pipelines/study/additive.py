"""A row plus a seed: the additive model of a study's figures, fitted by least squares on whatever runs there are.

With every run there this is the randomised block design: a row's level is its mean, the difference of two rows is that
of their means, seed by seed. A run that is missing costs that run and no more: rows are then compared through the seeds
that they share with each other, directly or by way of other rows.

The model supposes that rows scatter alike. Whether they do is judged against tables of the same layout whose rows do,
simulated once per layout: a normal figure in every place that has a run, and the same arithmetic.

Legend: M rows (settings), S seeds, N runs, D simulated tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SIMULATED = 4000
"""Tables of equal scatter that a layout is held against."""
_NOTHING = 1e-12
"""Share of the figures' size below which what is left of them is rounding."""
_ROUNDING = 1e-9

Runs = tuple[tuple[bool, ...], ...]
"""Which row (M) has which seed's run (S)."""


@dataclass(frozen=True, eq=False)
class Layout:
    """What depends on which runs there are, and not on their figures."""

    rows: NDArray[np.int64]
    """int64 (N,): row of each run."""
    seeds: NDArray[np.int64]
    """int64 (N,): seed of each run."""
    inverse: NDArray[np.float64]
    """float64 (M + S, N): least squares takes figures to levels of rows and seeds."""
    left: NDArray[np.float64]
    """float64 (N, N): what is left of figures when those levels are taken out."""
    df: int
    """Degrees of freedom of what is left, N less the rank of the model."""
    estimable: NDArray[np.bool_]
    """bool (M, M): whether the difference of two rows can be known: a chain of shared seeds leads from one to the
    other."""

    def weights(self, row: int, other: int) -> NDArray[np.float64]:
        """float64 (N,): the difference of two rows is this much of each figure."""
        return np.asarray(self.inverse[row] - self.inverse[other])

    def shares(self, figures: NDArray[np.float64]) -> NDArray[np.float64]:
        """How each row scatters beside what it would if all scattered alike, 1 being alike; 0 for a row with nothing
        left of it. ``figures`` (…, N) give (…, M)."""
        squares = (figures @ self.left.T) ** 2
        of_row = (self.rows[:, None] == np.arange(len(self.estimable))).astype(np.float64)
        expected = self.left.diagonal() @ of_row / max(1, self.df)
        total = squares.sum(axis=-1, keepdims=True)
        known = expected > _NOTHING
        return np.where(known, squares @ of_row / np.where(known, expected, 1.0) / np.maximum(total, 1e-300), 0.0)


@lru_cache(maxsize=256)
def layout_of(runs: Runs) -> Layout:
    """The layout of a table in which row m has a run with seed s where ``runs[m][s]``."""
    there = np.array(runs, dtype=bool)
    count, num_seeds = there.shape
    rows, seeds = np.nonzero(there)
    design = np.zeros((len(rows), count + num_seeds))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), count + seeds] = 1
    inverse = np.linalg.pinv(design)
    left = np.eye(len(rows)) - design @ inverse
    shared = (there.astype(np.int64) @ there.T.astype(np.int64)) > 0
    for _ in range(count.bit_length()):
        shared = (shared.astype(np.int64) @ shared.astype(np.int64)) > 0
    return Layout(rows, seeds, inverse, left, round(float(np.trace(left))), shared)


@lru_cache(maxsize=256)
def most_uneven(runs: Runs) -> NDArray[np.float64]:
    """float64 (D,), sorted: the largest share of a row in tables of this layout whose rows scatter alike."""
    drawn = np.random.default_rng(0).standard_normal((SIMULATED, sum(map(sum, runs))))
    return np.sort(layout_of(runs).shares(drawn).max(axis=1))


@dataclass(frozen=True, eq=False)
class Fit:
    """The model, fitted to a table."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Runs
    layout: Layout
    figures: NDArray[np.float64]
    """float64 (N,): row after row, seed after seed."""
    residual: float
    """Standard deviation of a single run, after its row's and its seed's level are taken out; 0 where ``df`` is 0."""

    @property
    def df(self) -> int:
        """Degrees of freedom of ``residual``: (M - 1)(S - 1) for a whole table, 0 where nothing can be known."""
        return self.layout.df

    def difference(self, row: str, other: str) -> tuple[float, float, dict[tuple[str, int], float]] | None:
        """A row minus another: its value, the variance of it in units of a single run's, and how much of each run's
        figure it is made of; None where no chain of shared seeds leads from one to the other."""
        one, two = self.names.index(row), self.names.index(other)
        if not self.layout.estimable[one, two]:
            return None
        weights = self.layout.weights(one, two)
        if self.runs[one] == self.runs[two]:  # the model's answer is then that of the pairs, here without its rounding
            weights = ((self.layout.rows == one) * 1.0 - (self.layout.rows == two)) / sum(self.runs[one])
        value = float(weights @ self.figures)
        size = float(np.abs(self.figures).max()) if len(self.figures) else 0.0
        made = {
            (self.names[r], self.seeds[s]): float(weight)
            for r, s, weight in zip(self.layout.rows, self.layout.seeds, weights, strict=True)
            if abs(weight) > _NOTHING
        }
        return 0.0 if abs(value) < _NOTHING * size else value, float(weights @ weights), made

    def noisiest(self, level: float) -> str | None:
        """The row that scatters beyond what a table of rows that scatter alike shows with probability ``level``."""
        shares = self._shares()
        if shares is None or self._usual(shares, level):
            return None
        return self.names[int(shares.argmax())]

    def alike(self, level: float) -> bool:
        """Whether rows scatter so much alike that of tables whose rows truly do, ``level`` show a row that stands out
        more. True where that cannot be asked (``comparable``)."""
        shares = self._shares()
        return shares is None or self._usual(shares, level)

    @property
    def comparable(self) -> bool:
        """Whether scatter can be compared: of two rows what is left of one is what is left of the other."""
        return sum(sum(row) > 1 for row in self.runs) > 2 and self.residual > 0

    def _shares(self) -> NDArray[np.float64] | None:
        return self.layout.shares(self.figures) if self.comparable else None

    def _usual(self, shares: NDArray[np.float64], level: float) -> bool:
        return bool(shares.max() <= _quantile(most_uneven(self.runs), level))


def _quantile(drawn: NDArray[np.float64], level: float) -> float:
    # Where a layout leaves no freedom all tables have one value, which rounding must not exceed.
    return float(drawn[min(len(drawn) - 1, int(len(drawn) * (1 - level)))]) * (1 + _ROUNDING)


def fit(table: Mapping[str, Mapping[int, float]], names: Sequence[str] | None = None) -> Fit:
    """Fit rows' figures by seed; ``names`` are the rows that take part, all unless given."""
    chosen = tuple(table if names is None else names)
    seeds = tuple(sorted({seed for name in chosen for seed in table[name]}))
    runs = tuple(tuple(seed in table[name] for seed in seeds) for name in chosen)
    layout = layout_of(runs) if chosen else layout_of(((),))
    figures = np.array([table[name][seed] for name in chosen for seed in seeds if seed in table[name]], float)
    squares = float(((layout.left @ figures) ** 2).sum()) if len(figures) else 0.0
    size = float(np.abs(figures).max()) if len(figures) else 0.0
    if squares <= len(figures) * (_NOTHING * size) ** 2:
        squares = 0.0
    return Fit(chosen, seeds, runs, layout, figures, (squares / layout.df) ** 0.5 if layout.df else 0.0)
