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
from efafnet.pipelines.evaluation.errors_taxonomy import KINDS, UNLABELLED, ErrorAnalysis, analyse, joint_kinds
from efafnet.pipelines.evaluation.metrics import evaluate_predictions
from tests.evaluation_cases import category, person, random_case, result

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


def _kinds(reference: Truth, changes: dict[int, tuple[float, float]]) -> list[str]:
    predicted = reference.joints_px[:1].copy()
    for joint, place in changes.items():
        predicted[0, joint] = place
    kinds = joint_kinds(reference, predicted, np.array([0]))[0]
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
