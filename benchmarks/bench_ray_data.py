"""Reading a crop store through Ray Data and with the reader: the same persons, decoded and warped, in batches of 64.

    python -m benchmarks.bench_ray_data

Why bulk work (preparing, prediction) runs on Ray Data and training does not. Both on all cores, in turns; medians
count. Ray runs already and its workers have loaded the code when the clock starts. Ray Data reads in order: shuffling
would cost it more.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import closing

import pyarrow as pa

from benchmarks.people import Rate, arguments, cpu_s, people
from benchmarks.record import recorded
from efafnet.models.settings import InputSize
from efafnet.pipelines.crops.config import ReaderConfig
from efafnet.pipelines.crops.groups import COLUMNS
from efafnet.pipelines.crops.reader import EvalReader
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.crop_view import CropView
from efafnet.platform import cluster, console

SIZE, BATCH = InputSize(height=256, width=192), 64


def through_ray(store: CropStore) -> Generator[int]:
    """Batches of one pass through Ray Data."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    view = CropView(store.manifest.encoding, SIZE, 1.25, False)
    shards = [str(store.file(shard).absolute()) for shard in store.manifest.shards]
    rows = ray.data.read_parquet(shards, override_num_blocks=2 * len(shards)).select_columns([*COLUMNS, "person_id"])
    crops = rows.map_batches(_warp, batch_size=BATCH, batch_format="pyarrow", fn_kwargs={"view": view})  # type: ignore[arg-type]  # Ray types functions of one argument
    for batch in crops.iter_batches(batch_size=BATCH, batch_format="pyarrow"):
        yield len(batch)


def _warp(table: pa.Table, view: CropView) -> pa.Table:
    return view(table)


def direct(store: CropStore) -> Generator[int]:
    """Batches of one pass of the reader."""
    config = ReaderConfig(threads=len(os.sched_getaffinity(0)))
    with EvalReader(store, input_size=SIZE, batch_size=BATCH, config=config) as reader:
        for batch in reader.batches():
            yield len(batch)


def one_pass(start: Callable[[], Generator[int]]) -> tuple[float, Rate]:
    """Seconds to the first batch, and the rate of the whole pass."""
    began, cpu = time.perf_counter(), cpu_s()
    with closing(start()) as batches:
        count = next(batches)
        first_s = time.perf_counter() - began
        count += sum(batches)
    return first_s, Rate(count / (time.perf_counter() - began), 1000 * (cpu_s() - cpu) / count)


def main() -> None:
    """Draw, prepare, measure, print."""
    parser = arguments(__doc__, pictures=800)
    parser.add_argument("--rounds", type=int, default=3, help="passes of both; medians count")
    given = parser.parse_args()
    with recorded("bench_ray_data", given) as record, people(given) as data:
        store = data.store("jpeg")
        cluster.connect(cluster.ClusterConfig(address="local"))
        contenders = {"Ray Data": lambda: through_ray(store), "reader": lambda: direct(store)}
        sum(through_ray(store))
        found: dict[str, list[tuple[float, Rate]]] = {name: [] for name in contenders}
        for _ in range(given.rounds):
            for name, start in contenders.items():
                found[name].append(one_pass(start))
        for name, passes in found.items():
            record.add(f"{name}, first batch", "s", [first_s for first_s, _ in passes])
            record.add(name, "CPU ms/sample", [rate.cpu_ms for _, rate in passes])
    rows = []
    for name, passes in found.items():
        first_s = statistics.median(first for first, _ in passes)
        per_s, cpu_ms = (statistics.median(getattr(rate, key) for _, rate in passes) for key in ("per_s", "cpu_ms"))
        rows.append([name, f"{first_s:.2f}", f"{per_s:.0f}", f"{cpu_ms:.2f}"])
    cores = len(os.sched_getaffinity(0))
    title = f"{cores} cores, {store.num_persons} persons, medians of {given.rounds} passes"
    console.table(["", "first batch, s", "samples/s", "CPU ms/sample"], rows, title=title)


if __name__ == "__main__":
    main()
