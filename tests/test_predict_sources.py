"""Files to predict: folders, images, videos; decoded as stored or upright; what cannot be read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from efafnet.pipelines.prediction.sources import (
    Source,
    UnreadableError,
    find_sources,
    read_image,
    read_video,
)
from tests import crop_data, prediction_cases


def _write(path: Path, seed: int = 0) -> Path:
    Image.fromarray(crop_data.picture(40, 30, seed)).save(path)
    return path


def test_folders_give_their_images_by_name_and_files_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    for name in ("b.PNG", "a.jpg", "c.webp"):
        _write(folder / name)
    (folder / "notes.txt").write_text("no image")
    _write(folder / ".hidden.jpg")
    _write(folder / "inside" / "d.jpg")
    alone = _write(tmp_path / "z.bmp")
    sources = find_sources([alone, folder, folder / "a.jpg"])
    assert [source.path.name for source in sources] == ["z.bmp", "a.jpg", "b.PNG", "c.webp"]
    assert [source.index for source in sources] == [0, 1, 2, 3]
    assert not any(source.is_video for source in sources)


def test_what_is_not_there_or_holds_no_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.jpg does not exist; name images, folders of images, or videos"):
        find_sources([tmp_path / "nothing.jpg"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty holds no images \(\.jpg, .*name the folder that holds them itself"):
        find_sources([tmp_path / "empty"])


def test_an_image_is_rgb_as_stored_or_upright(tmp_path: Path) -> None:
    # Red above blue; the tag says that the top of the scene is on the left.
    picture = np.zeros((40, 30, 3), np.uint8)
    picture[:20, :, 0] = picture[20:, :, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(picture).save(tmp_path / "phone.jpg", exif=exif, quality=95, subsampling=0)
    source = find_sources([tmp_path / "phone.jpg"])[0]
    stored, upright = (read_image(source, upright=value).pixels for value in (False, True))
    assert stored.shape == (40, 30, 3)
    assert stored[5, 15, 0] > 200 > 60 > stored[5, 15, 2]
    # Tag 8: the stored picture is turned by 90 degrees counter-clockwise, so its upper half lands on the left.
    assert upright.shape == (30, 40, 3)
    assert upright[15, 5, 0] > 200
    assert upright[15, 35, 2] > 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty; mend it, or leave it out"),
        (b"<html>404</html>", "cannot be decoded"),
        (None, "the JPEG stops after"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = _write(tmp_path / "bad.jpg")
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(UnreadableError, match=rf"image .*bad\.jpg .*{message}"):
        read_image(Source(0, path, is_video=False, frames=1), upright=False)
    path.unlink()
    with pytest.raises(UnreadableError, match=r"bad\.jpg cannot be read \(No such file"):
        read_image(Source(0, path, is_video=False, frames=1), upright=False)


def test_a_videos_frames_come_one_at_a_time_and_in_order(tmp_path: Path) -> None:
    path = prediction_cases.write_video(tmp_path / "walk.avi", frames=5)
    [source] = find_sources([path])
    assert (source.is_video, source.frames, source.fps) == (True, 5, 10.0)
    frames = list(read_video(source, step=1))
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    for number, frame in enumerate(frames):
        expected = crop_data.picture(128, 96, seed=number)[:, :, ::-1]
        assert np.abs(frame.pixels.astype(int) - expected).mean() < 12, "the frame is another, or not RGB"
    assert [frame.number for frame in read_video(source, step=2)] == [0, 2, 4]
    first = next(iter(read_video(source, step=1)))
    assert first.pixels.flags.c_contiguous


def test_what_is_no_video(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "holiday.mp4"
    path.write_bytes(b"not a video" * 100)
    with pytest.raises(ValueError, match=r"holiday\.mp4 cannot be opened: damaged, or no video; convert it to H\.264"):
        find_sources([path])
    assert capfd.readouterr().err == "", "FFmpeg and OpenCV leave the telling to us"
    image = _write(tmp_path / "cat.png")
    assert [source.path.name for source in find_sources([path, image], skip_unreadable=True)] == ["cat.png"]
    assert "holiday.mp4 cannot be opened" in capfd.readouterr().err
    with pytest.raises(ValueError, match="none of the inputs can be read"):
        find_sources([path], skip_unreadable=True)


def test_a_video_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "empty.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 32))
    writer.release()
    with pytest.raises(UnreadableError, match=r"empty\.avi (cannot be opened|holds no picture)"):
        list(read_video(Source(0, path, is_video=True, frames=0, fps=10.0), 1))
