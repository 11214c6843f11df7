"""torchvision's detector as a source of boxes: local weights, what they must be, no silent download."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import get_model  # type: ignore[import-untyped]

from efafnet.models.network import build_network
from efafnet.pipelines.prediction.config import DetectorConfig
from efafnet.pipelines.prediction.detector import PersonDetector, in_batches
from tests import crop_data, prediction_cases

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained detector that takes everything for a person."""
    torch.manual_seed(0)
    network = get_model(SMALL, weights=None, weights_backbone=None)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias[1] = 9.0
    path = tmp_path_factory.mktemp("detector") / "detector.pth"
    torch.save(network.state_dict(), path)
    return path


def _config(weights: Any, **fields: Any) -> DetectorConfig:
    return DetectorConfig.model_validate({"name": SMALL, "weights": weights, **fields})


def test_persons_of_a_picture_by_falling_score(seer: Path) -> None:
    image = crop_data.picture(200, 160, 1)
    found = PersonDetector(_config(seer), CPU)(image)
    left, top, width, height = found.xywh_px.T
    assert len(found.scores) > 3
    assert (found.scores >= 0.5).all()
    assert (np.diff(found.scores) <= 0).all()
    assert min(left.min(), top.min()) >= 0
    assert min(width.min(), height.min()) > 0
    assert (left + width).max() <= 200
    assert (top + height).max() <= 160
    assert (left + width).max() > 160, "corners were not turned into widths"
    assert len(PersonDetector(_config(seer, min_score=1.0), CPU)(image).scores) == 0


def test_pictures_together_are_those_alone(seer: Path) -> None:
    detector = PersonDetector(_config(seer, batch_size=4), CPU)
    assert (detector.batch_size, PersonDetector(_config(seer), CPU).batch_size) == (4, 1)
    images = [crop_data.picture(200, 160, n) for n in range(3)]
    for image, found in zip(images, detector.together(images), strict=True):
        alone = detector(image)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        np.testing.assert_allclose(found.xywh_px, alone.xywh_px, atol=0.05)


def test_batches_hold_neighbours_of_one_shape() -> None:
    a, b = np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    items = [(0, a), (1, a), (2, a), (3, b), (4, a), (5, None), (6, a), (7, a)]
    batches = [[number for number, _ in batch] for batch in in_batches(items, lambda item: item[1], 2)]
    assert batches == [[0, 1], [2], [3], [4], [5], [6, 7]]
    assert list(in_batches([], lambda item: item, 2)) == []


def test_weights_of_another_kind(seer: Path, tmp_path: Path) -> None:
    pose = tmp_path / "pose.pth"
    torch.save(build_network(prediction_cases.NANO, 17).state_dict(), pose)
    message = (
        rf"detector.weights={pose} are not those of {SMALL}: \d+ missing \(first: .*\d+ unknown .*set detector.name"
    )
    with pytest.raises(ValueError, match=message):
        PersonDetector(_config(pose), CPU)
    tensors = torch.load(seer)
    tensors["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(2, 1024)
    torch.save(tensors, tmp_path / "two.pth")
    with pytest.raises(
        ValueError, match=r": 1 of another shape \(first: roi_heads\.box_predictor\.cls_score\.weight\)"
    ):
        PersonDetector(_config(tmp_path / "two.pth"), CPU)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"detector\.weights=.*no\.pth: there is no such file; give torchvision's"):
        PersonDetector(_config(tmp_path / "no.pth"), CPU)
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(ValueError, match=r"detector\.weights=.*page\.pth: no file of weights"):
        PersonDetector(_config(tmp_path / "page.pth"), CPU)


def test_a_download_that_fails_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, *_args: object, **_fields: object) -> None:
        asked.append(url)
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    with pytest.raises(
        OSError, match=r"cannot be fetched \(.*no route.*detector\.weights=FILE, or give boxes=FILE\.json"
    ):
        PersonDetector(_config("download"), CPU)
    assert len(asked) == 1
    assert "320" in asked[0]
