"""What the encodings of a crop store cost in size, in time and in exactness.

    python -m benchmarks.bench_encodings

For every encoding: bytes of a crop, CPU time to prepare a picture and to read a sample (one thread), and how far
samples from the store are from samples taken from the original pictures, over the whole envelope: every sample is
rotated, by up to 80 degrees, scaled and mirrored, and a third shows half a body. Pixels outside the picture must be 0
in both.
"""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.people import People, arguments, cpu_s, people
from benchmarks.record import recorded
from efafnet.models.settings import InputSize
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.config import ReaderConfig
from efafnet.pipelines.crops.reader import TrainReader
from efafnet.pipelines.crops.store import CropStore
from efafnet.platform import console

SIZE, BATCH, SAMPLES = InputSize(height=256, width=192), 32, 640
WILD = AugmentationConfig(rotation_probability=1.0, half_body_probability=0.33)
ENCODINGS: dict[str, dict[str, Any]] = {
    "JPEG, as the source": {},
    "JPEG 95, 4:4:4": {"quality": 95},
    "JPEG 90, 4:4:4": {"quality": 90},
    "JPEG 90, 4:2:0": {"quality": 90, "chroma": "420"},
    "JPEG 75, 4:2:0": {"quality": 75, "chroma": "420"},
    "PNG": {"format": "png"},
    "raw": {"format": "raw"},
}
ANGLES = (0, 20, 40, 60, 80)


@dataclass
class Distance:
    """How far samples are from those of the original pictures, in grey levels of the pixels inside the picture."""

    absolute: float = 0.0
    squared: float = 0.0
    pixels: int = 0
    joints_px: float = 0.0
    outside: int = 0
    """Pixels outside the picture that are not 0."""

    def add(
        self, sample: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_]
    ) -> None:
        """Count one sample (H, W, 3)."""
        difference = np.abs(sample.astype(np.int64) - expected)[inside]
        self.absolute += float(difference.sum())
        self.squared += float((difference**2).sum())
        self.pixels += difference.size

    @property
    def mean(self) -> float:
        """Mean absolute difference."""
        return self.absolute / max(1, self.pixels)

    @property
    def psnr_db(self) -> float:
        """Peak signal-to-noise ratio in decibels."""
        return 10 * math.log10(255**2 / (self.squared / self.pixels)) if self.squared else math.inf


class Originals:
    """The original pictures and joints of a store's rows."""

    def __init__(self, data: People, store: CropStore) -> None:
        table = store.columns(["file_name", "joints_px", "visibility"])
        self._folder, self._names = data.images, table["file_name"].to_pylist()
        self._joints = np.array(table["joints_px"].to_pylist()).reshape(len(table), -1, 2)
        self._seen = np.array(table["visibility"].to_pylist()) > 0
        self._swap = list(store.skeleton.flip_permutation)

    def picture(self, row: int) -> npt.NDArray[np.uint8]:
        """Picture (h, w, 3) RGB."""
        found = cv2.imread(str(self._folder / self._names[row]), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        assert found is not None
        return np.asarray(found[:, :, ::-1], np.uint8)

    def joint_error_px(self, batch: Batch, n: int) -> float:
        """Largest distance in input pixels of a joint of sample ``n`` from where its affine puts the annotated one."""
        affine = batch.input_to_image[n].numpy()
        row = int(batch.rows[n])
        order = self._swap if np.linalg.det(affine[:, :2]) < 0 else list(range(len(self._swap)))
        wanted = (self._joints[row][order] - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T
        error = np.abs(batch.joints_px[n].numpy() - wanted)[self._seen[row][order]]
        return float(error.max(initial=0.0))


def distances(data: People, store: CropStore) -> tuple[Distance, dict[int, Distance]]:
    """Distance of samples over the whole envelope, and by rotation."""
    originals, total = Originals(data, store), Distance()
    by_angle = {angle: Distance() for angle in ANGLES[1:]}
    with TrainReader(store, input_size=SIZE, augmentation=WILD, global_batch=BATCH, seed=2) as reader:
        for batch in reader.batches(0, SAMPLES // BATCH):
            for n in range(BATCH):
                affine = batch.input_to_image[n].numpy()
                turned = math.degrees(math.atan2(abs(affine[0, 1]), abs(affine[0, 0])))
                picture = originals.picture(int(batch.rows[n]))
                flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
                expected = cv2.warpAffine(picture, affine, (SIZE.width, SIZE.height), flags=flags)
                sample, where = batch.images[n].numpy().transpose(1, 2, 0), _places(affine)
                height, width = picture.shape[:2]
                inside = ((where > -1) & (where < (width, height))).all(axis=-1)
                total.outside += int(sample[~inside].any(axis=-1).sum() + expected[~inside].any(axis=-1).sum())
                total.joints_px = max(total.joints_px, originals.joint_error_px(batch, n))
                for found in (total, by_angle[next(limit for limit in ANGLES[1:] if turned <= limit + 1e-6)]):
                    found.add(sample, np.asarray(expected, np.uint8), np.asarray(inside, np.bool_))
    return total, by_angle


def _places(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where every input pixel lies in the picture: (H, W, 2)."""
    grid = np.stack(np.meshgrid(np.arange(SIZE.width), np.arange(SIZE.height)), axis=-1)
    return grid @ affine[:, :2].T + affine[:, 2]


def prepare_ms(data: People, encoding: dict[str, Any]) -> float:
    """CPU milliseconds to prepare one picture."""
    shutil.rmtree(data.stores / "again", ignore_errors=True)
    began = cpu_s()
    store = data.store("again", encoding=encoding)
    return 1000 * (cpu_s() - began) / store.manifest.counts.images_read


def read_ms(store: CropStore) -> list[float]:
    """CPU milliseconds to read one sample of training with COCO's augmentation, five times."""
    taken = []
    config = ReaderConfig(threads=1)
    with TrainReader(
        store, input_size=SIZE, augmentation=AugmentationConfig(), global_batch=BATCH, seed=0, config=config
    ) as reader:
        batches = reader.batches(0, 10**9)
        next(batches)
        for _ in range(5):
            began, count = cpu_s(), 0
            while count < 256:
                count += len(next(batches))
            taken.append(1000 * (cpu_s() - began) / count)
    return taken


def main() -> None:
    """Draw, prepare, measure, print."""
    given = arguments(__doc__, pictures=200).parse_args()
    with recorded("bench_encodings", given) as record, people(given) as data:
        prepare_ms(data, {})  # the first one loads code
        rows, angles = [], {}
        for name, encoding in ENCODINGS.items():
            prepared = [prepare_ms(data, encoding) for _ in range(3)]
            store = CropStore.open(data.stores / "again")
            size = sum(shard.bytes for shard in store.manifest.shards) / store.num_persons / 1000
            total, angles[name] = distances(data, store)
            quality = f"{total.mean:.3f}", f"{total.psnr_db:.1f}", f"{total.joints_px:.0e}", total.outside
            read = read_ms(store)
            record.add(f"prepare a picture, {name}", "CPU ms", prepared)
            record.add(f"read a sample, {name}", "CPU ms", read)
            record.add(f"a crop, {name}", "kB", [size], exact=True)
            times = f"{statistics.median(prepared):.1f}", f"{statistics.median(read):.2f}"
            rows.append([name, f"{size:.0f}", *times, *quality])
        columns = ["", "kB a crop", "prepare, ms", "read, ms", "mean difference", "PSNR, dB", "joints, px", "not 0"]
        console.table(columns, rows, title=f"{SAMPLES} samples over the whole envelope; CPU ms a picture and a sample")
        source = angles["JPEG, as the source"]
        turned = [
            [f"{low} to {high}", f"{source[high].mean:.3f}", f"{source[high].psnr_db:.1f}"]
            for low, high in itertools.pairwise(ANGLES)
        ]
        console.table(["rotation, degrees", "mean difference", "PSNR, dB"], turned, title="JPEG, as the source")


if __name__ == "__main__":
    main()
