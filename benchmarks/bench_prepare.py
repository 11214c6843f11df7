"""Images per second of `efafnet prepare`, beside bare decoding, cutting and encoding of the same crops.

    python -m benchmarks.bench_prepare

On one core and on two, in turns, several rounds; medians count. Prepared through Ray Data (which is running already:
its start is said apart) and in one process, in shards of the usual size. The CPU time of an image over all processes
stands beside the wall clock: on a machine with other work it is the steadier figure. The last lines say what COCO's
training set would take.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks.people import People, Rate, arguments, cpu_s, median_ratio, people
from benchmarks.record import Record, recorded
from efafnet.pipelines.crops.decode import DECODE_FLAGS
from efafnet.pipelines.crops.store import CropStore
from efafnet.platform import cluster, console

# COCO train2017: images with annotated persons' joints, and those persons.
COCO_IMAGES, COCO_PERSONS = 57_000, 150_000

Cuts = list[tuple[Path, list[tuple[int, int, int, int]]]]
"""Image files, and x1, y1, x2, y2 of the crops of each."""


def cuts_of(data: People, store: CropStore) -> Cuts:
    """The crops that ``store`` holds."""
    table = store.columns(["file_name", "crop_to_image", "crop_width", "crop_height"])
    corners = np.array(table["crop_to_image"].to_pylist())[:, [2, 5]].astype(int)
    sizes = np.stack([table["crop_width"].to_numpy(), table["crop_height"].to_numpy()], axis=1)
    found: dict[str, list[tuple[int, int, int, int]]] = {}
    for name, (x, y), (width, height) in zip(
        table["file_name"].to_pylist(), corners.tolist(), sizes.tolist(), strict=True
    ):
        found.setdefault(name, []).append((x, y, x + width, y + height))
    return [(data.images / name, boxes) for name, boxes in found.items()]


def bare(cuts: Cuts, cores: int) -> None:
    """Read, decode, cut, encode: what no preparation can do without."""
    cv2.setNumThreads(0)
    options = [cv2.IMWRITE_JPEG_QUALITY, 96, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]

    def one(image: tuple[Path, list[tuple[int, int, int, int]]]) -> None:
        path, boxes = image
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), DECODE_FLAGS)
        assert pixels is not None
        for x1, y1, x2, y2 in boxes:
            cv2.imencode(".jpg", pixels[y1:y2, x1:x2], options)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(one, cuts))


def timed(work: Callable[[], object], images: int) -> Rate:
    """Images per second and CPU milliseconds per image of ``work``."""
    began, cpu = time.perf_counter(), cpu_s()
    work()
    return Rate(images / (time.perf_counter() - began), 1000 * (cpu_s() - cpu) / images)


def compare(data: People, cuts: Cuts, rounds: int, cores: int, record: Record) -> None:
    """Print the contenders side by side on ``cores`` cores."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(everywhere)[:cores])
    try:
        began = time.perf_counter()
        cluster.connect(cluster.ClusterConfig(address="local", num_cpus=cores))
        console.say(f"Ray started in {time.perf_counter() - began:.1f} s")
        contenders: dict[str, Callable[[], object]] = {
            "decode, cut, encode": lambda: bare(cuts, cores),
            "prepare, Ray Data": lambda: prepare(data, None),
        }
        if cores == 1:
            contenders["prepare workers=0"] = lambda: prepare(data, 0)
        # Ray's workers load the code once; a long job does not notice.
        began = time.perf_counter()
        prepare(data, None)
        console.say(f"first store through Ray Data: {time.perf_counter() - began:.1f} s")
        found: dict[str, list[Rate]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, work in contenders.items():
                found[name].append(timed(work, len(cuts)))
    finally:
        os.sched_setaffinity(0, everywhere)
        _leave_ray()
    for name, rates in found.items():
        record.add(f"{name}, {cores} cores", "CPU ms/image", [rate.cpu_ms for rate in rates])
        record.add(f"{name}, {cores} cores, by the clock", "images/s", [r.per_s for r in rates], more_is_better=True)
    _show(found, cores, rounds)


def prepare(data: People, workers: int | None) -> None:
    """Prepare a store from nothing."""
    shutil.rmtree(data.stores / "again", ignore_errors=True)
    data.store("again", workers=workers)


def _leave_ray() -> None:
    import ray

    ray.shutdown()


def _show(found: dict[str, list[Rate]], cores: int, rounds: int) -> None:
    reference, rows = next(iter(found.values())), []
    for name, rates in found.items():
        per_s = statistics.median(rate.per_s for rate in rates)
        cpu_ms = statistics.median(rate.cpu_ms for rate in rates)
        share = 100 * median_ratio(rates, reference, "per_s"), 100 / median_ratio(rates, reference, "cpu_ms")
        rows.append([name, f"{per_s:.0f}", f"{cpu_ms:.2f}", f"{1000 / cpu_ms:.0f}", "{:.0f} / {:.0f}".format(*share)])
    columns = ["", "images/s", "CPU ms/image", "images/CPU s", "% of the first"]
    title = f"{cores} core{'s' * (cores > 1)}, medians of {rounds} rounds; shares by wall clock / by CPU time"
    console.table(columns, rows, title=title)


def extrapolate(data: People, store: CropStore, rounds: int) -> None:
    """Print what COCO's training set would take, from one process: persons and images are told apart."""
    rate = statistics.median(
        timed(lambda: prepare(data, 0), store.manifest.counts.images_read).cpu_ms for _ in range(rounds)
    )
    counts, size = store.manifest.counts, sum(record.bytes for record in store.manifest.shards)
    per_person = counts.persons / counts.images_read
    hours, gigabytes = COCO_IMAGES * rate / 3.6e6, COCO_PERSONS * size / counts.persons / 1e9
    console.say(
        f"here {per_person:.1f} persons an image, {size / counts.persons / 1000:.0f} kB a crop; COCO train2017 "
        f"({COCO_IMAGES} images, {COCO_PERSONS} persons, {COCO_PERSONS / COCO_IMAGES:.1f} an image) at this rate: "
        f"{hours:.2f} hours of one core, {gigabytes:.1f} GB"
    )


def main() -> None:
    """Draw, prepare, measure, print."""
    parser = arguments(__doc__, pictures=9200)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all contenders; medians count")
    given = parser.parse_args()
    with recorded("bench_prepare", given) as record, people(given) as data:
        store = data.store("jpeg")
        cuts = cuts_of(data, store)
        for cores in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
            compare(data, cuts, given.rounds, cores, record)
        extrapolate(data, store, given.rounds)


if __name__ == "__main__":
    main()
