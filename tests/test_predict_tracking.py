"""Who is who in a video: ids across frames, and the One-Euro filter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.prediction.config import TrackingConfig
from efafnet.pipelines.prediction.people import People
from efafnet.pipelines.prediction.spool import Record
from efafnet.pipelines.prediction.tracking import Tracker

OFFSETS = np.random.default_rng(0).uniform(-20, 20, (17, 2))


def _person(x: float, y: float, score: float = 0.9, joint_score: float = 0.9) -> dict[str, Any]:
    """A person of 60 px around (x, y)."""
    joints = np.concatenate([OFFSETS + np.array([x, y]), np.full((17, 1), joint_score)], axis=1)
    return {"keypoints": joints.reshape(-1).tolist(), "bbox": [x - 30, y - 30, 60.0, 60.0], "score": score}


def _tracker(**settings: Any) -> Tracker:
    return Tracker(COCO_17.sigmas, TrackingConfig.model_validate(settings), 0.2)


def _ids(tracker: Tracker, time_s: float, *places: tuple[float, float]) -> list[int]:
    return [result["track_id"] for result in tracker([_person(x, y) for x, y in places], time_s)]


def test_two_who_walk_towards_each_other_keep_their_ids_whatever_their_order() -> None:
    tracker = _tracker()
    for n in range(20):
        left, right = (100.0 + 4 * n, 100.0), (176.0 - 4 * n, 180.0)
        expected = [1, 2] if n % 2 == 0 else [2, 1]
        assert _ids(tracker, n / 25, *((left, right) if n % 2 == 0 else (right, left))) == expected


def test_the_whole_assignment_counts_and_not_the_first_best_pair() -> None:
    """The person in the middle resembles track 2 a little more, but then nobody could go on with track 1."""
    tracker = _tracker()
    assert _ids(tracker, 0.0, (100, 100), (130, 100)) == [1, 2]
    assert _ids(tracker, 0.04, (116, 100), (146, 100)) == [1, 2]


def test_who_comes_back_in_time_keeps_the_id_and_later_gets_a_new_one() -> None:
    tracker = _tracker(longest_gap_s=1.0)
    assert _ids(tracker, 0.0, (100, 100)) == [1]
    assert _ids(tracker, 0.5) == []
    assert _ids(tracker, 1.0, (102, 100)) == [1]
    assert _ids(tracker, 2.5, (102, 100)) == [2]


def test_someone_elsewhere_is_someone_else() -> None:
    tracker = _tracker()
    assert _ids(tracker, 0.0, (100, 100)) == [1]
    assert _ids(tracker, 0.04, (300, 100)) == [2]


def test_boxes_tell_where_no_joint_is_sure() -> None:
    tracker = _tracker()
    assert [r["track_id"] for r in tracker([_person(100, 100, joint_score=0.0)], 0.0)] == [1]
    assert [r["track_id"] for r in tracker([_person(110, 100, joint_score=0.0)], 0.04)] == [1]


def test_without_smoothing_nothing_but_the_id_is_added() -> None:
    person = _person(100, 100)
    tracker = _tracker()
    tracker([_person(90, 100)], 0.0)
    assert tracker([person], 0.04) == [{**person, "track_id": 1}]


def test_the_one_euro_filter_by_hand() -> None:
    """Two steps of the paper's algorithm 1 in plain numbers, for the x of one joint."""
    tracker = _tracker(smooth=True, least_cutoff_hz=2.0, cutoff_per_speed=3.0)
    step_s = 0.1

    def alpha(cutoff_hz: float) -> float:
        tau = 1 / (2 * math.pi * cutoff_hz)
        return 1 / (1 + tau / step_s)

    smooth = speed = None
    for n, x in enumerate((100.0, 103.0, 101.0)):
        [result] = tracker([_person(x, 100)], n * step_s)
        found = result["keypoints"][0] - OFFSETS[0, 0]
        if smooth is None or speed is None:
            smooth, speed = x, 0.0
        else:
            speed = alpha(1.0) * (x - smooth) / step_s + (1 - alpha(1.0)) * speed
            # Speed in sizes of the person, which is 60 pixels, a second.
            a = alpha(2.0 + 3.0 * abs(speed) / 60)
            smooth = a * x + (1 - a) * smooth
        assert found == pytest.approx(smooth, abs=1e-9)


def test_smoothing_takes_trembling_and_follows_a_walk() -> None:
    rng = np.random.default_rng(1)
    tracker, still = _tracker(smooth=True), []
    for n in range(100):
        [result] = tracker([_person(*(100 + rng.normal(0, 2, 2)))], n / 25)
        still.append(result["keypoints"][0] - OFFSETS[0, 0])
    assert np.std(still[20:]) < 0.6 * 2
    tracker = _tracker(smooth=True)
    for n in range(100):
        # Two sizes of the person a second.
        [result] = tracker([_person(100 + 120 * n / 25, 100)], n / 25)
    assert 100 + 120 * 99 / 25 - (result["keypoints"][0] - OFFSETS[0, 0]) < 4.0, "the lag is larger than a frame's way"


def test_a_joint_that_was_lost_starts_anew() -> None:
    tracker = _tracker(smooth=True)
    lost = _person(100, 100)
    lost["keypoints"][2] = 0.0
    tracker([lost], 0.0)
    [result] = tracker([_person(105, 100)], 0.04)
    assert result["keypoints"][0] == pytest.approx(105 + OFFSETS[0, 0])
    assert result["keypoints"][3] < 105 + OFFSETS[1, 0]


def test_the_table_of_people() -> None:
    people = People()
    for frame, ids in ((0, [1]), (2, [1, 2]), (4, [2])):
        results = [{**_person(50, 50, score=0.5 + frame / 10), "track_id": i} for i in ids]
        people.add(Record(0, frame, 100, 100, results, time_s=frame / 10), "walk.mp4")
    people.add(Record(1, 0, 100, 100, [{**_person(50, 50), "track_id": 1}]), "other.mp4")
    people.add(Record(2, 0, 100, 100, [_person(50, 50)]), "image.jpg")
    assert people.csv().splitlines() == [
        "file_name,track_id,frames,first_frame,last_frame,first_s,last_s,mean_score,mean_size_px",
        "walk.mp4,1,2,0,2,0.0,0.2,0.6,60.0",
        "walk.mp4,2,2,2,4,0.2,0.4,0.8,60.0",
        "other.mp4,1,1,0,0,0.0,0.0,0.9,60.0",
    ]
