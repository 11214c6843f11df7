"""The command: from images, folders and videos to COCO results and pictures; with and without Ray; what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from efafnet.pipelines import cli
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.config import EvaluateConfig
from efafnet.pipelines.evaluation.evaluate import evaluate
from efafnet.pipelines.prediction import PosePredictor, file_prediction, media
from efafnet.pipelines.prediction.config import PredictConfig
from efafnet.pipelines.prediction.media import Frame, Source, UnreadableError, find_sources, read_video
from efafnet.pipelines.prediction.person_boxes import Boxes
from efafnet.pipelines.prediction.predict import Prediction, run_predict
from efafnet.platform import machine
from efafnet.platform.configuration import resolve
from tests import crop_data, prediction_cases


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, an annotated set of four images with three persons each, and its crop store."""
    folder = tmp_path_factory.mktemp("predict")
    prediction_cases.checkpoint(folder / "checkpoint")
    crop_data.make_store(folder, images=4, encoding={"format": "png"})
    return folder


def _predict(place: Path, output: Path, *inputs: Path, **settings: Any) -> Prediction:
    tree = {
        "checkpoint": place / "checkpoint",
        "inputs": list(inputs or [place / "images"]),
        "output": output,
        "boxes": place / "annotations.json",
        **settings,
    }
    return run_predict(resolve(PredictConfig, tree))


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_results_are_those_of_evaluation_with_their_boxes(place: Path, tmp_path: Path) -> None:
    done = _predict(place, tmp_path / "out")
    config = EvaluateConfig.model_validate(
        {"checkpoint": place / "checkpoint", "data": place / "store", "workers": 0,
         "scoring": {"bootstrap": 0, "errors": False}}
    )  # fmt: skip
    expected = evaluate(config, CropStore.open(place / "store")).results
    assert [r["image_id"] for r in done.results] == [r["image_id"] for r in expected]
    for name, tolerance in (("keypoints", 0.02), ("score", 1e-4)):
        found, wanted = (np.array([r[name] for r in results]) for results in (done.results, expected))
        np.testing.assert_allclose(found, wanted, atol=tolerance)
    assert done.results == _read(tmp_path / "out" / "predictions.json")
    annotated = {tuple(a["bbox"][:2]) for a in _read(place / "annotations.json")["annotations"]}
    assert {tuple(r["bbox"][:2]) for r in done.results} <= annotated


def test_what_is_written(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = _predict(place, tmp_path / "out", picture_scale=1)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["images.json", "pictures", "predictions.json"]
    assert [path.name for path in sorted((out / "pictures").iterdir())] == [f"00000{n}.jpg" for n in range(4)]
    for number in range(4):
        source = crop_data.read_picture(place / "images" / f"00000{number}.jpg").astype(int)
        drawn = crop_data.read_picture(out / "pictures" / f"00000{number}.jpg").astype(int)
        assert drawn.shape == (160 + 24, 200, 3), "a strip below says what is shown"
        drawn = drawn[:160]
        assert (np.abs(drawn - source).max(axis=2) > 60).mean() > 0.01, "nobody was drawn"
        assert np.percentile(np.abs(drawn - source), 25) < 8, "the picture is another, or its colours are"
    images = _read(out / "images.json")
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in images["images"]] == [
        (n + 1, f"00000{n}.jpg", 200, 160) for n in range(4)
    ]
    assert images["info"]["settings"]["checkpoint"] == str(place / "checkpoint")
    # The original tool takes both files as they are.
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(out / "images.json")).loadRes(str(out / "predictions.json"))
    assert len(loaded.anns) == len(done.results) == 12
    assert "12 persons in 4 pictures of 4 files; files in " in capsys.readouterr().out


def test_only_the_images_asked_for(place: Path, tmp_path: Path) -> None:
    whole = _predict(place, tmp_path / "whole", pictures=False)
    assert not (tmp_path / "whole" / "pictures").exists()
    some = _predict(place, tmp_path / "some", place / "images" / "000002.jpg", place / "images" / "000001.jpg")
    assert [image["id"] for image in some.images] == [3, 2]
    for found in some.results:
        assert any(np.allclose(found["keypoints"], r["keypoints"], atol=1e-3) for r in whole.results)


def test_side_by_side_and_in_series_the_same_is_found(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: list[bool] = []

    def read_image(source: Source, *, upright: bool) -> Frame:
        reading.append(threading.current_thread() is threading.main_thread())
        return media.read_image(source, upright=upright)

    monkeypatch.setattr(file_prediction, "read_image", read_image)
    found = {}
    for side_by_side in (True, False):
        monkeypatch.setattr(machine, "has_core_beside", lambda _device, chosen=side_by_side: chosen)
        found[side_by_side] = _predict(place, tmp_path / str(side_by_side), pictures=False)
    assert reading == [False] * 4 + [True] * 4
    assert found[True].results == found[False].results
    assert len(found[True].results) == 12


def test_an_image_that_is_not_listed_takes_nobodys_id(place: Path, tmp_path: Path) -> None:
    Image.fromarray(crop_data.picture(40, 50, 1)).save(tmp_path / "new.jpg")
    done = _predict(place, tmp_path / "out", place / "images" / "000001.jpg", tmp_path / "new.jpg")
    assert [image["id"] for image in done.images] == [2, 5], "3 and 4 are images of the set"
    assert {r["image_id"] for r in done.results} == {2}


def test_predictions_are_boxes_for_the_next_prediction(place: Path, tmp_path: Path) -> None:
    first = _predict(place, tmp_path / "a")
    boxes = {"boxes": tmp_path / "a" / "predictions.json", "image_list": tmp_path / "a" / "images.json"}
    scores = sorted(r["score"] for r in first.results)
    again = _predict(place, tmp_path / "b", min_box_score=(scores[3] + scores[4]) / 2, **boxes)
    assert len(again.results) == 8
    by_box = {tuple(r["bbox"]): r for r in first.results}
    for found in again.results:
        np.testing.assert_allclose(found["keypoints"], by_box[tuple(found["bbox"])]["keypoints"], atol=1e-3)


def test_a_video_frame_by_frame(place: Path, tmp_path: Path) -> None:
    video = prediction_cases.write_video(tmp_path / "walk.avi", frames=5)
    done = _predict(place, tmp_path / "out", video, boxes="whole_image", frame_step=2)
    assert [(i["id"], i["frame"], i["time_s"]) for i in done.images] == [(0, 0, 0.0), (2, 2, 0.2), (4, 4, 0.4)]
    assert [r["image_id"] for r in done.results] == [0, 2, 4]
    assert {tuple(r["bbox"]) for r in done.results} == {(0.0, 0.0, 128.0, 96.0)}
    assert {r["track_id"] for r in done.results} == {1}
    assert (tmp_path / "out" / "people.csv").read_text().splitlines()[1].startswith("walk.avi,1,3,0,4,0.0,0.4,")
    [drawn] = find_sources([tmp_path / "out" / "pictures" / "walk.mp4"])
    assert (drawn.fps, len(list(read_video(drawn, 1)))) == (5.0, 3)


def test_a_cut_video_is_told_and_its_frames_are_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = prediction_cases.write_video(tmp_path / "walk.avi", frames=20)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    settings: dict[str, Any] = {"boxes": "whole_image", "tracking": {"enabled": False}}
    done = _predict(place, tmp_path / "out", video, skip_unreadable=True, **settings)
    assert 5 < done.num_images == len(done.images) < 15
    assert not any("track_id" in result for result in done.results)
    assert not (tmp_path / "out" / "people.csv").exists()
    [remark] = _read(tmp_path / "out" / "images.json")["info"]["remarks"]
    assert f"read {done.num_images} of 20 frames" in remark
    assert "the file may be cut" in " ".join(capsys.readouterr().err.split())
    # The same without leave to skip: all is written, and the command fails.
    out, strict = tmp_path / "out", tmp_path / "strict"
    with pytest.raises(UnreadableError, match=r"the file may be cut\. What can be read is in .*strict; skip_unre"):
        _predict(place, strict, video, **settings)
    assert (strict / "predictions.json").read_bytes() == (out / "predictions.json").read_bytes()


def test_images_and_videos_together_have_ids_of_their_own(place: Path, tmp_path: Path) -> None:
    video = prediction_cases.write_video(tmp_path / "000007.avi", frames=2)
    Image.fromarray(crop_data.picture(40, 50, 1)).save(tmp_path / "000007.png")
    Image.fromarray(crop_data.picture(40, 50, 2)).save(tmp_path / "000007.jpg")
    inputs = (video, tmp_path / "000007.png", tmp_path / "000007.jpg")
    done = _predict(place, tmp_path / "out", *inputs, boxes="whole_image")
    assert [image["id"] for image in done.images] == [1, 2, 3, 4]
    names = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert names == ["000007-2.jpg", "000007-3.jpg", "000007.mp4"]


@pytest.mark.parametrize(("orientation", "box"), [("auto", [0, 0, 30, 40]), ("stored", [0, 0, 40, 30])])
def test_pictures_of_phones_are_looked_at_upright(
    place: Path, tmp_path: Path, orientation: str, box: list[int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(crop_data.picture(40, 30, 1)).save(tmp_path / "phone.jpg", exif=exif)
    done = _predict(place, tmp_path / "out", tmp_path / "phone.jpg", boxes="whole_image", orientation=orientation)
    assert done.results[0]["bbox"] == box
    assert (done.images[0]["width"], done.images[0]["height"]) == tuple(box[2:])


def test_a_detector_looks_where_no_boxes_are_given(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches: list[int] = []

    class Detector:
        def __init__(self, config: Any, _device: Any) -> None:
            assert config.weights == tmp_path / "w.pth"

        batch_size = 3

        def together(self, images: list[np.ndarray[Any, Any]]) -> list[Boxes]:
            batches.append(len(images))
            assert {image.shape for image in images} == {(160, 200, 3)}
            box = ((5.5, 6.0, 50.0, 90.0), 0.75)
            return [Boxes.of([box] if image[0, 0, 0] > threshold else []) for image in images]

    firsts = [crop_data.read_picture(path)[0, 0, 2] for path in sorted((place / "images").iterdir())]
    threshold = sorted(firsts)[1]
    monkeypatch.setattr(file_prediction, "PersonDetector", Detector)
    done = _predict(place, tmp_path / "out", boxes=None, detector={"weights": tmp_path / "w.pth"})
    # Boxes of a detector are not clipped, and images without anybody are there all the same.
    assert [r["bbox"] for r in done.results] == [[5.5, 6.0, 50.0, 90.0]] * sum(first > threshold for first in firsts)
    assert len(done.images) == 4
    assert batches == [3, 1]
    threshold = 255
    _predict(place, tmp_path / "nobody", boxes=None, detector={"weights": tmp_path / "w.pth"})
    assert _read(tmp_path / "nobody" / "predictions.json") == []
    assert "no person was found in any picture" in capsys.readouterr().err


def test_batches_are_filled_over_pictures(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    usual = PosePredictor.predict_crops

    def counted(self: Any, crops: Any, to_image: Any) -> Any:
        seen.append(len(crops))
        return usual(self, crops, to_image)

    monkeypatch.setattr(PosePredictor, "predict_crops", counted)
    _predict(place, tmp_path / "a", test={"batch_size": 6})
    assert seen == [6, 6]
    seen.clear()
    # Pictures that wait must not fill the memory, however few persons they show.
    monkeypatch.setattr(file_prediction, "_HELD_BYTES", 1)
    _predict(place, tmp_path / "b", test={"batch_size": 6})
    assert seen == [3, 3, 3, 3]


# ---- the command line


def test_the_command_takes_many_inputs_and_an_option(place: Path, tmp_path: Path) -> None:
    images = [str(place / "images" / f"00000{n}.jpg") for n in (3, 0)]
    words = ["predict", str(place / "checkpoint"), *images, "--output", str(tmp_path / "out")]
    assert cli.main([*words, f"boxes={place}/annotations.json", "pictures=false"]) == 0
    assert [image["id"] for image in _read(tmp_path / "out" / "images.json")["images"]] == [4, 1]


# ---- bad input: one error each, and nothing left behind


def _error(place: Path, tmp_path: Path, *inputs: Path, **settings: Any) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        _predict(place, tmp_path / "out", *inputs, **settings)
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".out*"))
    return str(caught.value)


def test_where_the_persons_are_must_be_said_once(place: Path, tmp_path: Path) -> None:
    message = _error(place, tmp_path, boxes=None)
    assert "give boxes=FILE.json (COCO detections or annotations), detector.weights=FILE.pth" in message
    assert "name two sources of boxes: give one of them" in _error(place, tmp_path, detector={"weights": "download"})
    assert "leave it out" in _error(place, tmp_path, boxes="whole_image", image_list=place / "annotations.json")


def test_an_image_that_cannot_be_read(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "000000.jpg").write_bytes((place / "images" / "000000.jpg").read_bytes())
    (folder / "000001.jpg").write_bytes((place / "images" / "000001.jpg").read_bytes()[:-400])
    message = _error(place, tmp_path, folder)
    assert "000001.jpg the JPEG stops after" in message
    assert "skip_unreadable=true" in message
    done = _predict(place, tmp_path / "skipped", folder, skip_unreadable=True)
    assert [image["file_name"] for image in done.images] == ["000000.jpg"]
    assert "000001.jpg the JPEG stops" in capsys.readouterr().err


def test_inputs_that_are_not_there(place: Path, tmp_path: Path) -> None:
    assert "does not exist; name images, folders" in _error(place, tmp_path, tmp_path / "no.jpg")
    (tmp_path / "empty").mkdir()
    assert "empty holds no images" in _error(place, tmp_path, tmp_path / "empty")
    assert "inputs" in _error(place, tmp_path, inputs=[])


def test_boxes_that_do_not_fit(place: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[{"image_id": 1, "bbo')
    assert "broken.json is not valid JSON" in _error(place, tmp_path, boxes=tmp_path / "broken.json")
    content = _read(place / "annotations.json")
    content["annotations"][0]["image_id"] = 99
    (tmp_path / "unknown.json").write_text(json.dumps(content))
    assert "lies on image 99, which is not listed" in _error(place, tmp_path, boxes=tmp_path / "unknown.json")


def test_what_is_no_checkpoint(place: Path, tmp_path: Path) -> None:
    message = _error(place, tmp_path, checkpoint=place / "images")
    assert "images is no checkpoint: it holds no meta.json" in message
    assert "there is no such file" in _error(place, tmp_path, boxes=None, detector={"weights": tmp_path / "no.pth"})


def test_an_output_that_is_there(place: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="out exists and is not empty"):
        _predict(place, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    _predict(place, tmp_path / "out", overwrite=True, pictures=False)
    assert not (tmp_path / "out" / "mine.txt").exists()


# ---- Ray


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_ray_gives_what_one_process_gives(place: Path, tmp_path: Path) -> None:
    video = prediction_cases.write_video(tmp_path / "walk.avi", frames=3)
    inputs = (place / "images", video)
    settings: dict[str, Any] = {"boxes": "whole_image"}
    here = _predict(place, tmp_path / "here", *inputs, **settings)
    ray = _predict(place, tmp_path / "ray", *inputs, workers=2, **settings)
    assert ray.images == here.images
    assert [r["image_id"] for r in ray.results] == [r["image_id"] for r in here.results]
    for found, expected in zip(ray.results, here.results, strict=True):
        np.testing.assert_allclose(found["keypoints"], expected["keypoints"], atol=1e-3)
    names = [sorted(p.name for p in (tmp_path / name / "pictures").iterdir()) for name in ("here", "ray")]
    assert names[0] == names[1]
    assert len(names[0]) == 5
    (tmp_path / "bad.jpg").write_bytes(b"x")
    message = _error(place, tmp_path, tmp_path / "bad.jpg", workers=1, **settings)
    assert "bad.jpg cannot be decoded" in message
