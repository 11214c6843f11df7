"""MPII's JSON and its MATLAB release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines.formats import mpii
from tests import crop_data

_PATH = Path("train.json")


def _entry(**changes: Any) -> dict[str, Any]:
    joints = [[float(10 * j + 1), float(5 * j + 1)] for j in range(16)]
    return {
        "image": "a.jpg",
        "center": [101.0, 201.0],
        "scale": 2.0,
        "joints": joints,
        "joints_vis": [1] * 15 + [0],
        **changes,
    }


def test_json_worked_out() -> None:
    """Centre (101, 201) counted from 1 at scale 2: side 400, centre (100, 200 + 30) counted from 0."""
    parsed = mpii.parse_mpii_json([_entry(), _entry(image="b.jpg"), _entry()], _PATH)
    assert [(image.image_id, image.file_name) for image in parsed.images] == [(0, "a.jpg"), (1, "b.jpg")]
    assert [(a.annotation_id, a.image_id) for a in parsed.annotations] == [(0, 0), (1, 1), (2, 0)]
    first = parsed.annotations[0]
    assert first.box_xywh == (-100.0, 30.0, 400.0, 400.0)
    assert first.keypoints[3:6] == (10.0, 5.0, 2.0)
    assert first.keypoints[45:] == (0.0, 0.0, 0.0)
    assert first.num_keypoints == 15
    assert first.area == pytest.approx(0.53 * 400 * 400)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scale": -1.0}, "box_invalid"),
        ({"center": [float("nan"), 1.0]}, "box_invalid"),
        ({"joints": [[1.0, 2.0]] * 3, "joints_vis": [1] * 3}, "keypoints_invalid"),
        ({"joints": [[float("nan"), 2.0]] * 16}, "keypoints_invalid"),
        ({"joints_vis": None}, "keypoints_invalid"),
    ],
)
def test_bad_persons_are_rejected(changes: dict[str, Any], reason: str) -> None:
    parsed = mpii.parse_mpii_json([_entry(**changes)], _PATH)
    assert [reject.reason for reject in parsed.rejects] == [reason]


def test_other_json_is_one_error() -> None:
    with pytest.raises(ValueError, match="is not MPII's JSON"):
        mpii.parse_mpii_json([{"image": "a.jpg"}], _PATH)


def test_matlab_release_worked_out(tmp_path: Path) -> None:
    """Two images: one person with two joints (one hidden) and a head box of 30x40; then a test image without joints."""
    path = crop_data.write_mpii_release(tmp_path / "mpii.mat")
    parsed = mpii.read_mpii_mat(path)
    assert [image.file_name for image in parsed.images] == ["one.jpg", "two.jpg"]
    (annotation,) = parsed.annotations
    assert annotation.box_xywh == (0.0, 0.0, 200.0, 200.0)
    assert annotation.keypoints[27:30] == (50.0, 60.0, 2.0)
    assert annotation.keypoints[:3] == (30.0, 40.0, 1.0)
    assert annotation.num_keypoints == 2
    assert annotation.head_size == pytest.approx(0.6 * 50)


def test_other_mat_files_are_one_error(tmp_path: Path) -> None:
    crop_data.save_mat(tmp_path / "x.mat", {"a": 1})
    with pytest.raises(ValueError, match="is not MPII's MATLAB release"):
        mpii.read_mpii_mat(tmp_path / "x.mat")


def test_real_file() -> None:
    path = crop_data.real_data("tiny-mpii") / "test_mpii.json"
    parsed = mpii.parse_mpii_json(json.loads(path.read_text()), path)
    assert (len(parsed.images), len(parsed.annotations), parsed.rejects) == (5, 5, [])
