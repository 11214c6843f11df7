"""Whether the intervals of AP cover: samples of images from a population whose figures are known, one interval each.

``python -m benchmarks.bench_intervals`` makes populations of images (crowded and empty, easy and hard, with persons
missed, found badly and found twice, and predictions of nobody), draws many samples of 25 to 1,000 of their images, and
counts how often the 95 % interval of a sample holds the population's figure, and on which side it lies where it does
not. Beside it what the percentile interval from the same replicates does. ``--paired`` does so for the interval of the
difference between two networks on the same images. With ``--annotations`` and ``--results`` the
population is made of real annotations and results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Record, add_option, recorded
from efafnet.pipelines.evaluation.bootstrap import (
    FIGURES,
    bootstrap_difference,
    effective_images,
    figures_of,
    interval,
    resample,
)
from efafnet.pipelines.evaluation.columns import detections, truth
from efafnet.pipelines.evaluation.matching import OKS_THRESHOLDS, MatchTable, Pairs, match
from efafnet.platform import console

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Making:
    """What a population is like, on the logit scale where nothing else is said."""

    quality: float
    """Middle of the OKS of found persons."""
    by_image: float
    """How much the quality differs between images."""
    found: float
    """Middle of the chance to be found at all."""
    extra_share: float
    """Predictions of nobody per person, in numbers."""
    score_noise: float
    """How little a score says about the quality."""


MAKINGS = {
    "hard": Making(quality=0.6, by_image=1.0, found=1.0, extra_share=0.8, score_noise=1.0),
    "middling": Making(quality=1.5, by_image=0.9, found=2.0, extra_share=0.4, score_noise=0.7),
    "easy": Making(quality=2.2, by_image=0.8, found=3.0, extra_share=0.25, score_noise=0.5),
}


@dataclass(frozen=True)
class Coverage:
    """How often intervals held a figure of the population, in percent of the trials."""

    covered: float
    below: float
    """The figure lay below the interval."""
    above: float
    """The figure lay above it."""

    @classmethod
    def of(cls, ends: NDArray[np.float64], figure: float) -> Coverage:
        """Of the intervals ``ends`` (trials, 2)."""
        below, above = (100 * float(side.mean()) for side in (figure < ends[:, 0], figure > ends[:, 1]))
        return cls(100 - below - above, below, above)


def made_population(making: Making, num_images: int, seed: int = 0) -> MatchTable:
    """The match table of a made population: what a matcher would have said of it."""
    rng = np.random.default_rng(seed)
    difficulty, persons, person = _made_people(rng, num_images)
    return _predicted(making, difficulty, persons, person, rng)


def made_pair(
    making: Making, num_images: int, *, gain: float = 0.2, likeness: float = 0.8, seed: int = 0
) -> tuple[MatchTable, MatchTable]:
    """Two networks on one population, the first better by ``gain`` on the logit scale.

    ``likeness`` is the correlation of what they make of one person beyond what its image makes easy for both.
    """
    rng = np.random.default_rng(seed)
    difficulty, persons, person = _made_people(rng, num_images)
    better = replace(making, quality=making.quality + gain, found=making.found + gain)
    other = likeness * person + np.sqrt(1 - likeness**2) * rng.normal(size=len(person))
    return (
        _predicted(better, difficulty, persons, person, rng),
        _predicted(making, difficulty, persons, other, rng),
    )


def _made_people(
    rng: np.random.Generator, num_images: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """How easy images (I,) are, how many persons (I,) they hold, and how easy each of all persons is beyond that."""
    difficulty = rng.normal(size=num_images)
    persons = np.minimum(rng.geometric(0.42, size=num_images), 15)
    return difficulty, persons, rng.normal(size=int(persons.sum()))


def _predicted(
    making: Making,
    difficulty: NDArray[np.float64],
    persons: NDArray[np.int64],
    person: NDArray[np.float64],
    rng: np.random.Generator,
) -> MatchTable:
    image = np.repeat(np.arange(len(persons)), persons)
    quality = making.quality + making.by_image * difficulty[image] + 1.1 * person
    seen = rng.random(len(image)) < _share(making.found + 0.5 * difficulty[image])
    scores = 0.6 * quality + making.score_noise * rng.normal(size=len(image)) + 0.3 * difficulty[image]
    nobody = np.repeat(np.arange(len(persons)), rng.poisson(making.extra_share * persons))
    extra = rng.normal(size=len(nobody)) - 1 + 0.2 * difficulty[nobody]
    oks = np.concatenate([_share(quality[seen]), np.zeros(len(nobody))])
    right = oks >= OKS_THRESHOLDS[:, None]
    return _table(
        np.concatenate([image[seen], nobody]), np.concatenate([scores[seen], extra]), right, persons.astype(np.int64)
    )


def _share(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-logit)))


def _table(
    image: NDArray[np.int64], scores: NDArray[np.float64], right: NDArray[np.bool_], persons: NDArray[np.int64]
) -> MatchTable:
    """A match table of persons of every size that says which predictions are right (T, D)."""
    nothing = np.zeros(0, np.int64)
    return MatchTable(
        detection=np.arange(len(image)),
        image=image,
        scores=scores,
        match=np.where(right, 0, -1).astype(np.int32)[None],
        ignored=np.zeros((1, *right.shape), bool),
        num_true=persons[None],
        pairs=Pairs(nothing, nothing, np.zeros(0)),
    )


def sampled(population: MatchTable, images: NDArray[np.int64]) -> MatchTable:
    """The part of a population that lies on ``images`` (n,), which become images 0 to n - 1."""
    place = np.full(population.num_true.shape[1], -1)
    place[images] = np.arange(len(images))
    held = place[population.image] >= 0
    return replace(
        population,
        detection=population.detection[held],
        image=place[population.image[held]],
        scores=population.scores[held],
        match=population.match[:1, :, held],
        ignored=population.ignored[:1, :, held],
        num_true=population.num_true[:1, images],
    )


def coverage(
    population: MatchTable, num_images: int, *, trials: int, replicates: int, seed: int = 0
) -> tuple[dict[str, Coverage], dict[str, Coverage]]:
    """By figure, what intervals from samples of ``num_images`` cover, and what percentile intervals do."""
    rng = np.random.default_rng(seed)
    figures = figures_of(population)
    ends, percentiles = (np.zeros((trials, len(FIGURES), 2)) for _ in range(2))
    for trial in range(trials):
        images = rng.choice(population.num_true.shape[1], num_images, replace=False)
        table = sampled(population, images)
        found, draws = figures_of(table), resample(table, replicates=replicates, seed=trial)
        for i in range(len(FIGURES)):
            made = interval(found[i], draws[:, i], effective_images(table), confidence=CONFIDENCE, share=True)
            ends[trial, i] = made.low, made.high
        percentiles[trial] = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0).T
    return tuple(
        {name: Coverage.of(each[:, i], float(figures[i])) for i, name in enumerate(FIGURES)}
        for each in (ends, percentiles)
    )  # type: ignore[return-value]


def paired_coverage(
    pair: tuple[MatchTable, MatchTable], num_images: int, *, trials: int, replicates: int, seed: int = 0
) -> dict[str, Coverage]:
    """By figure, what intervals of the difference between two networks cover, both on the same sampled images."""
    rng = np.random.default_rng(seed)
    truths = figures_of(pair[0]) - figures_of(pair[1])
    ends = np.zeros((trials, len(FIGURES), 2))
    for trial in range(trials):
        images = rng.choice(pair[0].num_true.shape[1], num_images, replace=False)
        tables = [sampled(population, images) for population in pair]
        made = bootstrap_difference(*tables, replicates=replicates, confidence=CONFIDENCE, seed=trial)
        ends[trial] = [(made[name].low, made[name].high) for name in FIGURES]
    return {name: Coverage.of(ends[:, i], float(truths[i])) for i, name in enumerate(FIGURES)}


def report_pair(
    name: str,
    pair: tuple[MatchTable, MatchTable],
    sizes: Sequence[int],
    trials: int,
    replicates: int,
    record: Record,
) -> None:
    """Print the table of one pair's differences."""
    truths = figures_of(pair[0]) - figures_of(pair[1])
    figures = ", ".join(f"{n} {v:+.3f}" for n, v in zip(FIGURES, truths, strict=True))
    rows: list[list[object]] = []
    for size in sizes:
        found = paired_coverage(pair, size, trials=trials, replicates=replicates)
        for figure in FIGURES:
            off = abs(found[figure].covered - 100 * CONFIDENCE)
            record.add(
                f"difference, {name}, {size} images, {figure}: off {CONFIDENCE:.0%}", "points", [off], exact=True
            )
        rows.append([size, *(_told(found[n]) for n in FIGURES)])
    console.table(
        ["images", *FIGURES],
        rows,
        title=f"difference, {name} ({figures}): {trials} trials of {replicates} replicates; % covered (below/above)",
    )


def real_population(annotations: Path, results: Path) -> MatchTable:
    """The match table of a results file, images without persons left out."""
    reference = truth(json.loads(annotations.read_bytes()))
    table = match(reference, detections(json.loads(results.read_bytes()), reference), sizes=("all",))
    return sampled(table, np.flatnonzero(table.num_true[0] > 0))


def report(
    name: str, population: MatchTable, sizes: Sequence[int], trials: int, replicates: int, record: Record
) -> None:
    """Print one population's table."""
    figures = ", ".join(f"{n} {v:.3f}" for n, v in zip(FIGURES, figures_of(population), strict=True))
    rows: list[list[object]] = []
    for size in sizes:
        new, percentile = coverage(population, size, trials=trials, replicates=replicates)
        for figure in FIGURES:
            off = abs(new[figure].covered - 100 * CONFIDENCE)
            record.add(f"{name}, {size} images, {figure}: off {CONFIDENCE:.0%}", "points", [off], exact=True)
        rows.append([size, *(_told(new[n]) for n in FIGURES), *(_told(percentile[n]) for n in ("ap", "ap_50"))])
    console.table(
        ["images", *FIGURES, "percentile: ap", "percentile: ap_50"],
        rows,
        title=f"{name} ({figures}): {trials} trials of {replicates} replicates; % covered (below/above)",
    )


def _told(coverage: Coverage) -> str:
    return f"{coverage.covered:.1f} ({coverage.below:.1f}/{coverage.above:.1f})"


def main() -> None:
    """Make populations, sample, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[25, 50, 100, 300, 1000], help="images of a sample")
    parser.add_argument("--trials", type=int, default=400, help="samples of each size")
    parser.add_argument("--replicates", type=int, default=400, help="resamplings of each sample")
    parser.add_argument("--population", type=int, default=60_000, help="images of a made population")
    parser.add_argument("--made", nargs="+", choices=MAKINGS, default=list(MAKINGS), help="which made populations")
    parser.add_argument("--paired", action="store_true", help="the difference of two networks on the same images")
    parser.add_argument("--annotations", type=Path, help="COCO annotations of a real population")
    parser.add_argument("--results", type=Path, help="results on them")
    add_option(parser)
    given = parser.parse_args()
    with recorded("bench_intervals", given) as record:
        if given.annotations is not None:
            population = real_population(given.annotations, given.results)
            report(given.results.name, population, given.sizes, given.trials, given.replicates, record)
            return
        for name in given.made:
            making = MAKINGS[name]
            if given.paired:
                pair = made_pair(making, given.population)
                report_pair(name, pair, given.sizes, given.trials, given.replicates, record)
                continue
            population = made_population(making, given.population)
            report(name, population, given.sizes, given.trials, given.replicates, record)


if __name__ == "__main__":
    main()
