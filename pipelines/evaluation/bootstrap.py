"""How far AP would move on another draw of images: bootstrap over images, without matching anything again.

Persons of one image share its light, its crowding and its detector, so images are resampled, not persons. The match
table holds all that AP needs of an image; a replicate is a vector of how often each image was drawn.

AP of few images is biased (its precision is a maximum over what comes later, its recall levels are hundredths), and so
is every replicate of it once more; it lies between 0 and 1, and images differ in how many persons they hold. So the
interval is a normal one on the logit scale: the replicates' mean distance from the figure is taken out, and their
spread is widened as a mean of the effective number of images demands, by Student's t and the n / (n - 1) of a
variance. The effective number is that of images with equally many persons that would say as much (Kish: (sum of
persons)² / sum of persons²). Measured by `python -m benchmarks.bench_intervals`: docs/benchmarks.md.

Legend: I images, D predictions, T OKS thresholds, B replicates, H right predictions, F figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.matching import OKS_THRESHOLDS, MatchTable
from efafnet.pipelines.evaluation.metrics import NO_PERSONS, RECALL_LEVELS

FIGURES = ("ap", "ap_50", "ap_75", "ar")
_AT_50, _AT_75 = (int(np.flatnonzero(t == OKS_THRESHOLDS)[0]) for t in (0.5, 0.75))


FEWEST_IMAGES = 25
"""Effective images down to which the coverage of intervals was measured; below it they are called approximate."""
_EDGE = 1e-4
"""Figures nearer to 0 or 1 are taken to be this near, so that their logits are finite."""
_STEPS = 2.0
"""Steps of a recall level below which the spread of a single threshold's figure is too small for the interval."""
_STILL = 1e-9
"""Spread below which no draw of the images moves a figure."""
_ELEMENTS = 2_000_000
"""Counts that are held at once, by replicate and prediction."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval and the spread of the replicates."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    std: float
    """Standard deviation over the replicates: the standard error of the figure."""
    approximate: bool = False
    """Whether it may cover the truth less often than it says: too few images, a figure that no draw of them moves (0 or
    1), or one of a single threshold known more closely than the steps it moves in."""


def bootstrap(
    table: MatchTable, *, replicates: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of ap, ap_50, ap_75 and ar over images drawn with replacement (I of I, ``replicates`` times)."""
    draws = resample(table, replicates=replicates, seed=seed)
    figures, steps = figures_of(table), recall_steps(table)
    images = effective_images(table)
    made = {
        name: interval(figures[i], draws[:, i], images, confidence=confidence, share=True)
        for i, name in enumerate(FIGURES)
    }
    return _marked(made, steps)


def recall_steps(table: MatchTable) -> dict[str, float]:
    """By how much ap_50 and ap_75 rise where the recall reaches one level more: the precision there, over 101.

    A population's recall lies somewhere between two levels and a sample's on either side of one, so a figure of one
    threshold is off by up to half a step however many images there are; AP, of ten thresholds, by a tenth of that.
    """
    ranked = _Ranked.of(table)
    steps = {}
    for name, t in (("ap_50", _AT_50), ("ap_75", _AT_75)):
        right = len(ranked.hits[t])
        steps[name] = right / max(1, right + len(ranked.miss_images[t])) / len(RECALL_LEVELS)
    return steps


def bootstrap_difference(
    table: MatchTable, other: MatchTable, *, replicates: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of the figures of ``table`` minus those of ``other``, both on the same draws of the same images.

    Pairing removes what is common to both: which images happen to be easy. Raises ValueError for tables of different
    sets of images.
    """
    if table.num_true.shape != other.num_true.shape or (table.num_true != other.num_true).any():
        raise ValueError("two sets of predictions can only be compared on the same annotations")
    draws = resample(table, replicates=replicates, seed=seed) - resample(other, replicates=replicates, seed=seed)
    figures = figures_of(table) - figures_of(other)
    images = effective_images(table)
    made = {
        name: interval(figures[i], draws[:, i], images, confidence=confidence, share=False)
        for i, name in enumerate(FIGURES)
    }
    own, others = recall_steps(table), recall_steps(other)
    return _marked(made, {name: max(step, others[name]) for name, step in own.items()})


def _marked(made: dict[str, Interval], steps: dict[str, float]) -> dict[str, Interval]:
    """The intervals, those of single thresholds approximate where they are known more closely than they move."""
    return {
        name: replace(each, approximate=each.approximate or 0 < each.std < _STEPS * steps.get(name, 0.0))
        for name, each in made.items()
    }


def effective_images(table: MatchTable) -> float:
    """How many images of equally many persons would say as much: (sum of persons)² / sum of persons²; 0 without any."""
    persons = table.num_true[0].astype(np.float64)
    return float(persons.sum() ** 2 / (persons**2).sum()) if persons.any() else 0.0


def interval(
    figure: float, replicates: NDArray[np.float64], images: float, *, confidence: float, share: bool
) -> Interval:
    """The interval of a figure by its ``replicates`` (B,) over ``images`` effective images.

    A ``share`` lies between 0 and 1 (or is -1 where there was nobody to find) and is treated on the logit scale.
    """
    spread = float(replicates.std(ddof=1)) if len(replicates) > 1 else 0.0
    if images == 0:
        return Interval(float(figure), float(figure), spread)
    if share:
        # A draw without any person says nothing.
        values, centre = _logit(replicates[replicates != NO_PERSONS]), float(_logit(np.array(figure)))
    else:
        values, centre = replicates, float(figure)
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if std < _STILL:
        return Interval(float(figure), float(figure), spread, approximate=share)
    from scipy import special  # here, because every training imports this module, and scipy takes a while

    df = max(1.0, images - 1)
    half = float(special.stdtrit(df, (1 + confidence) / 2)) * float(np.sqrt((df + 1) / df)) * std
    middle = 2 * centre - float(values.mean())
    low, high = (float(special.expit(end)) if share else end for end in (middle - half, middle + half))
    return Interval(low, high, spread, approximate=images < FEWEST_IMAGES)


def _logit(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(shares, _EDGE, 1 - _EDGE)
    return np.asarray(np.log(inside / (1 - inside)))


def resample(table: MatchTable, *, replicates: int, seed: int = 0) -> NDArray[np.float64]:
    """``FIGURES`` on each of ``replicates`` draws of the images, float64 (replicates, 4).

    The draws depend on the seed and the number of images alone: tables of the same images meet the same draws.
    """
    ranked = _Ranked.of(table)
    return np.concatenate([figures_of_draws(ranked, drawn) for drawn in _draws(ranked, replicates, seed)])


def figures_of(table: MatchTable) -> NDArray[np.float64]:
    """``FIGURES`` (4,) themselves: every image drawn once."""
    once = np.ones((1, table.num_true.shape[1]), np.int32)
    return np.asarray(figures_of_draws(_Ranked.of(table), once)[0])


def _draws(ranked: _Ranked, replicates: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """How often each image is drawn, int32 (B, I), in parts that fit in memory."""
    generator = np.random.default_rng(seed)
    num_images = len(ranked.num_true)
    held = max(num_images, len(ranked.hits[0]) + len(ranked.miss_images[0]))
    part = max(1, min(replicates, _ELEMENTS // max(1, held)))
    for first in range(0, replicates, part):
        count = min(part, replicates - first)
        chosen = generator.integers(num_images, size=(count, num_images))
        cells = chosen + num_images * np.arange(count)[:, None]
        drawn = np.bincount(cells.ravel(), minlength=count * num_images)
        yield drawn.reshape(count, num_images).astype(np.int32)


@dataclass(frozen=True)
class _Ranked:
    """What a replicate needs of all predictions in falling order of score, for persons of every size."""

    num_true: NDArray[np.int64]
    """int64 (I,)."""
    hits: list[NDArray[np.int64]]
    """Per threshold, the image of each right prediction."""
    misses_before: list[NDArray[np.int64]]
    """Per threshold, how many wrong predictions rank before each right one."""
    miss_images: list[NDArray[np.int64]]
    """Per threshold, the image of each wrong prediction that ranks before a right one."""

    @classmethod
    def of(cls, table: MatchTable) -> _Ranked:
        order = np.argsort(-table.scores, kind="stable")
        image = table.image[order]
        counted = ~table.ignored[0][:, order]
        matched = table.match[0][:, order] >= 0
        right, wrong = counted & matched, counted & ~matched
        before = [np.cumsum(w)[r] for r, w in zip(right, wrong, strict=True)]
        return cls(
            num_true=table.num_true[0],
            hits=[image[r] for r in right],
            misses_before=before,
            miss_images=[image[w][: b[-1] if len(b) else 0] for w, b in zip(wrong, before, strict=True)],
        )


def figures_of_draws(ranked: _Ranked, drawn: NDArray[np.int32]) -> NDArray[np.float64]:
    """ap, ap_50, ap_75, ar (B, 4) where image i counts ``drawn[b, i]`` times; -1 where nobody was drawn.

    Precision only peaks at right predictions, so only those are looked at; the wrong ones before them are counted.
    """
    # (I, B): what a prediction's image counts in all replicates lies together.
    by_image = np.ascontiguousarray(drawn.T)
    total = ranked.num_true @ by_image
    needed = _needed(np.maximum(total, 1))
    precision, recall = (np.zeros((len(ranked.hits), len(drawn))) for _ in range(2))
    for t, hits in enumerate(ranked.hits):
        if len(hits) == 0:
            continue
        found = np.cumsum(by_image[hits], axis=0, dtype=np.int32)
        wrong = np.zeros((len(ranked.miss_images[t]) + 1, len(drawn)), np.int32)
        np.cumsum(by_image[ranked.miss_images[t]], axis=0, out=wrong[1:])
        precision[t] = _mean_precision(found, wrong[ranked.misses_before[t]], needed)
        recall[t] = found[-1] / np.maximum(total, 1)
    figures = np.stack([precision.mean(axis=0), precision[_AT_50], precision[_AT_75], recall.mean(axis=0)], axis=1)
    figures[total == 0] = NO_PERSONS
    return figures


def _needed(total: NDArray[np.int64]) -> NDArray[np.int64]:
    """Persons (B, 101) that must be found of ``total`` (B,) to reach each recall level: the least n with n / total at
    least the level, in floating point as the recall itself is computed."""
    least = np.floor(RECALL_LEVELS * total[:, None]).astype(np.int64)
    least += least / total[:, None] < RECALL_LEVELS
    least -= (least - 1) / total[:, None] >= RECALL_LEVELS
    return np.asarray(least)


def _mean_precision(
    found: NDArray[np.int32], wrong: NDArray[np.int32], needed: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AP (B,) of right and wrong predictions counted up to each right one, (H, B)."""
    precision = found / (found + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    replicate = np.arange(found.shape[1])
    # One search for all replicates: each one's counts are lifted above those of the one before.
    lift = replicate * (int(found[-1].max()) + int(needed.max()) + 1)
    at = np.searchsorted((found.T + lift[:, None]).ravel(), (needed + lift[:, None]).ravel(), side="left")
    at = at.reshape(needed.shape) - len(found) * replicate[:, None]
    reached = at < len(found)
    values = envelope[np.minimum(at, len(found) - 1), replicate[:, None]]
    return np.asarray(np.where(reached, values, 0.0).sum(axis=1) / len(RECALL_LEVELS))
