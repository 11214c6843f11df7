"""What was predicted, drawn: images as JPEGs, a video as a video (or as its frames, where none can be written)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.drawing.persons import Label, Pose, draw_poses
from efafnet.pipelines.drawing.poses import Picture, write_picture
from efafnet.pipelines.drawing.text import HIDDEN, SIDES, UNSURE, with_footer
from efafnet.pipelines.evaluation.predictions import VISIBLE
from efafnet.pipelines.prediction.media import Frame, Source
from efafnet.platform import console

# File ending and code of what OpenCV's wheels can write, the widely played one first.
_VIDEO_KINDS = ((".mp4", "mp4v"), (".avi", "MJPG"))


def draw_results(
    image_rgb: Picture,
    results: Sequence[Mapping[str, Any]],
    skeleton: Skeleton,
    sure_from: float,
    *,
    labels: Sequence[Label] = ("id", "score"),
    scale: int | Literal["auto"] = 1,
) -> Picture:
    """A copy of an image with the persons of its COCO results; see :func:`draw_poses`.

    A person's id is its track's, its own, or its place among the results. Where they hold probabilities that joints are
    visible, joints rather visible than not are the sure ones, and ``sure_from`` does not count.
    """
    poses = []
    for number, result in enumerate(results):
        keypoints = np.array(result["keypoints"], np.float64).reshape(-1, 3)
        poses.append(
            Pose(
                keypoints[:, :2],
                keypoints[:, 2],
                box_xywh_px=np.array(result["bbox"], np.float64),
                score=float(result["score"]),
                identity=int(result.get("track_id", result.get("id", number))),
                visible=_visible(result),
            )
        )
    return draw_poses(image_rgb, poses, skeleton, sure_from=sure_from, labels=labels, scale=scale)


def _visible(result: Mapping[str, Any]) -> NDArray[np.float64] | None:
    return np.array(result[VISIBLE], np.float64) if VISIBLE in result else None


def explained(picture: Picture, frame: Frame, persons: int, *, calibrated: bool) -> Picture:
    """A copy with a strip below: the file's name, a frame's number and time, the number of persons, the legend."""
    place = f", frame {frame.number}, {frame.time_s:.2f} s" if frame.source.is_video else ""
    people = "1 person" if persons == 1 else f"{persons} persons"
    hollow = HIDDEN if calibrated else UNSURE
    return with_footer(picture, f"{frame.source.path.name}{place}: {people}", (*SIDES, *hollow))


class Pictures:
    """Writes drawn pictures into a folder, named after their sources; a video's frames must come in order."""

    def __init__(self, folder: Path, frame_step: int) -> None:
        self._folder = folder
        self._frame_step = frame_step
        self._video: _Video | None = None

    def write(self, frame: Frame, picture: Picture, name: str) -> None:
        """Write one picture under ``name`` (without its ending)."""
        if not frame.source.is_video:
            write_picture(picture, self._folder / f"{name}.jpg")
            return
        if self._video is None or self._video.source != frame.source:
            self.close()
            self._video = _Video(self._folder / name, frame.source, picture, self._frame_step)
        self._video.write(frame.number, picture)

    def close(self) -> None:
        """Finish the video that is being written, if any."""
        if self._video is not None:
            self._video.close()
            self._video = None


class _Video:
    """One annotated video in the making."""

    def __init__(self, path: Path, source: Source, first: Picture, frame_step: int) -> None:
        self.source = source
        self._folder = path
        self._writer = _writer(path, source.fps / frame_step, first.shape[1], first.shape[0])
        if self._writer is None:
            console.warn(f"OpenCV writes no video here: the frames of {source.path.name} go to {path.name}/ as JPEGs")
            path.mkdir()

    def write(self, number: int, picture: Picture) -> None:
        """Add one frame."""
        if self._writer is None:
            write_picture(picture, self._folder / f"{number:06d}.jpg")
        else:
            self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Write what the file needs at its end."""
        if self._writer is not None:
            self._writer.release()


def _writer(path: Path, fps: float, width: int, height: int) -> cv2.VideoWriter | None:
    for ending, code in _VIDEO_KINDS:
        file = path.with_name(path.name + ending)
        writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*code), fps, (width, height))
        if writer.isOpened():
            return writer
        file.unlink(missing_ok=True)
    return None
