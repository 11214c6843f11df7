"""`efafnet export CHECKPOINT OUT`: a trained network as a file that needs nothing of this package.

Both kinds of file take crops ``images`` uint8 (batch, 3, H, W) RGB as they are cut, any number of them, and give either
``heatmaps`` float32 (batch, K, h, w), or ``joints`` float32 (batch, K, 2) in pixels of the crop and ``scores`` (batch,
K). What else a program must know stands in the file itself, see :mod:`.exported`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efafnet.models.config import HeatmapConfig
from efafnet.models.heatmaps import decode, flip_average
from efafnet.models.network import PoseNetwork, normalise
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.evaluation.config import TestOverrides
from efafnet.pipelines.evaluation.trained import Trained
from efafnet.pipelines.prediction.config import ExportConfig
from efafnet.pipelines.prediction.exported import METADATA, describe
from efafnet.pipelines.prediction.pose_predictor import PosePredictor
from efafnet.platform import console
from efafnet.platform.storage import check_output_file, write_bytes

CHECKED_BATCHES = (1, 2, 5)
"""Batch sizes at which a file must give what PyTorch gives; the network is traced at another one."""
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
"""Usual largest difference by precision, relative to the largest value of the heatmaps."""
_TRACED_BATCH = 3
_ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")

Outputs = tuple[Tensor, ...]
Run = Callable[[Tensor], Outputs]
"""Images (N, 3, H, W) -> what the file gives, by what was read back from the written bytes."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    largest_difference: float
    """Over the checked batches, relative to the largest value."""
    metadata: dict[str, Any]


class Deployed(nn.Module):
    """From crops to what is wanted of them, in plain tensors: normalisation, network, flip test, decoding."""

    def __init__(self, trained: Trained, skeleton: Skeleton, config: ExportConfig) -> None:
        super().__init__()
        half = config.precision == "fp16"
        self._dtype = torch.float16 if half else torch.float32
        self.network: PoseNetwork = trained.network.half() if half else trained.network
        self._heatmap, self._size = trained.heatmap, trained.input_size
        self._mirrored = skeleton.flip_permutation if config.flip_test else None
        self._decoded = config.output == "joints"
        self.eval()

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """uint8 (N, 3, H, W) -> heatmaps (N, K, h, w), or joints (N, K, 2) and scores (N, K), float32."""
        pixels = normalise(images).to(self._dtype)
        if self._mirrored is None:
            heatmaps: Tensor = self.network(pixels).heatmaps.float()
        else:
            # In one pass: the file holds the network's operations once.
            both: Tensor = self.network(torch.cat((pixels, pixels.flip(3)))).heatmaps.float()
            plain, mirrored = both.unflatten(0, (2, -1)).unbind()
            heatmaps = flip_average(plain, mirrored, self._mirrored, shift=self._heatmap.flip_shift)
        if not self._decoded:
            return heatmaps
        decoded = decode(heatmaps, self._size, self._heatmap)
        return decoded.joints_px, decoded.scores


def run_export(config: ExportConfig) -> Exported:
    """Export, check and write; what is at ``config.out`` afterwards is whole and gives what PyTorch gives.

    Raises ValueError or OSError for another ending, a setting of the other kind, a package that is missing, an output
    that exists or cannot be written, a checkpoint that cannot be used, and a file that does not agree with PyTorch.
    """
    make = _maker(config)
    check_output_file(config.out, overwrite=config.overwrite)
    test = TestOverrides(decoding=config.decoding)
    predictor = PosePredictor.load(
        config.checkpoint, weights=config.weights, skeleton=config.skeleton, test=test, device="cpu"
    )
    trained = predictor.trained
    trained.tested_as(test.model_copy(update={"flip_test": config.flip_test})).tell_visibility()
    # Before the network is made half precise: what the file is compared with is exact.
    exact = Deployed(trained, predictor.skeleton, config.model_copy(update={"output": "heatmaps", "precision": "fp32"}))
    expected = [exact(_images(trained, count)).detach() for count in CHECKED_BATCHES]
    metadata = describe(trained, predictor.skeleton, config)
    program = _program(Deployed(trained, predictor.skeleton, config), _images(trained, _TRACED_BATCH))
    content, run = make(program, json.dumps(metadata, indent=1, ensure_ascii=False))
    difference = _largest_difference(config, trained, expected, run)
    write_bytes(config.out, content)
    console.say(
        f"{config.out}: {len(content) / 1e6:.1f} MB, {config.output} within {difference:.1e} of PyTorch's (allowed "
        f"{_tolerance(config):g} of their largest value) at batch sizes {', '.join(map(str, CHECKED_BATCHES))}"
    )
    return Exported(config.out, difference, metadata)


def _images(trained: Trained, count: int) -> Tensor:
    """Noise uint8 (count, 3, H, W)."""
    size, generator = trained.input_size, torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size.height, size.width), generator=generator, dtype=torch.uint8)


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


Maker = Callable[[torch.export.ExportedProgram, str], tuple[bytes, Run]]


def _maker(config: ExportConfig) -> Maker:
    if config.out.suffix == ".pt2":
        if config.opset is not None:
            raise ValueError(f"opset={config.opset} is a version of ONNX's operators: leave it out, or write NAME.onnx")
        return _pt2
    if config.out.suffix != ".onnx":
        raise ValueError(
            f"out={config.out}: the ending says the kind of file; write NAME.onnx (ONNX) or NAME.pt2 (torch.export)"
        )
    missing = [name for name in _ONNX_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs the packages {', '.join(_ONNX_NEEDS)}, and {', '.join(missing)} cannot be found; install them "
            "with: pip install -c constraints.txt -e '.[export]', or write NAME.pt2, which needs none of them"
        )
    return lambda program, metadata: _onnx(program, metadata, config)


def _pt2(program: torch.export.ExportedProgram, metadata: str) -> tuple[bytes, Run]:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Torch is unsure of weights that share memory; what it wrote is read back and compared before it is kept.
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        torch.export.save(program, buffer, extra_files={METADATA: metadata})
    content = buffer.getvalue()
    module = torch.export.load(io.BytesIO(content)).module()

    def run(images: Tensor) -> Outputs:
        found = module(images)
        return (found,) if isinstance(found, Tensor) else tuple(found)

    return content, run


def _onnx(program: torch.export.ExportedProgram, metadata: str, config: ExportConfig) -> tuple[bytes, Run]:
    import onnxruntime

    names = ["heatmaps"] if config.output == "heatmaps" else ["joints", "scores"]
    with _without_chatter():
        made = torch.onnx.export(
            program, dynamo=True, optimize=True, verbose=False, opset_version=config.opset, input_names=["images"],
            output_names=names,
        )  # fmt: skip
    assert made is not None
    made.model.metadata_props[METADATA] = metadata
    model = made.model_proto
    _name_batch(model)
    content: bytes = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: tuple(map(torch.from_numpy, session.run(names, {"images": images.numpy()})))


def _name_batch(model: Any) -> None:
    """Call the free axis ``batch``, wherever it or a product of it occurs: the exporter has names of its own."""
    own = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for tensor in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in tensor.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(own)}\b", "batch", dim.dim_param)


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


def _tolerance(config: ExportConfig) -> float:
    return TOLERANCE[config.precision] if config.tolerance is None else config.tolerance


def _largest_difference(config: ExportConfig, trained: Trained, expected: list[Tensor], run: Run) -> float:
    largest, allowed = 0.0, _tolerance(config)
    for count, heatmaps in zip(CHECKED_BATCHES, expected, strict=True):
        with torch.no_grad():
            found = run(_images(trained, count))
        if config.output == "heatmaps":
            difference = _relative(found[0], heatmaps)
        else:
            difference = _joints_difference(found, heatmaps, trained.input_size, trained.heatmap)
        # Not below the tolerance is also true of NaN.
        if not difference <= allowed:
            raise ValueError(
                f"{config.out.suffix} differs from PyTorch by {difference:.2e} of the largest heatmap value at batch "
                f"size {count}, more than tolerance={allowed:g}; nothing was written. Allow more, or write the other "
                "kind"
            )
        largest = max(largest, difference)
    return largest


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return 1.0
    return float((found - expected).abs().max() / expected.abs().max())


def _joints_difference(found: Outputs, heatmaps: Tensor, size: InputSize, heatmap: HeatmapConfig) -> float:
    """By how much scores differ and, where a joint lies elsewhere than PyTorch's, how much lower PyTorch's own map is
    there: rounding decides between cells of one height. Relative to the largest value of the maps.
    """
    exact = decode(heatmaps, size, heatmap)
    joints, scores = found
    if joints.shape != exact.joints_px.shape or scores.shape != exact.scores.shape or not joints.isfinite().all():
        return 1.0
    largest = heatmaps.abs().max()
    difference = float((scores - exact.scores).abs().max() / largest)
    h, w = heatmaps.shape[2:]
    cell = (joints / torch.tensor([size.width / w, size.height / h])).round().long()
    there = heatmaps.flatten(2).gather(2, (cell[..., 1].clamp(0, h - 1) * w + cell[..., 0].clamp(0, w - 1))[..., None])
    lower = (exact.scores - there[..., 0]) / largest
    # A cell's width of sub-pixel refinement is also rounding where a map is flat; a wrong joint is further away.
    moved = (joints - exact.joints_px).norm(dim=2) > size.width / w
    return max(difference, float(torch.where(moved & (exact.scores > 0), lower, torch.zeros_like(lower)).max()))
