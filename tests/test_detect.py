"""`efafnet detect`: boxes of a set's images, measured by hand, and taken by prepare, evaluate and predict."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.config import EvaluateConfig
from efafnet.pipelines.evaluation.evaluate import evaluate
from efafnet.pipelines.prediction import detect
from efafnet.pipelines.prediction.config import DetectConfig, PredictConfig
from efafnet.pipelines.prediction.detect import Detected, run_detect
from efafnet.pipelines.prediction.person_boxes import Boxes
from efafnet.pipelines.prediction.predict import run_predict
from efafnet.platform.configuration import resolve
from tests import crop_data, prediction_cases


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images of three persons, and a detector that gives the annotated boxes of the image it sees, moved."""
    annotations, images = crop_data.write_coco(tmp_path, images=3)
    content = json.loads(annotations.read_text())
    by_sum: dict[int, list[list[float]]] = {}
    for image in content["images"]:
        pixels = crop_data.read_picture(images / image["file_name"])[:, :, ::-1]
        by_sum[int(pixels.astype(int).sum())] = [
            a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]
        ]

    class Detector:
        def __init__(self, config: Any, _device: Any) -> None:
            self.min_score = config.min_score

        batch_size = 2

        def together(self, images: list[np.ndarray[Any, Any]]) -> list[Boxes]:
            return [self._found(image) for image in images]

        def _found(self, image: np.ndarray[Any, Any]) -> Boxes:
            # The last person of each image is missed, and where they are is sure.
            true = by_sum[int(image.astype(int).sum())][:-1]
            return Boxes.of([(box, 0.9 - n / 10) for n, box in enumerate(true)])

    monkeypatch.setattr(detect, "PersonDetector", Detector)
    (tmp_path / "weights.pth").write_bytes(b"weights")
    return tmp_path


def _detect(place: Path, **settings: Any) -> Detected:
    tree = {
        "source": place / "annotations.json",
        "images": str(place / "images"),
        "out": place / "found.json",
        "detector": {"weights": place / "weights.pth"},
        **settings,
    }
    return run_detect(resolve(DetectConfig, tree))


def test_boxes_are_written_with_their_digest_and_their_figures(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = _detect(place)
    assert json.loads((place / "found.json").read_text()) == done.results
    info = json.loads((place / "found.info.json").read_text())
    assert info["sha256"] == hashlib.sha256((place / "found.json").read_bytes()).hexdigest()
    assert info["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (info["boxes"], info["images"], info["detector"]["min_score"]) == (6, 3, 0.05)
    # Two of three persons, every box right: recall 2/3; precision 1 up to it, so 67 of COCO's 101 points.
    assert done.figures["box_ar"] == pytest.approx(2 / 3)
    assert done.figures["box_ap"] == pytest.approx(67 / 101)
    assert "6 boxes in 3 images" in capsys.readouterr().out


def test_a_store_gives_its_images_and_the_same_boxes(place: Path) -> None:
    done = _detect(place)
    store = run_prepare(crop_data.config(place))
    again = _detect(place, source=store.path, images=None, out=place / "again.json")
    assert again.results == done.results
    assert again.figures == done.figures


def test_prepare_evaluate_and_predict_take_the_boxes(place: Path) -> None:
    done = _detect(place)
    store = run_prepare(crop_data.config(place, out=place / "boxed", detections=place / "found.json"))
    assert store.num_persons == 6
    prediction_cases.checkpoint(place / "checkpoint")
    config = EvaluateConfig.model_validate(
        {"checkpoint": place / "checkpoint", "data": store.path, "workers": 0,
         "scoring": {"bootstrap": 0, "errors": False}}
    )  # fmt: skip
    figures = evaluate(config, CropStore.open(store.path)).scored.figures
    assert figures["box_ap"] == pytest.approx(done.figures["box_ap"])
    predicted = run_predict(
        resolve(
            PredictConfig,
            {"checkpoint": place / "checkpoint", "inputs": [place / "images"], "output": place / "out",
             "boxes": place / "found.json", "image_list": place / "annotations.json"},
        )
    )  # fmt: skip
    assert {(r["image_id"], *r["bbox"]) for r in predicted.results} == {
        (r["image_id"], *r["bbox"]) for r in done.results
    }


def test_annotations_of_boxes_alone_are_measured_as_those_with_joints(place: Path) -> None:
    """COCO's instances: 80 categories, none of which lists joints. A box of a bicycle is nobody's."""
    expected = _detect(place).figures

    def boxes_alone(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 2, "name": "bicycle"}, {"id": 1, "name": "person"}]
        for entry in content["annotations"]:
            del entry["keypoints"], entry["num_keypoints"]
        content["annotations"].append({**content["annotations"][0], "id": 999, "category_id": 2})

    crop_data.edit(place / "annotations.json", boxes_alone)
    assert _detect(place, overwrite=True).figures == expected


def test_a_list_of_images_is_looked_at_and_not_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """COCO's test images come without annotations."""
    crop_data.edit(place / "annotations.json", lambda content: {"images": content["images"]})
    done = _detect(place)
    assert (len(done.results), done.figures) == (6, {})
    assert json.loads((place / "found.info.json").read_text())["figures"] == {}
    assert "has no persons: nothing to measure the boxes by" in " ".join(capsys.readouterr().err.split())


def test_annotations_that_cannot_be_used_are_named_with_their_file(place: Path) -> None:
    crop_data.edit(place / "annotations.json", lambda content: content["annotations"][0].update(bbox=None))
    with pytest.raises(ValueError, match=r"annotations\.json: 1 of 9 annotations cannot be used: box_invalid 1"):
        _detect(place)


def test_what_is_odd_about_persons_and_images_is_remarked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def flat_and_corners(content: dict[str, Any]) -> None:
        for n, entry in enumerate(content["annotations"]):
            entry["bbox"] = [5, 5, 9, 0] if n == 0 else [60, 60, 900, 900]

    crop_data.edit(place / "annotations.json", flat_and_corners)
    tag = Image.Exif()
    tag[0x0112] = 3
    for path in sorted((place / "images").iterdir())[:2]:
        # Beside the pixels, by which the detector of these tests knows an image.
        body, data = tag.tobytes(), path.read_bytes()
        path.write_bytes(data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:])
    _detect(place)
    said = " ".join(capsys.readouterr().err.split())
    assert "annotations.json: 1 of 9 persons have boxes without width or height: no box can find them" in said
    assert "annotations.json: 89 % of boxes end outside the image" in said
    assert "2 of 3 images carry an orientation tag and are taken as stored" in said


def test_what_cannot_be_used(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"say where its images are with images=FOLDER"):
        _detect(place, images=None)
    with pytest.raises(ValueError, match=r"detector\.weights=FILE\.pth of torchvision's detector"):
        _detect(place, detector={})
    (place / "images" / "000001.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 3 images are not in .*/images, .*'000001\.jpg'\); .*skip_unreadable=true"
    ):
        _detect(place)
    assert not list(place.glob("found*"))
    assert len(_detect(place, skip_unreadable=True).results) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "000001.jpg is not in" in said
    assert "1 of 3 images cannot be read: their persons count as not found" in said
    with pytest.raises(ValueError, match=r"found\.json exists"):
        _detect(place)
