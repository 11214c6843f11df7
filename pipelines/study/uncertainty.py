"""The uncertainty of a difference of two settings: its interval, how sure it is, and how many runs it would take.

A difference moves with the seeds and with the draw of validation images; both variances are added. The sum has no exact
distribution. Its critical value is the mean of the two t's, weighted by the variances (Cochran, "Approximate
significance levels of the Behrens-Fisher test", 1964), which is a little too strict. Satterthwaite's degrees of freedom
(1946) are too lenient where three seeds give two of them: with a fifth as much variance by the images they reject 7.5 %
of true hypotheses at 5 %, and 2.8 % at the .8 % that Holm's correction asks of six.

The probability that a run of one setting beats a run of the other, P(A > B), is the size of a difference as Bouthillier
et al. ("Accounting for Variance in Machine Learning Benchmarks", 2021) ask for it: .5 where nothing differs, and .75 is
what they call meaningful. With a handful of seeds it cannot be counted; it follows from the difference in units of one
seed's spread, supposed normal, whose exact interval is that of the noncentral t distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scipy import special

MOST_RUNS = 10_000
"""Where the count of runs needed gives up."""
RANGE = 0.8
"""Confidence of a range of runs: what a few seeds know of it is little, and at 95 % nearly always nothing."""
_HALVINGS = 50
"""Of the bracket in which a level is looked for."""
_FAR = 30.0
"""Values of t from which the noncentrality is t times a chi over the root of its degrees of freedom."""


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
class Chance:
    """The probability that a run of one setting beats a run of another with the same seed, on the same images."""

    value: float
    span: Span
    """Its confidence interval."""


@dataclass(frozen=True)
class Runs:
    """How many seeds something takes; None stands for more than ``MOST_RUNS``, or for no number at all."""

    fewest: int | None
    most: int | None

    def __str__(self) -> str:
        if self.fewest is None:
            return "beyond"
        if self.most is None:
            return f"{self.fewest} or more"
        return str(self.fewest) if self.fewest == self.most else f"{self.fewest} to {self.most}"


@dataclass(frozen=True)
class Scatter:
    """What moves a difference of means over seeds."""

    single: float
    """Standard deviation of one seed's difference."""
    df: float
    """Its degrees of freedom."""
    image_error: float = 0.0
    """Standard error by the draw of the images; 0 without bootstrap."""
    images: float = math.inf
    """Effective number of images that ``image_error`` is known from."""
    widened: float = 1.0
    """Factor on what the seeds move, in errors and intervals, where ``single`` may be too small for this difference."""

    def p(self, value: float, pairs: float) -> float:
        """Two-sided probability of a difference of at least ``value`` where there is none."""
        seeds, images = self._variances(pairs)
        if seeds + images == 0:
            return 1.0 if value == 0 else 0.0
        t = abs(value) / math.sqrt(seeds + images)
        of_image = max(1.0, self.images - 1)
        alone = [_t_below(df, -t) for df, has in ((self.df, seeds), (of_image, images)) if has]
        # The mean of two quantiles at a level lies between them, so the level lies between the levels at t.
        low, high = math.log(max(min(alone), 1e-300)), math.log(max(max(alone), 1e-300))
        for _ in range(_HALVINGS if high > low else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if self._reach(pairs, math.exp(middle)) > abs(value) else (low, middle)
        return min(1.0, 2 * math.exp((low + high) / 2)) if high > low else 2 * alone[0]

    def span(self, value: float, pairs: float, confidence: float) -> Span:
        """Confidence interval around ``value``."""
        reach = self._reach(pairs, (1 - confidence) / 2)
        return Span(value - reach, value + reach)

    def _variances(self, pairs: float) -> tuple[float, float]:
        """Of the mean over ``pairs`` seeds, by the seeds and by the images."""
        return (self.widened * self.single) ** 2 / pairs, self.image_error**2

    def _reach(self, pairs: float, tail: float, df: float | None = None) -> float:
        """What the mean over ``pairs`` seeds exceeds with probability ``tail`` where there is no difference; ``df``
        takes the place of this scatter's own."""
        seeds, images = self._variances(pairs)
        if seeds + images == 0:
            return 0.0
        of_seeds = seeds * _t_above(self.df if df is None else df, tail) if seeds else 0.0
        of_images = images * _t_above(max(1.0, self.images - 1), tail) if images else 0.0
        return (of_seeds + of_images) / math.sqrt(seeds + images)

    def chance(self, value: float, pairs: float, confidence: float) -> Chance:
        """The probability that a single run is better, where means over ``pairs`` seeds differ by ``value``; of these
        images, so their draw does not count."""
        if self.single == 0:
            sure = 0.5 if value == 0 else float(value > 0)
            return Chance(sure, Span(sure, sure))
        t = value / self.single * math.sqrt(pairs)
        ends = [_noncentrality(self.df, share, t) for share in ((1 + confidence) / 2, (1 - confidence) / 2)]
        low, high = (float(special.ndtr(end / math.sqrt(pairs))) for end in ends)
        return Chance(float(special.ndtr(value / self.single)), Span(low, high))

    def needed(self, value: float, pairs: float, level: float) -> int | None:
        """Seeds in all after which a true difference of ``value`` passes ``level`` in every second repetition.

        With the same spread and the same images; about (2 s / value)^2 where images matter little, s the standard
        deviation of one seed's difference. None where the images alone forbid it, or beyond ``MOST_RUNS``.

        Args:
            value: the true difference.
            pairs: seeds that the spread is known from.
            level: what a probability is held against.
        """
        df_per_seed = self.df / max(1.0, pairs - 1)

        def enough(runs: int) -> bool:
            return self._reach(runs, level / 2, max(1, round(df_per_seed * (runs - 1)))) <= abs(value)

        low, high = 1, MOST_RUNS
        if value == 0 or not enough(high):  # without any spread not even nothing would be beyond nothing
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return high

    def further(self, value: float, pairs: float, level: float) -> Runs:
        """Further seeds, for both settings alike, until the true difference passes ``level`` every second time: for the
        largest and the smallest difference that may be the true one (``RANGE``)."""
        span = self.span(value, pairs, RANGE)
        far, near = max(abs(span.low), abs(span.high)), min(abs(span.low), abs(span.high))
        ends = [self.needed(far, pairs, level), None if span.low <= 0 <= span.high else self.needed(near, pairs, level)]
        here = math.floor(pairs)
        fewest, most = (None if end is None else max(1, end - here) for end in ends)
        return Runs(fewest, most)

    def resolving(self, points: float, pairs: float, level: float) -> tuple[int | None, Runs]:
        """Seeds in all for a true difference of ``points``: with the spread as it was found, and with the smallest and
        the largest that it may be (``RANGE``, by the distribution of a variance)."""
        ends = [
            replace(self, single=self.single * math.sqrt(self.df / special.chdtri(self.df, share))).needed(
                points, pairs, level
            )
            for share in ((1 - RANGE) / 2, (1 + RANGE) / 2)
        ]
        return self.needed(points, pairs, level), Runs(*ends)


def t_quantile(df: float, share: float) -> float:
    """What Student's t lies below with probability ``share``; infinite degrees of freedom are the normal."""
    return _t_above(df, 1 - share)


def _t_above(df: float, tail: float) -> float:
    """What it lies above with probability ``tail``."""
    return -float(special.ndtri(tail) if math.isinf(df) else special.stdtrit(df, tail))


def _t_below(df: float, t: float) -> float:
    return float(special.ndtr(t) if math.isinf(df) else special.stdtr(df, t))


def _noncentrality(df: float, share: float, t: float) -> float:
    """The noncentrality with which a noncentral t lies below ``t`` with probability ``share``."""
    if abs(t) > _FAR:  # the normal part hardly counts, and the routine's series grow long
        tail = share if t > 0 else 1 - share
        return t * math.sqrt(float(special.chdtri(df, tail)) / df)
    return float(special.nctdtrinc(df, share, t))
