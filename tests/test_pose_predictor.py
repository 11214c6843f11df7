"""Joints of persons in arrays: the same as evaluation finds for the same boxes; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from efafnet.models.skeleton import MPII_16
from efafnet.pipelines.crops import geometry
from efafnet.pipelines.evaluation.config import ActorsConfig, TestOverrides, WorkersConfig
from efafnet.pipelines.evaluation.store_prediction import predict_here
from efafnet.pipelines.evaluation.trained import load_trained
from efafnet.pipelines.prediction import PosePredictor
from efafnet.pipelines.prediction.pose_predictor import skeleton_of_checkpoint
from efafnet.platform.capacity import ActorPool, Capacity
from tests import crop_data, prediction_cases, training_cases

BOXES = [[10.0, 20.0, 50.0, 90.0], [100.0, 30.0, 60.0, 40.0], [-20.0, 100.0, 60.0, 80.0]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prediction_cases.checkpoint(tmp_path_factory.mktemp("predictor") / "checkpoint")


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> PosePredictor:
    return PosePredictor.load(checkpoint)


def _image(width: int = 200, height: int = 160) -> np.ndarray[Any, Any]:
    return crop_data.picture(width, height, 3)


@pytest.mark.parametrize("heatmap", [{"decoding": "quarter"}, {"encoding": "udp", "decoding": "udp"}], ids=str)
def test_the_same_joints_as_evaluation_finds_in_a_store(tmp_path: Path, heatmap: dict[str, str]) -> None:
    path = prediction_cases.checkpoint(tmp_path / "checkpoint", heatmap={"sigma_px": 1.0, **heatmap})
    store = crop_data.make_store(tmp_path, images=4, encoding={"format": "png"})
    trained = load_trained(path, store.skeleton)
    expected = predict_here(trained, store, trained.test, WorkersConfig(count=0)).persons
    predictor = PosePredictor.load(path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    found = []
    for entry in content["images"]:
        image = crop_data.read_picture(tmp_path / "images" / entry["file_name"])[:, :, ::-1]
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == entry["id"]]
        found.append(predictor(image, geometry.clip_box(boxes, entry["width"], entry["height"], "sbn")))
    keypoints = np.concatenate(found)
    assert keypoints.shape == (12, 17, 3)
    # UDP's step has no limit: on an untrained network's noise it ends anywhere, and multiplies what follows.
    near = (np.abs(expected.joints_px) < 300).all(axis=2)
    assert near.mean() > 0.98
    # A crop is cut elsewhere than here, so some interpolated pixels are rounded to the next of 256 values.
    np.testing.assert_allclose(keypoints[near, :2], expected.joints_px[near], atol=0.02)
    np.testing.assert_allclose(keypoints[:, :, 2], expected.scores, atol=1e-4)
    # Joints of untrained networks are anywhere, but not all on one place.
    assert keypoints[near, :2].std() > 5


def test_crops_are_the_whole_image_warped(predictor: PosePredictor) -> None:
    image = _image()
    crops, to_image = predictor.crops(image, BOXES)
    assert crops.dtype == np.uint8
    assert (crops.shape, to_image.shape) == ((3, 3, 96, 64), (3, 2, 3))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    for crop, affine in zip(crops, to_image, strict=True):
        expected = cv2.warpAffine(image, affine, (64, 96), flags=flags)
        np.testing.assert_array_equal(crop.transpose(1, 2, 0), expected)
    # The first box by hand: 50 x 90 is widened to 60 x 90 about (35, 65), and grows to 75 x 112.5.
    np.testing.assert_allclose(to_image[0], [[75 / 64, 0, 35 - 37.5], [0, 75 / 64, 65 - 56.25]])


def test_a_box_outside_the_image_is_black(predictor: PosePredictor) -> None:
    crops, _ = predictor.crops(_image(), [[1000, 1000, 20, 30]])
    assert crops.max() == 0


def test_batches_change_nothing_and_nobody_is_no_error(checkpoint: Path, predictor: PosePredictor) -> None:
    image = _image()
    single = PosePredictor.load(checkpoint, test=TestOverrides(batch_size=1), device="cpu")
    np.testing.assert_allclose(single(image, BOXES), predictor(image, BOXES), atol=1e-5)
    assert predictor(image, []).shape == (0, 17, 3)
    assert predictor(image, np.zeros((0, 4))).shape == (0, 17, 3)


def test_test_settings_can_be_changed(checkpoint: Path, predictor: PosePredictor) -> None:
    plain = PosePredictor.load(checkpoint, test=TestOverrides(flip_test=False, decoding="argmax"))
    crops, to_image = plain.crops(_image(), BOXES)
    grid = geometry.apply_affine(geometry.invert_affine(to_image), plain.predict_crops(crops, to_image)[:, :, :2]) / 4
    np.testing.assert_allclose(grid, grid.round(), atol=1e-9)
    assert not np.array_equal(plain(_image(), BOXES), predictor(_image(), BOXES))


def test_a_part_of_a_larger_array_is_an_image_too(predictor: PosePredictor) -> None:
    image = _image()
    framed = np.zeros((300, 400, 3), np.uint8)
    framed[40:200, 50:250] = image
    np.testing.assert_array_equal(predictor(framed[40:200, 50:250], BOXES), predictor(image, BOXES))


@pytest.mark.parametrize(
    ("image", "boxes", "message"),
    [
        (_image().astype(np.float32), BOXES, r"uint8 array \(height, width, 3\) in RGB; got float32 \(160, 200, 3\)"),
        (_image()[:, :, 0], BOXES, r"got uint8 \(160, 200\)"),
        ([[1]], BOXES, "got list"),
        (_image(), [1.0, 2.0, 3.0, 4.0], r"array \(N, 4\) of left, top, width, height; got the shape \(4,\)"),
        (_image(), [*BOXES, [0, 0, 10, 0]], r"box 3 is \[0.0, 0.0, 10.0, 0.0\]: .* width and height above 0"),
        (_image(), [[0, 0, float("nan"), 5]], "box 0 is .* must be finite"),
    ],
)
def test_what_is_no_image_and_no_box(predictor: PosePredictor, image: Any, boxes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(image, boxes)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights.pth is no checkpoint: it holds no meta.json"):
        PosePredictor.load(tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"nothing does not exist"):
        PosePredictor.load(tmp_path / "nothing")


# ---- which joints


def test_a_custom_skeleton_comes_from_the_training_store_or_a_file(tmp_path: Path) -> None:
    spots = training_cases.SPOTS
    store = training_cases.write_store(tmp_path / "store", 2)
    path = prediction_cases.checkpoint(tmp_path / "here", spots, data={"train": str(store)})
    assert skeleton_of_checkpoint(path) == spots
    assert PosePredictor.load(path)(_image(), BOXES).shape == (3, 4, 3)
    gone = prediction_cases.checkpoint(tmp_path / "gone", spots, data={"train": str(tmp_path / "deleted")})
    with pytest.raises(ValueError, match=r"'spots4', which is none of coco17, .* give skeleton=STORE"):
        skeleton_of_checkpoint(gone)
    assert skeleton_of_checkpoint(gone, str(store)) == spots
    (tmp_path / "spots.yaml").write_text(yaml.safe_dump(spots.model_dump(mode="json")))
    assert skeleton_of_checkpoint(gone, str(tmp_path / "spots.yaml")) == spots


def test_another_skeleton_than_the_checkpoints_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"skeleton=mpii16 is 'mpii16', checkpoint .* trained for 'coco17'"):
        skeleton_of_checkpoint(checkpoint, "mpii16")
    with pytest.raises(ValueError, match="skeleton 'hand21' is neither auto"):
        skeleton_of_checkpoint(checkpoint, "hand21")


def test_a_known_skeleton_needs_nothing_but_its_name(tmp_path: Path) -> None:
    assert PosePredictor.load(prediction_cases.checkpoint(tmp_path / "checkpoint", MPII_16)).skeleton == MPII_16


# ---- who predicts


def test_actors_share_out_what_a_cluster_has() -> None:
    usual = ActorsConfig()
    assert usual.pool(Capacity([{"CPU": 4}])) == ActorPool(count=3, gpu=False, living=3)
    assert usual.pool(Capacity([{"CPU": 16, "GPU": 2}])) == ActorPool(count=2, gpu=True, living=2)
    assert ActorsConfig(cpus=2).pool(Capacity([{"CPU": 6}, {"CPU": 2}])).count == 3
    assert ActorsConfig(count=5, gpu="no").pool(Capacity([{"CPU": 1, "GPU": 1}])).count == 5
    with pytest.raises(ValueError, match=r"workers\.gpu = yes: 1 GPU is needed, this cluster has 0"):
        ActorsConfig(gpu="yes").pool(Capacity([{"CPU": 8}]))


def test_actors_wait_for_gpus_that_come_with_the_work() -> None:
    """One starts at once and makes a machine come; the pool grows to as many as may come."""
    head: dict[str, float] = {"CPU": 2}
    growing = Capacity([head], lambda: (head, *[{"CPU": 4.0, "GPU": 1.0}] * 4))
    assert ActorsConfig().pool(growing) == ActorPool(count=4, gpu=True, living=1)
    with pytest.raises(ValueError, match=r"workers\.gpu = auto: the cluster has 0 of 1 GPUs now"):
        ActorsConfig().pool(Capacity([head], lambda: None))
