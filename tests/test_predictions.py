from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.evaluation.config import TestConfig
from efafnet.pipelines.evaluation.predictions import (
    Predictions,
    coco_results,
    padded_area,
    person_scores,
    results_of_columns,
)

INPUT = InputSize(height=256, width=192)


def _people(num: int) -> pa.Table:
    return pa.table(
        {
            "person_id": pa.array(range(100, 100 + num), pa.int64()),
            "image_id": pa.array([7 - i // 2 for i in range(num)], pa.int64()),
            "box_xywh": pa.array([[10.0 * i, 0.0, 60.0, 80.0] for i in range(num)], pa.list_(pa.float64(), 4)),
            "box_score": pa.array([1.0 - 0.1 * i for i in range(num)], pa.float64()),
        }
    )


def _predictions(num: int = 4, rows: list[int] | None = None) -> Predictions:
    chosen = np.array(range(num) if rows is None else rows, np.int64)
    joints = np.arange(num * 34, dtype=float).reshape(num, 17, 2)[chosen]
    return Predictions.gather(_people(num), chosen, joints, np.full((len(chosen), 17), 0.5, np.float32))


def test_gather_takes_the_columns_of_the_rows_given() -> None:
    found = _predictions(4, [2, 0])
    assert found.person_id.tolist() == [102, 100]
    assert found.image_id.tolist() == [6, 7]
    assert found.box_xywh_px[0].tolist() == [20.0, 0.0, 60.0, 80.0]
    assert found.box_score == pytest.approx([0.8, 1.0])
    assert found.joints_px[0, 0].tolist() == [68.0, 69.0]


def test_gather_looks_at_the_given_rows_alone() -> None:
    """A store has 100,000 rows and hundreds of batches: here every other row's box could not even be read."""
    people = _people(4)
    readable = pa.array([[0.0, 0.0, 1.0, 2.0], None, [3.0, 4.0, 5.0, 6.0], None], pa.list_(pa.float64(), 4))
    people = people.set_column(people.schema.get_field_index("box_xywh"), "box_xywh", readable)
    # In pieces, as a store of several shards has its columns.
    people = pa.concat_tables([people.slice(0, 1), people.slice(1)])
    found = Predictions.gather(people, np.array([2, 0]), np.zeros((2, 17, 2)), np.zeros((2, 17)))
    assert found.box_xywh_px.tolist() == [[3, 4, 5, 6], [0, 0, 1, 2]]
    assert len(Predictions.gather(people, np.array([], np.int64), np.zeros((0, 17, 2)), np.zeros((0, 17)))) == 0


def test_concat_orders_by_row_whoever_did_what() -> None:
    whole = _predictions(6)
    for parts in ([[5, 1, 3], [0, 4, 2]], [[0], [], [5, 4, 3, 2, 1]]):
        joined = Predictions.concat([_predictions(6, rows) for rows in parts])
        for field in fields(Predictions):
            assert np.array_equal(getattr(joined, field.name), getattr(whole, field.name))


def test_concat_refuses_a_row_predicted_twice_and_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="row 1 was predicted twice"):
        Predictions.concat([_predictions(4, [0, 1]), _predictions(4, [1])])
    with pytest.raises(ValueError, match="no predictions to join"):
        Predictions.concat([])


def test_padded_area_is_that_of_the_widened_box() -> None:
    # 60 x 80 has the input's 3:4 already; 120 x 80 grows to 120 x 160; 30 x 80 to 60 x 80. Padding 1.25 on both sides.
    boxes = np.array([[0, 0, 60, 80], [0, 0, 120, 80], [0, 0, 30, 80]], float)
    assert padded_area(boxes, INPUT, 1.25) == pytest.approx([75 * 100, 150 * 200, 75 * 100])


def test_person_score_is_the_box_score_times_the_mean_of_the_joints_above_the_threshold() -> None:
    scores = person_scores(np.array([[0.9, 0.5, 0.2], [0.1, 0.2, 0.0]]), np.array([0.5, 1.0]), 0.2)
    assert scores == pytest.approx([0.35, 0.0])
    assert scores.dtype == np.float32


def test_joint_scores_are_summed_one_by_one_in_float32() -> None:
    """1 + eight times 2^-24 stays 1 when each is added alone, and is more in any other order or precision."""
    tiny = np.float32(2.0**-24)
    row = np.array([[1.0] + [tiny] * 8], np.float32)
    expected = np.float32(1.0) / np.float32(9)
    assert person_scores(row, np.ones(1, np.float32), 0.0)[0] == expected
    assert np.float32(row.astype(np.float64).sum()) / np.float32(9) > expected


def test_results_have_the_coco_layout_without_a_box_and_are_json() -> None:
    results = coco_results(
        _predictions(4), skeleton=COCO_17, input_size=INPUT, padding=1.25, test=TestConfig(nms="none")
    )
    assert [set(r) for r in results] == [{"image_id", "category_id", "keypoints", "score"}] * 4
    assert [r["image_id"] for r in results] == [7, 7, 6, 6]
    assert results[0]["keypoints"][:6] == [0.0, 1.0, 0.5, 2.0, 3.0, 0.5]
    assert results[0]["score"] == pytest.approx(0.5)
    assert json.loads(json.dumps(results)) == results


def test_duplicates_go_by_image_only() -> None:
    joints = np.zeros((3, 17, 2))
    columns: dict[str, Any] = {
        "image_id": np.array([1, 1, 2]),
        "joints_px": joints,
        "joint_scores": np.ones((3, 17)),
        "scores": np.array([0.4, 0.9, 0.3]),
        "area_px2": np.full(3, 100.0),
        "sigmas": COCO_17.sigmas,
    }
    assert [r["score"] for r in results_of_columns(**columns, test=TestConfig(nms="oks"))] == [0.9, 0.3]
    assert [r["score"] for r in results_of_columns(**columns, test=TestConfig(nms="none"))] == [0.9, 0.4, 0.3]
    assert [r["score"] for r in results_of_columns(**columns, test=TestConfig(nms="soft_oks"))] == [0.9, 0.4, 0.3]


def test_no_persons_give_no_results() -> None:
    assert coco_results(
        _predictions(4, []), skeleton=COCO_17, input_size=INPUT, padding=1.25, test=TestConfig()
    ) == []  # fmt: skip
