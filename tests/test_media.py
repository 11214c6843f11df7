"""Files to predict: folders, images, videos; decoded as stored or upright; what cannot be read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from efafnet.pipelines.prediction import media
from efafnet.pipelines.prediction.media import (
    Source,
    UnreadableError,
    content_of,
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
    found = find_sources([alone, folder, folder / "a.jpg"])
    assert [source.path.name for source in found] == ["z.bmp", "a.jpg", "b.PNG", "c.webp"]
    assert [source.index for source in found] == [0, 1, 2, 3]
    assert not any(source.is_video for source in found)


def test_what_a_folder_holds_beside_its_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.MP4", "b.mp4", "c.avif", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no images \(.*\) but 1 \.avif, 2 \.mp4; name the folder"):
        find_sources([tmp_path])
    _write(tmp_path / "d.jpg")
    assert [source.path.name for source in find_sources([tmp_path])] == ["d.jpg"]
    assert "beside its images it holds 1 .avif, 2 .mp4, left out; name such files themselves" in capsys.readouterr().err


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


# ---- what a file is, its bytes say


def _gif(path: Path, durations_ms: list[int]) -> Path:
    pictures = [Image.fromarray(crop_data.picture(40, 30, seed)) for seed in range(len(durations_ms))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations_ms)
    return path


def test_a_video_is_told_by_its_bytes_whatever_its_ending(tmp_path: Path) -> None:
    data = prediction_cases.write_video(tmp_path / "walk.avi", frames=3).read_bytes()
    for name in ("noext", "walk.bin", "walk.jpg", "walk.mp4"):
        (tmp_path / name).write_bytes(data)
        [source] = find_sources([tmp_path / name])
        assert (source.is_video, source.frames) == (True, 3), name
    (tmp_path / "photo.mp4").write_bytes(_write(tmp_path / "a.png").read_bytes())
    [source] = find_sources([tmp_path / "photo.mp4"])
    assert not source.is_video
    assert read_image(source, upright=False).pixels.shape == (30, 40, 3)


def test_a_coded_stream_without_a_container_is_a_video(tmp_path: Path) -> None:
    """H.263 as it comes from a camera: neither its first bytes nor an index say what it is, or how long."""
    writer = cv2.VideoWriter(str(tmp_path / "a.h263"), cv2.VideoWriter.fourcc(*"H263"), 10.0, (128, 96))
    assert writer.isOpened()
    for seed in range(3):
        writer.write(crop_data.picture(128, 96, seed))
    writer.release()
    [source] = find_sources([tmp_path / "a.h263"])
    assert (source.is_video, source.frames) == (True, 0)
    frames = list(read_video(source, 1))
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert frames[-1].remark == ""


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (b"\xff\xd8\xff\xe0", "image"),
        (b"RIFF\x10\0\0\0WEBP", "image"),
        (b"\0\0\0\x1cftypavif", "image"),
        (b"RIFF\x10\0\0\0AVI LIST", "video"),
        (b"\0\0\0\x1cftyp3gp4", "video"),
        (b"\x1a\x45\xdf\xa3" + bytes(60), "video"),
        (b"FLV\x01\x05", "video"),
        ((b"G" + bytes(187)) * 4, "video"),
        (bytes(4) + (b"G" + bytes(191)) * 4, "video"),
        (b"GG and no more", "unknown"),
        (b"", "unknown"),
    ],
)
def test_first_bytes(tmp_path: Path, head: bytes, content: str) -> None:
    (tmp_path / "file").write_bytes(head)
    assert content_of(tmp_path / "file") == content


def test_an_animation_is_a_video_with_the_times_of_its_pictures(tmp_path: Path) -> None:
    [source] = find_sources([_gif(tmp_path / "anim.gif", [100, 300, 500, 200])])
    assert source.is_video
    frames = list(read_video(source, 1))
    assert [frame.time_s for frame in frames] == pytest.approx([0.0, 0.1, 0.4, 0.9])
    assert [frame.time_s for frame in read_video(source, 2)] == pytest.approx([0.0, 0.4])
    assert not any(frame.remark for frame in frames)
    [still] = find_sources([_gif(tmp_path / "still.gif", [100])])
    assert not still.is_video


def test_of_other_animations_the_first_picture_is_used_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [Image.fromarray(crop_data.picture(40, 30, seed)) for seed in range(3)]
    pictures[0].save(tmp_path / "anim.png", save_all=True, append_images=pictures[1:])
    [source] = find_sources([tmp_path / "anim.png"])
    assert np.array_equal(read_image(source, upright=False).pixels, crop_data.picture(40, 30, 0))
    assert "anim.png holds several pictures: only the first is used" in " ".join(capsys.readouterr().err.split())


def test_what_is_neither_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.dat").write_bytes(b"words and more words" * 100)
    [source] = find_sources([tmp_path / "notes.dat"])
    with pytest.raises(UnreadableError, match=r"notes\.dat cannot be decoded .*, and it opens as no video either"):
        read_image(source, upright=False)


# ---- what a video promises and what it holds


def test_a_cut_video_is_read_as_far_as_it_goes_and_that_is_said(tmp_path: Path) -> None:
    path = prediction_cases.write_video(tmp_path / "walk.avi", frames=20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    [source] = find_sources([path])
    assert source.frames == 20
    frames = list(read_video(source, 1))
    assert 5 < len(frames) < 15
    assert not any(frame.remark for frame in frames[:-1])
    seconds = len(frames) / 10
    assert frames[-1].remark == (
        f"video {path}: read {len(frames)} of 20 frames, until {seconds:.1f} of 2.0 s: the file may be cut"
    )
    assert list(read_video(source, 4))[-1].remark == frames[-1].remark, "frames that are passed over count as well"


@pytest.mark.parametrize(
    ("promised", "read", "until_s", "undecodable", "told"),
    [
        # FFmpeg takes fields for frames: half as many, over the whole time.
        (119, 60, 4.72, 0, ""),
        (100, 99, 3.96, 0, ""),
        (100, 50, 2.0, 0, "read 50 of 100 frames, until 2.0 of 4.0 s: the file may be cut"),
        (0, 50, 2.0, 0, ""),
        (100, 100, 4.0, 3, "3 frames cannot be decoded and are left out"),
    ],
)
def test_time_decides_where_numbers_are_guesses(
    tmp_path: Path, promised: int, read: int, until_s: float, undecodable: int, told: str
) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes((b"G" + bytes(187)) * 4)
    found = media._damage(Source(0, path, is_video=True, frames=promised, fps=25.0), read, until_s, undecodable)
    assert found == (f"video {path}: {told}" if told else "")


class _Interlaced:
    """OpenCV's view of 60 interlaced frames in a transport stream: 50 a second promised, one every ``step_ms``."""

    def __init__(self, step_ms: float) -> None:
        self.step_ms = step_ms
        self.number = -1

    def get(self, what: int) -> float:
        return {
            cv2.CAP_PROP_FRAME_COUNT: 119.0, cv2.CAP_PROP_FPS: 50.0, cv2.CAP_PROP_POS_MSEC: self.number * self.step_ms
        }[what]  # fmt: skip

    def grab(self) -> bool:
        self.number += 1
        return self.number < 60

    def retrieve(self) -> tuple[bool, object]:
        return True, np.zeros((2, 2, 3), np.uint8)

    def release(self) -> None:
        pass


@pytest.mark.parametrize(
    ("step_ms", "promised"), [(40.0, (60, 25.0)), (20.0, (119, 50.0)), (33.4, (119, 50.0)), (100.0, (119, 50.0))]
)
def test_half_pictures_are_not_taken_for_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_ms: float, promised: tuple[int, float]
) -> None:
    path = tmp_path / "broadcast.ts"
    path.write_bytes((b"G" + bytes(187)) * 4)
    monkeypatch.setattr(media, "_open", lambda _path: _Interlaced(step_ms))
    [source] = find_sources([path])
    assert (source.frames, source.fps) == promised
    frames = list(read_video(source, 1))
    assert (frames[-1].number, round(frames[-1].time_s, 6)) == (59, round(59 * step_ms / 1000, 6))
    # 60 frames of 20 ms or 33.4 ms end before the promised 2.4 s.
    assert bool(frames[-1].remark) == (step_ms < 40)


def test_an_index_that_names_more_frames_than_are_read_is_told(tmp_path: Path) -> None:
    path = prediction_cases.write_video(tmp_path / "a.avi", frames=2)
    found = media._damage(Source(0, path, is_video=True, frames=100, fps=25.0), 60, 4.0, 0)
    assert found.endswith("read 60 of 100 frames: the others are damaged")
