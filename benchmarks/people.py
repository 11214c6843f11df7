"""What the data benchmarks share: synthetic people in pictures like COCO's, crop stores of them, rates.

Like COCO's in what costs time: 640x480 pixels, JPEG of quality 96 without chroma subsampling, people half as large as
the picture is usually drawn with (four drawings make a picture, and only the people of the first are annotated). With a
directory everything is kept there and used again by the next benchmark; without one it is temporary.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from benchmarks.record import add_option
from efafnet.pipelines.crops.prepare import PrepareConfig, run_prepare
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.synth.dataset import SynthConfig, run_synth
from efafnet.platform.storage import atomic_directory

_DRAWING = {"height": 240, "width": 320}
_LIKE_COCO = [cv2.IMWRITE_JPEG_QUALITY, 96, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


@dataclass(frozen=True)
class People:
    """A COCO-style set on disk, and where stores of it are kept."""

    annotations: Path
    images: Path
    stores: Path

    def store(self, name: str, **settings: Any) -> CropStore:
        """Prepare the store ``name``, unless it is there."""
        given = {"annotations": self.annotations, "images": self.images, "out": self.stores / name, **settings}
        return run_prepare(PrepareConfig.model_validate({"workers": 0, **given}))


@dataclass(frozen=True)
class Rate:
    """How fast something was, per sample or per image."""

    per_s: float
    """Number per second of the wall clock."""
    cpu_ms: float
    """CPU milliseconds of one, over all threads and processes."""


def cpu_s() -> float:
    """CPU seconds of this process and its children so far."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def median_ratio(rates: list[Rate], others: list[Rate], name: str) -> float:
    """Median over rounds of the ratio within a round of ``per_s`` or ``cpu_ms``."""
    return float(statistics.median(getattr(a, name) / getattr(b, name) for a, b in zip(rates, others, strict=True)))


def arguments(description: str | None, pictures: int) -> argparse.ArgumentParser:
    """Options that all data benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory for pictures and stores, kept and used again")
    parser.add_argument("--pictures", type=int, default=pictures, help="pictures to draw, of 2.3 persons each")
    parser.add_argument("--annotations", type=Path, help="COCO-style annotations of your own instead of drawn ones")
    parser.add_argument("--images", type=Path, help="their images")
    add_option(parser)
    return parser


@contextlib.contextmanager
def people(given: argparse.Namespace) -> Iterator[People]:
    """The set that the options name, drawn where that is needed."""
    with contextlib.ExitStack() as stack:
        folder = given.data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="efafnet-bench-")))
        if given.annotations is not None:
            yield People(given.annotations, given.images, folder / "stores")
            return
        drawn, pictures = folder / f"drawings-{given.pictures}", folder / f"pictures-{given.pictures}"
        if not drawn.is_dir():
            config = {"out": drawn, "images": {"train": given.pictures, "val": 0}, "image_size": _DRAWING}
            run_synth(SynthConfig.model_validate(config))
        if not pictures.is_dir():
            compose(drawn, pictures)
        yield People(pictures / "annotations.json", pictures / "images", folder / f"stores-{given.pictures}")


def compose(drawn: Path, pictures: Path) -> None:
    """Make each drawing a quarter of a picture, together with the next three."""
    content = json.loads((drawn / "annotations/train.json").read_text())
    files, quarter = [drawn / "images/train" / image["file_name"] for image in content["images"]], {}
    with atomic_directory(pictures) as folder:
        (folder / "images").mkdir()
        for number, image in enumerate(content["images"]):
            parts = [cv2.imread(str(files[(number + i) % len(files)])) for i in range(4)]
            # The annotated drawing takes each of the four places in turn.
            places = [parts[(i - number) % 4] for i in range(4)]
            picture = np.block([[[places[0]], [places[1]]], [[places[2]], [places[3]]]])
            cv2.imwrite(str(folder / "images" / image["file_name"]), picture, _LIKE_COCO)
            height, width = picture.shape[0] // 2, picture.shape[1] // 2
            quarter[image["id"]] = width * (number % 2), height * (number % 4 // 2)
            image.update(width=2 * width, height=2 * height)
        for annotation in content["annotations"]:
            del annotation["segmentation"]
            x, y = quarter[annotation["image_id"]]
            annotation["bbox"][0] += x
            annotation["bbox"][1] += y
            for joint in range(0, len(annotation["keypoints"]), 3):
                if annotation["keypoints"][joint + 2]:
                    annotation["keypoints"][joint] += x
                    annotation["keypoints"][joint + 1] += y
        (folder / "annotations.json").write_text(json.dumps(content))
