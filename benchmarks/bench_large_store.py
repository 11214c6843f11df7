"""What a store of a hundred million persons costs before the first picture is read.

`python benchmarks/bench_large_store.py --manifest FILE`, twice: the first call writes the manifest of 200,000 shards of
500 persons, none of which exists, the second measures. Opening is reading the manifest and laying out the row groups;
the order is that of an epoch and of one batch from its middle. CPU time, since that is what a busy machine does not
change, and the largest resident memory of the process so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.record import Record, add_option, recorded
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.pipelines.crops.file_table import FileTable
from efafnet.pipelines.crops.manifest import (
    COLUMNS_VERSION,
    Counts,
    Encoding,
    Manifest,
    parse_manifest,
    sealed,
)
from efafnet.pipelines.crops.order import SampleOrder
from efafnet.pipelines.crops.store import RowGroups

T = TypeVar("T")


def document(shards: int, rows: int) -> bytes:
    """A sound manifest of shards that do not exist."""
    sha = "0" * 64
    names = [f"persons-{n:05d}.parquet" for n in range(shards)]
    named = FileTable(names, [rows] * shards, [rows * 30_000] * shards, [sha] * shards, [sha] * shards)
    persons = shards * rows
    counts = Counts(images=persons, images_read=persons, annotations=persons, crowds=0, persons=persons, reduced=0)
    manifest = Manifest(
        format_version=COLUMNS_VERSION, skeleton=COCO_17, sources=(), envelope=Envelope(), encoding=Encoding(),
        max_oversampling=2.0, rows_per_group=32, shards=named, tables=(), counts=counts, rejects={}, versions={},
        input_digest=sha, digest=sha, page_checksums=True,
    )  # fmt: skip
    return json.dumps(sealed(manifest), indent=2).encode()


def measured(what: str, call: Callable[[], T], record: Record) -> T:
    """Do it, and print what it took."""
    began = time.process_time()
    found = call()
    cpu_s, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record.add(what, "CPU s", [cpu_s])
    record.add(f"{what}, largest memory so far", "MiB", [peak])
    print(f"{what:42} {cpu_s:8.2f} s CPU {peak:8.0f} MiB peak", flush=True)
    return found


def main() -> None:
    """Make up the manifest in a process of its own, so that its memory does not count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--manifest", type=Path, help="file to write the manifest to, or to read it from if it exists")
    add_option(parser)
    arguments = parser.parse_args()
    if arguments.manifest is None:
        parser.error("give --manifest FILE: the first call writes it, the second measures")
    if not arguments.manifest.exists():
        arguments.manifest.write_bytes(document(arguments.shards, arguments.rows))
        print(f"{arguments.manifest}: {arguments.manifest.stat().st_size / 1e6:.0f} MB; call again to measure")
        return
    with recorded("bench_large_store", arguments) as record:
        measure(arguments.manifest, record)


def measure(path: Path, record: Record) -> None:
    """Open the store, and ask for an order."""
    content = path.read_bytes()
    measured("start", lambda: None, record)
    manifest = measured("read the manifest", lambda: parse_manifest(content, path), record)
    groups = measured(
        "lay out the row groups",
        lambda: RowGroups.of(manifest.shards.rows, manifest.rows_per_group),
        record,
    )
    order = SampleOrder(groups, manifest.digest, 0, 64)
    measured("order of an epoch", lambda: order.epoch(0), record)
    measured("one batch of 1024 in its middle", lambda: order.batch(groups.num_rows // 2048, 1024), record)
    print(f"{groups.num_rows} persons in {len(groups)} row groups")


if __name__ == "__main__":
    main()
