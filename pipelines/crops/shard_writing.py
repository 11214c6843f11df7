"""Writing the planned shards: through Ray Data or in this process, into a directory that survives a kill."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import pyarrow as pa

from efafnet.pipelines.crops.plan import ShardPlan
from efafnet.pipelines.crops.shards import CropSettings, ShardResult, read_record, write_shard
from efafnet.platform import cluster, console, provenance, ray_data, storage
from efafnet.platform.locks import LockHeldError, hold

_LOCK = ".lock"
FEW_IMAGES = 512
"""Images that this process prepares by itself where no Ray is there or named: some two seconds, fewer than a Ray of its
own takes to start; by default no more make one shard, which one task would write in any case."""


class WorkDirectory:
    """Where shards lie until the store is complete: a hidden sibling of the output, named after the input.

    A killed or interrupted run leaves it, and the next run of the same command continues from its finished shards;
    bad input removes it. Another input's leftovers are removed as well.
    """

    def __init__(self, out: Path, digest: str) -> None:
        out = out.absolute()
        # Shards of another version of the code or of the libraries might differ in their bytes.
        source = provenance.code_version()["source_digest"]
        key = storage.sha256_json([digest, source, cv2.__version__, pa.__version__])[:12]
        self._siblings = f".{out.name}.prepare-"
        self.path = out.parent / f"{self._siblings}{key}"
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self.path.mkdir(exist_ok=True)
        try:
            # The lock goes when the process dies, however it dies.
            self._held.enter_context(hold(self.path / _LOCK))
        except LockHeldError as error:
            raise ValueError(
                f"another prepare is writing this output ({self.path}, {error.holder}); wait for it"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        worth_keeping = any(self.path.glob("*.json"))
        if error is None or isinstance(error, ValueError) or not worth_keeping:
            self._remove_all()
        else:
            console.note(f"finished shards are kept in {self.path}: the same command continues from them")
        self._held.close()

    def finished(self, plans: Sequence[ShardPlan]) -> list[ShardResult]:
        """Results of the shards that an earlier run has finished."""
        found = (read_record(self.path, plan.index) for plan in plans)
        return [result for result in found if result is not None]

    def _remove_all(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        for leftover in self.path.parent.iterdir():
            if leftover.name.startswith(self._siblings):
                with suppress(OSError), hold(leftover / _LOCK):
                    shutil.rmtree(leftover, ignore_errors=True)


def run_plans(
    plans: Sequence[ShardPlan],
    settings: CropSettings,
    directory: Path,
    workers: int | None,
    ray_config: cluster.ClusterConfig,
) -> Iterator[ShardResult]:
    """Results of ``plans`` as they are finished, in any order; workers are there when this returns.

    ``workers`` is as in ``PrepareConfig``: 0 for this process, None for as many of Ray's tasks as there is room for, or
    for this process where there is little to do and no Ray yet.
    """
    images = sum(plan.num_images for plan in plans)
    if workers == 0 or not plans or (workers is None and ray_data.is_little(images, FEW_IMAGES, "image", ray_config)):
        return (write_shard(settings, plan.index, plan.images.to_pylist(), directory) for plan in plans)
    found = cluster.connect(ray_config)
    console.note(str(found))
    cluster.check_shared(found, [directory], "several nodes write into one directory")
    return _run_with_ray(plans, settings, directory, workers)


def _run_with_ray(
    plans: Sequence[ShardPlan], settings: CropSettings, directory: Path, workers: int | None
) -> Iterator[ShardResult]:
    # One block per shard. Ray Data may split or join blocks, so the rows say which shard they belong to.
    images = ray_data.from_tables(plan.images for plan in plans)
    told = {"settings": settings, "directory": str(directory)}
    for done in ray_data.computed(ray_data.map_in_tasks(images, _write_shards, told, at_once=workers), "preparing"):
        for index in done["index"].to_pylist():
            found = read_record(directory, index)
            if found is None:
                raise OSError(
                    f"shard {index} was written by a worker but is not in {directory}; put the store on storage that "
                    "all nodes share"
                )
            yield found


def _write_shards(table: pa.Table, settings: CropSettings, directory: str) -> pa.Table:
    """Ray Data's task: write the shards that ``table`` holds the images of."""
    done = []
    rows: list[dict[str, Any]] = table.to_pylist()
    for index, entries in groupby(rows, key=lambda row: int(row["shard"])):
        done.append(write_shard(settings, index, list(entries), Path(directory)).index)
    return pa.table({"index": pa.array(done, pa.int64())})
