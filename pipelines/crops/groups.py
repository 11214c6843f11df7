"""Row groups in memory: read once, ahead of need, dropped when their window has passed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from efafnet.pipelines.crops.decode import CropDecoder
from efafnet.pipelines.crops.store import CropStore
from efafnet.platform.mounts import is_on_network
from efafnet.platform.storage import UnreadableFileError

COLUMNS = ["image", "crop_width", "crop_height", "crop_to_image", "joints_px", "visibility", "box_xywh"]
"""Columns of a store's person shards that a sample needs."""
_OPEN_FILES = 64


@dataclass(frozen=True)
class Group:
    """One row group: R persons, K joints."""

    images: npt.NDArray[np.uint8]
    """Bytes of all encoded crops, one after the other."""
    offsets: npt.NDArray[np.int64]
    """(R + 1,) where each crop begins in ``images``, and where the last one ends."""
    crop_size: npt.NDArray[np.int32]
    """(R, 2) crop width and height in pixels."""
    crop_to_image: npt.NDArray[np.float64]
    """(R, 2, 3) affine from crop pixels to image pixels."""
    joints_px: npt.NDArray[np.float64]
    """(R, K, 2) joints in image pixels."""
    visibility: npt.NDArray[np.uint8]
    """(R, K) 0 absent, 1 hidden, 2 visible."""
    boxes_xywh: npt.NDArray[np.float64]
    """(R, 4) boxes in image pixels."""

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Encoded bytes of crop ``index``, without copying (Arrow's own access to one value copies it)."""
        return self.images[self.offsets[index] : self.offsets[index + 1]]

    def warp(
        self, index: int, decoder: CropDecoder, to_crop: npt.NDArray[np.float64], out: npt.NDArray[np.uint8]
    ) -> None:
        """Decode crop ``index`` and draw it into ``out`` (3, H, W), whose pixels ``to_crop`` (2, 3) maps to the crop's.

        Raises:
            UndecodableCropError: the stored bytes are no image of that size.
        """
        width, height = self.crop_size[index].tolist()
        decoder.warp_into(decoder.decode(self.image(index), width, height), to_crop, out)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    # Arrow copies even a single chunk when it combines.
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _fixed(table: pa.Table, name: str) -> npt.NDArray[Any]:
    values = _whole(table.column(name))
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)  # type: ignore[no-any-return]


def _binary(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    values = _whole(column)
    _, offsets, data = values.buffers()
    width = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    places = np.frombuffer(offsets, dtype=width)[values.offset : values.offset + len(values) + 1]
    return np.frombuffer(data, dtype=np.uint8), places.astype(np.int64)


def group_from_table(table: pa.Table) -> Group:
    """The arrays of a table with the columns that a sample needs."""
    size = [table.column(name).to_numpy() for name in ("crop_width", "crop_height")]
    images, offsets = _binary(table.column("image"))
    return Group(
        images=images,
        offsets=offsets,
        crop_size=np.stack(size, axis=-1),
        crop_to_image=_fixed(table, "crop_to_image").reshape(-1, 2, 3),
        joints_px=_fixed(table, "joints_px").reshape(table.num_rows, -1, 2),
        visibility=_fixed(table, "visibility"),
        boxes_xywh=_fixed(table, "box_xywh"),
    )


class GroupReader:
    """Reads row groups in background threads. Keyed by (window, group); not for concurrent callers."""

    def __init__(self, store: CropStore, threads: int) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crops-read")
        self._files = threading.local()
        self._held: dict[tuple[int, int], Future[Group]] = {}

    def want(self, keys: Iterable[tuple[int, int]]) -> None:
        """Start reading the groups ``keys`` that are not held yet."""
        for key in keys:
            if key not in self._held:
                self._held[key] = self._pool.submit(self._read, key[1])

    def get(self, key: tuple[int, int]) -> Future[Group]:
        """The group ``key``, wanted before."""
        return self._held[key]

    def drop_before(self, window: int) -> None:
        """Forget groups of windows before ``window``; samples still being decoded keep theirs alive."""
        for key in [key for key in self._held if key[0] < window]:
            del self._held[key]

    def close(self) -> None:
        """Stop the threads; reads that have not started are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._held.clear()

    def _read(self, group: int) -> Group:
        groups = self._store.row_groups
        try:
            file = self._file(int(groups.shard[group]))
            return group_from_table(file.read_row_group(int(groups.index[group]), columns=COLUMNS, use_threads=False))
        except (OSError, ValueError) as error:
            name = self._store.manifest.shards[int(groups.shard[group])].name
            # Arrow calls what a file system garbles invalid: another read may find it well.
            raise UnreadableFileError(
                f"crop store {self._store.location}: {name} cannot be read ({error}); check it with: efafnet inspect"
            ) from error

    def _file(self, shard: int) -> pq.ParquetFile:
        # A ParquetFile is not safe across threads, and opening one parses its footer: each thread keeps its own few.
        held: OrderedDict[int, pq.ParquetFile] = self._files.__dict__.setdefault("held", OrderedDict())
        if shard not in held:
            path = self._store.file(self._store.manifest.shards[shard])
            # On a share, an error in a memory map is a signal that kills, and each page is a request of its own.
            remote = is_on_network(path)
            held[shard] = pq.ParquetFile(
                path, memory_map=not remote, pre_buffer=remote, page_checksum_verification=True
            )
        held.move_to_end(shard)
        if len(held) > _OPEN_FILES:
            held.popitem(last=False)[1].close()
        return held[shard]
