from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17, CROWDPOSE_14, MPII_16, Skeleton
from tests.evaluation_cases import (
    category,
    evaluate_predictions,
    person,
    published_predictions,
    pycocotools_stats,
    random_case,
    result,
    shared_json,
)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [True, False])
def test_every_figure_equals_pycocotools_to_the_last_bit(seed: int, ties: bool) -> None:
    ground_truth, results = random_case(seed, ties=ties)
    assert list(evaluate_predictions(results, ground_truth).values()) == pycocotools_stats(ground_truth, results)


@pytest.mark.parametrize("skeleton", [CROWDPOSE_14, MPII_16])
def test_other_skeletons_use_their_own_sigmas(skeleton: Skeleton) -> None:
    ground_truth, results = random_case(7, skeleton=skeleton)
    expected = pycocotools_stats(ground_truth, results, skeleton.sigmas)
    assert list(evaluate_predictions(results, ground_truth).values()) == expected
    precise = skeleton.model_copy(update={"sigmas": tuple(s / 2 for s in skeleton.sigmas)})
    assert evaluate_predictions(results, ground_truth, skeleton=precise)["ap"] < expected[0]


def test_more_than_twenty_predictions_in_an_image() -> None:
    ground_truth, results = random_case(3, num_images=3)
    many = [{**r, "score": r["score"] / (1 + n)} for n in range(5) for r in results]
    assert list(evaluate_predictions(many, ground_truth).values()) == pycocotools_stats(ground_truth, many)


def test_tiny_coco_gives_the_published_figures_to_the_last_digit() -> None:
    ground_truth = shared_json("tiny-coco/test_coco.json")
    results = published_predictions(ground_truth["annotations"], (0.98, 1.02))
    figures = evaluate_predictions(results, ground_truth)
    assert figures["ap"] == 0.5287458745874587
    assert figures["ap_50"] == 0.9042904290429042
    assert figures["ap_75"] == 0.5009900990099009
    assert figures["ap_medium"] == 0.42475247524752474
    assert figures["ap_large"] == 0.6219554455445544
    assert figures["ar"] == 0.5833333333333333


def test_perfect_predictions_score_one_on_real_annotations() -> None:
    ground_truth = shared_json("tiny-coco/test_coco.json")
    figures = evaluate_predictions(published_predictions(ground_truth["annotations"], (1.0, 1.0)), ground_truth)
    assert set(figures.values()) == {1.0}


def _three_persons() -> dict[str, Any]:
    """Image 1: two persons of medium size; image 2: one large person."""
    grid = np.column_stack([np.linspace(0, 60, 17), np.linspace(0, 60, 17), np.full(17, 2)])
    shift = np.array([200, 0, 0])
    return {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [
            person(1, 1, grid, (0, 0, 60, 60)),
            person(2, 1, grid + shift, (200, 0, 60, 60)),
            person(3, 2, grid * np.array([5, 5, 1]), (0, 0, 300, 300)),
        ],
        "categories": [category()],
    }


def _perfect(ground_truth: dict[str, Any], number: int, score: float) -> dict[str, Any]:
    annotation = ground_truth["annotations"][number]
    return result(annotation["image_id"], np.reshape(annotation["keypoints"], (17, 3)), score)


def test_a_hand_computed_case() -> None:
    """Ranked: right (1), wrong, right (2); person 3 never found.

    Recall 1/3 at precision 1 and 2/3 at precision 2/3: of the 101 recall levels 34 lie in [0, 1/3], 33 in (1/3, 2/3].
    Medium persons are 1 and 2 (recall 1/2 and 1); the false one, far from anyone, is medium too.
    """
    truth = _three_persons()
    false = result(1, np.reshape(truth["annotations"][0]["keypoints"], (17, 3)) + np.array([0, 400, 0]), 0.8)
    figures = evaluate_predictions([_perfect(truth, 0, 0.9), false, _perfect(truth, 1, 0.7)], truth)
    assert figures["ap"] == pytest.approx((34 * 1 + 33 * 2 / 3) / 101, abs=1e-12)
    assert figures["ap_medium"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101, abs=1e-12)
    assert figures["ap_large"] == 0.0
    assert figures["ar"] == pytest.approx(2 / 3, abs=1e-12)
    assert figures["ar_medium"] == 1.0
    assert figures["ap_50"] == figures["ap_75"] == figures["ap"]


def test_thresholds_separate_by_oks() -> None:
    """All joints off by the distance that makes OKS 0.72: right at thresholds .50 to .70, five of ten."""
    truth = _three_persons()
    truth["annotations"], truth["images"] = truth["annotations"][2:], truth["images"][1:]
    area = truth["annotations"][0]["area"]
    off = np.array([[math.sqrt(-math.log(0.72) * 2 * area) * 2 * s, 0, 0] for s in COCO_17.sigmas])
    joints = np.reshape(truth["annotations"][0]["keypoints"], (17, 3)) + off
    figures = evaluate_predictions([result(2, joints, 0.9)], truth)
    assert figures["ar"] == 0.5
    assert figures["ap_50"] == pytest.approx(1.0)
    assert figures["ap_75"] == 0.0


def test_a_class_without_persons_is_minus_one_and_no_predictions_are_zero() -> None:
    truth = _three_persons()
    truth["annotations"] = truth["annotations"][:2]
    figures = evaluate_predictions([], truth)
    assert (figures["ap"], figures["ar"], figures["ap_medium"]) == (0.0, 0.0, 0.0)
    assert (figures["ap_large"], figures["ar_large"]) == (-1.0, -1.0)


def test_an_annotation_with_id_zero_counts_like_any_other() -> None:
    """COCO's own tools take a match with annotation 0 for no match at all."""
    truth = _three_persons()
    truth["annotations"][0]["id"] = 0
    assert evaluate_predictions([_perfect(truth, i, 0.9) for i in range(3)], truth)["ap"] == 1.0


def test_inputs_are_left_as_they_were() -> None:
    ground_truth, results = random_case(0)
    before = copy.deepcopy((ground_truth, results))
    evaluate_predictions(results, ground_truth)
    assert (ground_truth, results) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "image 99 is not among the 2 images"),
        ({"category_id": 2}, "category 2 is not the person category, 1"),
        ({"keypoints": [0.0] * 48}, "48 keypoint values; the skeleton has 51"),
        ({"keypoints": [math.inf] + [0.0] * 50}, "NaN or infinity among keypoints"),
        ({"score": math.nan}, r"NaN or infinity among keypoints or score \(nan\)"),
        ({"image_id": "000000000001.jpg"}, "image_id and score must be numbers; got '000000000001.jpg'"),
    ],
)
def test_bad_results_are_named(change: dict[str, Any], message: str) -> None:
    truth = _three_persons()
    good = _perfect(truth, 0, 0.5)
    with pytest.raises(ValueError, match=f"results entry 1: .*{message}"):
        evaluate_predictions([good, {**good, **change}], truth)


def test_an_incomplete_result_is_named() -> None:
    truth = _three_persons()
    del (incomplete := _perfect(truth, 0, 0.5))["score"]
    with pytest.raises(ValueError, match="results entry 0: no 'score'"):
        evaluate_predictions([incomplete], truth)


def test_images_without_any_person_have_no_ap() -> None:
    truth = {**_three_persons(), "annotations": []}
    assert set(evaluate_predictions([], truth).values()) == {-1.0}
    assert set(evaluate_predictions([_perfect(_three_persons(), 0, 0.5)], truth).values()) == {-1.0}


def test_bad_annotations_are_named() -> None:
    truth = _three_persons()
    with pytest.raises(ValueError, match="'annotations' is missing"):
        evaluate_predictions([], {"images": [{"id": 1}], "categories": [category()]})
    with pytest.raises(ValueError, match="list no images"):
        evaluate_predictions([], {**truth, "images": []})
    with pytest.raises(ValueError, match=r"list no images \(image_entry_invalid 1 \(image id 'a' \(text"):
        evaluate_predictions([], {**truth, "images": [{"id": "a"}]})
    with pytest.raises(ValueError, match="annotation 1 has 51 keypoint values; skeleton custom needs 3"):
        evaluate_predictions([], {**truth, "categories": [{"id": 1, "keypoints": ["tail"]}]})
    with pytest.raises(ValueError, match="annotation 3 lies on image 2, which is not listed"):
        evaluate_predictions([], {**truth, "images": [{"id": 1}]})
    with pytest.raises(ValueError, match="has 17 joints, 'mpii16' has 16"):
        evaluate_predictions([], truth, skeleton=MPII_16)
