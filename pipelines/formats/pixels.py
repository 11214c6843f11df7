"""What an image file says beside its pixels: how to turn it, whether it is one of several, how deep its values are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
"""How a PNG begins (ISO 15948, section 5.2)."""
_ORIENTATION = 0x0112
INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""The orientation that turns back what each one turned."""
# From here on a 16-bit value needs its highest bit: the image uses all of them.
_ALL_16_BITS = 2**15


def orientation_of(data: bytes) -> int:
    """The orientation tag of a JPEG, PNG, WebP or TIFF, 1 (as it is) to 8; 1 where there is none (source: EXIF 2.3)."""
    for tiff in _exif_blocks(data):
        found = tiff_value(tiff, _ORIENTATION, 1)
        if found in INVERSE:
            return found
    return 1


def turned(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The image (h, w, …) as its orientation tag wants it shown; 5 to 8 exchange height and width."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def rgb_of(image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (h, w, 3) of OpenCV with red first, contiguous.

    By OpenCV: numpy takes some thirty times as long to turn channels round.
    """
    return np.asarray(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB), np.uint8)


def is_animated(data: bytes) -> bool:
    """Whether a GIF, PNG, WebP or TIFF holds more pictures than its first."""
    if data.startswith((b"GIF87a", b"GIF89a")):
        return sum(1 for _ in _gif_pictures(data)) > 1
    if data.startswith(PNG_MAGIC):
        return any(kind == b"acTL" and int.from_bytes(body[:4], "big") > 1 for kind, body in _png_chunks(data))
    if _is_webp(data):
        return any(kind == b"ANIM" for kind, _ in _riff_chunks(data))
    if is_tiff(data):
        return _next_directory(data) != 0
    return False


def is_tiff(data: bytes) -> bool:
    """Whether it is a TIFF, of either byte order."""
    return data[:4] in (b"II*\0", b"MM\0*")


def eight_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image of deeper values as uint8.

    Where all 16 bits are in use the upper 8 are kept, as every viewer does. Cameras of 10 to 14 bits and floating point
    use a part of their range, often less than a hundredth: what they do use becomes 0 to 255.
    """
    if image.dtype == np.uint8:
        return image
    values = np.nan_to_num(image.astype(np.float64), posinf=0.0, neginf=0.0)
    if image.dtype == np.uint16 and values.max(initial=0) >= _ALL_16_BITS:
        return np.asarray(image >> 8, np.uint8)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    if not high > low:
        return np.zeros(image.shape, np.uint8)
    return np.asarray(np.round((values - low) * (255.0 / (high - low))), np.uint8)


# ---- where each format keeps these things


def _exif_blocks(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"\xff\xd8"):
        yield from (body[6:] for body in _jpeg_segments(data, 0xE1) if body.startswith(b"Exif\0\0"))
    elif data.startswith(PNG_MAGIC):
        yield from (body for kind, body in _png_chunks(data) if kind == b"eXIf")
    elif _is_webp(data):
        yield from (body.removeprefix(b"Exif\0\0") for kind, body in _riff_chunks(data) if kind == b"EXIF")
    elif is_tiff(data):
        yield data


def _jpeg_segments(data: bytes, wanted: int) -> Iterator[bytes]:
    """Bodies of the segments with the marker ``wanted`` before the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in (0xDA, 0xD9):
            return
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == wanted:
            yield data[position + 4 : position + 2 + length]
        position += 2 + max(2, length)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Chunks of a PNG, pixels without their bytes."""
    position = len(PNG_MAGIC)
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        yield kind, b"" if kind == b"IDAT" else data[position + 8 : position + 8 + length]
        position += 12 + length


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= len(data):
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        yield kind, data[position + 8 : position + 8 + length] if kind == b"EXIF" else b""
        position += 8 + length + length % 2


def _order(tiff: bytes) -> Literal["little", "big"]:
    return "little" if tiff[:2] == b"II" else "big"


def tiff_value(tiff: bytes, tag: int, default: int) -> int:
    """A 16-bit value of the first directory; ``default`` where the tag is absent."""
    order = _order(tiff)
    start = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[start : start + 2], order)
    for number in range(min(count, 1000)):
        entry = tiff[start + 2 + 12 * number : start + 14 + 12 * number]
        if len(entry) == 12 and int.from_bytes(entry[:2], order) == tag:
            return int.from_bytes(entry[8:10], order)
    return default


def _next_directory(tiff: bytes) -> int:
    order = _order(tiff)
    start = int.from_bytes(tiff[4:8], order)
    end = start + 2 + 12 * int.from_bytes(tiff[start : start + 2], order)
    return int.from_bytes(tiff[end : end + 4], order)


def _gif_pictures(data: bytes) -> Iterator[int]:
    """Places of the pictures in a GIF (source: GIF89a, sections 17 to 26)."""
    position = 13 + _colours(data[10:11])
    while position < len(data):
        kind = data[position]
        if kind == 0x2C:
            yield position
            position += 10 + _colours(data[position + 9 : position + 10]) + 1
        elif kind == 0x21:
            position += 2
        else:
            return
        # Sub-blocks: a length and as many bytes each, to one of length 0.
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1


def _colours(flags: bytes) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0
