"""What repeated runs say: which settings differ, how far the figures would move, how many more runs it would take.

Every setting is run with the same seeds, which give the same order of samples and the same augmentation. A seed's runs
are therefore a block, and a figure is taken to be its row's level plus its seed's plus what is left (``additive``). Two
things move a difference: the seed (measured by what is left) and the draw of validation images (measured by bootstrap,
the same draws for all runs). Both variances are added. What the two share, the interaction of seed and image, is
counted twice: the intervals are a little too wide.

A spread pooled over the rows sees most, because three seeds alone say next to nothing about the spread of one
difference. With two rows it is that of the paired t test; with more it supposes that the rows scatter alike: where one
scatters eight times as much, intervals hold in 65 to 85 % of cases and tables claim what is not in up to 23 %. The
paired t test of each difference's own two rows is right however rows scatter, and sees less. Which of the two judges a
table is decided by a look at the rows (``alike``). Such a look costs the tests behind it their level unless it is
strict: few seeds show little, so the pool must be earned by rows that are MORE alike than most tables of rows that
scatter alike. ``_LOOK`` and ``WIDENED`` are chosen by simulation so that intervals hold in 93 to 97 % of cases and at
most 6 % of tables claim what is not, for 2 to 12 seeds and 3 to 7 rows, of which one or some scatter up to 8 times as
much as the others; ``python -m benchmarks.bench_statistics`` measures it.

Differences from the baseline are many at once: Holm's correction keeps the chance of ANY false claim below 1 minus the
confidence.

Sources: Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks" (2021); Holm (1979).

Legend: M rows (settings), S seeds, B bootstrap draws of the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.bootstrap import interval
from efafnet.pipelines.study.additive import Fit, fit
from efafnet.pipelines.study.uncertainty import Chance, Runs, Scatter, Span, t_quantile

PERCENT = 100.0
"""Figures are compared in percent, as papers print them."""
NOISY_ROW = 0.05
"""Probability with which a table whose rows scatter alike is said to have a row that scatters more."""
_LOOK = {2: 0.95, 3: 0.75, 4: 0.5}
_LOOK_OF_MANY = 0.3
"""By the number of seeds: the share of tables of rows that scatter alike which are not believed to be such."""
WIDENED = 1.1
"""Factor on a pooled spread, for what that look does not see."""
_MANY = 1e9
"""Images beyond which their number no longer matters."""

Judging = Literal["auto", "equal", "own"]


@dataclass(frozen=True)
class Measured:
    """One row's runs."""

    name: str
    by_seed: Mapping[int, float]
    """The validation figure of each seed's run, percent."""
    draws: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    """float64 (B,) per seed: the figure on each bootstrap draw of the images; the same draws for all rows and seeds.
    Empty where there is no bootstrap."""
    images: float = math.inf
    """Effective number of images that are drawn from (``evaluation.bootstrap.effective_images``)."""


@dataclass(frozen=True)
class Noise:
    """How far runs lie apart that differ in nothing but the seed; standard deviations of single runs."""

    within: float
    """Between seeds of one row, pooled over the rows that scatter alike."""
    within_df: int
    residual: float
    """The same after each seed's common effect on all rows is taken out: what pairing leaves."""
    residual_df: int
    """0 where it cannot be known: fewer than two rows or two seeds that hang together."""
    noisy: tuple[str, ...] = ()
    """Rows that scatter more than the others, and are left out of both; told with scatter=auto."""

    @property
    def of_pair(self) -> float:
        """Standard deviation of one seed's difference between two rows."""
        return math.sqrt(2) * self.residual


@dataclass(frozen=True)
class Difference:
    """A row minus the baseline."""

    value: float
    pairs: int
    """Seeds that both have."""
    span: Span | None
    """Interval by seeds and images together, of this difference alone; None where the spread is not known."""
    by_seeds: Span | None
    """Interval by seeds alone: on these very validation images."""
    by_images: Span | None
    """Interval by images alone: for these very runs; None without bootstrap."""
    image_error: float
    """Standard error by the draw of the images; 0 without bootstrap."""
    p: float | None
    """Two-sided probability of so large a difference between equal settings, of this difference alone."""
    own_seeds: bool = False
    """Whether it is judged by its own seeds' scatter, and not by all rows'."""
    better: Chance | None = None
    """Probability that a run of the row beats the baseline's run with the same seed."""
    p_holm: float | None = None
    """The same as ``p``, corrected for the number of differences in the table."""
    distinguishable: bool = False
    """Whether ``p_holm`` is below 1 minus the confidence."""
    further_runs: Runs | None = None
    """Further seeds, for the row and the baseline alike, after which the true difference would stand out in every
    second repetition; None where it does already."""


@dataclass(frozen=True)
class RowResult:
    """What is known of a row."""

    name: str
    mean: float
    runs: int
    std: float | None
    """Standard deviation of its own runs; None for a single one."""
    span: Span | None
    """Confidence interval of the mean over seeds, on these validation images."""
    by_images: Span | None
    """Interval of the mean by bootstrap over images, for these runs."""
    difference: Difference | None
    """From the baseline; None for the baseline itself, or where no chain of shared seeds leads to it."""


@dataclass(frozen=True)
class Comparison:
    """A table's worth of rows against one of them."""

    baseline: str
    confidence: float
    noise: Noise | None
    """None where no row has two runs."""
    rows: tuple[RowResult, ...]
    """Those with at least one run, in the given order."""
    resolved: tuple[float, int | None, Runs] | None = None
    """A difference in percent that was asked for, the seeds in all after which it would stand out in this table every
    second time, and the range of them that the spread's own uncertainty leaves."""
    scatter: Judging = "auto"
    """What was supposed of the rows' scatter."""
    widened: bool = False
    """Whether differences are judged by a pooled spread that is taken larger than it was found."""

    @property
    def distinguishable(self) -> list[RowResult]:
        """Rows that differ from the baseline beyond doubt."""
        return [row for row in self.rows if row.difference is not None and row.difference.distinguishable]


def compare(
    rows: Sequence[Measured],
    baseline: str,
    *,
    confidence: float = 0.95,
    scatter: Judging = "auto",
    resolve: float | None = None,
) -> Comparison:
    """Compare each row with the baseline.

    Args:
        rows: measured rows, among them the baseline; those without runs are left out.
        baseline: its name.
        confidence: of the intervals, and of all claims of the table together.
        scatter: whether rows are taken to scatter alike: equal, own (never: each difference by its own seeds), auto.
        resolve: a difference, percent, whose number of seeds is asked for.
    """
    present = {row.name: row for row in rows if row.by_seed}
    whole = fit({name: row.by_seed for name, row in present.items()})
    own = scatter == "own" or (scatter == "auto" and not alike(whole))
    pool = _quiet(whole, present) if own and scatter == "auto" else whole
    noise = _noise(present, pool)
    widened = WIDENED if scatter == "auto" and whole.comparable else 1.0
    judge = _Judge(present, whole, confidence, own, scatter != "own", widened)
    base = present.get(baseline)
    plain = {
        name: found
        for name, row in present.items()
        if base is not None and row is not base and (found := judge.difference(row, base)) is not None
    }
    judged = _judged(plain, judge, confidence, baseline)
    spread = None if own or noise is None else (widened * noise.within, noise.within_df)
    results = [_row_result(row, spread, confidence, judged.get(name)) for name, row in present.items()]
    resolved = None if resolve is None else _resolved(resolve, judged, noise, pool, confidence)
    return Comparison(baseline, confidence, noise, tuple(results), resolved, scatter, not own and widened > 1)


def alike(whole: Fit) -> bool:
    """Whether a table's rows scatter so much alike that one spread may judge them all.

    Of rows that truly do, some tables are turned away: three of four with three seeds, three of ten with five or more.
    """
    seeds = int(whole.df / max(1, len(whole.names) - 1) + 1e-9) + 1  # of a whole table; about, where runs are missing
    return whole.alike(_LOOK.get(max(2, seeds), _LOOK_OF_MANY))


def _quiet(whole: Fit, rows: Mapping[str, Measured]) -> Fit:
    """The additive model without the rows that scatter beyond the others, the noisiest first."""
    pool = whole
    while (noisy := pool.noisiest(NOISY_ROW)) is not None:
        pool = fit({name: rows[name].by_seed for name in pool.names if name != noisy})
    return pool


def _noise(rows: Mapping[str, Measured], pool: Fit) -> Noise | None:
    """The spread between seeds; None where no row has two runs."""
    alike = [np.array(list(rows[name].by_seed.values())) for name in pool.names if len(rows[name].by_seed) > 1]
    noisy = tuple(name for name in rows if name not in pool.names)
    if not alike:
        return None
    df = sum(len(values) - 1 for values in alike)
    within = math.sqrt(sum(float(((values - values.mean()) ** 2).sum()) for values in alike) / df)
    return Noise(within, df, pool.residual, pool.df, noisy)


# ---- one difference


@dataclass(frozen=True)
class _Estimate:
    """A difference of means, and what moves it."""

    value: float
    weights: Mapping[tuple[str, int], float]
    """How much of each run's figure it is made of."""
    single: float
    """Standard deviation of one seed's difference."""
    df: int
    pairs: float
    """Seeds that a mean of pairs would need for the same certainty; their number in a whole table."""
    own_seeds: bool


@dataclass(frozen=True)
class _Judge:
    """Takes differences and judges each."""

    rows: Mapping[str, Measured]
    pool: Fit
    """All rows."""
    confidence: float
    own: bool
    """Whether each difference is judged by the seeds of its own two rows."""
    lone: bool
    """Whether one with fewer than two seeds in common, which say nothing of their own, is judged by the pool then."""
    widened: float
    """Factor on a pooled spread."""

    def difference(self, row: Measured, base: Measured) -> Difference | None:
        """The row minus the baseline; None where nothing connects them."""
        pairs = sorted(row.by_seed.keys() & base.by_seed.keys())
        estimate = self._estimate(row, base, pairs)
        if estimate is None:
            return None
        change = self._change(estimate.weights)
        moved = self.scatter_of(estimate, change, row.images)
        images = None
        if change is not None:
            found = interval(estimate.value, change, min(row.images, _MANY), confidence=self.confidence, share=False)
            images = Span(found.low, found.high)
        plain = Difference(estimate.value, len(pairs), None, None, images, moved.image_error, None)
        if estimate.df == 0:
            return plain
        value, count = estimate.value, estimate.pairs
        return replace(
            plain,
            span=moved.span(value, count, self.confidence),
            by_seeds=replace(moved, image_error=0.0).span(value, count, self.confidence),
            p=moved.p(value, count),
            own_seeds=estimate.own_seeds,
            better=moved.chance(value, count, self.confidence),
        )

    def further(self, row: Measured, base: Measured, level: float) -> Runs | None:
        """Further seeds until the difference of two rows passes ``level``."""
        pairs = sorted(row.by_seed.keys() & base.by_seed.keys())
        estimate = self._estimate(row, base, pairs)
        if estimate is None or estimate.df == 0:
            return None
        moved = self.scatter_of(estimate, self._change(estimate.weights), row.images)
        return moved.further(estimate.value, estimate.pairs, level)

    def scatter_of(self, estimate: _Estimate, change: NDArray[np.float64] | None, images: float) -> Scatter:
        """What moves a difference, whose ``change`` (B,) is its value on each draw of the images."""
        widened = 1.0 if estimate.own_seeds else self.widened
        if change is None:
            return Scatter(estimate.single, estimate.df, widened=widened)
        few = min(max(images, 2.0), _MANY)  # a variance of n images is too small by n - 1 over n
        error = float(change.std(ddof=1)) * math.sqrt(few / (few - 1))
        return Scatter(estimate.single, estimate.df, error, images, widened)

    def _estimate(self, row: Measured, base: Measured, pairs: Sequence[int]) -> _Estimate | None:
        steps = np.array([row.by_seed[seed] - base.by_seed[seed] for seed in pairs])
        if not self.own or (self.lone and len(pairs) < 2):
            found = self.pool.difference(row.name, base.name)
            if found is None:
                return None
            value, square, weights = found
            return _Estimate(value, weights, math.sqrt(2) * self.pool.residual, self.pool.df, 2 / square, False)
        if not pairs:
            return None
        weights = {(each.name, seed): sign / len(pairs) for each, sign in ((row, 1), (base, -1)) for seed in pairs}
        single = float(steps.std(ddof=1)) if len(pairs) > 1 else 0.0
        return _Estimate(float(np.mean(steps)), weights, single, len(pairs) - 1, len(pairs), True)

    def _change(self, weights: Mapping[tuple[str, int], float]) -> NDArray[np.float64] | None:
        """A difference on each draw of the images, (B,); None unless all its runs have them."""
        if any(seed not in self.rows[name].draws for name, seed in weights):
            return None
        total = sum(weight * self.rows[name].draws[seed] for (name, seed), weight in weights.items())
        return np.asarray(total)


def _judged(plain: Mapping[str, Difference], judge: _Judge, confidence: float, baseline: str) -> dict[str, Difference]:
    """The same differences, judged together."""
    tested = {name: each.p for name, each in plain.items() if each.p is not None}
    adjusted, levels = holm(list(tested.values()), 1 - confidence)
    judged = dict(plain)
    for name, p_holm, level in zip(tested, adjusted, levels, strict=True):
        clear = p_holm < 1 - confidence
        more = None if clear else judge.further(judge.rows[name], judge.rows[baseline], level)
        judged[name] = replace(plain[name], p_holm=p_holm, distinguishable=clear, further_runs=more)
    return judged


def holm(p: Sequence[float], alpha: float) -> tuple[list[float], list[float]]:
    """Holm's step-down correction: the adjusted probabilities, and the level each plain one is held against.

    The k-th smallest of n (from 1) is multiplied by n - k + 1, and never becomes smaller than the one before it.
    """
    count = len(p)
    adjusted, levels, least = [0.0] * count, [0.0] * count, 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p[i])):
        least = max(least, min(1.0, (count - rank) * p[index]))
        adjusted[index], levels[index] = least, alpha / (count - rank)
    return adjusted, levels


def _resolved(
    points: float, judged: Mapping[str, Difference], noise: Noise | None, pool: Fit, confidence: float
) -> tuple[float, int | None, Runs] | None:
    """Seeds for a difference of ``points``, against the strictest level that Holm's correction asks of this table."""
    if noise is None or noise.residual_df == 0 or noise.residual == 0:
        return None
    errors = [each.image_error for each in judged.values()]
    moved = Scatter(noise.of_pair, noise.residual_df, float(np.median(errors)) if errors else 0.0)
    level = (1 - confidence) / max(1, len(judged))
    return (points, *moved.resolving(points, float(len(pool.seeds)), level))


def _row_result(
    row: Measured, pooled: tuple[float, int] | None, confidence: float, difference: Difference | None
) -> RowResult:
    """What is known of a row; ``pooled`` is the spread of all rows' runs and its degrees of freedom, None where the row
    is judged by its own."""
    values = np.array(list(row.by_seed.values()))
    mean, count = float(np.mean(values)), len(values)
    std = float(values.std(ddof=1)) if count > 1 else None
    spread = (None if std is None else (std, count - 1)) if pooled is None else pooled
    span = None
    if spread is not None:
        reach = t_quantile(spread[1], (1 + confidence) / 2) * spread[0] / math.sqrt(count)
        span = Span(mean - reach, mean + reach)
    images = None
    if all(seed in row.draws for seed in row.by_seed):
        shares = np.mean(list(row.draws.values()), axis=0) / PERCENT
        found = interval(mean / PERCENT, shares, min(row.images, _MANY), confidence=confidence, share=True)
        images = Span(PERCENT * found.low, PERCENT * found.high)
    return RowResult(row.name, mean, count, std, span, images, difference)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's correlation of two columns; None for fewer than three rows or a column without order."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """The rank of each value from 1 on; equal ones share the mean of theirs. ``scipy.stats`` has this too, and takes
    half a second to import."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks
