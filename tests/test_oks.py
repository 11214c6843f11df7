from __future__ import annotations

import math

import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.evaluation.oks import descending, oks_among, oks_nms, oks_of_pairs, soft_oks_nms


def _pair(dx: float, visible: int, area: float) -> float:
    true = np.full((1, 17, 2), 100.0)
    predicted = true + np.array([dx, 0.0])
    visibility = np.zeros((1, 17), int)
    visibility[0, :visible] = 2
    box = np.array([[90.0, 90.0, 20.0, 20.0]])
    return float(oks_of_pairs(predicted, true, visibility, np.array([area]), box, COCO_17.sigmas)[0])


def test_a_perfect_prediction_has_oks_one() -> None:
    assert _pair(0.0, 17, 1000.0) == 1.0


def test_one_joint_one_standard_deviation_off() -> None:
    # The nose: k = 2 * .026, s = sqrt(area); a distance of s*k gives exp(-1/2) by the definition of OKS.
    distance = math.sqrt(1000.0) * 2 * 0.026
    assert _pair(distance, 1, 1000.0) == pytest.approx(math.exp(-0.5), abs=1e-12)


def test_only_annotated_joints_count() -> None:
    # nose off by far, left eye exact: the mean of about 0 and 1.
    true = np.zeros((1, 17, 2))
    predicted = true.copy()
    predicted[0, 0] = 1e4
    predicted[0, 2:] = 1e4
    visibility = np.zeros((1, 17), int)
    visibility[0, :2] = (1, 2)
    oks = oks_of_pairs(predicted, true, visibility, np.array([100.0]), np.zeros((1, 4)), COCO_17.sigmas)
    assert oks[0] == pytest.approx(0.5, abs=1e-12)


def test_a_region_without_joints_is_matched_by_what_lies_in_its_doubled_box() -> None:
    # Box (90, 90, 20, 20) reaches from 70 to 130; joints at 100 + 30 lie on its edge, at 100 + 31 one pixel outside.
    assert _pair(30.0, 0, 400.0) == 1.0
    expected = np.mean([math.exp(-1 / (2 * s) ** 2 / 400.0 / 2) for s in COCO_17.sigmas])
    assert _pair(31.0, 0, 400.0) == pytest.approx(expected, abs=1e-12)


def test_oks_among_uses_the_mean_area_and_is_symmetric() -> None:
    joints = np.zeros((2, 1, 2))
    joints[1, 0] = (3.0, 4.0)
    similarity = oks_among(joints, np.array([100.0, 300.0]), [0.5])
    # d² = 25, k = 1, area 200: exp(-25 / 200 / 2).
    assert similarity[0, 1] == pytest.approx(math.exp(-0.0625), abs=1e-12)
    assert similarity[0, 1] == similarity[1, 0]
    assert similarity[0, 0] == similarity[1, 1] == 1.0


def test_equal_scores_come_in_reverse_order_of_entry() -> None:
    assert descending(np.array([0.5, 0.9, 0.5, 0.5])).tolist() == [1, 3, 2, 0]


def test_nms_keeps_the_better_of_two_alike_and_drops_only_above_the_threshold() -> None:
    similarity = np.array([[1.0, 0.95, 0.9], [0.95, 1.0, 0.2], [0.9, 0.2, 1.0]])
    # 0 is best and takes 1 (0.95 > 0.9) but not 2, which lies exactly on the threshold.
    assert oks_nms(similarity, np.array([0.9, 0.8, 0.7]), 0.9) == [0, 2]
    # With 1 best, 0 goes, and then nothing is like 2.
    assert oks_nms(similarity, np.array([0.8, 0.9, 0.7]), 0.9) == [1, 2]


def test_soft_nms_decays_scores_and_reorders() -> None:
    similarity = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    keep, scores = soft_oks_nms(similarity, np.array([0.9, 0.8, 0.5]), 0.9)
    # 1 is like 0: 0.8 * exp(-0.81 / 0.9) = 0.3253 falls behind 2's 0.5.
    assert keep == [0, 2, 1]
    assert scores == pytest.approx([0.9, 0.5, 0.8 * math.exp(-0.9)], abs=1e-12)
    assert soft_oks_nms(similarity, np.array([0.9, 0.8, 0.5]), 0.9, max_kept=2)[0] == [0, 2]
