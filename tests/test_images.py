"""Source images: every pixel format read, every kind of damage noticed and named."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from efafnet.pipelines.crops.images import ImageFolder, ImageProblemError, decode_image
from tests import crop_data

_PICTURE = crop_data.picture(80, 60, 0)


def _jpeg(picture: np.ndarray = _PICTURE) -> bytes:
    return cv2.imencode(".jpg", picture)[1].tobytes()


def _png() -> bytes:
    return cv2.imencode(".png", _PICTURE)[1].tobytes()


def _overwritten(data: bytes, place: float, content: bytes) -> bytes:
    at = int(len(data) * place)
    return data[:at] + content + data[at + len(content) :]


_DAMAGED = {
    "nothing in it": (b"", "image_unreadable"),
    "a web page": (b"<html>404</html>", "image_unreadable"),
    "half a JPEG": (_jpeg()[: len(_jpeg()) // 2], "image_truncated"),
    "a JPEG without its last byte": (_jpeg()[:-1], "image_truncated"),
    "a JPEG's first bytes": (_jpeg()[:3], "image_truncated"),
    "an impossible marker": (_overwritten(_jpeg(), 0.6, b"\xff\x8f"), "image_corrupt"),
    "a header of zeros": (_overwritten(_jpeg(), 0.0, b"\xff\xd8" + bytes(60)), "image_corrupt"),
    "half a PNG": (_png()[: len(_png()) // 2], "image_truncated"),
    "a flipped bit in a PNG": (_overwritten(_png(), 0.5, bytes([_png()[len(_png()) // 2] ^ 1])), "image_corrupt"),
    "a PNG's magic and nothing": (_png()[:8], "image_truncated"),
}


@pytest.mark.parametrize("name", _DAMAGED)
def test_damage_is_named(name: str) -> None:
    data, reason = _DAMAGED[name]
    with pytest.raises(ImageProblemError) as caught:
        decode_image(data)
    assert caught.value.reason == reason


def test_whole_images_pass() -> None:
    np.testing.assert_array_equal(decode_image(_png()), _PICTURE)
    assert np.abs(decode_image(_jpeg()).astype(int) - _PICTURE).mean() < 8


def test_what_follows_the_end_does_not_matter() -> None:
    np.testing.assert_array_equal(decode_image(_jpeg() + bytes(100)), decode_image(_jpeg()))


def test_progressive_restart_and_thumbnail_pass() -> None:
    """Several scans; restart markers; an embedded JPEG, whose own end marker must not count, before a truncation."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    data = cv2.imencode(".jpg", _PICTURE, options)[1].tobytes()
    assert decode_image(data).shape == (60, 80, 3)
    thumbnail = _jpeg(_PICTURE[:16, :16])
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = _jpeg()[:2] + segment + _jpeg()[2:]
    assert decode_image(with_thumbnail).shape == (60, 80, 3)
    with pytest.raises(ImageProblemError) as caught:
        decode_image(with_thumbnail[: -len(_jpeg()) // 2])
    assert caught.value.reason == "image_truncated"


def _saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def test_orientation_is_not_applied() -> None:
    """Orientation 6 would turn 80x60 into 60x80; annotations refer to the pixels as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _saved(Image.fromarray(_PICTURE), exif=exif)
    turned = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert turned is not None
    assert turned.shape == (80, 60, 3)
    assert decode_image(data).shape == (60, 80, 3)


def test_grey_and_cmyk_become_colour() -> None:
    grey = decode_image(_saved(Image.fromarray(_PICTURE[:, :, 0])))
    assert grey.shape == (60, 80, 3)
    np.testing.assert_array_equal(grey[:, :, 0], grey[:, :, 2])
    red = np.zeros((60, 80, 3), dtype=np.uint8)
    red[:, :, 0] = 255
    cmyk = decode_image(_saved(Image.fromarray(red).convert("CMYK")))
    assert cmyk.shape == (60, 80, 3)
    assert cmyk[30, 40].tolist() == pytest.approx([0, 0, 255], abs=6)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"12345")
    (tmp_path / "folder.jpg").mkdir()
    folder = ImageFolder(str(tmp_path))
    folder.check()
    assert folder.sizes(["a.jpg", "b.jpg"]) == [5, -1]
    assert folder.read("a.jpg") == b"12345"
    with pytest.raises(ImageProblemError, match="is not in") as caught:
        folder.read("b.jpg")
    assert caught.value.reason == "image_missing"
    with pytest.raises(ImageProblemError) as caught:
        folder.read("folder.jpg")
    assert caught.value.reason == "image_unreadable"
    with pytest.raises(ValueError, match="does not exist"):
        ImageFolder(str(tmp_path / "nowhere")).check()


def test_any_arrow_file_system(tmp_path: Path) -> None:
    """file:// goes the way of s3:// and gs://."""
    (tmp_path / "a.jpg").write_bytes(b"12345")
    folder = ImageFolder(tmp_path.as_uri())
    folder.check()
    assert folder.sizes(["a.jpg", "b.jpg"]) == [5, -1]
    assert folder.read("a.jpg") == b"12345"
    with pytest.raises(ImageProblemError) as caught:
        folder.read("b.jpg")
    assert caught.value.reason == "image_missing"
    with pytest.raises(ValueError, match="cannot be opened"):
        ImageFolder("nosuchscheme://bucket/x").check()
