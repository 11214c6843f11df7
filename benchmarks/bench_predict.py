"""Pictures per second of `efafnet predict`: images with boxes, a video, with a detector; side by side or in series.

    python -m benchmarks.bench_predict

Made-up images of 640x480 with three boxes each, and a video of them, through an untrained network in this process.
Decoding, finding, predicting and drawing work in series, side by side, and side by side with one thread of torch fewer,
so that a core is left to the others: `predict` itself takes the first where torch's threads fill the cores, and side by
side else. Rounds in turns; by the clock, and processor time beside it. `--detector` also looks for persons with an
untrained Faster R-CNN (mobilenet_v3_large_320_fpn), one frame at a time and eight together. `--case NAME` measures
those cases alone whose names begin so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import Record, add_option, recorded
from efafnet.models.network import NetworkConfig, build_network
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.prediction.config import PredictConfig
from efafnet.pipelines.prediction.predict import run_predict
from efafnet.platform import console, machine
from efafnet.platform.checkpoint import save_checkpoint

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIZE = (640, 480)
PERSONS = 3
WAYS = {"in series": (False, 0), "side by side": (True, 0), "side by side, a thread fewer": (True, 1)}
"""Whether stages work side by side, and threads of torch that are left away."""


def _pictures(count: int) -> Iterator[NDArray[np.uint8]]:
    """Smooth pictures (480, 640, 3) of about the size that photographs have as JPEG files."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = rng.integers(0, 256, (30, 40, 3), np.uint8)
        fine = rng.integers(-12, 13, (SIZE[1], SIZE[0], 3))
        yield np.clip(cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC) + fine, 0, 255).astype(np.uint8)


def _inputs(folder: Path, count: int) -> None:
    """Images, the boxes of their persons, and a video of the same pictures."""
    (folder / "images").mkdir()
    video = cv2.VideoWriter(str(folder / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, SIZE)
    boxes: list[dict[str, Any]] = []
    for number, picture in enumerate(_pictures(count), start=1):
        cv2.imwrite(str(folder / "images" / f"{number:06d}.jpg"), picture)
        video.write(picture)
        for n in range(PERSONS):
            box = [20.0 + 200 * n, 60.0, 160.0, 380.0]
            boxes.append({"image_id": number, "category_id": 1, "bbox": box, "score": 0.9})
    video.release()
    (folder / "boxes.json").write_text(json.dumps(boxes))
    # A single video's boxes are known by the frame's number, from 0.
    (folder / "frames.json").write_text(json.dumps([{**box, "image_id": box["image_id"] - 1} for box in boxes]))


def _network(folder: Path, encoder: str) -> Path:
    settings = NetworkConfig.model_validate({"encoder": encoder})
    torch.manual_seed(0)
    save_checkpoint(
        folder / "checkpoint",
        weights={"network": build_network(settings, COCO_17.num_joints).state_dict()},
        state={},
        config={
            "network": settings.model_dump(mode="json"), "input": {"height": 256, "width": 192}, "heatmap": {},
            "augmentation": {"padding": 1.25}, "test": {},
        },
        meta={"skeleton": COCO_17.name, "step": 0},
    )  # fmt: skip
    return folder / "checkpoint"


def _cases(folder: Path, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Settings of each case."""
    images = {"inputs": [folder / "images"], "boxes": folder / "boxes.json"}
    video = {"inputs": [folder / "video.mp4"], "boxes": folder / "frames.json"}
    cases: dict[str, dict[str, Any]] = {
        "images, drawn": images, "video, drawn": video, "video, not drawn": {**video, "pictures": False},
    }  # fmt: skip
    if given.detector:
        from torchvision.models import get_model  # type: ignore[import-untyped]

        weights = folder / "detector.pth"
        torch.save(get_model(DETECTOR, weights=None, weights_backbone=None).state_dict(), weights)
        for size in (1, 8):
            detector = {"name": DETECTOR, "weights": weights, "batch_size": size}
            cases[f"video, detector by {size}"] = {"inputs": [folder / "video.mp4"], "detector": detector}
    return {name: settings for name, settings in cases.items() if name.startswith(given.case)}


@contextlib.contextmanager
def _working(way: str) -> Iterator[None]:
    """Predict that way, whatever this machine would do."""
    side_by_side, fewer = WAYS[way]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - fewer))
    try:
        with mock.patch.object(machine, "has_core_beside", return_value=side_by_side):
            yield
    finally:
        torch.set_num_threads(threads)


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    began, worked = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        call()
    return time.perf_counter() - began, time.process_time() - worked


def _measure(folder: Path, given: argparse.Namespace, record: Record) -> None:
    _inputs(folder, given.pictures)
    checkpoint = _network(folder, given.encoder)
    cases = _cases(folder, given)
    found: dict[str, list[tuple[float, float]]] = {f"{name}, {way}": [] for name in cases for way in WAYS}
    for _ in range(given.rounds):
        for name, settings in cases.items():
            config = PredictConfig.model_validate(
                {"checkpoint": checkpoint, "output": folder / "out", "overwrite": True, **settings}
            )
            for way in WAYS:
                with _working(way):
                    found[f"{name}, {way}"].append(_timed(lambda config=config: run_predict(config)))  # type: ignore[misc]
    rows = []
    for name, times in found.items():
        rates = [given.pictures / clock_s for clock_s, _ in times]
        record.add(name, "pictures/s", rates, more_is_better=True)
        worked = statistics.median(cpu_s for _, cpu_s in times)
        rows.append([name, f"{statistics.median(rates):.1f}", f"{1000 * worked / given.pictures:.1f}"])
    console.table(["case", "pictures/s", "processor ms a picture"], rows)


def main() -> None:
    """Make pictures, predict them, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="nano", choices=("nano", "resnet50"))
    parser.add_argument("--pictures", type=int, default=150, help="images, and frames of the video")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--detector", action="store_true", help="also with a person detector")
    parser.add_argument("--case", default="", help="only the cases whose names begin so")
    add_option(parser)
    given = parser.parse_args()
    with recorded("bench_predict", given) as record, tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), given, record)


if __name__ == "__main__":
    main()
