from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.evaluation.columns import Truth, detections, truth
from efafnet.pipelines.evaluation.errors_plot import by_body_part, plot_errors
from efafnet.pipelines.evaluation.errors_taxonomy import (
    KINDS,
    UNLABELLED,
    ErrorAnalysis,
    analyse,
    judged_joints,
    similarity_to,
)
from tests.evaluation_cases import category, evaluate_predictions, person, random_case, result

NOSE, LEFT_WRIST, RIGHT_WRIST, LEFT_ANKLE = 0, 9, 10, 15


def _two_persons() -> dict[str, Any]:
    """Two persons 300 px apart, joints 20 px apart along x: far at OKS's scale (area 2400, wrist s·k = 6 px)."""
    joints = np.column_stack([20.0 * np.arange(17), np.arange(17) % 2 * 80.0, np.full(17, 2)])
    return {
        "images": [{"id": 1}],
        "annotations": [
            person(1, 1, joints, (0, 0, 50, 80)),
            person(2, 1, joints + np.array([0, 300, 0]), (0, 300, 50, 80)),
        ],
        "categories": [category()],
    }


def _moved(reference: Truth, changes: dict[int, tuple[float, float]]) -> np.ndarray[Any, Any]:
    predicted = reference.joints_px[:1].copy()
    for joint, place in changes.items():
        predicted[0, joint] = place
    return predicted


def _kinds(reference: Truth, changes: dict[int, tuple[float, float]]) -> list[str]:
    kinds = judged_joints(reference, _moved(reference, changes), np.array([0]))[0][0]
    return ["unlabelled" if k == UNLABELLED else KINDS[k] for k in kinds]


def _place(reference: Truth, who: int, joint: int) -> tuple[float, float]:
    x, y = reference.joints_px[who, joint]
    return float(x), float(y)


def test_each_kind_by_construction() -> None:
    reference = truth(_two_persons())
    x, y = _place(reference, 0, LEFT_ANKLE)
    # s·k of an ankle: sqrt(2400) * 2 * .089 = 8.72 px; 6 px away ks = exp(-.5 * (6 / 8.72)^2) = .79.
    kinds = _kinds(
        reference,
        {
            LEFT_WRIST: _place(reference, 0, RIGHT_WRIST),
            RIGHT_WRIST: _place(reference, 1, RIGHT_WRIST),
            NOSE: (5000.0, 5000.0),
            LEFT_ANKLE: (x, y + 6),
        },
    )
    assert kinds[LEFT_WRIST] == "inversion"
    assert kinds[RIGHT_WRIST] == "swap"
    assert kinds[NOSE] == "miss"
    assert kinds[LEFT_ANKLE] == "jitter"
    assert {kinds[i] for i in range(17) if i not in (NOSE, LEFT_WRIST, RIGHT_WRIST, LEFT_ANKLE)} == {"good"}


def test_the_borders_between_good_jitter_and_miss_lie_at_85_and_50_percent() -> None:
    reference = truth(_two_persons())
    scale = math.sqrt(2400) * 2 * COCO_17.sigmas[NOSE]
    x, y = _place(reference, 0, NOSE)
    for similarity, kind in ((0.851, "good"), (0.849, "jitter"), (0.501, "jitter"), (0.499, "miss")):
        distance = scale * math.sqrt(-2 * math.log(similarity))
        assert _kinds(reference, {NOSE: (x, y - distance)})[NOSE] == kind


def _between(
    reference: Truth, own: int, other: tuple[float, float], similarity: float, joint: int
) -> tuple[float, float]:
    """A place of the given similarity to ``other``, on the line to the own joint of person ``own``."""
    scale = math.sqrt(2400) * 2 * COCO_17.sigmas[joint]
    x, y = reference.joints_px[own, joint]
    away = scale * math.sqrt(-2 * math.log(similarity)) / math.hypot(x - other[0], y - other[1])
    return float(other[0] + away * (x - other[0])), float(other[1] + away * (y - other[1]))


def test_of_two_similar_true_joints_the_more_similar_decides() -> None:
    """Left and right wrist 8 px apart, s·k 6.07 px: near .9 of one is .3 to .6 of the other, whichever is the own."""
    ground_truth = _two_persons()
    first, second = (np.reshape(a["keypoints"], (17, 3)) for a in ground_truth["annotations"])
    first[RIGHT_WRIST, :2] = first[LEFT_WRIST, :2] + [8, 0]
    second[NOSE, :2] = first[NOSE, :2] + [0, 3]
    for annotation, joints in zip(ground_truth["annotations"], (first, second), strict=True):
        annotation["keypoints"] = joints.reshape(-1).tolist()
    reference = truth(ground_truth)
    right, nose_of_other = _place(reference, 0, RIGHT_WRIST), _place(reference, 1, NOSE)
    places = {
        LEFT_WRIST: _between(reference, 0, right, 0.9, LEFT_WRIST),
        NOSE: _between(reference, 0, nose_of_other, 0.95, NOSE),
    }
    kinds, likeness = judged_joints(reference, _moved(reference, places), np.array([0]))
    assert (kinds[0, LEFT_WRIST], kinds[0, NOSE]) == (KINDS.index("inversion"), KINDS.index("swap"))
    assert (likeness[0, LEFT_WRIST], likeness[0, NOSE]) == (pytest.approx(0.9), pytest.approx(0.95))
    # The own joint is similar enough to be meant, but less so.
    own = similarity_to(reference, _moved(reference, places), np.array([0]), mirrored=False)[0]
    assert 0.5 < own[LEFT_WRIST] < 0.9
    assert 0.5 < own[NOSE] < 0.95
    nearer = {LEFT_WRIST: _between(reference, 0, right, 0.6, LEFT_WRIST)}
    assert _kinds(reference, nearer)[LEFT_WRIST] == "good"


def test_a_mistake_is_put_right_by_as_little_as_is_needed() -> None:
    """One joint of 17 wrong, s = sqrt(2400): after a miss its own similarity is .5^(1/4) = .8409 (the program's k is
    half of OKS's), so OKS rises from 16/17 = .941 to .9906, above .95; after a jitter .85^(1/4)."""
    ground_truth = _two_persons()
    del ground_truth["annotations"][1]
    joints = np.reshape(ground_truth["annotations"][0]["keypoints"], (17, 3))[:, :2].astype(float)
    joints[NOSE] += 5000
    steps = _analysis(ground_truth, [result(1, joints, 0.9)]).ap_after
    assert [steps["as predicted"], steps["miss"]] == pytest.approx([0.9, 1.0])
    # With every joint missed but for a rest of similarity .1 that still means the person, all 17 come to .8409 and no
    # further: right at .5 to .8, seven of ten thresholds.
    true = np.reshape(ground_truth["annotations"][0]["keypoints"], (17, 3))[:, :2]
    scales = math.sqrt(2400) * 2 * np.array(COCO_17.sigmas)
    for similarity, kind, share in ((0.3, "miss", 0.7), (0.6, "jitter", 1.0)):
        away = np.column_stack([np.zeros(17), -scales * math.sqrt(-2 * math.log(similarity))])
        analysis = _analysis(ground_truth, [result(1, true + away, 0.9)])
        assert analysis.counts[:, KINDS.index(kind)].sum() == 17
        assert analysis.ap_after[kind] == pytest.approx(share)


def _overlapping_persons() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two images of four overlapping persons each; predictions mix persons, sides and distances. No random numbers, so
    that figures taken elsewhere belong to it."""

    def spread(i: int, j: int) -> float:
        return math.sin(12.9898 * i + 78.233 * j)

    annotations: list[dict[str, Any]] = []
    for number in range(1, 9):
        image, who = 1 + (number - 1) // 4, (number - 1) % 4
        left, top, width, height = 100 + 45 * who, 60 + 20 * image, 80 + 10 * who, 190 + 15 * image
        joints = [
            (
                round(left + width * (0.5 + 0.45 * spread(number, k)), 1),
                round(top + height * (k + 1) / 18, 1),
                0 if (number + k) % 9 == 0 else 2,
            )
            for k in range(17)
        ]
        annotations.append(person(number, image, joints, (left, top, width, height)))

    def guess(
        image: int, of: int, seed: int, size: float, score: float, swapped: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        joints = []
        for k in range(17):
            at = COCO_17.flip_permutation[k] if (seed + k) % 5 == 0 else k
            source = annotations[of ^ 1 if k in swapped else of]["keypoints"][3 * at :]
            joints.append(
                (round(source[0] + size * spread(seed, k + 31), 2), round(source[1] + size * spread(seed + 7, k), 2))
            )
        return result(image, joints, score)

    results = [guess(1 + a // 4, a, 3 + a, 4 + 3 * a, 0.3 + 0.07 * ((5 * a) % 8), (1, 4, 9 + a % 3)) for a in range(8)]
    results += [guess(1 + a // 4, a, 40 + a, 9, 0.42 + 0.05 * a) for a in (0, 5, 6)]
    results.append(guess(2, 3, 77, 400, 0.77))
    images = [{"id": i, "width": 640, "height": 480} for i in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [category()]}, results


def test_kinds_and_costs_are_those_of_the_authors_program() -> None:
    """matteorr/coco-analyze 9eb8a0a run once on these persons (Python 3, its own evaluation, all sizes of person)."""
    analysis = _analysis(*_overlapping_persons())
    assert dict(zip(KINDS, analysis.counts.sum(axis=0).tolist(), strict=True)) == {
        "good": 31, "jitter": 17, "inversion": 14, "swap": 26, "miss": 33,
    }  # fmt: skip
    swapped_joints, inverted_joints = (analysis.counts[:, KINDS.index(kind)].tolist() for kind in ("swap", "inversion"))
    assert swapped_joints == [1, 0, 1, 2, 2, 2, 2, 2, 1, 3, 3, 1, 1, 1, 1, 1, 2]
    assert inverted_joints == [0, 0, 0, 0, 0, 2, 1, 1, 1, 1, 3, 3, 0, 0, 0, 2, 0]
    assert list(analysis.ap_after.values()) == pytest.approx(
        [0.07805280528, 0.27284771334, 0.55753182463, 0.70125412541, 0.75466760962, 0.88712871287, 0.88712871287]
    )


def test_a_mirror_joint_of_another_person_is_a_swap_and_unlabelled_joints_are_left_out() -> None:
    ground_truth = _two_persons()
    ground_truth["annotations"][0]["keypoints"][3 * LEFT_ANKLE + 2] = 0
    reference = truth(ground_truth)
    kinds = _kinds(reference, {LEFT_WRIST: _place(reference, 1, RIGHT_WRIST), LEFT_ANKLE: (9e3, 9e3)})
    assert kinds[LEFT_WRIST] == "swap"
    assert kinds[LEFT_ANKLE] == "unlabelled"


def _analysis(ground_truth: dict[str, Any], results: list[dict[str, Any]]) -> ErrorAnalysis:
    reference = truth(ground_truth)
    return analyse(reference, detections(results, reference))


def test_ap_rises_with_every_kind_put_right_to_the_share_of_persons_found() -> None:
    """Person 1 found with its wrists inverted; person 2 not at all; a prediction of nobody ranks first."""
    ground_truth = _two_persons()
    joints = np.reshape(ground_truth["annotations"][0]["keypoints"], (17, 3))[:, :2]
    inverted = joints.copy()
    inverted[[LEFT_WRIST, RIGHT_WRIST]] = joints[[RIGHT_WRIST, LEFT_WRIST]]
    analysis = _analysis(ground_truth, [result(1, joints + 5000, 0.9), result(1, inverted, 0.5)])
    steps = analysis.ap_after
    # OKS with two joints of 17 wrong is 15/17 = .88: right at eight of ten thresholds, one wrong before it: half of 51
    # recall levels.
    half_found = 51 / 101
    assert steps["as predicted"] == pytest.approx(0.8 * half_found / 2)
    assert steps["miss"] == steps["swap"] == steps["as predicted"]
    assert steps["inversion"] == pytest.approx(half_found / 2)
    assert steps["jitter"] == steps["inversion"]
    assert steps["scores"] == pytest.approx(half_found)
    assert (analysis.matched, analysis.persons, analysis.unmatched) == (1, 2, 1)
    assert analysis.counts.sum() == 17
    assert analysis.counts[[LEFT_WRIST, RIGHT_WRIST], KINDS.index("inversion")].tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_on_crowded_images_it_starts_at_ap_never_falls_and_counts_every_labelled_joint(seed: int) -> None:
    ground_truth, results = random_case(seed)
    analysis = _analysis(ground_truth, results)
    steps = list(analysis.ap_after.values())
    assert steps[0] == evaluate_predictions(results, ground_truth)["ap"]
    assert steps[-1] >= steps[0]
    assert steps[-1] <= 1.0 + 1e-12
    reference = truth(ground_truth)
    assert analysis.persons == (~reference.ignored).sum()
    assert 0 < analysis.matched <= analysis.persons


def test_nothing_predicted() -> None:
    analysis = _analysis(_two_persons(), [])
    assert analysis.counts.sum() == 0
    assert set(analysis.ap_after.values()) == {0.0}


def test_the_picture(tmp_path: Path) -> None:
    ground_truth, results = random_case(3)
    analysis = _analysis(ground_truth, results)
    parts = by_body_part(analysis)
    assert list(parts)[:3] == ["nose", "eye", "ear"]
    assert parts["wrist"].tolist() == (analysis.counts[9] + analysis.counts[10]).tolist()
    plot_errors(analysis, tmp_path / "errors.png", title="constructed")
    picture = cv2.imread(str(tmp_path / "errors.png"))
    assert picture is not None
    assert picture.shape[1] > 1000
