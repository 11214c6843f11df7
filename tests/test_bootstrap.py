from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efafnet.pipelines.evaluation import bootstrap as module
from efafnet.pipelines.evaluation.bootstrap import FIGURES, bootstrap, bootstrap_difference, figures_of_draw
from efafnet.pipelines.evaluation.columns import detections, truth
from efafnet.pipelines.evaluation.matching import MatchTable, match
from efafnet.pipelines.evaluation.metrics import curves, evaluate_predictions, summary
from tests.evaluation_cases import pycocotools_stats, random_case


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
    fast = figures_of_draw(module._Ranked.of(_table(case)), drawn)
    assert fast == pytest.approx((brute[0], brute[1], brute[2], brute[5]), abs=1e-12)


def test_counting_images_in_the_curves_is_the_same_resampling_in_every_size_class() -> None:
    case = random_case(4, num_images=10, ties=False)
    drawn = np.array([2, 0, 1, 1, 3, 0, 0, 1, 1, 1])
    assert list(summary(curves(_table(case), drawn)).values()) == pytest.approx(
        pycocotools_stats(*_drawn_set(case, drawn)), abs=1e-12
    )


def test_drawing_every_image_once_gives_the_figures_themselves() -> None:
    case = random_case(1)
    figures = evaluate_predictions(case[1], case[0])
    once = figures_of_draw(module._Ranked.of(_table(case)), np.ones(12, np.int64))
    assert once == pytest.approx([figures[name] for name in FIGURES], abs=1e-12)


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
