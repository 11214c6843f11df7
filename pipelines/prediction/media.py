"""What is predicted: images, the images of folders, the frames of videos, each decoded once.

The first bytes of a file tell what it is; the ending of its name counts only where they do not.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.crops.images import ImageProblemError, decode_image, read_regular
from efafnet.pipelines.formats.headers import STILL_BRANDS, VIDEO_STARTS
from efafnet.pipelines.formats.pixels import PNG_MAGIC, is_animated, orientation_of, rgb_of
from efafnet.platform import console

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv",
    ".ogv",
)  # fmt: skip

_ALSO_SEEN = (*VIDEO_SUFFIXES, ".gif", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd")
"""Endings of what a folder may hold beside images and is not taken from it: videos and animations by their length, the
others because few machines can read them."""

Content = Literal["image", "animation", "video", "unknown"]

_HEAD_BYTES = 1024
_IMAGE_STARTS = (b"\xff\xd8", PNG_MAGIC, b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
# A transport stream begins every packet of 188 bytes (192 with a time stamp before it) with this one.
_SYNC, _PACKETS = 0x47, ((0, 188), (4, 192))

# What a header says and what was read may differ by this much without anything being missing.
_SLACK_FRAMES, _SLACK = 2, 0.02

# FFmpeg's own words on a file that is no video go to standard error past every logger. Read at the first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# Frames whose times tell whether a rate is that of half pictures.
_FRAMES_TIMED = 9

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
    """Frames per second of a video, on average."""


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
    remark: str = ""
    """What is wrong with its video, told with the last frame."""
    tagged: bool = False
    """Whether its file has an orientation tag."""


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
    visible = [p for p in given.iterdir() if p.is_file() and not p.name.startswith(".")]
    found = sorted(p for p in visible if p.suffix.lower() in IMAGE_SUFFIXES)
    others = Counter(ending for p in visible if (ending := p.suffix.lower()) in _ALSO_SEEN)
    there = ", ".join(f"{number} {ending}" for ending, number in sorted(others.items()))
    if not found:
        but = f" but {there}" if there else ""
        raise ValueError(
            f"folder {given} holds no images ({', '.join(IMAGE_SUFFIXES)}){but}; name the folder that holds them "
            "itself, and videos by their files"
        )
    if there:
        console.warn(f"folder {given}: beside its images it holds {there}, left out; name such files themselves")
    return found


def _source(index: int, path: Path) -> Source:
    content = content_of(path)
    if content == "unknown" and path.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        # FFmpeg knows more kinds than are listed here; what it does not open is refused when it is read as an image.
        content = "video" if _opens(path) else "image"
    if content == "unknown":
        content = "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"
    if content == "video" or (content == "animation" and _opens(path)):
        frames, fps = _promised(path)
        return Source(index, path, is_video=True, frames=frames, fps=fps)
    return Source(index, path, is_video=False, frames=1)


def _promised(path: Path) -> tuple[int, float]:
    """Number of frames and frames per second that a video's header says."""
    video = _open(path)
    frames, fps = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))), video.get(cv2.CAP_PROP_FPS)
    if fps <= 0:
        fps = _DEFAULT_FPS
    elif not _is_indexed(_head(path)) and _counts_fields(video, fps):
        frames, fps = (frames + 1) // 2, fps / 2
    video.release()
    return frames, fps


def _counts_fields(video: cv2.VideoCapture, fps: float) -> bool:
    """Whether ``fps`` is the rate of the half pictures of interlaced video: every frame is shown for two of its steps.

    Where a container has no index FFmpeg takes the rate from the coded stream, whose clock ticks once for a field.
    """
    times_s = [video.get(cv2.CAP_PROP_POS_MSEC) / 1000 for _ in range(_FRAMES_TIMED) if video.grab()]
    steps = np.diff(times_s) * fps
    return len(steps) > 1 and bool(np.abs(steps - 2).max() < 0.2)


def content_of(path: Path) -> Content:
    """What the bytes of a file say it is. A file that cannot be read is unknown: its reader says why."""
    try:
        head = _head(path)
    except OSError:
        return "unknown"
    if head.startswith(b"GIF8"):
        return "animation" if is_animated(path.read_bytes()) else "image"
    if head.startswith(_IMAGE_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS:
        return "image"
    streams = any(head[first::step][:4] == bytes([_SYNC] * 4) for first, step in _PACKETS)
    if _is_indexed(head) or streams:
        return "video"
    return "video" if head.startswith(VIDEO_STARTS) else "unknown"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _opens(path: Path) -> bool:
    """Whether FFmpeg finds moving pictures in a file."""
    if not path.is_file():
        return False
    try:
        video = _open(path)
    except UnreadableError:
        return False
    frames = video.get(cv2.CAP_PROP_FRAME_COUNT)
    # Coded streams without a container count nothing: a negative number.
    moving = frames > 1 or (frames < 0 and video.grab() and video.grab())
    video.release()
    return bool(moving)


def read_image(source: Source, *, upright: bool) -> Frame:
    """The picture of an image file: as stored, or turned ``upright`` as its orientation tag says."""
    try:
        data = read_regular(source.path)
        if is_animated(data):
            console.warn(
                f"{source.path} holds several pictures: only the first is used; convert it to a video for all of them"
            )
        image = decode_image(data, upright=upright)
    except ImageProblemError as problem:
        what = "" if source.path.suffix.lower() in IMAGE_SUFFIXES else ", and it opens as no video either"
        raise UnreadableError(f"image {source.path} {problem.detail}{what}; mend it, or leave it out") from problem
    except OSError as error:
        raise UnreadableError(f"image {source.path} cannot be read ({error.strerror}); leave it out") from error
    return Frame(source, 0, rgb_of(image), tagged=orientation_of(data) != 1)


def read_video(source: Source, step: int) -> Iterator[Frame]:
    """Every ``step``-th frame of a video, one at a time, upright as players show it, with the time it is shown.

    The last one carries a remark where the file ends before its header says, or frames in it cannot be decoded. Raises
    UnreadableError where there is no frame at all.
    """
    video = _open(source.path)
    ready: Frame | None = None
    number, undecodable, time_s, first_s = 0, 0, 0.0, 0.0
    try:
        # Frames between are passed over without converting them.
        for number in count():
            if not video.grab():
                break
            shown_s = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            first_s = shown_s if number == 0 else first_s
            # Where a container tells no times they follow from the rate.
            time_s = shown_s - first_s if number == 0 or shown_s - first_s > time_s else time_s + 1 / source.fps
            if number % step:
                continue
            readable, image = video.retrieve()
            if not readable:
                undecodable += 1
                continue
            if ready is not None:
                yield ready
            ready = Frame(source, number, rgb_of(np.asarray(image, np.uint8)), time_s)
    finally:
        video.release()
    if ready is None:
        raise UnreadableError(
            f"video {source.path} holds no picture that can be decoded; convert it to H.264 in MP4, or leave it out"
        )
    yield replace(ready, remark=_damage(source, number, time_s + 1 / source.fps, undecodable))


def _damage(source: Source, read: int, until_s: float, undecodable: int) -> str:
    """What is missing of a video of which ``read`` frames were read, the last one shown ``until_s``; empty for nothing.

    Many containers tell no number of frames, and FFmpeg takes duration times rate for it, wrong by half for some. So it
    is the time that is compared; the number only where an index holds it.
    """
    told = []
    promised_s, missing = source.frames / source.fps, source.frames - read
    if missing > max(_SLACK_FRAMES, _SLACK * source.frames):
        if promised_s - until_s > max(_SLACK_FRAMES / source.fps, _SLACK * promised_s):
            told.append(
                f"read {read} of {source.frames} frames, until {until_s:.1f} of {promised_s:.1f} s: the file may be cut"
            )
        elif _is_indexed(_head(source.path)):
            told.append(f"read {read} of {source.frames} frames: the others are damaged")
    if undecodable:
        told.append(f"{undecodable} frames cannot be decoded and are left out")
    return f"video {source.path}: {'; '.join(told)}" if told else ""


def _is_indexed(head: bytes) -> bool:
    """Whether a video that begins so has an index of its frames: MP4 and its kin, AVI."""
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") or head[:4] == b"RIFF"


def _open(path: Path) -> cv2.VideoCapture:
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not video.isOpened():
        raise UnreadableError(
            f"video {path} cannot be opened: damaged, or no video; convert it to H.264 in MP4, or leave it out"
        )
    return video
