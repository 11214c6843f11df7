"""Source images: every pixel format read, every kind of damage noticed and named."""

from __future__ import annotations

import errno
import io
import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from efafnet.pipelines.crops import images
from efafnet.pipelines.crops.images import ImageFolder, ImageProblemError, check_declared, decode_image
from efafnet.pipelines.formats.headers import MAX_PIXELS, declared_size
from efafnet.pipelines.formats.pixels import is_animated, orientation_of, rgb_of
from tests import crop_data

_PICTURE = crop_data.picture(80, 60, 0)


def _jpeg(picture: np.ndarray = _PICTURE) -> bytes:
    return cv2.imencode(".jpg", picture)[1].tobytes()


def _png() -> bytes:
    return cv2.imencode(".png", _PICTURE)[1].tobytes()


def _overwritten(data: bytes, place: float, content: bytes) -> bytes:
    at = int(len(data) * place)
    return data[:at] + content + data[at + len(content) :]


def test_channels_are_turned_round_in_whole_images_and_parts() -> None:
    bgr = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert rgb_of(bgr).tolist() == [[[2, 1, 0], [5, 4, 3], [8, 7, 6]], [[11, 10, 9], [14, 13, 12], [17, 16, 15]]]
    part = rgb_of(bgr[1:, 1:])
    assert part.tolist() == [[[14, 13, 12], [17, 16, 15]]]
    assert part.flags.c_contiguous


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_as_stored_or_turned_as_pillow_turns_them(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    Image.fromarray(_PICTURE[:, :, ::-1]).save(buffer, kind, exif=exif, **options)
    data = buffer.getvalue()
    assert orientation_of(data) == orientation
    # JPEG: within the loss of the encoder.
    tolerance = 12 if kind == "JPEG" else 0
    stored = decode_image(data)
    assert stored.shape == (60, 80, 3)
    assert np.abs(stored.astype(int) - _PICTURE).mean() <= tolerance
    flagged = Image.fromarray(_PICTURE)
    flagged.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(flagged))
    upright = decode_image(data, upright=True)
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).mean() <= tolerance


def test_damaged_orientation_tags_are_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _saved(Image.fromarray(_PICTURE), exif=exif)
    at = data.index(b"Exif\0\0")
    for cut in range(at, at + 40):
        assert orientation_of(data[:cut]) in range(1, 9)
    nine = Image.Exif()
    nine[0x0112] = 9
    assert orientation_of(_saved(Image.fromarray(_PICTURE), exif=nine)) == 1


def test_animations_are_known(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.roll(_PICTURE, 20 * n, axis=1)) for n in range(3)]
    for kind, suffix in (("GIF", "gif"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
        several, one = tmp_path / f"several.{suffix}", tmp_path / f"one.{suffix}"
        pictures[0].save(several, kind, save_all=True, append_images=pictures[1:])
        pictures[0].save(one, kind)
        assert (is_animated(several.read_bytes()), is_animated(one.read_bytes())) == (True, False), kind
    assert not is_animated(_jpeg())


def test_sixteen_bits_become_eight_by_the_range_in_use() -> None:
    """All 16 bits: the upper eight, as OpenCV has it. Twelve: 100 to 4000 becomes 0 to 255. One value: black."""
    deep = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)
    full = (deep * 13).astype(np.uint16)
    np.testing.assert_array_equal(decode_image(_deep(full))[:, :, 0], full >> 8)
    camera = np.clip(deep, 100, 4000).astype(np.uint16)
    expected = np.round((camera - 100.0) * 255 / 3900)
    np.testing.assert_array_equal(decode_image(_deep(camera))[:, :, 1], expected)
    assert not decode_image(_deep(np.full((60, 80), 7, np.uint16))).any()
    floats = cv2.imencode(".tif", (deep / 1000.0).astype(np.float32))[1].tobytes()
    np.testing.assert_allclose(decode_image(floats)[:, :, 0], deep * (255.0 / deep.max()), atol=0.51)


def _deep(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


def test_grey_and_cmyk_become_colour() -> None:
    grey = decode_image(_saved(Image.fromarray(_PICTURE[:, :, 0])))
    assert grey.shape == (60, 80, 3)
    np.testing.assert_array_equal(grey[:, :, 0], grey[:, :, 2])
    red = np.zeros((60, 80, 3), dtype=np.uint8)
    red[:, :, 0] = 255
    cmyk = decode_image(_saved(Image.fromarray(red).convert("CMYK")))
    assert cmyk.shape == (60, 80, 3)
    assert cmyk[30, 40].tolist() == pytest.approx([0, 0, 255], abs=6)


@pytest.mark.parametrize(
    ("code", "failures", "pauses", "reason"),
    [
        (errno.EIO, 2, [0.2, 1.0], None),
        (errno.ESTALE, 9, [0.2, 1.0, 4.0], "image_unreadable"),
        (errno.EACCES, 1, [], "image_unreadable"),
        (errno.ENOENT, 1, [], "image_missing"),
    ],
)
def test_a_file_system_that_fails_for_a_moment_costs_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, failures: int, pauses: list[float], reason: str | None
) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    waited: list[float] = []
    answers = [OSError(code, os.strerror(code))] * failures

    def read(path: Path) -> bytes:
        if answers:
            raise answers.pop()
        return path.read_bytes()

    monkeypatch.setattr(images, "read_regular", read)
    monkeypatch.setattr(time, "sleep", waited.append)
    if reason is None:
        assert ImageFolder(str(tmp_path)).read("a.png") == b"picture"
    else:
        with pytest.raises(ImageProblemError) as caught:
            ImageFolder(str(tmp_path)).read("a.png")
        assert caught.value.reason == reason
    assert waited == pauses


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


@pytest.mark.parametrize("remote", [False, True])
def test_names_as_other_machines_write_them(tmp_path: Path, remote: bool) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.jpg", "cafe\u0301.jpg", "b c.jpg"):
        (tmp_path / name).write_bytes(b"12345")
    folder = ImageFolder(tmp_path.as_uri() if remote else str(tmp_path))
    expected = {
        "sub\\a.jpg": "sub/a.jpg",
        "D:\\data\\sub\\a.jpg": "sub/a.jpg",
        "/home/ann/images/sub/a.jpg": "sub/a.jpg",
        "caf\u00e9.jpg": "cafe\u0301.jpg",
        "https://host/coco/b%20c.jpg?size=1": "b c.jpg",
    }
    if not remote:
        expected["SUB/A.JPG"] = "sub/a.jpg"
    assert folder.spelled([*expected, "other.jpg", "../secret.jpg", "sub"]) == expected


def test_names_that_only_look_alike_are_found(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"12345")
    (tmp_path / "shot at 9\u202fAM.jpg").write_bytes(b"12345")
    expected = {"a\u00a0b.jpg": "a b.jpg", "\ufeffA b.jpg": "a b.jpg", "Shot at 9 AM.jpg": "shot at 9\u202fAM.jpg"}
    assert ImageFolder(str(tmp_path)).spelled([*expected, "ab.jpg"]) == expected


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(200), r"\(it is HEIC or AVIF: convert it to JPEG\)"),
        (b"\0\0\0\x18ftypisom" + bytes(200), r"\(it is a video: predict takes videos"),
        (b"RIFF1234AVI LIST" + bytes(200), "it is a video"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS: git lfs pull"),
        (b"<!DOCTYPE html>", "XML, SVG or HTML"),
        (b"no picture", r"\(begins with b'no pictu'\)"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, says: str) -> None:
    with pytest.raises(ImageProblemError, match=f"cannot be decoded .*{says}"):
        decode_image(data)


def test_files_of_another_ending_or_in_a_subfolder_are_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    folder = ImageFolder(str(tmp_path))
    assert folder.near(["none.jpg", "A.jpg"]) == ("A.jpg", "a.png")
    assert folder.near(["C:\\x\\b.jpg"]) == ("C:\\x\\b.jpg", "sub/b.jpg")
    for name in ("0f3a12bc-a.jpg", "a_jpg.rf.0123ABcd.jpg"):
        assert folder.near([name]) == (name, "a.png"), "Label Studio's and Roboflow's names of it"
    assert folder.near(["none.jpg", "x-a.jpg", "..", "a.png"]) is None, (
        "what has its name was missed for another reason"
    )
    assert folder.near([]) is None


def test_two_names_of_one_file_are_neither_s(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"12345")
    folder = ImageFolder(str(tmp_path))
    names = ["x/a.jpg", "y/a.jpg", "b.jpg", "x/b.jpg", "x/c.jpg"]
    sizes = dict(zip(names, folder.sizes(names), strict=True))
    assert sizes == {"x/a.jpg": -1, "y/a.jpg": -1, "b.jpg": 5, "x/b.jpg": -1, "x/c.jpg": -1}
    assert folder.respelled(sizes) == {"x/c.jpg": "c.jpg"}


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


def _declaring(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares ``width`` x ``height`` grey pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"])
def test_sizes_are_read_from_headers(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(_PICTURE).save(file, format=kind)
    assert declared_size(file.getvalue()) == (80, 60)


def test_the_size_behind_a_jpegs_other_segments() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a long description " * 500
    Image.fromarray(_PICTURE).save(file, format="JPEG", exif=exif, progressive=True)
    assert declared_size(file.getvalue()) == (80, 60)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"<html>", bytes(100)])
def test_no_size_where_there_is_no_header(data: bytes) -> None:
    assert declared_size(data) is None


def test_gigabytes_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageProblemError, match="declares 20000x20000 pixels, more than 268435456") as caught:
        decode_image(_declaring(20000, 20000))
    assert caught.value.reason == "image_too_large"
    with pytest.raises(ImageProblemError, match="is 20000x20000, its annotations say 320x240"):
        check_declared(_declaring(20000, 20000), (320, 240))
    check_declared(_declaring(240, 320), (320, 240))  # it may be turned
    assert MAX_PIXELS == 16384**2


def _refused(folder: ImageFolder, name: str) -> tuple[str, str]:
    with pytest.raises(ImageProblemError) as caught:
        folder.read(name)
    return caught.value.reason, caught.value.detail


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    images, secret = tmp_path / "images", tmp_path / "secret" / "private.png"
    for path in (images, secret.parent):
        path.mkdir()
    secret.write_bytes(_png())
    (images / "real").mkdir()
    (images / "inside.png").write_bytes(_png())
    (images / "link.png").symlink_to(secret)
    (images / "sub").symlink_to(secret.parent)
    (images / "fine.png").symlink_to("inside.png")
    (tmp_path / "by-link").symlink_to(images)
    for folder in (ImageFolder(str(images)), ImageFolder(str(tmp_path / "by-link"))):
        assert folder.read("inside.png") == folder.read("fine.png") == folder.read("./real/../inside.png") == _png()
        for name in ("../secret/private.png", str(secret), "link.png", "sub/private.png"):
            reason, detail = _refused(folder, name)
            assert reason == "image_outside"
            assert detail == f"leads out of {folder.location} to {secret}; allow it with outside_images=true"
    assert ImageFolder(str(images), outside=True).read("../secret/private.png") == _png()
    outside = ImageFolder(str(images))
    assert outside.sizes(["link.png"]) == [-1]
    assert outside.respelled({"link.png": -1}) == {}, "it is there by its own name, and no other spelling"
    remote = ImageFolder(images.as_uri())
    assert remote.read("inside.png") == _png()
    assert _refused(remote, "../secret/private.png")[0] == "image_outside"


def test_a_link_to_itself_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    folder = ImageFolder(str(tmp_path))
    assert folder.sizes(["loop.jpg"]) == [-1]
    reason, detail = _refused(folder, "loop.jpg")
    assert reason == "image_unreadable"
    assert "symbolic links" in detail


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A pipe stands for a server that does not answer; /dev/zero would fill the memory."""
    os.mkfifo(tmp_path / "pipe.jpg")
    assert _refused(ImageFolder(str(tmp_path)), "pipe.jpg") == ("image_unreadable", "is no regular file")
    assert _refused(ImageFolder("/dev", outside=True), "zero") == ("image_unreadable", "is no regular file")
