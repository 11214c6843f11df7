"""Storing crops: JPEG that quantises as its source did, PNG, or plain bytes."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from efafnet.pipelines.crops.manifest import Encoding
from efafnet.pipelines.formats.pixels import rgb_of

UInt8 = npt.NDArray[np.uint8]

# For sources that are no JPEG, and for crops that were resampled.
_DEFAULT_QUALITY = 95
_CHROMA = {"444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420}
# By Pillow's number.
_SAMPLINGS = (_CHROMA["444"], cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422, _CHROMA["420"])


@dataclass(frozen=True)
class JpegTables:
    """How a JPEG was quantised."""

    quantisation: list[list[int]]
    """Luma and chroma tables, 64 numbers each."""
    sampling: int
    """Pillow's number for the chroma sampling: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0."""


def jpeg_tables(data: bytes) -> JpegTables | None:
    """Tables of a colour JPEG in YCbCr with a usual sampling; None for anything else."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
    except (UnidentifiedImageError, OSError, SyntaxError):
        return None
    sampling = JpegImagePlugin.get_sampling(image)
    tables = getattr(image, "quantization", {})
    if image.mode != "RGB" or sampling not in (0, 1, 2) or sorted(tables) not in ([0], [0, 1]):
        return None
    return JpegTables([list(tables[0]), list(tables[max(tables)])], sampling)


def encode_crop(crop_bgr: UInt8, encoding: Encoding, tables: JpegTables | None) -> bytes:
    """Bytes of a crop (h, w, 3) uint8 BGR; ``tables`` are its source's, if it lies on the source's block grid.

    Quantising the same blocks with the same tables gives back nearly the same coefficients: the crop loses next to
    nothing and is no larger than its share of the source.
    """
    if encoding.format == "raw":
        return rgb_of(crop_bgr).tobytes()
    if encoding.format == "png":
        return _with_opencv(crop_bgr, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if encoding.quality == "source" and tables is not None:
        return _like_source(crop_bgr, tables)
    quality = _DEFAULT_QUALITY if encoding.quality == "source" else encoding.quality
    return _jpeg(crop_bgr, quality, _CHROMA[encoding.chroma])


def _like_source(crop_bgr: UInt8, tables: JpegTables) -> bytes:
    quality = _standard_qualities().get(_frozen(tables.quantisation))
    if quality is not None:
        # Nearly every JPEG: OpenCV, which knows the standard tables only, is twice as fast as Pillow.
        return _jpeg(crop_bgr, quality, _SAMPLINGS[tables.sampling])
    buffer = io.BytesIO()
    picture = Image.fromarray(rgb_of(crop_bgr))
    picture.save(buffer, "JPEG", qtables=tables.quantisation, subsampling=tables.sampling)
    return buffer.getvalue()


def _frozen(tables: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(table) for table in tables)


@functools.cache
def _standard_qualities() -> dict[tuple[tuple[int, ...], ...], int]:
    """JPEG quality by quantisation tables, for libjpeg's standard tables."""
    found = {}
    for quality in range(1, 101):
        tables = jpeg_tables(_jpeg(np.zeros((8, 8, 3), np.uint8), quality, _CHROMA["444"]))
        assert tables is not None
        found[_frozen(tables.quantisation)] = quality
    return found


def _jpeg(crop_bgr: UInt8, quality: int, sampling: int) -> bytes:
    return _with_opencv(
        crop_bgr, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    )


def _with_opencv(crop_bgr: UInt8, ending: str, options: list[int]) -> bytes:
    done, data = cv2.imencode(ending, crop_bgr, options)
    assert done
    return data.tobytes()
