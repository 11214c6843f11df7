"""Persons from Python: boxes given, detected or none; one image or a stream; the result's own promises."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from efafnet.pipelines.evaluation.config import TestOverrides
from efafnet.pipelines.prediction import Persons, PosePredictor, Predictor
from efafnet.pipelines.prediction.config import DetectorConfig
from efafnet.pipelines.prediction.detector import PersonDetector
from efafnet.pipelines.prediction.person_boxes import Boxes
from tests import crop_data, prediction_cases

BOXES = [[100.0, 30.0, 60.0, 40.0], [10.0, 20.0, 50.0, 90.0], [-20.0, 100.0, 60.0, 80.0]]
EXACT = TestOverrides(precision="fp32")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("persons") / "checkpoint"
    return Predictor.load(prediction_cases.checkpoint(folder), device="cpu", test=EXACT)


def _image(seed: int = 3, width: int = 200, height: int = 160) -> np.ndarray[Any, Any]:
    return crop_data.picture(width, height, seed)


def _same(found: Persons, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found.joints_px, expected[:, :, :2], atol=1e-4)
    np.testing.assert_allclose(found.joint_scores, expected[:, :, 2], atol=1e-5)


# ---- who is looked for


def test_given_boxes_come_back_in_their_order(predictor: Predictor) -> None:
    found = predictor.persons(_image(), BOXES, box_scores=[0.5, 1.0, 0.25])
    _same(found, predictor.pose(_image(), BOXES))
    assert (len(found), found.ids.tolist()) == (3, [0, 1, 2])
    np.testing.assert_array_equal(found.boxes_xywh_px, BOXES)
    # Threshold 0 here: the mean of the joints' scores above 0, times the box's.
    means = [row[row > 0].mean() if (row > 0).any() else 0.0 for row in found.joint_scores]
    np.testing.assert_allclose(found.scores, np.multiply(means, [0.5, 1.0, 0.25]), rtol=1e-5)


def test_one_box_none_and_the_whole_picture(predictor: Predictor) -> None:
    image = _image()
    _same(predictor.persons(image, BOXES[1]), predictor.pose(image, [BOXES[1]]))
    nobody = predictor.persons(image, [])
    assert (len(nobody), nobody.joints_px.shape, nobody.to_coco()) == (0, (0, 17, 2), [])
    np.testing.assert_array_equal(nobody.draw(), image)
    whole = predictor.persons(image)
    assert whole.boxes_xywh_px.tolist() == [[0, 0, 200, 160]]
    _same(whole, predictor.pose(image, [[0, 0, 200, 160]]))


def test_what_a_detector_finds_is_ranked_and_duplicates_go(predictor: Predictor) -> None:
    seen = []

    def detector(image: np.ndarray[Any, Any]) -> Boxes:
        seen.append(image.shape)
        # The second is the first once more, less sure: a duplicate.
        return Boxes.of([(BOXES[0], 0.4), (BOXES[0], 0.3), (BOXES[1], 1.0)])

    found = Predictor(predictor.pose, detector).persons(_image())
    assert seen == [(160, 200, 3)]
    assert found.ids.tolist() == [2, 0]
    assert found.scores[0] > found.scores[1]
    _same(found, predictor.pose(_image(), [BOXES[1], BOXES[0]]))


def test_detectors_by_name_are_torchvisions(tmp_path: Path, predictor: Predictor) -> None:
    checkpoint = predictor.pose.trained.path
    with pytest.raises(ValueError, match=r"gone.pth: there is no such file"):
        Predictor.load(checkpoint, detector=tmp_path / "gone.pth")
    settings = DetectorConfig(weights=tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: there is no such file"):
        Predictor.load(checkpoint, detector=settings)
    with pytest.raises(ValueError, match="settings name no weights"):
        Predictor.load(checkpoint, detector=DetectorConfig())


# ---- what is an image


def test_files_bytes_and_pictures_of_pillow_are_upright_images(tmp_path: Path, predictor: Predictor) -> None:
    image = _image()
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(path, exif=exif)
    for given in (path, str(path), path.read_bytes(), Image.open(io.BytesIO(path.read_bytes()))):
        np.testing.assert_array_equal(predictor.persons(given, BOXES).image_rgb, image)
    _same(predictor.persons(path, BOXES), predictor.pose(image, BOXES))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("/no/where.jpg", r"image /no/where.jpg cannot be read \(No such file"),
        (b"no picture", r"the image cannot be decoded \(begins with b'no pictu'\)"),
        (_image()[:, :, 0], r"uint8 array \(height, width, 3\) in RGB; got uint8 \(160, 200\)"),
        (Image.new("I;16", (8, 8)), "mode I;16 has no 8 bits a channel"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image(predictor: Predictor, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.persons(image)


def test_box_scores_that_do_not_fit(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"box_scores are one finite number for each of 3 boxes; got \[1.0\]"):
        predictor.persons(_image(), BOXES, [1.0])


# ---- many images


def test_a_stream_gives_what_single_images_give_and_reads_no_further_than_a_batch(predictor: Predictor) -> None:
    read = []

    def images() -> Iterator[np.ndarray[Any, Any]]:
        for seed in range(6):
            read.append(seed)
            yield _image(seed)

    # Batches of 5 persons: three boxes, none and two fill the first.
    boxes = [BOXES, [], BOXES[:2], BOXES[2:], BOXES, BOXES[:1]]
    stream = predictor.stream(images(), boxes)
    first = next(stream)
    assert read == [0, 1, 2]
    found = [first, *stream]
    assert [len(persons) for persons in found] == [3, 0, 2, 1, 3, 1]
    for seed, (persons, own) in enumerate(zip(found, boxes, strict=True)):
        _same(persons, predictor.pose(_image(seed), own))
        np.testing.assert_array_equal(persons.image_rgb, _image(seed))


def test_a_stream_sends_images_of_one_size_through_the_detector_together(
    predictor: Predictor,
) -> None:
    """A detector that says which pictures it saw together: five of one size, of which one brings its boxes, and one
    of another; two at a time."""
    seen: list[int] = []

    class Together(PersonDetector):
        def __init__(self) -> None:
            self.batch_size = 2

        def together(self, images_rgb: Sequence[np.ndarray[Any, Any]]) -> list[Boxes]:
            seen.append(len(images_rgb))
            return [Boxes.of([((0.0, 0.0, float(image[0, 0, 0]) + 10, 50.0), 0.9)]) for image in images_rgb]

    finds = Predictor(predictor.pose, Together())
    images = [*(_image(seed) for seed in range(4)), _image(4, width=120), _image(5)]
    found = list(finds.stream(images, [None, None, BOXES, None, None, None]))
    assert seen == [2, 1, 1, 1]
    assert [len(persons) for persons in found] == [1, 1, 3, 1, 1, 1]
    for image, persons in zip(images, found, strict=True):
        if len(persons) == 1:
            np.testing.assert_array_equal(persons.boxes_xywh_px, [[0, 0, float(image[0, 0, 0]) + 10, 50]])
            np.testing.assert_array_equal(persons.image_rgb, image)


def test_a_stream_without_boxes_and_one_that_does_not_fit(predictor: Predictor) -> None:
    assert [len(found) for found in predictor.stream([_image(1), _image(2)])] == [1, 1]
    assert list(predictor.stream([])) == []
    with pytest.raises(ValueError, match="there are more images than boxes: the boxes end after 1"):
        list(predictor.stream([_image(1), _image(2)], [BOXES]))
    with pytest.raises(ValueError, match="there are more boxes than images: the images end after 1"):
        list(predictor.stream([_image(1)], [BOXES, BOXES]))
    with pytest.raises(ValueError, match=r"image 1: box 0 is .* width and height above 0"):
        list(predictor.stream([_image(1), _image(2)], [BOXES, [[0, 0, 0, 5]]]))


# ---- what comes back


def test_joints_by_name_coco_results_and_a_drawing(predictor: Predictor) -> None:
    image = _image()
    found = predictor.persons(image, BOXES)
    wrist = found.skeleton.joints.index("left_wrist")
    np.testing.assert_array_equal(found.joint("left_wrist")[:, :2], found.joints_px[:, wrist])
    np.testing.assert_array_equal(found.joint("left_wrist")[:, 2], found.joint_scores[:, wrist].astype(float))
    with pytest.raises(ValueError, match="'wrist' is no joint of coco17; it has nose"):
        found.joint("wrist")
    [first, *_] = json.loads(json.dumps(found.to_coco(image_id=7)))
    assert (first["image_id"], first["category_id"], first["id"], first["bbox"]) == (7, 1, 0, BOXES[0])
    np.testing.assert_allclose(np.reshape(first["keypoints"], (17, 3))[:, :2], found.joints_px[0])
    before = image.copy()
    drawn = found.draw()
    assert drawn.shape == image.shape
    assert cv2.absdiff(drawn, image).any()
    np.testing.assert_array_equal(image, before)


def test_the_array_call_is_beneath(predictor: Predictor) -> None:
    assert isinstance(predictor.pose, PosePredictor)
    assert predictor.skeleton.name == "coco17"
