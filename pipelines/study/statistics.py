"""What repeated runs say: which settings differ, how far the figures would move, how many more runs it would take.

Every setting is run with the same seeds, which give the same order of samples and the same augmentation. A seed's runs
are therefore a block, as in a randomised block design, and a setting's difference from the baseline is taken seed by
seed. Two things move it: the seed (measured by what is left of the figures when each row's and each seed's own level
are taken out) and the draw of validation images (measured by bootstrap, the same draws for all runs). Both variances
are added. What the two share, the interaction of seed and image, is counted twice: the intervals are a little too wide.

The residual spread is pooled over the rows, because three seeds alone say next to nothing about the spread of one
difference. With two rows this is exactly the paired t test; with more it supposes that the rows scatter alike.
Differences from the baseline are many at once: Holm's correction keeps the chance of ANY false claim below 1 minus the
confidence.

Sources: Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks" (2021); Holm (1979);
Satterthwaite (1946) for the degrees of freedom of a sum of variances.

Legend: M rows (settings), S seeds, B bootstrap draws of the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MOST_RUNS = 10_000
"""Where the count of runs needed gives up."""


@dataclass(frozen=True)
class Measured:
    """One row's runs."""

    name: str
    by_seed: Mapping[int, float]
    """The validation figure of each seed's run."""
    draws: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    """float64 (B,) per seed: the figure on each bootstrap draw of the images; the same draws for all rows and seeds.
    Empty where there is no bootstrap."""


@dataclass(frozen=True)
class Span:
    """A confidence interval."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Noise:
    """How far runs lie apart that differ in nothing but the seed; standard deviations of single runs."""

    within: float
    """Between seeds of one row, pooled over the rows."""
    within_df: int
    residual: float
    """The same after each seed's common effect on all rows is taken out: what pairing leaves."""
    residual_df: int
    """0 where it cannot be known: fewer than two rows or two seeds."""

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
    """Interval by seeds and images together, of this difference alone; None with fewer than two pairs."""
    by_seeds: Span | None
    """Interval by seeds alone: on these very validation images."""
    by_images: Span | None
    """Interval by images alone: for these very runs; None without bootstrap."""
    image_error: float
    """Standard error by the draw of the images; 0 without bootstrap."""
    p: float | None
    """Two-sided probability of so large a difference between equal settings, of this difference alone."""
    p_holm: float | None = None
    """The same, corrected for the number of differences in the table."""
    distinguishable: bool = False
    """Whether ``p_holm`` is below 1 minus the confidence."""
    further_runs: int | None = None
    """Further seeds, for the row and the baseline alike, after which a true difference of this size would stand out
    in every second repetition; 0 where it does already, None where no number of seeds is enough."""


@dataclass(frozen=True)
class Standing:
    """What is known of a row."""

    name: str
    mean: float
    runs: int
    span: Span | None
    """Confidence interval of the mean over seeds, on these validation images."""
    by_images: Span | None
    """Interval of the mean by bootstrap over images, for these runs."""
    difference: Difference | None
    """From the baseline; None for the baseline itself, or without a seed in common."""


@dataclass(frozen=True)
class Comparison:
    """A table's worth of rows against one of them."""

    baseline: str
    confidence: float
    noise: Noise | None
    """None where no row has two runs."""
    rows: tuple[Standing, ...]
    """Those with at least one run, in the given order."""

    @property
    def distinguishable(self) -> list[Standing]:
        """Rows that differ from the baseline beyond doubt."""
        return [row for row in self.rows if row.difference is not None and row.difference.distinguishable]


def compare(rows: Sequence[Measured], baseline: str, *, confidence: float = 0.95) -> Comparison:
    """Compare each row with the baseline.

    Args:
        rows: measured rows, among them the baseline; those without runs are left out.
        baseline: its name.
        confidence: of the intervals, and of all claims of the table together.
    """
    present = [row for row in rows if row.by_seed]
    noise = noise_of(present)
    base = next((row for row in present if row.name == baseline), None)
    plain = {
        row.name: _difference(row, base, noise, confidence)
        for row in present
        if base is not None and row is not base and row.by_seed.keys() & base.by_seed.keys()
    }
    judged = _judged(plain, noise, confidence)
    standings = [_standing(row, noise, confidence, judged.get(row.name)) for row in present]
    return Comparison(baseline, confidence, noise, tuple(standings))


def noise_of(rows: Sequence[Measured]) -> Noise | None:
    """The spread between seeds; None where no row has two runs. Rows that lack a seed count for ``within`` only."""
    repeated = [np.array(list(row.by_seed.values())) for row in rows if len(row.by_seed) > 1]
    if not repeated:
        return None
    within_df = sum(len(values) - 1 for values in repeated)
    within = math.sqrt(sum(float(((values - values.mean()) ** 2).sum()) for values in repeated) / within_df)
    seeds = sorted({seed for row in rows for seed in row.by_seed})
    complete = np.array([[row.by_seed[seed] for seed in seeds] for row in rows if len(row.by_seed) == len(seeds)])
    residual, residual_df = block_residual(complete) if len(complete) else (0.0, 0)
    return Noise(within, within_df, residual, residual_df)


def block_residual(figures: NDArray[np.float64]) -> tuple[float, int]:
    """Standard deviation of what is left of ``figures`` (M, S) after row means and seed means, and its degrees of
    freedom (M - 1)(S - 1); (0, 0) where there are none."""
    rows, seeds = figures.shape
    df = (rows - 1) * (seeds - 1)
    if df == 0:
        return 0.0, 0
    left = figures - figures.mean(axis=1, keepdims=True) - figures.mean(axis=0, keepdims=True) + figures.mean()
    return math.sqrt(float((left**2).sum()) / df), df


# ---- one difference


@dataclass(frozen=True)
class _Scatter:
    """The uncertainty of a difference of means over seeds."""

    single: float
    """Standard deviation of one seed's difference."""
    df: int
    """Its degrees of freedom."""
    images: float
    """Standard error by the draw of the images; 0 without bootstrap."""

    def error(self, pairs: int) -> tuple[float, float]:
        """Standard error of the mean over ``pairs`` seeds, and its degrees of freedom (Satterthwaite)."""
        seeds = self.single**2 / pairs
        both = seeds + self.images**2
        if both == 0:
            return 0.0, float(self.df)
        return math.sqrt(both), both**2 / (seeds**2 / self.df) if seeds else math.inf

    def p(self, value: float, pairs: int) -> float:
        """Two-sided probability of a difference of at least ``value`` where there is none."""
        error, df = self.error(pairs)
        if error == 0:
            return 1.0 if value == 0 else 0.0
        return float(2 * stats.t.sf(abs(value) / error, df))

    def span(self, value: float, pairs: int, confidence: float) -> Span:
        """Confidence interval around ``value``."""
        error, df = self.error(pairs)
        reach = float(stats.t.ppf((1 + confidence) / 2, df)) * error
        return Span(value - reach, value + reach)


def _difference(row: Measured, base: Measured, noise: Noise | None, confidence: float) -> Difference:
    seeds = sorted(row.by_seed.keys() & base.by_seed.keys())
    value = float(np.mean([row.by_seed[seed] - base.by_seed[seed] for seed in seeds]))
    mine, theirs = _mean_draws(row, seeds), _mean_draws(base, seeds)
    change = mine - theirs if mine is not None and theirs is not None else None
    images = None if change is None else _percentiles(change, confidence)
    image_error = 0.0 if change is None else float(change.std(ddof=1))
    if noise is None or noise.residual_df == 0:
        return Difference(value, len(seeds), None, None, images, image_error, None)
    by_seeds = _Scatter(noise.of_pair, noise.residual_df, 0.0)
    both = _Scatter(noise.of_pair, noise.residual_df, image_error)
    return Difference(
        value=value,
        pairs=len(seeds),
        span=both.span(value, len(seeds), confidence),
        by_seeds=by_seeds.span(value, len(seeds), confidence),
        by_images=images,
        image_error=image_error,
        p=both.p(value, len(seeds)),
    )


def _judged(plain: Mapping[str, Difference], noise: Noise | None, confidence: float) -> dict[str, Difference]:
    """The same differences, judged together."""
    tested = {name: each.p for name, each in plain.items() if each.p is not None}
    adjusted, levels = holm(list(tested.values()), 1 - confidence)
    judged = dict(plain)
    for name, p_holm, level in zip(tested, adjusted, levels, strict=True):
        assert noise is not None, "a probability comes from a spread"
        clear = p_holm < 1 - confidence
        more = 0 if clear else further_runs(plain[name], noise, level)
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


def further_runs(difference: Difference, noise: Noise, level: float) -> int | None:
    """Further seeds until a true difference of this size would pass ``level`` in every second repetition.

    With the same spread and the same images; about (2 s / difference)^2 runs in all where images matter little, s the
    standard deviation of one seed's difference. None where the images alone forbid it, or beyond ``MOST_RUNS``.
    """
    df_per_seed = noise.residual_df / max(1, difference.pairs - 1)

    def enough(runs: int) -> bool:
        df = max(1, round(df_per_seed * (runs - 1)))
        return _Scatter(noise.of_pair, df, difference.image_error).p(difference.value, runs) <= level

    low, high = difference.pairs, MOST_RUNS
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high - difference.pairs


def _standing(row: Measured, noise: Noise | None, confidence: float, difference: Difference | None) -> Standing:
    values = list(row.by_seed.values())
    mean = float(np.mean(values))
    span = None
    if noise is not None:
        reach = float(stats.t.ppf((1 + confidence) / 2, noise.within_df)) * noise.within / math.sqrt(len(values))
        span = Span(mean - reach, mean + reach)
    draws = _mean_draws(row, sorted(row.by_seed))
    images = None if draws is None else _percentiles(draws, confidence)
    return Standing(row.name, mean, len(values), span, images, difference)


def _mean_draws(row: Measured, seeds: Sequence[int]) -> NDArray[np.float64] | None:
    """Mean over ``seeds`` of the figure on each draw, (B,); None unless all have them."""
    if not seeds or any(seed not in row.draws for seed in seeds):
        return None
    mean: NDArray[np.float64] = np.mean([row.draws[seed] for seed in seeds], axis=0)
    return mean


def _percentiles(draws: NDArray[np.float64], confidence: float) -> Span:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Span(float(low), float(high))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's correlation of two columns; None for fewer than three rows or a column without order."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1])
