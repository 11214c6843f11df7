"""Reading source images: local or remote, every pixel format as BGR, damage noticed instead of decoded over."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import cv2
import numpy as np
import numpy.typing as npt
from pyarrow import fs

from efafnet.pipelines.crops.decode import DECODE_FLAGS
from efafnet.pipelines.formats.headers import MAX_PIXELS, declared_size, known_kind
from efafnet.pipelines.formats.names import folded, name_parts, original_stems, spellings, tails
from efafnet.pipelines.formats.pixels import (
    INVERSE,
    PNG_MAGIC,
    eight_bits,
    is_tiff,
    orientation_of,
    tiff_value,
    turned,
)
from efafnet.platform import console
from efafnet.platform.credentials import full
from efafnet.platform.mirror import is_address

UInt8 = npt.NDArray[np.uint8]

# TIFF 6.0, section 8 and 19.
_SAMPLES, _SAMPLE_FORMAT, _FLOAT = 277, 339, 3
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
# A marker other than a stuffed zero, a restart or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
# What may follow entropy-coded data: end, another scan, tables, comments, application data, number of lines.
_AFTER_SCAN = {0xD9, 0xDA, 0xC4, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}

# OpenCV's own words on what it cannot read go to standard error past every logger; here each is an error with a name.
# For the whole process: there is one level, and threads that decode side by side would set it under each other.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_LISTED = 200_000
"""Files of a folder that are looked through for those that are called nearly so."""
PAUSES_S = (0.2, 1.0, 4.0)
"""Seconds before an image that could not be read is tried again."""
_LASTING = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class ImageProblemError(ValueError):
    """An image that cannot be used; ``reason`` is one of the store's reject reasons."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class ImageFolder:
    """A folder of images: a local directory or any pyarrow file system (``s3://bucket/images``, ``gs://…``).

    Args:
        location: path or address.
        outside: whether names may lead out of it, by ``..``, as absolute paths or over symbolic links.
    """

    def __init__(self, location: str, *, outside: bool = False) -> None:
        self.location = location
        self.outside = outside
        self.is_remote = is_address(location)
        self._connected: tuple[fs.FileSystem, str] | None = None

    def _remote(self) -> tuple[fs.FileSystem, str]:
        # Several threads may connect; any of the connections will do.
        connected = self._connected or fs.FileSystem.from_uri(full(self.location))
        self._connected = connected
        return connected

    def check(self) -> None:
        """Raise ValueError where there is no such folder."""
        if self.is_remote:
            try:
                filesystem, root = self._remote()
                found = filesystem.get_file_info(root).type
            except (OSError, ValueError) as error:
                raise ValueError(f"image folder {self.location} cannot be opened ({error})") from error
            # Object stores have no folders, only names: an absent prefix is found out image by image.
            if found == fs.FileType.File:
                raise ValueError(
                    f"image folder {self.location} is a file; give the folder that file_name is relative to"
                )
        elif not Path(self.location).is_dir():
            what = "is a file" if Path(self.location).exists() else "does not exist"
            raise ValueError(f"image folder {self.location} {what}; give the folder that file_name is relative to")

    def sizes(self, names: list[str]) -> list[int]:
        """Size in bytes of each image, -1 where it is missing, or outside and may not be."""
        if self.is_remote:
            filesystem, root = self._remote()
            infos = filesystem.get_file_info([f"{root}/{name}" for name in names])
            return [info.size if info.type == fs.FileType.File else -1 for info in infos]
        sizes = []
        for name in names:
            try:
                sizes.append(self._local(name).stat().st_size)
            except (OSError, ImageProblemError):
                sizes.append(-1)
        return sizes

    def spelled(self, names: list[str]) -> dict[str, str]:
        """Names under which missing ones are there: with slashes for backslashes, in another Unicode form, without the
        host or the folders of another machine, in other letter cases, with other blanks. The longest part of a name
        that is found counts.
        """
        if self.is_remote:
            return self._remote_spellings(names)
        listings: dict[str, dict[str, str]] = {}
        spelled = {name: (self._local_spelling(tail, listings) for tail in tails(name)) for name in names}
        first = {name: next(filter(None, places), None) for name, places in spelled.items()}
        # What is there by its own name was missed for another reason: it leads out of the folder.
        return {name: there for name, there in first.items() if there not in (None, name)}

    def respelled(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """:meth:`spelled` for the names of ``sizes`` that are missing (-1).

        Where the names of two images lead to one file neither counts: both stay missing.
        """
        spelled = self.spelled([name for name, size in sizes.items() if size < 0])
        counted = Counter([*spelled.values(), *(name for name, size in sizes.items() if size >= 0)])
        return {name: there for name, there in spelled.items() if counted[there] == 1}

    def near(self, missing: Sequence[str]) -> tuple[str, str] | None:
        """The first missing name of which the folder has a file of another ending, of a subfolder, or without what a
        tool of annotation added to it; with that file.

        None where there is none, and for object storage, which is not listed.
        """
        if not missing or self.is_remote:
            return None
        stems: dict[str, str] = {}
        files = (Path(root, name) for root, _, names in os.walk(self.location) for name in names)
        for path in islice(files, _LISTED):
            stems.setdefault(normalize("NFC", path.stem).casefold(), str(path.relative_to(self.location)))
        for name in missing:
            parts = name_parts(name)
            own = original_stems(PurePosixPath(parts[-1]).stem.casefold()) if parts else []
            there = next(filter(None, map(stems.get, own)), name)
            # By its own name it was missed for another reason, which the reject tells.
            if there != name:
                return name, there
        return None

    def _local_spelling(self, parts: tuple[str, ...], listings: dict[str, dict[str, str]]) -> str | None:
        place = ""
        for part in parts:
            if place not in listings:
                listings[place] = _by_spelling(_entries(Path(self.location) / place))
            there = listings[place].get(part) or listings[place].get(folded(part))
            if there is None:
                return None
            place = f"{place}/{there}".lstrip("/")
        return place if (Path(self.location) / place).is_file() else None

    def _remote_spellings(self, names: list[str]) -> dict[str, str]:
        """:meth:`spelled` in object storage, where a request takes long: one for all names of equal depth."""
        found: dict[str, str] = {}
        missing = {name: tails(name) for name in names}
        for left_out in range(max(map(len, missing.values()), default=0)):
            ends = [(n, t[left_out]) for n, t in missing.items() if n not in found and left_out < len(t)]
            asked = [(name, place) for name, end in ends for place in spellings("/".join(end))]
            for (name, place), size in zip(asked, self.sizes([place for _, place in asked]), strict=True):
                if size >= 0:
                    found.setdefault(name, place)
        return found

    def read(self, name: str) -> bytes:
        """Bytes of the image ``name``; raises ImageProblemError where it cannot be had.

        What a file system refuses for a moment is asked for again: an image left out is left out for good.
        """
        for pause_s in (*PAUSES_S, None):
            try:
                return self._read(name)
            except FileNotFoundError as error:
                raise ImageProblemError("image_missing", f"is not in {self.location}") from error
            except OSError as error:
                if pause_s is None or error.errno in _LASTING:
                    reason = f"cannot be read ({error.strerror or error})"
                    raise ImageProblemError("image_unreadable", reason) from error
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _read(self, name: str) -> bytes:
        if not self.is_remote:
            return read_regular(self._local(name))
        if not self.outside and ".." in PurePosixPath(name).parts:
            raise self._leads_out(name)
        filesystem, root = self._remote()
        with filesystem.open_input_file(f"{root}/{name}") as file:
            return bytes(file.read())

    def _local(self, name: str) -> Path:
        path = Path(self.location) / name
        # Not Path.resolve, for which links that lead back to themselves are no error of the file system's.
        place = Path(os.path.realpath(path))
        if not self.outside and not place.is_relative_to(self._root):
            raise self._leads_out(str(place))
        return path

    @cached_property
    def _root(self) -> Path:
        return Path(self.location).resolve()

    def _leads_out(self, place: str) -> ImageProblemError:
        return ImageProblemError(
            "image_outside", f"leads out of {self.location} to {place}; allow it with outside_images=true"
        )


def read_regular(path: Path) -> bytes:
    """Bytes of an image file. Pipes and devices are not opened: reading one may never end.

    Raises:
        ImageProblemError: it is no regular file.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ImageProblemError("image_unreadable", "is no regular file")
    return path.read_bytes()


def check_declared(data: bytes, wanted: tuple[int, int] | None = None) -> None:
    """Refuse by its header an image that is too large to decode, or of another size than its annotations say.

    Args:
        data: the encoded image.
        wanted: width and height of the annotations; the two may also be exchanged, by a picture that is to be turned.

    Raises:
        ImageProblemError: ``image_too_large`` or ``image_size_differs``.
    """
    size = declared_size(data)
    if size is None:
        return
    if wanted is not None and sorted(size) != sorted(wanted):
        raise ImageProblemError(
            "image_size_differs", f"is {size[0]}x{size[1]}, its annotations say {wanted[0]}x{wanted[1]}"
        )
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageProblemError("image_too_large", f"declares {size[0]}x{size[1]} pixels, more than {MAX_PIXELS}")


def tell_orientation(tagged: int, total: int, *, upright: bool) -> None:
    """Say of how many images the file says how to turn them, and what was made of it; nothing where none does."""
    if tagged and upright:
        console.note(f"{tagged} of {total} images were turned upright as their orientation tags say")
    elif tagged:
        console.warn(
            f"{tagged} of {total} images carry an orientation tag and are taken as stored; where they were annotated "
            "as viewers show them, boxes and joints lie elsewhere: orientation=upright"
        )


def _by_spelling(entries: list[str]) -> dict[str, str]:
    """Names by their composed Unicode form, and by what makes them look alike where no other name shares it."""
    found = {normalize("NFC", entry): entry for entry in entries}
    alike = Counter(map(folded, found))
    return {folded(name): entry for name, entry in found.items() if alike[folded(name)] == 1} | found


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def decode_image(data: bytes, *, upright: bool = False) -> UInt8:
    """Image (h, w, 3) uint8 BGR: as stored, or turned ``upright`` as its orientation tag says.

    Grey and CMYK are converted, deeper values scaled (see ``pixels.eight_bits``); an animation gives its first picture.

    Raises ImageProblemError where the bytes are no image, or an image whose end is missing: OpenCV decodes those
    without a word in most versions, with grey where data are missing.
    """
    problem = _damage(data)
    if problem is not None:
        raise ImageProblemError(*problem)
    check_declared(data)
    image = _decoded(data)
    if image is None:
        raise ImageProblemError("image_unreadable", f"cannot be decoded ({known_kind(data)})")
    pixels, orientation = eight_bits(image), orientation_of(data)
    if is_tiff(data):
        # OpenCV turns these whatever its flags say.
        return pixels if upright else turned(pixels, INVERSE[orientation])
    return turned(pixels, orientation) if upright else pixels


def _decoded(data: bytes) -> npt.NDArray[Any] | None:
    """Image (h, w, 3) BGR as deep as it is; None where there is none."""
    encoded = np.frombuffer(data, np.uint8)
    try:
        if _is_float_grey(data):
            # OpenCV makes no colours of these itself.
            grey = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
            return None if grey is None or grey.ndim != 2 else np.repeat(grey[:, :, None], 3, axis=2)
        return cv2.imdecode(encoded, DECODE_FLAGS | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ImageProblemError("image_unreadable", f"cannot be decoded ({error.err})") from error


def _is_float_grey(data: bytes) -> bool:
    """Whether it is a TIFF of one channel of floating point."""
    return is_tiff(data) and tiff_value(data, _SAMPLE_FORMAT, 1) == _FLOAT and tiff_value(data, _SAMPLES, 1) == 1


def _damage(data: bytes) -> tuple[str, str] | None:
    if not data:
        return "image_unreadable", "the file is empty"
    if data.startswith(b"\xff\xd8"):
        return _jpeg_damage(data)
    if data.startswith(PNG_MAGIC):
        return _png_damage(data)
    return None


def _jpeg_damage(data: bytes) -> tuple[str, str] | None:
    """Walk a JPEG's segments to its end-of-image marker (ITU T.81, annex B)."""
    position, size = 2, len(data)
    while position < size:
        if data[position] != 0xFF:
            return "image_corrupt", f"byte {position} of {size} is not a JPEG marker"
        while position < size and data[position] == 0xFF:
            position += 1
        if position >= size:
            break
        marker = data[position]
        position += 1
        if marker == 0xD9:
            return None
        if marker in _STANDALONE:
            continue
        if position + 2 > size:
            break
        position += int.from_bytes(data[position : position + 2], "big")
        if marker == 0xDA:
            position = _end_of_scan(data, position)
            if 0 <= position < size - 1 and data[position + 1] not in _AFTER_SCAN:
                return "image_corrupt", f"an impossible JPEG marker at byte {position} of {size}"
            if position < 0:
                break
    return "image_truncated", f"the JPEG stops after {size} bytes, without its end marker"


def _end_of_scan(data: bytes, position: int) -> int:
    """Place of the marker that ends the entropy-coded data at ``position``; -1 where there is none."""
    found = _MARKER.search(data, position)
    return found.start() if found else -1


def _png_damage(data: bytes) -> tuple[str, str] | None:
    """Walk a PNG's chunks and their check sums to IEND."""
    position = len(PNG_MAGIC)
    while position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return "image_corrupt", f"PNG chunk {kind!r} at byte {position} has a wrong check sum"
        if kind == b"IEND":
            return None
        position = end
    return "image_truncated", f"the PNG stops after {len(data)} bytes, without its end chunk"
