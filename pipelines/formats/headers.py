"""What an image says of itself before it is decoded: kilobytes may declare gigabytes."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 1 << 28
"""Images of more pixels are refused undecoded: 16384 x 16384, 0.8 GB as decoded colours."""
# Start-of-frame markers carry the size; C4, C8 and CC in their midst are tables and reserved (ITU T.81, table B.1).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as the header of an image states them, without decoding; None where none is found."""
    if data.startswith(_PNG_MAGIC):
        return (_number(data, 16, 4), _number(data, 20, 4)) if len(data) >= 24 else None
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                return image.size
    except Image.DecompressionBombError:
        return MAX_PIXELS, MAX_PIXELS
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The size of the first frame; the segments before it are passed over by their lengths."""
    position = 2
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 1 if marker == 0xFF else 2
        elif marker in _FRAMES:
            return _number(data, position + 7, 2), _number(data, position + 5, 2)
        else:
            position += 2 + _number(data, position + 2, 2)
    return None


def _number(data: bytes, place: int, length: int) -> int:
    return int.from_bytes(data[place : place + length], "big")
