"""Samples per second that reach the device: a peer-style loader, this project's reader, and bare JPEG decoding.

    python -m benchmarks.bench_reader

Same persons, same augmentation, 256x192, batches of 64, on one core and on two, JPEG and raw crops. The contenders take
turns, several rounds of a few seconds each; medians count. Beside the wall clock stands the CPU time of a sample over
all threads and processes: on a machine with other work it is the steadier figure. Also: time to the first batch, more
threads, memory, where the time goes, and what normalisation and heatmaps would cost on the CPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.peer_loader import PeerDataset
from benchmarks.people import People, Rate, arguments, cpu_s, median_ratio, people
from benchmarks.record import Record, recorded
from efafnet.models.config import HeatmapConfig
from efafnet.models.heatmaps import encode
from efafnet.models.network import normalise
from efafnet.models.settings import InputSize
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.config import ReaderConfig
from efafnet.pipelines.crops.decode import CropDecoder
from efafnet.pipelines.crops.groups import GroupReader
from efafnet.pipelines.crops.order import SampleOrder
from efafnet.pipelines.crops.reader import TrainReader, window_groups
from efafnet.pipelines.crops.store import CropStore
from efafnet.platform import console

SIZE, BATCH, AUGMENTATION = InputSize(height=256, width=192), 64, AugmentationConfig()
GPU_SAMPLES_PER_S = 3000
# Batches that a loader or reader works on at once, at most.
_IN_FLIGHT = 6
# Crops that bare decoding goes through again and again: more than any cache of the processor holds.
DECODED_GROUPS = 24

Stream = Generator[int]
"""Sizes of batches as they become ready."""


def measure(stream: Stream, seconds: float) -> Rate:
    """Consume ``stream`` for a while, once its queues are as full at the beginning as at the end."""
    for _ in range(_IN_FLIGHT):
        next(stream)
    count, began, cpu = 0, time.perf_counter(), cpu_s()
    while time.perf_counter() - began < seconds:
        count += next(stream)
    return Rate(count / (time.perf_counter() - began), 1000 * (cpu_s() - cpu) / count)


def peer(data: People, store: CropStore, cores: int) -> Stream:
    """torch's DataLoader over a peer-style data set, one worker process per core."""
    dataset = PeerDataset(data.annotations, data.images, store.skeleton, SIZE, AUGMENTATION)
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=cores, persistent_workers=True)
    return (len(batch[0]) for _ in itertools.count() for batch in loader)


def reader(store: CropStore, threads: int) -> Stream:
    """The reader, to a uint8 batch."""
    with _train_reader(store, threads) as made:
        for batch in made.batches(0, 10**9):
            yield len(batch)


def _train_reader(store: CropStore, threads: int) -> TrainReader:
    config = ReaderConfig(threads=threads)
    return TrainReader(store, input_size=SIZE, augmentation=AUGMENTATION, global_batch=BATCH, seed=0, config=config)


def bare_decoding(store: CropStore, threads: int) -> Stream:
    """Nothing but cv2.imdecode of stored crops that lie in memory."""
    cv2.setNumThreads(0)
    decoder = CropDecoder(store.manifest.encoding)
    crops = _crops(store)

    def decode(first: int) -> int:
        for data, width, height in crops[first : first + BATCH]:
            decoder.decode(data, width, height)
        return min(BATCH, len(crops) - first)

    with ThreadPoolExecutor(threads) as pool:
        while True:
            yield from pool.map(decode, range(0, len(crops), BATCH))


def _crops(store: CropStore) -> list[tuple[Any, int, int]]:
    count = min(DECODED_GROUPS, len(store.row_groups))
    with closing(GroupReader(store, 1)) as groups:
        chosen = np.linspace(0, len(store.row_groups) - 1, count).astype(int).tolist()
        groups.want((0, number) for number in chosen)
        found = [groups.get((0, number)).result() for number in chosen]
    return [(group.image(i), *group.crop_size[i].tolist()) for group in found for i in range(len(group.crop_size))]


def compare(
    data: People, stores: dict[str, CropStore], rounds: int, seconds: float, cores: int, record: Record
) -> None:
    """Print the contenders side by side on ``cores`` cores."""
    contenders: dict[str, Callable[[], Any]] = {
        "(a) peer-style loader": lambda: peer(data, stores["jpeg"], cores),
        "(b) reader, JPEG": lambda: reader(stores["jpeg"], cores),
        "(b) reader, raw": lambda: reader(stores["raw"], cores),
        "(c) bare JPEG decoding": lambda: bare_decoding(stores["jpeg"], cores),
    }
    found: dict[str, list[Rate]] = {name: [] for name in contenders}
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(everywhere)[:cores])
    try:
        for _ in range(rounds):
            for name, start in contenders.items():
                with closing(start()) as stream:
                    found[name].append(measure(stream, seconds))
    finally:
        os.sched_setaffinity(0, everywhere)
    slowest, ceiling = found["(a) peer-style loader"], found["(c) bare JPEG decoding"]
    rows = []
    for name, rates in found.items():
        record.add(f"{name}, {cores} cores", "CPU ms/sample", [rate.cpu_ms for rate in rates])
        record.add(f"{name}, {cores} cores, by the clock", "samples/s", [r.per_s for r in rates], more_is_better=True)
        cpu_ms = statistics.median(rate.cpu_ms for rate in rates)
        share = 100 * median_ratio(rates, ceiling, "per_s"), 100 / median_ratio(rates, ceiling, "cpu_ms")
        rows.append(
            [
                name,
                f"{statistics.median(rate.per_s for rate in rates):.0f}",
                f"{cpu_ms:.2f}",
                f"{1000 / cpu_ms:.0f}",
                f"{median_ratio(rates, slowest, 'per_s'):.1f} / {1 / median_ratio(rates, slowest, 'cpu_ms'):.1f}",
                "{:.0f} / {:.0f}".format(*share),
                f"{GPU_SAMPLES_PER_S * cpu_ms / 1000:.1f}",
            ]
        )
    columns = [
        "",
        "samples/s",
        "CPU ms/sample",
        "samples/CPU s",
        "times (a)",
        "% of (c)",
        f"cores for {GPU_SAMPLES_PER_S}/s",
    ]
    title = f"{cores} core{'s' * (cores > 1)}, medians of {rounds} rounds; ratios by wall clock / by CPU time"
    console.table(columns, rows, title=title)


def first_batch(data: People, stores: dict[str, CropStore], record: Record) -> None:
    """Print how long each takes from nothing to its first batch."""

    def once(start: Callable[[], Any]) -> float:
        began = time.perf_counter()
        with closing(start()) as stream:
            next(stream)
            return time.perf_counter() - began

    starts: dict[str, Callable[[], Any]] = {
        "peer-style loader, 2 workers": lambda: peer(data, stores["jpeg"], 2),
        "reader, JPEG": lambda: reader(CropStore.open(stores["jpeg"].path), 2),
        "reader, raw": lambda: reader(CropStore.open(stores["raw"].path), 2),
    }
    rows = []
    for name, start in starts.items():
        times = [once(start) for _ in range(3)]
        record.add(f"first batch, {name}", "s", times)
        rows.append([name, f"{statistics.median(times):.2f}"])
    console.table(["time to the first batch", "s"], rows)


def threads(store: CropStore, seconds: float) -> None:
    """Print the reader's rate with more and more threads on all cores."""
    rows = []
    for count in (1, 2, 4, 8):
        with closing(reader(store, count)) as stream:
            rate = measure(stream, seconds)
        rows.append([count, f"{rate.per_s:.0f}", f"{rate.cpu_ms:.2f}"])
    cores = len(os.sched_getaffinity(0))
    console.table(["threads", "samples/s", "CPU ms/sample"], rows, title=f"reader, JPEG, on {cores} cores")


def shares(store: CropStore, record: Record) -> None:
    """Print what a sample of the reader consists of, and what belongs to the device, one thread each."""
    decoder, crops = CropDecoder(store.manifest.encoding), _crops(store)[:512]
    with _train_reader(store, 1) as made:
        batch = next(made.batches(0, 1))
    torch.set_num_threads(1)
    images = [decoder.decode(*crop) for crop in crops]
    out, turned = np.empty((3, SIZE.height, SIZE.width), np.uint8), np.array([[1.2, 0.4, 0.0], [-0.4, 1.2, 40.0]])
    order, steps = SampleOrder(store.row_groups, store.digest, 0, window_groups(store, 48)), itertools.count()

    def warp() -> None:
        for image in images:
            decoder.warp_into(image, turned, out)

    parts: list[tuple[str, Callable[[], Any], int]] = [
        ("decode a crop", lambda: [decoder.decode(*crop) for crop in crops], len(crops)),
        ("warp and lay out as planes", warp, len(crops)),
        ("choose the samples of a batch", lambda: order.batch(next(steps), BATCH), BATCH),
        ("on the device: normalise", lambda: normalise(batch.images), BATCH),
        ("on the device: heatmaps", lambda: _heatmaps(batch), BATCH),
    ]
    rows = []
    for name, work, count in parts:
        times = []
        for _ in range(5):
            began = time.thread_time()
            work()
            times.append(1000 * (time.thread_time() - began) / count)
        record.add(name, "CPU ms/sample", times)
        rows.append([name, f"{min(times):.3f}"])
    pixels, stored = (np.mean([item.size for item in items]) for items in (images, [crop[0] for crop in crops]))
    title = f"one thread; crops of {pixels / 3000:.0f} thousand pixels in {stored / 1000:.0f} kB"
    console.table(["a sample", "CPU ms"], rows, title=title)


def _heatmaps(batch: Batch) -> torch.Tensor:
    return encode(batch.joints_px, batch.visibility, SIZE, HeatmapConfig()).heatmaps


def memory(store: CropStore) -> None:
    """Print what a process that reads one epoch holds beyond what it held before (in a process of its own)."""
    command = [sys.executable, "-m", "benchmarks.bench_reader", "--memory-of", str(store.path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    before, peak, queue = (float(value) for value in found)
    console.say(
        f"memory of one epoch of {store.num_persons} persons: {peak - before:.0f} MB beyond the {before:.0f} MB of an "
        f"idle process, of which {queue:.0f} MB are the queue of batches"
    )


def _report_memory(path: str) -> None:
    """In a process of its own: anonymous memory before and at most while reading, and the queue's, in MB."""
    store = CropStore.open(path)
    before = peak = _anonymous_mb()
    with _train_reader(store, 2) as made:
        for step, _ in enumerate(made.batches(0, -(-store.num_persons // BATCH))):
            if step % 8 == 0:
                peak = max(peak, _anonymous_mb())
    queue = made.config.prefetch_batches * BATCH * 3 * SIZE.height * SIZE.width
    print(before, peak, queue / 1e6)


def _anonymous_mb() -> float:
    """Memory of this process in MB, without pages of mapped files, which the system takes back when it needs them."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    """Draw, prepare, measure, print."""
    parser = arguments(__doc__, pictures=800)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all contenders; medians count")
    parser.add_argument("--seconds", type=float, default=3.0, help="time given to a contender in a round")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        _report_memory(given.memory_of)
        return
    with recorded("bench_reader", given) as record, people(given) as data:
        stores = {name: data.store(name, encoding={"format": name}) for name in ("jpeg", "raw")}
        for cores in range(1, min(2, len(os.sched_getaffinity(0))) + 1):
            compare(data, stores, given.rounds, given.seconds, cores, record)
        shares(stores["jpeg"], record)
        threads(stores["jpeg"], given.seconds)
        first_batch(data, stores, record)
        for store in stores.values():
            memory(store)


if __name__ == "__main__":
    main()
