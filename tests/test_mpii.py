from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from efafnet.models.skeleton import MPII_16
from efafnet.pipelines.evaluation.mpii import head_size, pckh

ELBOWS = [MPII_16.joints.index(name) for name in ("left_elbow", "right_elbow")]


def _case(num: int = 4) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    true = np.random.default_rng(0).uniform(0, 100, (num, 16, 2))
    return true.copy(), true, np.ones((num, 16), np.int64), np.full(num, 20.0)


def test_head_size_is_six_tenths_of_the_diagonal() -> None:
    assert head_size(np.array([[10, 20, 40, 60]])).tolist() == [30.0]


def test_perfect_predictions() -> None:
    assert set(pckh(*_case()).values()) == {1.0}


def test_a_group_is_the_mean_of_left_and_right_and_the_mean_weighs_joints_by_how_often_they_are_annotated() -> None:
    predicted, true, visible, size = _case()
    # Left elbow: 1 of 4 right. Right elbow: annotated in two persons only, both right.
    predicted[1:, ELBOWS[0], 0] += 50
    visible[2:, ELBOWS[1]] = 0
    figures = pckh(predicted, true, visible, size)
    assert figures["pckh_elbow"] == (0.25 + 1.0) / 2
    # 14 joints count for the mean (not pelvis, not thorax): 13 in 4 persons and one in 2, all right but three.
    assert figures["pckh"] == pytest.approx((13 * 4 + 2 - 3) / (13 * 4 + 2))
    assert figures["pckh_wrist"] == 1.0


def test_pelvis_and_thorax_do_not_count_in_the_mean() -> None:
    predicted, true, visible, size = _case()
    predicted[:, [6, 7]] += 1000
    assert pckh(predicted, true, visible, size)["pckh"] == 1.0


def test_thresholds_are_relative_to_the_head_and_inclusive() -> None:
    predicted, true, visible, size = _case(1)
    true = predicted = np.zeros((1, 16, 2))
    for distance, half, tenth in ((10.0, 1.0, 0.0), (10.01, 0.0, 0.0), (2.0, 1.0, 1.0), (2.1, 1.0, 0.0)):
        figures = pckh(predicted + np.array([0, distance]), true, visible, size)
        assert (figures["pckh"], figures["pckh_01"]) == (half, tenth)
    # 0.105 of the head lies between 0.1 and the 0.11 that older tools took for it.
    assert pckh(predicted + np.array([0, 2.1]), true, visible, size)["pckh_01"] == 0.0


def test_a_joint_never_annotated_has_no_figure_and_does_not_spoil_the_mean() -> None:
    predicted, true, visible, size = _case()
    visible[:, 9] = 0
    figures = pckh(predicted, true, visible, size)
    assert math.isnan(figures["pckh_head"])
    assert figures["pckh"] == 1.0


def test_a_head_without_size_is_an_error() -> None:
    predicted, true, visible, size = _case()
    size[2] = math.nan
    with pytest.raises(ValueError, match="person 2 has head size nan"):
        pckh(predicted, true, visible, size)
