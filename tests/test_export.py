"""Files for other programs: checked against PyTorch, readable without this package, self-explanatory, whole."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from efafnet.models.config import HeatmapConfig
from efafnet.models.heatmaps import decode, flip_average
from efafnet.models.network import NetworkConfig
from efafnet.models.settings import InputSize
from efafnet.pipelines import cli
from efafnet.pipelines.crops import geometry
from efafnet.pipelines.crops.config import InspectConfig
from efafnet.pipelines.evaluation.config import TestOverrides
from efafnet.pipelines.inspection import run_inspect
from efafnet.pipelines.prediction import PosePredictor, export
from efafnet.pipelines.prediction.config import ExportConfig
from efafnet.pipelines.prediction.export import Exported, run_export
from efafnet.pipelines.prediction.exported import describe, read_metadata
from tests import crop_data, prediction_cases

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the packages of the extra `export` are not installed",
)
EXACT = TestOverrides(precision="fp32")
"""In the file's own arithmetic: an untrained network's maps are so flat that half precision moves their maxima."""
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
    to_image = geometry.view_of_boxes(BOXES, size, metadata["crop"]["padding"])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crops = np.stack([cv2.warpAffine(image, affine, (size.width, size.height), flags=flags) for affine in to_image])
    images = torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2)))
    heatmaps = run(images)
    if metadata["flip_test"]["in_evaluation"]:
        shift, permutation = metadata["flip_test"]["shift_one_column"], tuple(metadata["flip_test"]["permutation"])
        heatmaps = flip_average(heatmaps, run(images.flip(3)), permutation, shift=shift)
    decoded = decode(heatmaps, size, HeatmapConfig.model_validate(metadata["heatmap"]))
    joints = geometry.apply_affine(to_image, decoded.joints_px.numpy())
    return np.concatenate([joints, decoded.scores.numpy()[..., None]], axis=2)


def _agrees(run: Any, metadata: dict[str, Any], checkpoint: Path) -> None:
    image = crop_data.picture(200, 160, 3)
    expected = PosePredictor.load(checkpoint, device="cpu", test=EXACT)(image, BOXES)
    np.testing.assert_allclose(_keypoints(run, metadata, image), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.no_ray
def test_torch_export_gives_the_keypoints_of_the_predictor(checkpoint: Path, pt2: Exported) -> None:
    extra = {"efafnet.json": ""}
    program = torch.export.load(pt2.path, extra_files=extra)
    metadata = json.loads(extra["efafnet.json"])
    assert metadata == pt2.metadata == read_metadata(pt2.path)
    _agrees(program.module(), metadata, checkpoint)
    assert pt2.largest_difference < 1e-6


def _described(checkpoint: Path, **settings: Any) -> dict[str, Any]:
    decoding = settings.get("decoding")
    predictor = PosePredictor.load(checkpoint, test=TestOverrides(decoding=decoding))
    config = ExportConfig(checkpoint=checkpoint, out=Path("network.onnx"), **settings)
    return describe(predictor.trained, predictor.skeleton, config)


def test_the_metadata_say_what_a_program_needs(checkpoint: Path) -> None:
    metadata = _described(checkpoint)
    assert metadata["input"]["axes"] == ["batch", 3, 96, 64]
    assert (metadata["input"]["dtype"], metadata["input"]["channels"]) == ("uint8", "RGB")
    assert metadata["outputs"] == [{"name": "heatmaps", "dtype": "float32", "axes": ["batch", 17, 24, 16]}]
    assert metadata["skeleton"]["joints"][:2] == ["nose", "left_eye"]
    assert metadata["flip_test"]["permutation"][:3] == [0, 2, 1]
    decoding = metadata["decoding"]
    assert (decoding["kind"], decoding["inside"], decoding["crop_px_per_cell"]) == ("quarter", False, [4, 4])
    assert metadata["checkpoint"]["step"] == 7
    # The middle of a crop is the box's, and a crop 64 pixels wide shows the box's 48 with the padding: 60.
    crop = metadata["crop"]
    assert (crop["centre"], crop["steps"], crop["padding"]) == ([32, 48], [64, 96], 1.25)
    assert json.loads(json.dumps(metadata)) == metadata


def test_the_metadata_of_joints_and_of_dark(checkpoint: Path) -> None:
    metadata = _described(checkpoint, output="joints", decoding="dark", precision="fp16", flip_test=True)
    assert [(o["name"], o["axes"]) for o in metadata["outputs"]] == [
        ("joints", ["batch", 17, 2]), ("scores", ["batch", 17])
    ]  # fmt: skip
    # DARK's kernel for a sigma of 1: out to 2.5 sigma, OpenCV's spread for 7 taps.
    decoding = metadata["decoding"]
    assert (decoding["inside"], decoding["kind"], decoding["radius"]) == (True, "dark", 3)
    assert decoding["spread"] == pytest.approx(0.3 * (0.5 * (7 - 1) - 1) + 0.8)
    assert (metadata["precision"], metadata["flip_test"]["inside"]) == ("fp16", True)


def test_the_metadata_of_udp(tmp_path: Path) -> None:
    path = prediction_cases.checkpoint(tmp_path / "c", heatmap={"sigma_px": 1.0, "encoding": "udp", "decoding": "udp"})
    metadata = _described(path)
    assert (metadata["crop"]["centre"], metadata["crop"]["steps"]) == ([31.5, 47.5], [63, 95])
    assert metadata["decoding"]["crop_px_per_cell"] == pytest.approx([63 / 15, 95 / 23])


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_file_of_torch_export_needs_nothing_of_this_package(pt2: Exported, tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "for n in (1, 4): assert module(torch.zeros(n, 3, 96, 64, dtype=torch.uint8)).shape == (n, 17, 24, 16)\n"
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
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 3, 96, 64])
    assert (heatmaps.name, heatmaps.type, heatmaps.shape) == ("heatmaps", "tensor(float)", ["batch", 17, 24, 16])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["efafnet.json"])
    assert metadata == onnx.metadata == read_metadata(onnx.path)

    def run(values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"images": values.numpy()})[0])

    _agrees(run, metadata, checkpoint)
    assert onnx.largest_difference < 1e-5
    assert str(Path(export.__file__).parent).encode() not in onnx.path.read_bytes(), "it tells where it was made"


@needs_onnx
@pytest.mark.slow
@pytest.mark.no_ray
def test_the_program_in_the_documentation_finds_the_joints(
    checkpoint: Path,
    onnx: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (Path(__file__).parent.parent / "docs" / "prediction.md").read_text()
    [program] = [block for block in text.split("```")[1::2] if "onnxruntime.InferenceSession(" in block]
    lines = [line for line in program.splitlines()[1:] if line]
    assert len(lines) <= 35
    assert "efafnet." not in program.replace('"efafnet.json"', "")
    image = crop_data.picture(200, 160, 3)
    Image.fromarray(image).save(tmp_path / "picture.png")
    monkeypatch.chdir(onnx.path.parent)
    monkeypatch.setattr(sys, "argv", ["joints.py", str(tmp_path / "picture.png"), *map(str, BOXES[1])])
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    predictor = PosePredictor.load(checkpoint, device="cpu", test=EXACT.model_copy(update={"flip_test": False}))
    crops, _ = predictor.crops(image, [BOXES[1]])
    # OpenCV places its samples on a grid of 1/32 pixel.
    assert np.abs(names["pixels"].astype(int) - crops[0]).max() <= 8
    assert np.abs(names["pixels"].astype(int) - crops[0]).mean() < 0.5
    given = decode(torch.from_numpy(names["session"].run(None, {"images": names["pixels"][None]})[0]),
                   InputSize(height=96, width=64), HeatmapConfig(decoding="quarter"))  # fmt: skip
    to_image = geometry.view_of_boxes([BOXES[1]], InputSize(height=96, width=64), 1.25)
    np.testing.assert_allclose(names["found"][:, :2], geometry.apply_affine(to_image, given.joints_px)[0], atol=1e-4)
    assert len(capsys.readouterr().out.splitlines()) == 17


@needs_onnx
@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (prediction_cases.SBN_NANO, {"flip_test": True, "decoding": "dark", "opset": 18}),
        (prediction_cases.NANO, {"precision": "fp16"}),
    ],
    ids=["twice_dark_opset", "fp16"],
)
def test_joints_are_decoded_inside(tmp_path: Path, network: NetworkConfig, settings: dict[str, Any]) -> None:
    import onnxruntime

    checkpoint = prediction_cases.checkpoint(tmp_path / "c", network=network)
    made = run_export(ExportConfig(checkpoint=checkpoint, out=tmp_path / "n.onnx", output="joints", **settings))
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    assert [o.shape for o in session.get_outputs()] == [["batch", 17, 2], ["batch", 17]]
    test = TestOverrides(precision="fp32", flip_test=bool(settings.get("flip_test")), decoding=settings.get("decoding"))
    predictor = PosePredictor.load(checkpoint, device="cpu", test=test)
    crops, to_image = predictor.crops(crop_data.picture(200, 160, 3), BOXES)
    joints, scores = session.run(None, {"images": crops})
    expected = predictor.predict_crops(crops, to_image)
    found = geometry.apply_affine(to_image, joints)
    largest = np.abs(expected[:, :, 2]).max()
    half = settings.get("precision") == "fp16"
    np.testing.assert_allclose(scores, expected[:, :, 2], atol=(1e-2 if half else 1e-5) * largest)
    near = np.abs(found - expected[:, :, :2]).max(axis=2) < 0.05
    # An untrained network's maps are flat: in half precision a few maxima move to a cell of the same height.
    assert near.mean() >= (0.7 if half else 1.0)
    import onnx as onnx_package

    assert onnx_package.load(made.path).opset_import[0].version == settings.get("opset", 20)


@needs_onnx
@pytest.mark.slow
@pytest.mark.no_ray
def test_openvino_gives_the_same_heatmaps(onnx: Exported) -> None:
    openvino = pytest.importorskip("openvino")
    import onnxruntime

    images = torch.randint(0, 256, (2, 3, 96, 64), dtype=torch.uint8).numpy()
    [expected] = onnxruntime.InferenceSession(onnx.path).run(None, {"images": images})
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core.compile_model(core.read_model(onnx.path), "CPU", exact)(images)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


# ---- what inspect says


@pytest.mark.slow
@pytest.mark.no_ray
def test_inspect_says_what_a_file_is(pt2: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    run_inspect(InspectConfig(store=str(pt2.path)))
    said = capsys.readouterr().out
    for part in (
        "torch.export", "images uint8 (batch, 3, 96, 64)", "heatmaps float32 (batch, 17, 24, 16)", "quarter",
        "coco17 (17 joints)", "encoder=nano", "step 7",
    ):  # fmt: skip
        assert part in said


def test_what_inspect_is_not_given(tmp_path: Path) -> None:
    (tmp_path / "other.pt2").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"other\.pt2 is no file of torch\.export, or a damaged one"):
        run_inspect(InspectConfig(store=str(tmp_path / "other.pt2")))
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "w") as archive:
        archive.writestr("foreign/weights", "x")
    with pytest.raises(ValueError, match=r"foreign\.pt2 holds no efafnet\.json: it was not written by efafnet export"):
        run_inspect(InspectConfig(store=str(tmp_path / "foreign.pt2")))
    with pytest.raises(ValueError, match="crop store"):
        run_inspect(InspectConfig(store=str(tmp_path / "nothing.onnx")))


@needs_onnx
def test_what_inspect_is_not_given_as_onnx(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"\xffno protocol buffer")
    with pytest.raises(ValueError, match=r"text\.onnx is no ONNX file, or a damaged one"):
        run_inspect(InspectConfig(store=str(tmp_path / "text.onnx")))


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


def test_an_opset_is_onnx_own(checkpoint: Path, tmp_path: Path) -> None:
    assert "opset=18 is a version of ONNX's operators: leave it out" in _error(
        checkpoint=checkpoint, out=tmp_path / "network.pt2", opset=18
    )


@pytest.mark.parametrize("wrong", [torch.nan, 1e-3])
def test_a_file_that_differs_from_pytorch_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    def differs(network: Any, _metadata: str) -> Any:
        # Right for one crop and two, wrong for more: what a batch size that was baked in would do.
        return b"", lambda images: (network(images) + (wrong if len(images) > 2 else 0.0),)

    monkeypatch.setattr(export, "_program", lambda network, _images: network)
    monkeypatch.setattr(export, "_pt2", differs)
    message = _error(checkpoint=checkpoint, out=tmp_path / "network.pt2")
    assert "of the largest heatmap value at batch size 5, more than tolerance=0.0001; nothing was written" in message
    assert not list(tmp_path.iterdir())
