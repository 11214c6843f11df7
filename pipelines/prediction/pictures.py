"""What was predicted, drawn: images as JPEGs, a video as a video (or as its frames, where none can be written)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.evaluation.overlays import Picture, Strength, draw_box, draw_person, write_picture
from efafnet.pipelines.prediction.sources import Frame, Source
from efafnet.platform import console

# File ending and code of what OpenCV's wheels can write, the widely played one first.
_VIDEO_KINDS = ((".mp4", "mp4v"), (".avi", "MJPG"))


def draw_results(
    image_rgb: Picture, results: Sequence[Mapping[str, Any]], skeleton: Skeleton, sure_from: float
) -> Picture:
    """A copy of an image with the persons of its COCO results, the best on top; joints below ``sure_from`` hollow."""
    drawn = image_rgb
    for result in sorted(results, key=lambda entry: float(entry["score"])):
        left, top, width, height = result["bbox"]
        keypoints: NDArray[np.float64] = np.array(result["keypoints"], np.float64).reshape(-1, 3)
        strength: list[Strength] = ["sure" if score >= sure_from else "unsure" for score in keypoints[:, 2]]
        drawn = draw_box(drawn, np.array([[left, top], [left + width, top + height]]))
        drawn = draw_person(drawn, keypoints[:, :2], strength, skeleton, guesses=True, unit=_unit(width, height))
    return drawn


def _unit(width: float, height: float) -> float:
    """Thickness of lines for a person of that size: so that who is far away is not painted over."""
    return float(np.clip(max(width, height) / 200, 0.6, 4.0))


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
