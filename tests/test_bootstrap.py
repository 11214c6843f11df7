from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_intervals
from efafnet.pipelines.evaluation import bootstrap as module
from efafnet.pipelines.evaluation.bootstrap import FIGURES, bootstrap, bootstrap_difference, figures_of_draws
from efafnet.pipelines.evaluation.columns import detections, truth
from efafnet.pipelines.evaluation.matching import MatchTable, match
from efafnet.pipelines.evaluation.metrics import curves, summary
from tests.evaluation_cases import evaluate_predictions, pycocotools_stats, random_case, result


def _table(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> MatchTable:
    reference = truth(case[0])
    return match(reference, detections(case[1], reference))


def _drawn_set(
    case: tuple[dict[str, Any], list[dict[str, Any]]], drawn: np.ndarray[Any, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The resampled data set itself: each image copied as often as it was drawn, under an id of its own."""
    ground_truth, results = case
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    copies: list[dict[str, Any]] = []
    for image, count in zip(ground_truth["images"], drawn, strict=True):
        for copy in range(count):
            new_id = image["id"] * 100 + copy
            images.append({**image, "id": new_id})
            for annotation in ground_truth["annotations"]:
                if annotation["image_id"] == image["id"]:
                    annotations.append({**annotation, "image_id": new_id, "id": len(annotations) + 1})
            copies += [{**r, "image_id": new_id} for r in results if r["image_id"] == image["id"]]
    return {**ground_truth, "images": images, "annotations": annotations}, copies


@pytest.mark.parametrize("seed", range(8))
def test_a_replicate_is_what_pycocotools_says_of_the_resampled_data_set(seed: int) -> None:
    case = random_case(seed, num_images=10, ties=False)
    drawn = np.bincount(np.random.default_rng(seed).integers(10, size=10), minlength=10)
    brute = pycocotools_stats(*_drawn_set(case, drawn))
    (fast,) = figures_of_draws(module._Ranked.of(_table(case)), drawn[None].astype(np.int32))
    assert tuple(fast) == pytest.approx((brute[0], brute[1], brute[2], brute[5]), abs=1e-12)


def test_counting_images_in_the_curves_is_the_same_resampling_in_every_size_class() -> None:
    case = random_case(4, num_images=10, ties=False)
    drawn = np.array([2, 0, 1, 1, 3, 0, 0, 1, 1, 1])
    assert list(summary(curves(_table(case), drawn)).values()) == pytest.approx(
        pycocotools_stats(*_drawn_set(case, drawn)), abs=1e-12
    )


def test_drawing_every_image_once_gives_the_figures_themselves() -> None:
    case = random_case(1)
    figures = evaluate_predictions(case[1], case[0])
    (once,) = figures_of_draws(module._Ranked.of(_table(case)), np.ones((1, 12), np.int32))
    assert list(once) == pytest.approx([figures[name] for name in FIGURES], abs=1e-12)


def test_the_interval_holds_the_figure_and_widens_with_confidence_and_is_repeatable() -> None:
    case = random_case(2, num_images=40)
    table, ap = _table(case), evaluate_predictions(case[1], case[0])["ap"]
    narrow, wide = (bootstrap(table, replicates=200, confidence=c)["ap"] for c in (0.5, 0.95))
    assert wide.low < narrow.low < ap < narrow.high < wide.high
    assert bootstrap(table, replicates=200)["ap"] == wide
    assert bootstrap(table, replicates=200, seed=1)["ap"] != wide


def test_the_spread_falls_with_the_root_of_the_number_of_images() -> None:
    """Copies of the same images, n and 9n: the standard error of a mean-like figure falls to about a third."""
    case = random_case(5, num_images=12, ties=False)
    ninefold = _drawn_set(case, np.full(12, 9))
    small, large = (bootstrap(_table(c), replicates=400)["ap"].std for c in (case, ninefold))
    assert small / large == pytest.approx(3.0, rel=0.3)


def test_a_paired_difference_of_like_predictions_is_narrower_than_either_interval() -> None:
    ground_truth, results = random_case(6, num_images=40, ties=False)
    worse = [r for i, r in enumerate(results) if i % 10]
    mine, others = _table((ground_truth, results)), _table((ground_truth, worse))
    difference = bootstrap_difference(mine, others, replicates=200)["ap"]
    assert difference.std < 0.5 * bootstrap(mine, replicates=200)["ap"].std
    assert bootstrap_difference(mine, mine, replicates=20)["ap"] == module.Interval(0.0, 0.0, 0.0)


def test_different_annotations_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="only be compared on the same annotations"):
        bootstrap_difference(_table(random_case(1)), _table(random_case(2)), replicates=2)


def test_no_persons_no_figures() -> None:
    ground_truth, _ = random_case(1)
    empty = _table(({**ground_truth, "annotations": []}, []))
    assert bootstrap(empty, replicates=3)["ap"] == module.Interval(-1.0, -1.0, 0.0)


def test_the_interval_worked_out() -> None:
    """Figure .8, replicates of logits 1, 1.2 and 1.4 (their mean .186 below the figure's 1.386), 25 effective images:
    middle 1.572, half width t(24) = 2.0639 times sqrt(25/24) times .2."""
    replicates = 1 / (1 + np.exp(-np.array([1.0, 1.2, 1.4])))
    made = module.interval(0.8, replicates, 25, confidence=0.95, share=True)
    ends = [1 / (1 + np.exp(-(2 * np.log(4) - 1.2 + side * 2.063899 * np.sqrt(25 / 24) * 0.2))) for side in (-1, 1)]
    assert (made.low, made.high) == pytest.approx(ends, abs=1e-6)
    assert not made.approximate
    assert module.interval(0.8, replicates, 24.9, confidence=0.95, share=True).approximate
    difference = module.interval(0.1, np.array([0.0, 0.1, 0.2]), 25, confidence=0.95, share=False)
    half = 2.063899 * np.sqrt(25 / 24) * 0.1
    assert (difference.low, difference.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)


def test_effective_images_are_those_of_equally_many_persons() -> None:
    table = _table(random_case(2, num_images=40))
    equal = replace(table, num_true=np.full_like(table.num_true, 3))
    assert module.effective_images(equal) == pytest.approx(40)
    lonely = np.zeros_like(table.num_true)
    lonely[0, 0] = 9
    assert module.effective_images(replace(table, num_true=lonely)) == 1


def test_a_figure_that_no_draw_moves_has_an_approximate_interval() -> None:
    ground_truth, _ = random_case(2, num_images=60)
    for annotation in ground_truth["annotations"]:
        annotation["iscrowd"] = 0
    perfect = [
        result(a["image_id"], np.reshape(a["keypoints"], (17, 3))[:, :2], 0.9)
        for a in ground_truth["annotations"]
        if a["num_keypoints"]
    ]
    made = bootstrap(_table((ground_truth, perfect)), replicates=20)["ap"]
    assert (made.low, made.high, made.approximate) == (1.0, 1.0, True)


def test_a_single_threshold_known_closer_than_its_recall_levels_has_an_approximate_interval() -> None:
    """Easy images: precision is .77 where recall ends, so a level more of it adds .0076 to ap_50. At 100 images its
    standard error is .023, at 2,000 .005."""
    population = bench_intervals.made_population(bench_intervals.MAKINGS["easy"], 2_000, seed=1)
    few = bench_intervals.sampled(population, np.arange(100))
    assert module.recall_steps(population)["ap_50"] == pytest.approx(0.77 / 101, abs=0.0002)
    small, large = (bootstrap(table, replicates=60) for table in (few, population))
    assert [small[name].approximate for name in FIGURES] == [False, False, False, False]
    assert [large[name].approximate for name in FIGURES] == [False, True, True, False]
    # So is the difference of two, whose figures move in steps as well.
    pair = bench_intervals.made_pair(bench_intervals.MAKINGS["easy"], 2_000, seed=1)
    some = [bench_intervals.sampled(each, np.arange(100)) for each in pair]
    for tables, marked in ((some, [False] * 4), (pair, [False, True, True, False])):
        found = bootstrap_difference(*tables, replicates=60)
        assert [found[name].approximate for name in FIGURES] == marked


@pytest.mark.parametrize("making", ["hard", "easy"])
def test_intervals_cover(making: str) -> None:
    """40 images of a made population, 200 times: nominal 95 %, its standard error 1.5. Percentile intervals from the
    same replicates cover less. At full size: `python -m benchmarks.bench_intervals`."""
    population = bench_intervals.made_population(bench_intervals.MAKINGS[making], 20_000, seed=1)
    ours, percentile = bench_intervals.coverage(population, 40, trials=200, replicates=100)
    shares = [ours[name].covered for name in FIGURES]
    assert min(shares) >= 91
    assert max(shares) <= 99
    assert np.mean(shares) - np.mean([percentile[name].covered for name in FIGURES]) >= 2
    assert max(max(ours[name].below, ours[name].above) for name in FIGURES) <= 6


def test_the_interval_of_a_difference_covers() -> None:
    """Two networks on the same 40 images of a made population, 150 times: nominal 95 %, its standard error 1.8.

    At full size: `python -m benchmarks.bench_intervals --paired`.
    """
    pair = bench_intervals.made_pair(bench_intervals.MAKINGS["middling"], 20_000, seed=1)
    found = bench_intervals.paired_coverage(pair, 40, trials=150, replicates=100)
    shares = [found[name].covered for name in FIGURES]
    assert min(shares) >= 89
    assert np.mean(shares) >= 91
    assert max(shares) <= 99
    # Alike as they are, the difference is known more closely than either figure: pairing is what the interval uses.
    tables = [bench_intervals.sampled(population, np.arange(200)) for population in pair]
    paired = bootstrap_difference(*tables, replicates=200)["ap"].std
    alone = [bootstrap(table, replicates=200)["ap"].std for table in tables]
    assert paired < 0.8 * float(np.hypot(alone[0], alone[1]))
