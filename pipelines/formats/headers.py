"""What an image says of itself before it is decoded: kilobytes may declare gigabytes."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from efafnet.pipelines.formats.pixels import PNG_MAGIC

MAX_PIXELS = 1 << 28
"""Images of more pixels are refused undecoded: 16384 x 16384, 0.8 GB as decoded colours."""
# Start-of-frame markers carry the size; C4, C8 and CC in their midst are tables and reserved (ITU T.81, table B.1).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
"""Brands of ISO base media files, MP4's container, that hold still images: HEIF and AVIF."""
# EBML (Matroska, WebM), Flash, ASF (WMV), Ogg, MPEG program and video streams.
VIDEO_STARTS = (
    b"\x1a\x45\xdf\xa3", b"FLV\x01", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"OggS", b"\0\0\x01\xba", b"\0\0\x01\xb3",
)  # fmt: skip
"""How videos begin that are in no ISO base media file, by the containers that are told by their first bytes."""
_OTHERS = (
    (b"%PDF", "it is a PDF: give the pictures in it"),
    (b"8BPS", "it is Photoshop's: save it as PNG"),
    (b"\xff\x0a", "it is JPEG XL: convert it to JPEG"),
    (b"version https://git-lfs", "it is a pointer of Git LFS: git lfs pull"),
    (b"PK\x03\x04", "it is a ZIP archive: unpack it"),
    (b"<", "it is XML, SVG or HTML, perhaps a server's answer in place of the picture"),
)


def known_kind(data: bytes) -> str:
    """What a file is that cannot be decoded as an image, and what to do; how it begins where nobody knows."""
    if data[4:8] == b"ftyp" and data[8:12] in STILL_BRANDS:
        return "it is HEIC or AVIF: convert it to JPEG"
    if data[4:8] == b"ftyp" or data.startswith(VIDEO_STARTS) or data[:4] + data[8:12] == b"RIFFAVI ":
        return "it is a video: predict takes videos, annotations are of images"
    known = next((told for start, told in _OTHERS if data.startswith(start)), None)
    return known or f"begins with {data[:8]!r}"


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as the header of an image states them, without decoding; None where none is found."""
    if data.startswith(PNG_MAGIC):
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
