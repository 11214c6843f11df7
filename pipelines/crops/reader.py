"""Batches straight from a crop store: Parquet read ahead, crops decoded and warped by threads, a fixed order.

Needs neither Ray nor MLflow. Normalisation and heatmaps belong to the device: what comes out is a uint8
:class:`~efafnet.pipelines.crops.batch.Batch`.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import torch

from efafnet.models.settings import InputSize
from efafnet.pipelines.crops import augmentation, geometry
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.config import ReaderConfig
from efafnet.pipelines.crops.decode import CropDecoder, UndecodableCropError
from efafnet.pipelines.crops.geometry import Float64
from efafnet.pipelines.crops.groups import Group, GroupReader
from efafnet.pipelines.crops.order import Planned, SampleOrder, slice_bounds
from efafnet.pipelines.crops.store import CropStore
from efafnet.platform import machine

# Most bytes of crops that are shuffled together; a worker that reads alone holds up to twice as many.
_WINDOW_BYTES = 256 * 2**20
# Samples that one thread prepares in one go: large enough that the arithmetic in numpy does not show.
_CHUNK = 64


def _threads(config: ReaderConfig, *, beside_gpu: bool) -> int:
    return machine.reading_threads(beside_gpu=beside_gpu) if config.threads == "auto" else config.threads


@dataclass(frozen=True)
class _Sampling:
    """What turns planned rows into pictures."""

    input_size: InputSize
    augmentation: AugmentationConfig
    seed: int
    udp: bool


class _Pipeline:
    """Threads and queues of one pass over planned steps."""

    def __init__(
        self, store: CropStore, sampling: _Sampling, config: ReaderConfig, pin_memory: bool, window_groups: int
    ) -> None:
        self._store = store
        self._sampling = sampling
        self._config = config
        self._pin_memory = pin_memory
        self._decoder = CropDecoder(store.manifest.encoding)
        self._groups = GroupReader(store, config.read_threads)
        self._pool = ThreadPoolExecutor(_threads(config, beside_gpu=pin_memory), thread_name_prefix="crops-decode")
        self._windows_ahead = max(1, int(2 * _WINDOW_BYTES / (window_groups * _group_bytes(store))) - 1)
        """How many windows beyond that of the oldest batch may be held."""
        self._next: Planned | None = None
        """The step whose groups are read next."""
        self.wait_s = 0.0

    def run(self, plan: Iterable[Planned]) -> Iterator[Batch]:
        """Batches of ``plan`` in its order."""
        planned = iter(plan)
        self._next = next(planned, None)
        reading: deque[Planned] = deque()
        decoding: deque[tuple[Planned, Batch, list[Future[None]]]] = deque()
        while True:
            self._read_ahead(planned, reading, decoding)
            while reading and len(decoding) < self._config.prefetch_batches:
                step = reading.popleft()
                decoding.append((step, *self._start(step)))
                self._read_ahead(planned, reading, decoding)
            if not decoding:
                return
            _, batch, parts = decoding.popleft()
            began = time.perf_counter()
            for part in parts:
                part.result()
            self.wait_s += time.perf_counter() - began
            yield batch

    def _read_ahead(
        self, planned: Iterator[Planned], reading: deque[Planned], decoding: Sequence[tuple[Planned, object, object]]
    ) -> None:
        depth = self._config.prefetch_batches - len(decoding) + self._config.read_ahead_batches
        while self._next is not None and len(reading) < depth:
            oldest = decoding[0][0] if decoding else reading[0] if reading else self._next
            # The first batch of a window needs most of its groups: looking into one more would bring it in whole.
            if self._next.windows.max(initial=0) - oldest.windows.max(initial=0) > self._windows_ahead:
                return
            keys = zip(self._next.windows.tolist(), self._next.groups.tolist(), strict=True)
            self._groups.want(dict.fromkeys(keys))
            reading.append(self._next)
            self._next = next(planned, None)

    def _start(self, step: Planned) -> tuple[Batch, list[Future[None]]]:
        batch = self._empty_batch(step)
        groups = [self._groups.get(key) for key in zip(step.windows.tolist(), step.groups.tolist(), strict=True)]
        parts = []
        for first in range(0, len(step.rows), _CHUNK):
            chosen = slice(first, min(first + _CHUNK, len(step.rows)))
            parts.append(self._pool.submit(self._fill, batch, step, groups[chosen], chosen))
        if len(step.windows):
            self._groups.drop_before(int(step.windows.min()))
        return batch, parts

    def _empty_batch(self, step: Planned) -> Batch:
        count, joints, size = len(step.rows), self._store.skeleton.num_joints, self._sampling.input_size
        pin = self._pin_memory
        return Batch(
            images=torch.empty((count, 3, size.height, size.width), dtype=torch.uint8, pin_memory=pin),
            joints_px=torch.empty((count, joints, 2), dtype=torch.float32, pin_memory=pin),
            visibility=torch.empty((count, joints), dtype=torch.uint8, pin_memory=pin),
            rows=torch.from_numpy(step.rows.copy()),
            input_to_image=torch.empty((count, 2, 3), dtype=torch.float64),
        )

    def _fill(self, batch: Batch, step: Planned, futures: list[Future[Group]], chosen: slice) -> None:
        """Prepare the samples ``chosen`` of a batch in place."""
        groups = [future.result() for future in futures]
        index = (step.rows[chosen] - self._store.row_groups.first_row[step.groups[chosen]]).tolist()
        samples = list(zip(groups, index, strict=True))
        joints = np.stack([group.joints_px[i] for group, i in samples])
        visibility = np.stack([group.visibility[i] for group, i in samples])
        boxes = np.stack([group.boxes_xywh[i] for group, i in samples])
        crop_to_image = np.stack([group.crop_to_image[i] for group, i in samples])
        wanted, skeleton = self._sampling, self._store.skeleton
        draws = augmentation.draw(wanted.augmentation, wanted.seed, step.epochs[chosen], step.rows[chosen])
        to_input = augmentation.input_affines(
            wanted.augmentation, draws, skeleton, wanted.input_size, boxes, joints, visibility, udp=wanted.udp
        )
        moved = geometry.apply_affine(to_input, joints)
        moved, seen = augmentation.mirror_joints(moved, visibility, draws.flip, skeleton)
        to_image = geometry.invert_affine(to_input)
        batch.joints_px.numpy()[chosen] = moved
        batch.visibility.numpy()[chosen] = seen
        batch.input_to_image.numpy()[chosen] = to_image
        to_crop = geometry.compose_affine(geometry.invert_affine(crop_to_image), to_image)
        self._draw_pictures(batch, samples, to_crop, chosen.start)

    def _draw_pictures(self, batch: Batch, samples: list[tuple[Group, int]], to_crop: Float64, first: int) -> None:
        images = batch.images.numpy()
        for n, (group, i) in enumerate(samples):
            try:
                group.warp(i, self._decoder, to_crop[n], images[first + n])
            except UndecodableCropError as error:
                raise UndecodableCropError(
                    f"crop store {self._store.path}, row {int(batch.rows[first + n])}: {error}"
                ) from error

    def close(self) -> None:
        """Stop all threads; work that has not started is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        # A decoding thread may be waiting for a group: let the reads under way finish before joining it.
        self._groups.close()
        self._pool.shutdown(wait=True)


FEWEST_DRAWN = 20
"""Fewest row groups that a training set is drawn from: among fewer, one drawn twice weighs too much."""


class _Reader:
    """What both readers share: settings, checks, the life of the threads."""

    def __init__(
        self, store: CropStore, sampling: _Sampling, config: ReaderConfig, pin_memory: bool, window_groups: int = 1
    ) -> None:
        if store.num_persons == 0:
            raise ValueError(f"crop store {store.path} holds no persons; look at its rejects with: efafnet inspect")
        any_reduced = store.manifest.counts.reduced > 0
        store.manifest.envelope.check(
            sampling.augmentation, sampling.input_size, any_reduced=any_reduced, source=prepare_arguments(store)
        )
        self.store = store
        self.config = config
        self.wait_s = 0.0
        self._sampling = sampling
        self._pin_memory = pin_memory
        self._window_groups = window_groups
        # Weak, so that an iterator that nobody holds any more ends and takes its threads with it.
        self._running: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()
        # The threads are ours; OpenCV's own would compete with them.
        cv2.setNumThreads(0)

    def start(self, plan: Iterable[Planned]) -> Iterator[Batch]:
        """Batches of ``plan``, prepared by threads that live as long as the iterator."""
        iterator = self._run(plan)
        self._running.add(iterator)
        return iterator

    def _run(self, plan: Iterable[Planned]) -> Generator[Batch]:
        pipeline = _Pipeline(self.store, self._sampling, self.config, self._pin_memory, self._window_groups)
        with closing(pipeline):
            for batch in pipeline.run(plan):
                self.wait_s += pipeline.wait_s
                pipeline.wait_s = 0.0
                yield batch

    def close(self) -> None:
        """Stop the threads of every iterator handed out."""
        for iterator in list(self._running):
            iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def prepare_arguments(store: CropStore) -> str:
    """Annotations, images, a new output and the settings of a source: what `efafnet prepare` made the store from."""
    first, *others = store.manifest.sources
    words = [first.annotations, first.images, f"{store.location.rstrip('/')}-wider"]
    if first.detections is not None:
        words.append(f"detections={first.detections}")
    elif first.format == "coco" and first.box_rule != "sbn":
        words.append(f"box_rule={first.box_rule}")
    if others:
        words.append(f"(extra_sources= with the {len(others)} others)")
    return " ".join(words)


def window_groups(store: CropStore, wanted: int) -> int:
    """Row groups of ``store`` that are shuffled together: ``wanted``, or what fits in 256 MiB, at least one."""
    return max(1, min(wanted, int(_WINDOW_BYTES / _group_bytes(store))))


def _group_bytes(store: CropStore) -> float:
    return store.manifest.shards.total_bytes / len(store.row_groups)


class TrainReader(_Reader):
    """Augmented, shuffled batches for training.

    The samples of global batch k depend on (store digest, ``seed``, ``config.shuffle_groups``) only, and their
    augmentation on (``seed``, epoch, row): not on threads, ranks, world size or restarts. Rank r of W takes the r-th
    near-equal slice of every global batch, in whole multiples of ``unit`` samples. ``wait_s``
    accumulates the seconds the consumer waited.
    """

    def __init__(
        self,
        store: CropStore,
        *,
        input_size: InputSize,
        augmentation: AugmentationConfig,
        global_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        unit: int = 1,
        config: ReaderConfig | None = None,
        pin_memory: bool = False,
        udp: bool = False,
        resampled: bool = False,
    ) -> None:
        """``resampled``: read another training set, drawn by ``seed`` from the store's row groups with replacement.

        Raises ValueError where the store's envelope does not cover the samples, a rank would get no sample, or there
        are too few row groups to draw from.
        """
        config = config or ReaderConfig()
        groups = window_groups(store, config.shuffle_groups) if store.num_persons else 1
        super().__init__(store, _Sampling(input_size, augmentation, seed, udp), config, pin_memory, groups)
        if not 0 <= rank < world_size <= -(-global_batch // unit):
            whole = f"{global_batch} in parts of {unit}" if unit > 1 else f"{global_batch}"
            raise ValueError(
                f"{world_size} workers (rank {rank}) cannot share a global batch of {whole}: every worker needs "
                "a sample of each batch; raise the batch size or lower the number of workers"
            )
        if all(source.detections for source in store.manifest.sources):
            raise ValueError(
                f"crop store {store.path} was prepared from detections, which have no joints: it serves evaluation; "
                "prepare one from the annotated boxes for training"
            )
        self.global_batch = global_batch
        self._rank, self._world_size, self._unit = rank, world_size, unit
        if resampled and len(store.row_groups) < FEWEST_DRAWN:
            raise ValueError(
                f"crop store {store.location} has {len(store.row_groups)} row groups; another training set is drawn "
                f"from at least {FEWEST_DRAWN}: set resample=none, or prepare with smaller ones, "
                f"rows_per_group={max(1, store.num_persons // FEWEST_DRAWN)}"
            )
        self._order = SampleOrder(store.row_groups, store.digest, seed, groups, resampled=resampled)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This rank's batches of the steps ``first_step`` to ``last_step`` - 1."""
        steps = range(first_step, last_step)
        share = (self.global_batch, self._rank, self._world_size, self._unit)
        plan = (self._order.batch(step, *share) for step in steps)
        return self.start(plan)


class EvalReader(_Reader):
    """Every row exactly once over all ranks, in order, without augmentation; the last batch may be smaller."""

    def __init__(
        self,
        store: CropStore,
        *,
        input_size: InputSize,
        padding: float = 1.25,
        batch_size: int = 64,
        rank: int = 0,
        world_size: int = 1,
        config: ReaderConfig | None = None,
        pin_memory: bool = False,
        udp: bool = False,
    ) -> None:
        """``batch_size`` is per rank. Raises ValueError where the store's envelope does not cover the samples."""
        still = AugmentationConfig(padding=padding).without_variation()
        super().__init__(store, _Sampling(input_size, still, 0, udp), config or ReaderConfig(), pin_memory)
        self.batch_size = batch_size
        self._rows = range(*slice_bounds(store.num_persons, rank, world_size))

    def __len__(self) -> int:
        return -(-len(self._rows) // self.batch_size)

    def batches(self) -> Iterator[Batch]:
        """This rank's rows, in order."""
        return self.start(self._plan())

    def _plan(self) -> Iterator[Planned]:
        for step in range(len(self)):
            rows = np.array(self._rows[step * self.batch_size : (step + 1) * self.batch_size], dtype=np.int64)
            groups = self.store.row_groups.group_of(rows)
            # Groups come in order, so each is its own window and goes as soon as it has passed.
            yield Planned(step, rows, np.zeros_like(rows), groups, groups)


def read_rows(
    store: CropStore,
    rows: Sequence[int],
    *,
    input_size: InputSize,
    augmentation: AugmentationConfig | None = None,
    seed: int = 0,
    udp: bool = False,
) -> Batch:
    """The persons ``rows`` as one batch, in the order given: for pictures and spot checks.

    Without ``augmentation`` they are cropped as validation does. Raises ValueError for a row the store does not have.
    """
    chosen = np.array(rows, dtype=np.int64)
    if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= store.num_persons:
        raise ValueError(f"crop store {store.path} has rows 0..{store.num_persons - 1}; got {list(rows)}")
    wanted = augmentation or AugmentationConfig().without_variation()
    with _Reader(store, _Sampling(input_size, wanted, seed, udp), ReaderConfig(), pin_memory=False) as reader:
        zeros = np.zeros_like(chosen)
        return next(reader.start([Planned(0, chosen, zeros, store.row_groups.group_of(chosen), zeros)]))
