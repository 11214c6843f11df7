"""Stored crops: as their source quantised, exactly, or by a quality of their own."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from efafnet.pipelines.crops.decode import CropDecoder
from efafnet.pipelines.crops.encode import JpegTables, encode_crop, jpeg_tables
from efafnet.pipelines.crops.manifest import Encoding
from tests import crop_data

_PICTURE = crop_data.picture(128, 96, 0)


def _source(quality: int, sampling: int, qtables: list[list[int]] | None = None) -> bytes:
    buffer = io.BytesIO()
    options = {"qtables": qtables} if qtables else {"quality": quality}
    Image.fromarray(_PICTURE).save(buffer, "JPEG", subsampling=sampling, **options)
    return buffer.getvalue()


def _image(data: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return found


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("quality", [75, 90, 96])
def test_quantising_again_as_the_source_did_loses_next_to_nothing(quality: int) -> None:
    """On the block grid and with the source's tables: over 15 dB better than quality 95 off the grid, and no larger."""
    data = _source(quality, 0)
    tables = jpeg_tables(data)
    assert tables is not None
    whole = _image(data)
    crop = whole[16:80, 32:112]
    stored = encode_crop(crop, Encoding(), tables)
    again = jpeg_tables(stored)
    assert again == tables
    assert _psnr(_image(stored), crop) > 50
    shifted = whole[13:77, 29:109]
    assert _psnr(_image(encode_crop(shifted, Encoding(), tables)), shifted) < 45


def test_tables_of_no_standard_quality_are_kept() -> None:
    odd = [[3 + (7 * n) % 11 for n in range(64)], [5 + (3 * n) % 13 for n in range(64)]]
    data = _source(0, 2, odd)
    tables = jpeg_tables(data)
    assert tables is not None
    assert tables.sampling == 2
    stored = encode_crop(_image(data)[16:80, 32:112], Encoding(), tables)
    assert jpeg_tables(stored) == tables


def test_other_images_have_no_tables() -> None:
    grey = io.BytesIO()
    Image.fromarray(_PICTURE[:, :, 0]).save(grey, "JPEG")
    assert jpeg_tables(grey.getvalue()) is None
    assert jpeg_tables(cv2.imencode(".png", _PICTURE)[1].tobytes()) is None
    assert jpeg_tables(b"\xff\xd8\xff") is None


@pytest.mark.parametrize("kind", ["raw", "png"])
def test_exact_formats(kind: str) -> None:
    encoding = Encoding.model_validate({"format": kind})
    data = np.frombuffer(encode_crop(_PICTURE, encoding, None), np.uint8)
    decoder = CropDecoder(encoding)
    found = decoder.decode(data, 128, 96)
    # `planes` says where red, green and blue are; pictures here are BGR.
    for plane, expected in zip(decoder.planes, (2, 1, 0), strict=True):
        np.testing.assert_array_equal(found[:, :, plane], _PICTURE[:, :, expected])
    with pytest.raises(ValueError, match="a crop of 96x96 pixels"):
        decoder.decode(data, 96, 96)


def test_quality_and_chroma_are_as_set() -> None:
    sizes = {
        (quality, chroma): len(
            encode_crop(_PICTURE, Encoding.model_validate({"quality": quality, "chroma": chroma}), None)
        )
        for quality in (50, 95)
        for chroma in (444, 420)
    }
    # Numbers, as a command line gives them.
    assert sizes[50, 420] < sizes[50, 444] < sizes[95, 420] < sizes[95, 444]
    tables = jpeg_tables(encode_crop(_PICTURE, Encoding(quality=50, chroma="420"), JpegTables([[1] * 64] * 2, 0)))
    assert tables is not None
    # The first luma divisor of the standard tables at quality 50 is 16 (ITU T.81, table K.1).
    assert (tables.quantisation[0][0], tables.sampling) == (16, 2)
