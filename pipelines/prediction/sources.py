"""What is predicted: images, the images of folders, the frames of videos, each decoded once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.crops.images import ImageProblemError, decode_image, read_regular
from efafnet.platform import console

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")

# FFmpeg's own words on a file that is no video go to standard error past every logger. Read at the first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# A video says how many pictures it shows in a second; those that do not are taken for PAL's.
_DEFAULT_FPS = 25.0


class UnreadableError(ValueError):
    """An image or a video that cannot be read."""


@dataclass(frozen=True)
class Source:
    """One file to predict."""

    index: int
    """Its place among all, from 0."""
    path: Path
    is_video: bool
    frames: int
    """Pictures in it: 1 for an image; for a video what its header says, 0 where it says nothing."""
    fps: float = 0.0
    """Frames per second of a video."""


@dataclass(frozen=True)
class Frame:
    """One decoded picture."""

    source: Source
    number: int
    """Place in its video, from 0; 0 for an image."""
    pixels: NDArray[np.uint8]
    """uint8 (h, w, 3) RGB."""
    time_s: float = 0.0
    """Seconds from its video's first frame to when it is shown."""


def find_sources(inputs: Sequence[Path], *, skip_unreadable: bool = False) -> list[Source]:
    """The images and videos of ``inputs``: files as they are, folders by their images in order of name; each once.

    Raises ValueError for what does not exist, a folder without images, and a video that cannot be opened (a warning
    with ``skip_unreadable``).
    """
    found: list[Source] = []
    for path in dict.fromkeys(file for given in inputs for file in _files(given)):
        try:
            found.append(_source(len(found), path))
        except UnreadableError as error:
            if not skip_unreadable:
                raise
            console.warn(error)
    if not found:
        raise ValueError("none of the inputs can be read; nothing was written")
    return found


def _files(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.is_dir():
        raise ValueError(f"input {given} does not exist; name images, folders of images, or videos")
    visible = (p for p in given.iterdir() if p.is_file() and not p.name.startswith("."))
    found = sorted(p for p in visible if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ValueError(
            f"folder {given} holds no images ({', '.join(IMAGE_SUFFIXES)}); name the folder that holds them itself, "
            "and videos by their files"
        )
    return found


def _source(index: int, path: Path) -> Source:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return Source(index, path, is_video=False, frames=1)
    video = _open(path)
    frames, fps = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
    video.release()
    return Source(index, path, is_video=True, frames=max(0, int(frames)), fps=fps if fps > 0 else _DEFAULT_FPS)


def read_image(source: Source, *, upright: bool) -> Frame:
    """The picture of an image file: as stored, or turned ``upright`` as its orientation tag says."""
    try:
        image = decode_image(read_regular(source.path), upright=upright)
    except ImageProblemError as problem:
        raise UnreadableError(f"image {source.path} {problem.detail}; mend it, or leave it out") from problem
    except OSError as error:
        raise UnreadableError(f"image {source.path} cannot be read ({error.strerror}); leave it out") from error
    return Frame(source, 0, np.ascontiguousarray(image[:, :, ::-1]))


def read_video(source: Source, step: int) -> Iterator[Frame]:
    """Every ``step``-th frame of a video, one at a time, upright as players show it."""
    video = _open(source.path)
    try:
        for number in count():
            # Frames between are passed over without converting them.
            if not video.grab():
                break
            if number % step == 0:
                readable, image = video.retrieve()
                if readable:
                    yield Frame(source, number, np.ascontiguousarray(image[:, :, ::-1], np.uint8))
    finally:
        video.release()
    if number == 0:
        raise UnreadableError(f"video {source.path} holds no picture that can be decoded; convert it to H.264 in MP4")


def _open(path: Path) -> cv2.VideoCapture:
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    cv2.utils.logging.setLogLevel(before)
    if not video.isOpened():
        raise UnreadableError(f"video {path} cannot be opened: damaged, or no video; convert it to H.264 in MP4")
    return video
