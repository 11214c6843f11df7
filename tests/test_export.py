"""Files for other programs: checked against PyTorch, readable without this package, self-explanatory, whole."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from efafnet.models.config import HeatmapConfig
from efafnet.models.heatmaps import decode, flip_average
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines import cli
from efafnet.pipelines.crops import geometry
from efafnet.pipelines.evaluation.config import TestOverrides
from efafnet.pipelines.prediction import PosePredictor, export
from efafnet.pipelines.prediction.config import ExportConfig
from efafnet.pipelines.prediction.export import Exported, run_export
from tests import crop_data, prediction_cases

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the packages of the extra `export` are not installed",
)
BOXES = [[10.0, 20.0, 50.0, 90.0], [100.0, 30.0, 60.0, 40.0]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prediction_cases.checkpoint(tmp_path_factory.mktemp("export") / "checkpoint")


@pytest.fixture(scope="module")
def pt2(checkpoint: Path) -> Exported:
    return run_export(ExportConfig(checkpoint=checkpoint, out=checkpoint.parent / "made" / "network.pt2"))


@pytest.fixture(scope="module")
def onnx(checkpoint: Path) -> Exported:
    return run_export(ExportConfig(checkpoint=checkpoint, out=checkpoint.parent / "network.onnx"))


def _keypoints(run: Any, metadata: dict[str, Any], image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What a program does that has the file and its metadata only, here with our geometry and decoder."""
    size = InputSize(height=metadata["input"]["height"], width=metadata["input"]["width"])
    to_image = geometry.view_of_boxes(BOXES, size, metadata["crop"]["padding"], udp=metadata["crop"]["udp"])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crops = np.stack([cv2.warpAffine(image, affine, (size.width, size.height), flags=flags) for affine in to_image])
    mean, std = (np.array(metadata["input"][name], np.float32) for name in ("mean", "std"))
    images = torch.from_numpy(np.ascontiguousarray(((crops / 255 - mean) / std).transpose(0, 3, 1, 2), np.float32))
    skeleton = Skeleton.model_validate(metadata["skeleton"])
    heatmaps = run(images)
    if metadata["flip_test"]["used"]:
        shift = metadata["flip_test"]["shift_one_column"]
        heatmaps = flip_average(heatmaps, run(images.flip(3)), skeleton.flip_permutation, shift=shift)
    decoded = decode(heatmaps, size, HeatmapConfig.model_validate(metadata["heatmap"]))
    joints = geometry.apply_affine(to_image, decoded.joints_px.numpy())
    return np.concatenate([joints, decoded.scores.numpy()[..., None]], axis=2)


def _agrees(run: Any, metadata: dict[str, Any], checkpoint: Path) -> None:
    image = crop_data.picture(200, 160, 3)
    # In the file's own arithmetic: an untrained network's maps are so flat that half precision moves their maxima.
    exact = TestOverrides(precision="fp32")
    expected = PosePredictor.load(checkpoint, device="cpu", test=exact)(image, BOXES)
    np.testing.assert_allclose(_keypoints(run, metadata, image), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.no_ray
def test_torch_export_gives_the_keypoints_of_the_predictor(checkpoint: Path, pt2: Exported) -> None:
    extra = {"efafnet.json": ""}
    program = torch.export.load(pt2.path, extra_files=extra)
    metadata = json.loads(extra["efafnet.json"])
    assert metadata == pt2.metadata
    _agrees(program.module(), metadata, checkpoint)
    assert pt2.largest_difference < 1e-6


def test_the_metadata_say_what_a_program_needs(checkpoint: Path) -> None:
    predictor = PosePredictor.load(checkpoint)
    metadata = export.describe(predictor.trained, predictor.skeleton)
    assert metadata["input"]["mean"] == [0.485, 0.456, 0.406]
    assert metadata["input"]["std"] == [0.229, 0.224, 0.225]
    assert (metadata["input"]["height"], metadata["input"]["width"], metadata["output"]["stride"]) == (96, 64, 4)
    assert metadata["skeleton"]["joints"][:2] == ["nose", "left_eye"]
    assert (metadata["heatmap"]["decoding"], metadata["checkpoint"]["step"]) == ("quarter", 7)


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_file_of_torch_export_needs_nothing_of_this_package(pt2: Exported, tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "for n in (1, 4): assert module(torch.zeros(n, 3, 96, 64)).shape == (n, 17, 24, 16)\n"
        "assert not any(name.startswith('efafnet') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(pt2.path)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    content = pt2.path.read_bytes()
    assert str(Path(export.__file__).parent).encode() not in content, "it tells where it was made"


@needs_onnx
@pytest.mark.slow
@pytest.mark.no_ray
def test_onnx_gives_the_keypoints_of_the_predictor(checkpoint: Path, onnx: Exported) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx.path, providers=["CPUExecutionProvider"])
    [images], [heatmaps] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape[1:], heatmaps.name, heatmaps.shape[1:]) == (
        "images", [3, 96, 64], "heatmaps", [17, 24, 16]
    )  # fmt: skip
    assert isinstance(images.shape[0], str), "the batch size is fixed"
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["efafnet.json"])
    assert metadata == onnx.metadata

    def run(values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"images": values.numpy()})[0])

    _agrees(run, metadata, checkpoint)
    assert onnx.largest_difference < 1e-5
    assert str(Path(export.__file__).parent).encode() not in onnx.path.read_bytes(), "it tells where it was made"


# ---- what is refused


def _error(**fields: Any) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        run_export(ExportConfig.model_validate(fields))
    return str(caught.value)


def test_endings_and_outputs(checkpoint: Path, tmp_path: Path) -> None:
    assert "write NAME.onnx (ONNX) or NAME.pt2" in _error(checkpoint=checkpoint, out=tmp_path / "network.pth")
    (tmp_path / "there.pt2").write_text("precious")
    assert "there.pt2 exists; name another file" in _error(checkpoint=checkpoint, out=tmp_path / "there.pt2")
    assert (tmp_path / "there.pt2").read_text() == "precious"
    (tmp_path / "folder.pt2").mkdir()
    message = _error(checkpoint=checkpoint, out=tmp_path / "folder.pt2", overwrite=True)
    assert "folder.pt2 is a directory; name a file in it" in message
    message = _error(checkpoint=checkpoint, out=tmp_path / "there.pt2" / "network.pt2")
    assert "cannot write output" in message
    assert "is no checkpoint" in _error(checkpoint=tmp_path, out=tmp_path / "network.pt2")


def test_packages_that_are_missing_are_named_with_the_remedy(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else usual(name))
    assert cli.main(["export", str(checkpoint), str(tmp_path / "network.onnx")]) == 2
    told = capsys.readouterr().err
    assert "onnxscript cannot be found; install them with: pip install -c constraints.txt -e '.[export]'" in told
    assert not (tmp_path / "network.onnx").exists()


@pytest.mark.parametrize("wrong", [torch.nan, 1e-3])
def test_a_file_that_differs_from_pytorch_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    def differs(network: Any, _metadata: str) -> Any:
        # Right for one crop and two, wrong for more: what a batch size that was baked in would do.
        return b"", lambda images: network(images) + (wrong if len(images) > 2 else 0.0)

    monkeypatch.setattr(export, "_program", lambda network, _images: network)
    monkeypatch.setattr(export, "_pt2", differs)
    message = _error(checkpoint=checkpoint, out=tmp_path / "network.pt2")
    assert "of the largest heatmap value at batch size 5, more than tolerance=0.0001; nothing was written" in message
    assert not list(tmp_path.iterdir())
