"""`efafnet export CHECKPOINT OUT`: a trained network as a file that needs nothing of this package.

Both kinds of file take normalised crops ``images`` float32 (N, 3, H, W), N free, and give ``heatmaps`` float32
(N, K, h, w). One JSON document beside the network says the rest: how a crop is cut and normalised, which heatmap is
which joint, how a heatmap is decoded. In ONNX it is the metadata property ``efafnet.json``, in a ``.pt2`` the extra
file of that name::

    json.loads(onnxruntime.InferenceSession("network.onnx").get_modelmeta().custom_metadata_map["efafnet.json"])
    extra = {"efafnet.json": ""}
    program = torch.export.load("network.pt2", extra_files=extra)
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efafnet.models.network import PoseNetwork, normalise
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.evaluation.trained import Trained
from efafnet.pipelines.prediction.config import ExportConfig
from efafnet.pipelines.prediction.predictor import PosePredictor
from efafnet.platform import console
from efafnet.platform.provenance import code_version
from efafnet.platform.storage import check_output_file, write_bytes

METADATA = "efafnet.json"
CHECKED_BATCHES = (1, 2, 5)
"""Batch sizes at which a file must give what PyTorch gives; the network is traced at another one."""
_TRACED_BATCH = 3
_ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    largest_difference: float
    """Over the checked batches, relative to the largest heatmap value."""
    metadata: dict[str, Any]


class _Heatmaps(nn.Module):
    """A network that returns its heatmaps as a plain tensor: a class of ours would be needed to read the file."""

    def __init__(self, network: PoseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        heatmaps: Tensor = self.network(images).heatmaps
        return heatmaps


def run_export(config: ExportConfig) -> Exported:
    """Export, check and write; what is at ``config.out`` afterwards is whole and gives PyTorch's heatmaps.

    Raises ValueError or OSError for another ending, a package that is missing, an output that exists or cannot be
    written, a checkpoint that cannot be used, and a file that does not agree with PyTorch.
    """
    make = _maker(config.out)
    check_output_file(config.out, overwrite=config.overwrite)
    predictor = PosePredictor.load(config.checkpoint, weights=config.weights, skeleton=config.skeleton, device="cpu")
    trained, network = predictor.trained, _Heatmaps(predictor.trained.network).eval()
    metadata = describe(trained, predictor.skeleton)
    traced = _images(trained, _TRACED_BATCH)
    content, run = make(_program(network, traced), json.dumps(metadata, indent=1, ensure_ascii=False))
    difference = _largest_difference(config, trained, network, run)
    write_bytes(config.out, content)
    console.say(
        f"{config.out}: {len(content) / 1e6:.1f} MB, heatmaps within {difference:.1e} of PyTorch's (allowed "
        f"{config.tolerance:g} of their largest value) at batch sizes {', '.join(map(str, CHECKED_BATCHES))}"
    )
    return Exported(config.out, difference, metadata)


def describe(trained: Trained, skeleton: Skeleton) -> dict[str, Any]:
    """What a program must know to use the network: the document stored in the file."""
    size, heatmap = trained.input_size, trained.heatmap
    # Mean and standard deviation of what the network is really given, so that there is no second copy of them.
    black, white = normalise(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten(1)
    std = 1 / (white - black)
    return {
        "format": "efafnet heatmaps 1",
        "input": {
            "name": "images", "height": size.height, "width": size.width, "channels": "RGB",
            "mean": [round(v, 6) for v in (-black * std).tolist()], "std": [round(v, 6) for v in std.tolist()],
            "normalisation": "(pixel / 255 - mean) / std",
        },
        "crop": {"padding": trained.padding, "udp": trained.udp, "interpolation": "bilinear, 0 outside the image"},
        "output": {"name": "heatmaps", "stride": heatmap.stride},
        "heatmap": heatmap.model_dump(mode="json"),
        "flip_test": {"used": trained.test.flip_test, "shift_one_column": heatmap.flip_shift},
        "skeleton": skeleton.model_dump(mode="json"),
        "checkpoint": {name: trained.meta.get(name) for name in ("run", "step", "mlflow_run_id", "config_digest")},
        "network": trained.settings.model_dump(mode="json"),
        "code": code_version(),
    }  # fmt: skip


def _images(trained: Trained, count: int) -> Tensor:
    """Normalised noise (count, 3, H, W)."""
    size, generator = trained.input_size, torch.Generator().manual_seed(count)
    shape = (count, 3, size.height, size.width)
    return normalise(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))


def _program(network: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        # Where in this machine's files each operation came from is nobody else's business.
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(name, None)
    # Else the file would carry the noise it was traced with.
    program.example_inputs = None
    return program


Run = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) -> heatmaps (N, K, h, w), by what was read back from the written bytes."""
Maker = Callable[[torch.export.ExportedProgram, str], tuple[bytes, Run]]


def _maker(out: Path) -> Maker:
    if out.suffix == ".pt2":
        return _pt2
    if out.suffix != ".onnx":
        raise ValueError(
            f"out={out}: the ending says the kind of file; write NAME.onnx (ONNX) or NAME.pt2 (torch.export)"
        )
    missing = [name for name in _ONNX_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs the packages {', '.join(_ONNX_NEEDS)}, and {', '.join(missing)} cannot be found; install them "
            "with: pip install -c constraints.txt -e '.[export]', or write NAME.pt2, which needs none of them"
        )
    return _onnx


def _pt2(program: torch.export.ExportedProgram, metadata: str) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: metadata})
    content = buffer.getvalue()
    module = torch.export.load(io.BytesIO(content)).module()
    return content, module


def _onnx(program: torch.export.ExportedProgram, metadata: str) -> tuple[bytes, Run]:
    import onnxruntime

    with _without_chatter():
        made = torch.onnx.export(
            program, dynamo=True, optimize=True, verbose=False, input_names=["images"], output_names=["heatmaps"]
        )
    assert made is not None
    made.model.metadata_props[METADATA] = metadata
    content: bytes = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(["heatmaps"], {"images": images.numpy()})[0])


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Silence what the exporter tells about its own insides; its errors remain."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _largest_difference(config: ExportConfig, trained: Trained, network: nn.Module, run: Run) -> float:
    largest = 0.0
    for count in CHECKED_BATCHES:
        images = _images(trained, count)
        with torch.no_grad():
            expected, found = network(images), run(images)
        difference = (
            float((found - expected).abs().max() / expected.abs().max()) if found.shape == expected.shape else 1.0
        )
        # Not below the tolerance is also true of NaN.
        if not difference <= config.tolerance:
            raise ValueError(
                f"{config.out.suffix} differs from PyTorch by {difference:.2e} of the largest heatmap value at batch "
                f"size {count}, more than tolerance={config.tolerance:g}; nothing was written. Allow more, or write "
                "the other kind"
            )
        largest = max(largest, difference)
    return largest
