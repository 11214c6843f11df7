"""What an exported network says about itself: one JSON document in the file, and `efafnet inspect FILE`.

With it a program that has neither this package nor its source cuts the crops, and reads the heatmaps where the file
does not do so itself. In ONNX it is the metadata property ``efafnet.json``, in a ``.pt2`` the extra file of that name::

    json.loads(onnxruntime.InferenceSession("network.onnx").get_modelmeta().custom_metadata_map["efafnet.json"])
    extra = {"efafnet.json": ""}
    program = torch.export.load("network.pt2", extra_files=extra)
"""

from __future__ import annotations

import importlib.util
import json
import math
import zipfile
from pathlib import Path
from typing import Any

from efafnet.models.config import HeatmapConfig
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.evaluation.trained import Trained
from efafnet.pipelines.prediction.config import ExportConfig
from efafnet.platform import console
from efafnet.platform.provenance import code_version

METADATA = "efafnet.json"
FORMAT = "efafnet exported 2"
ENDINGS = (".onnx", ".pt2")
_NETWORK_SAYS = ("kind", "encoder", "base_width", "width", "stacks")

_PEAK = "the highest cell (x, y) of a joint's map; a map whose maximum is not above 0 says nothing"
_RULES = {
    "argmax": "the peak itself",
    "quarter": "a quarter cell from the peak towards the higher neighbour along each axis, for peaks with "
    "1 < x < w - 1 and 1 < y < h - 1; else the peak",
    "dark": "smooth along both axes with taps exp(-d²/(2 spread²)), d = -radius..radius, divided by their sum over all "
    "taps, with 0 outside; scale to the old maximum; logarithm of at least 1e-10; one Newton step from the peak with "
    "differences g = (v[+1] - v[-1])/2, xx = (v[+2] - 2v[0] + v[-2])/4, "
    "xy = (v[1,1] - v[-1,1] - v[1,-1] + v[-1,-1])/4, only where xx < 0 and xx yy - xy² > 1e-12, at most 1 cell along "
    "each axis, for peaks with 1 < x < w - 2 and 1 < y < h - 2",
    "udp": "smooth as with dark (same taps); logarithm of values held in 1e-3..50; one Newton step from the peak, "
    "however far, neighbours outside being the nearest cell: g = (v[+1] - v[-1])/2, "
    "xx = v[+1] - 2v[0] + v[-1] + 1.19e-7, xy = (v[1,1] - v[1,0] - v[0,1] + 2v[0,0] - v[-1,0] - v[0,-1] + v[-1,-1])/2",
}


def describe(trained: Trained, skeleton: Skeleton, config: ExportConfig) -> dict[str, Any]:
    """What a program must know to use the network: the document stored in the file."""
    size, heatmap = trained.input_size, trained.heatmap
    return {
        "format": FORMAT,
        "input": {
            "name": "images", "dtype": "uint8", "axes": ["batch", 3, size.height, size.width], "channels": "RGB",
            "height": size.height, "width": size.width, "normalisation": "inside the file",
        },
        "outputs": _outputs(size, heatmap, skeleton, config.output),
        "crop": _crop(trained),
        "decoding": {"inside": config.output == "joints", **_decoding(size, heatmap)},
        "flip_test": {
            "inside": config.flip_test, "in_evaluation": trained.test.flip_test,
            "permutation": list(skeleton.flip_permutation), "shift_one_column": heatmap.flip_shift,
        },
        "precision": config.precision,
        "skeleton": skeleton.model_dump(mode="json"),
        "heatmap": heatmap.model_dump(mode="json"),
        "visibility": _visibility(trained, config),
        "checkpoint": {name: trained.meta.get(name) for name in ("run", "step", "mlflow_run_id", "config_digest")},
        "network": trained.settings.model_dump(mode="json"),
        "code": code_version(),
    }  # fmt: skip


def _visibility(trained: Trained, config: ExportConfig) -> dict[str, Any] | None:
    """How a score becomes the probability that the joint is visible; None where the checkpoint does not know."""
    if trained.visibility is None:
        return None
    return {
        "rule": "probability that a joint is visible (COCO's v = 2) = linear interpolation of its score between "
        "`peaks`, constant beyond their ends; a joint's map stands under its name in `own`, else `pooled` is its map; "
        "nothing is known of joints in `unknown`",
        "fits_this_file": trained.visibility.flip_test == config.flip_test,
        **trained.visibility.model_dump(mode="json"),
    }


def _outputs(size: InputSize, heatmap: HeatmapConfig, skeleton: Skeleton, output: str) -> list[dict[str, Any]]:
    k = skeleton.num_joints
    if output == "heatmaps":
        axes = ["batch", k, size.height // heatmap.stride, size.width // heatmap.stride]
        return [{"name": "heatmaps", "dtype": "float32", "axes": axes}]
    return [
        {"name": "joints", "dtype": "float32", "axes": ["batch", k, 2], "unit": "pixels of the crop, x and y"},
        {"name": "scores", "dtype": "float32", "axes": ["batch", k], "unit": "height of the heatmap's peak"},
    ]


def _crop(trained: Trained) -> dict[str, Any]:
    """How a box becomes a crop, in numbers and in words; a pixel's centre has integer coordinates."""
    size, lost = trained.input_size, int(trained.udp)
    return {
        "padding": trained.padding,
        "steps": [size.width - lost, size.height - lost],
        "centre": [(size.width - lost) / 2, (size.height - lost) / 2],
        "rule": "box = left, top, width, height in image pixels; width and height widened to the input's aspect about "
        "the box's centre (left + width/2, top + height/2) and multiplied by padding; scale = that size / steps; "
        "image pixel = box centre + scale * (crop pixel - centre)",
        "interpolation": "bilinear, 0 outside the image",
    }


def _decoding(size: InputSize, heatmap: HeatmapConfig) -> dict[str, Any]:
    h, w = size.height // heatmap.stride, size.width // heatmap.stride
    lost = int(heatmap.encoding == "udp")
    found = {
        "peak": _PEAK,
        "kind": heatmap.decoding,
        "rule": _RULES[heatmap.decoding],
        "crop_px_per_cell": [(size.width - lost) / (w - lost), (size.height - lost) / (h - lost)],
    }
    if heatmap.decoding in ("dark", "udp"):
        radius = math.ceil(2.5 * heatmap.sigma_px)
        return {**found, "radius": radius, "spread": 0.3 * (radius - 1) + 0.8}
    return found


def read_metadata(path: Path) -> dict[str, Any]:
    """The document of an exported file; ValueError for a file that is none of ours, or cannot be read."""
    text = _of_onnx(path) if path.suffix == ".onnx" else _of_pt2(path)
    try:
        found = json.loads(text or "")
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or "skeleton" not in found:
        raise ValueError(f"{path} holds no {METADATA}: it was not written by efafnet export")
    return found


def _of_onnx(path: Path) -> str | None:
    if importlib.util.find_spec("onnx") is None:
        raise ValueError(
            f"{path} is read with the package onnx, which cannot be found; install it with: "
            "pip install -c constraints.txt -e '.[export]'"
        )
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # onnx lets the protocol buffers' own errors through
        raise ValueError(f"{path} is no ONNX file, or a damaged one ({type(error).__name__})") from error
    return next((entry.value for entry in model.metadata_props if entry.key == METADATA), None)


def _of_pt2(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = next((name for name in archive.namelist() if name.endswith(f"/{METADATA}")), None)
            return None if inside is None else archive.read(inside).decode()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is no file of torch.export, or a damaged one ({error})") from error


def tell_exported(path: Path) -> None:
    """Print what an exported file is; ValueError where it is none."""
    facts = read_metadata(path)
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} is of the format {facts.get('format')!r}, this version reads {FORMAT!r}; export the checkpoint "
            "again"
        )
    kind = "ONNX" if path.suffix == ".onnx" else "torch.export"
    flip, decoding, of = facts["flip_test"], facts["decoding"], facts["checkpoint"]
    decoded = "inside the file" if decoding["inside"] else "left to the program"
    rows = [
        ("kind", f"{kind}, {path.stat().st_size / 1e6:.1f} MB, {facts['precision']}"),
        ("takes", _axes(facts["input"])),
        ("gives", "; ".join(_axes(output) for output in facts["outputs"])),
        (
            "crop",
            f"box widened to {facts['input']['width']}:{facts['input']['height']}, times {facts['crop']['padding']:g}",
        ),
        ("decoding", f"{decoding['kind']}, {decoded}"),
        ("flip test", f"{'inside' if flip['inside'] else 'not inside'}; evaluation {_with(flip['in_evaluation'])} it"),
        ("visibility", _calibrated(facts.get("visibility"))),
        ("skeleton", f"{facts['skeleton']['name']} ({len(facts['skeleton']['joints'])} joints)"),
        ("network", ", ".join(f"{key}={value}" for key, value in facts["network"].items() if key in _NETWORK_SAYS)),
        ("checkpoint", ", ".join(f"{key} {value}" for key, value in of.items() if value is not None) or "unknown"),
    ]
    console.table(["", str(path)], rows)


def _calibrated(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not calibrated"
    flip = "" if found["fits_this_file"] else f", for peaks {'with' if found['flip_test'] else 'without'} the flip test"
    return f"calibrated on {found['persons']} persons (Brier score {found['brier']:.4f}){flip}"


def _axes(tensor: dict[str, Any]) -> str:
    return f"{tensor['name']} {tensor['dtype']} ({', '.join(map(str, tensor['axes']))})"


def _with(used: bool) -> str:
    return "uses" if used else "does not use"
