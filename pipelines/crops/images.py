"""Reading source images: local or remote, every pixel format as BGR, damage noticed instead of decoded over."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from pyarrow import fs

from efafnet.pipelines.crops.decode import DECODE_FLAGS
from efafnet.platform.mirror import is_address

UInt8 = npt.NDArray[np.uint8]

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_STANDALONE = {0x01, *range(0xD0, 0xD8)}
# A marker other than a stuffed zero, a restart or a fill byte.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
# What may follow entropy-coded data: end, another scan, tables, comments, application data, number of lines.
_AFTER_SCAN = {0xD9, 0xDA, 0xC4, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)}


class ImageProblemError(ValueError):
    """An image that cannot be used; ``reason`` is one of the store's reject reasons."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class ImageFolder:
    """A folder of images: a local directory or any pyarrow file system (``s3://bucket/images``, ``gs://…``)."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.is_remote = is_address(location)
        self._connected: tuple[fs.FileSystem, str] | None = None

    def _remote(self) -> tuple[fs.FileSystem, str]:
        # Several threads may connect; any of the connections will do.
        connected = self._connected or fs.FileSystem.from_uri(self.location)
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
            raise ValueError(
                f"image folder {self.location} does not exist; give the folder that file_name is relative to"
            )

    def sizes(self, names: list[str]) -> list[int]:
        """Size in bytes of each image, -1 where it is missing."""
        if self.is_remote:
            filesystem, root = self._remote()
            infos = filesystem.get_file_info([f"{root}/{name}" for name in names])
            return [info.size if info.type == fs.FileType.File else -1 for info in infos]
        root_path, sizes = Path(self.location), []
        for name in names:
            try:
                sizes.append((root_path / name).stat().st_size)
            except OSError:
                sizes.append(-1)
        return sizes

    def read(self, name: str) -> bytes:
        """Bytes of the image ``name``; raises ImageProblemError where it cannot be had."""
        try:
            if not self.is_remote:
                return (Path(self.location) / name).read_bytes()
            filesystem, root = self._remote()
            with filesystem.open_input_file(f"{root}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError as error:
            raise ImageProblemError("image_missing", f"is not in {self.location}") from error
        except OSError as error:
            raise ImageProblemError("image_unreadable", f"cannot be read ({error.strerror or error})") from error


def decode_image(data: bytes, *, upright: bool = False) -> UInt8:
    """Image (h, w, 3) uint8 BGR: as stored, or turned ``upright`` as its orientation tag says; grey, CMYK converted.

    Raises ImageProblemError where the bytes are no image, or an image whose end is missing: OpenCV decodes those
    without a word in most versions, with grey where data are missing.
    """
    problem = _damage(data)
    if problem is not None:
        raise ImageProblemError(*problem)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR if upright else DECODE_FLAGS)
    except cv2.error as error:
        raise ImageProblemError("image_unreadable", f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageProblemError("image_unreadable", f"cannot be decoded (begins with {data[:8]!r})")
    return image  # type: ignore[return-value]


def _damage(data: bytes) -> tuple[str, str] | None:
    if not data:
        return "image_unreadable", "the file is empty"
    if data.startswith(b"\xff\xd8"):
        return _jpeg_damage(data)
    if data.startswith(_PNG_MAGIC):
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
    position = len(_PNG_MAGIC)
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
