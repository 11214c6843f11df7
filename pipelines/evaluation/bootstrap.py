"""How far AP would move on another draw of images: bootstrap over images, without matching anything again.

Persons of one image share its light, its crowding and its detector, so images are resampled, not persons. The match
table holds all that AP needs of an image; a replicate is a vector of how often each image was drawn.

Legend: I images, D predictions, T OKS thresholds, R recall levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.matching import OKS_THRESHOLDS, MatchTable
from efafnet.pipelines.evaluation.metrics import NO_PERSONS, RECALL_LEVELS

FIGURES = ("ap", "ap_50", "ap_75", "ar")
_AT_50, _AT_75 = (int(np.flatnonzero(t == OKS_THRESHOLDS)[0]) for t in (0.5, 0.75))


@dataclass(frozen=True)
class Interval:
    """A percentile interval and the spread of the replicates."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    std: float
    """Standard deviation over the replicates: the standard error of the figure."""


def bootstrap(
    table: MatchTable, *, replicates: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of ap, ap_50, ap_75 and ar over images drawn with replacement (I of I, ``replicates`` times)."""
    draws = resample(table, replicates=replicates, seed=seed)
    return {name: _interval(draws[:, i], confidence) for i, name in enumerate(FIGURES)}


def bootstrap_difference(
    table: MatchTable, other: MatchTable, *, replicates: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of the figures of ``table`` minus those of ``other``, both on the same draws of the same images.

    Pairing removes what is common to both: which images happen to be easy. Raises ValueError for tables of different
    sets of images.
    """
    if table.num_true.shape != other.num_true.shape or (table.num_true != other.num_true).any():
        raise ValueError("two sets of predictions can only be compared on the same annotations")
    mine, others = (resample(t, replicates=replicates, seed=seed) for t in (table, other))
    return {name: _interval((mine - others)[:, i], confidence) for i, name in enumerate(FIGURES)}


def resample(table: MatchTable, *, replicates: int, seed: int = 0) -> NDArray[np.float64]:
    """``FIGURES`` on each of ``replicates`` draws of the images, float64 (replicates, 4).

    The draws depend on the seed and the number of images alone: tables of the same images meet the same draws.
    """
    return np.array(list(_replicates(table, replicates, seed)))


def _interval(values: NDArray[np.float64], confidence: float) -> Interval:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), float(values.std(ddof=1)) if len(values) > 1 else 0.0)


def _replicates(table: MatchTable, replicates: int, seed: int) -> Iterator[tuple[float, ...]]:
    generator = np.random.default_rng(seed)
    num_images = table.num_true.shape[1]
    ranked = _Ranked.of(table)
    for _ in range(replicates):
        drawn = np.bincount(generator.integers(num_images, size=num_images), minlength=num_images)
        yield figures_of_draw(ranked, drawn)


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
    """Per threshold, the image of each wrong prediction."""

    @classmethod
    def of(cls, table: MatchTable) -> _Ranked:
        order = np.argsort(-table.scores, kind="stable")
        image = table.image[order]
        counted = ~table.ignored[0][:, order]
        matched = table.match[0][:, order] >= 0
        right, wrong = counted & matched, counted & ~matched
        return cls(
            num_true=table.num_true[0],
            hits=[image[r] for r in right],
            misses_before=[np.cumsum(w)[r] for r, w in zip(right, wrong, strict=True)],
            miss_images=[image[w] for w in wrong],
        )


def figures_of_draw(ranked: _Ranked, drawn: NDArray[np.int64]) -> tuple[float, ...]:
    """ap, ap_50, ap_75, ar where image i counts ``drawn[i]`` times.

    Precision only peaks at right predictions, so only those are looked at; the wrong ones before them are counted.
    """
    total = int((ranked.num_true * drawn).sum())
    if total == 0:
        return (NO_PERSONS,) * len(FIGURES)
    precision, recall = np.zeros(len(ranked.hits)), np.zeros(len(ranked.hits))
    for t, hits in enumerate(ranked.hits):
        found = np.cumsum(drawn[hits])
        wrong = np.concatenate([[0], np.cumsum(drawn[ranked.miss_images[t]])])[ranked.misses_before[t]]
        precision[t] = _mean_precision(found, wrong, total)
        recall[t] = found[-1] / total if len(found) else 0.0
    return float(precision.mean()), float(precision[_AT_50]), float(precision[_AT_75]), float(recall.mean())


def _mean_precision(found: NDArray[np.int64], wrong: NDArray[np.int64], total: int) -> float:
    precision = found / (found + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(found / total, RECALL_LEVELS, side="left")
    return float(envelope[at[at < len(found)]].sum() / len(RECALL_LEVELS))
