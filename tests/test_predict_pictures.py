"""Drawn predictions: on images, in videos, as frames where no video can be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.drawing.poses import RIGHT
from efafnet.pipelines.prediction import pictures
from efafnet.pipelines.prediction.media import Frame, Source, find_sources, read_video
from efafnet.pipelines.prediction.pictures import Pictures, draw_results


def _result(x: float, y: float, score: float, joint_score: float = 0.9) -> dict[str, Any]:
    """A person whose joints all lie on (x, y), a right one on top; its box 20 px around."""
    keypoints = [x, y, joint_score] * COCO_17.num_joints
    return {"bbox": [x - 20, y - 20, 40, 40], "keypoints": keypoints, "score": score}


def test_persons_are_drawn_where_they_are_and_the_image_stays_as_it_was() -> None:
    image = np.full((100, 200, 3), 90, np.uint8)
    drawn = draw_results(image, [_result(50, 60, 0.9), _result(150, 40, 0.2, joint_score=0.1)], COCO_17, 0.2)
    assert (image == 90).all()
    assert tuple(drawn[60, 50]) == RIGHT
    assert tuple(drawn[40, 150]) != RIGHT, "an unsure joint is hollow"
    changed = np.flatnonzero((drawn != image).any(axis=(0, 2)))
    assert (changed.min(), changed.max()) == pytest.approx((29, 171), abs=2), "from box to box"
    assert (draw_results(image, [], COCO_17, 0.2) == 90).all()


def test_small_persons_get_thin_lines() -> None:
    image = np.full((400, 400, 3), 90, np.uint8)
    far, near = _result(200, 200, 0.9), {**_result(200, 200, 0.9), "bbox": [0, 0, 400, 400]}
    thin, thick = ((draw_results(image, [r], COCO_17, 0.2)[190:211, 190:211] != 90).sum() for r in (far, near))
    assert thin < 0.5 * thick


def _frames(source: Source, count: int) -> list[Frame]:
    return [Frame(source, n, np.full((48, 64, 3), (250, 10, 40 * n), np.uint8)) for n in range(count)]


def _video(folder: Path) -> Source:
    return Source(0, folder / "walk.mov", is_video=True, frames=4, fps=10.0)


def test_a_video_is_written_with_its_frames_in_order(tmp_path: Path) -> None:
    writer = Pictures(tmp_path, frame_step=2)
    for frame in _frames(_video(tmp_path), 4):
        writer.write(frame, frame.pixels, "walk")
    image = Frame(Source(1, tmp_path / "cat.png", is_video=False, frames=1), 0, np.zeros((30, 40, 3), np.uint8))
    writer.write(image, image.pixels, "cat")
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.jpg", "walk.mp4"]
    [source] = find_sources([tmp_path / "walk.mp4"])
    assert source.fps == 5.0, "of every second frame, half as many per second are shown"
    blue = [float(frame.pixels[:, :, 2].mean()) for frame in read_video(source, 1)]
    assert blue == pytest.approx([0, 40, 80, 120], abs=12)


def test_two_videos_are_two_files(tmp_path: Path) -> None:
    writer = Pictures(tmp_path, frame_step=1)
    for index, name in enumerate(("a", "b")):
        for frame in _frames(Source(index, tmp_path / f"{name}.mov", is_video=True, frames=2, fps=10.0), 2 + index):
            writer.write(frame, frame.pixels, name)
    writer.close()
    assert [len(list(read_video(s, 1))) for s in find_sources([tmp_path / "a.mp4", tmp_path / "b.mp4"])] == [2, 3]


def test_frames_are_written_where_no_video_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "_VIDEO_KINDS", ())
    writer = Pictures(tmp_path, frame_step=1)
    for frame in _frames(_video(tmp_path), 3):
        writer.write(frame, frame.pixels, "walk")
    writer.close()
    assert sorted(path.name for path in (tmp_path / "walk").iterdir()) == [f"00000{n}.jpg" for n in range(3)]
    shown = cv2.imread(str(tmp_path / "walk" / "000002.jpg"))
    assert shown is not None
    assert shown[20, 20].tolist() == pytest.approx([80, 10, 250], abs=6), "blue, green, red"
    assert "the frames of walk.mov go to walk/ as JPEGs" in capsys.readouterr().err
