"""Every person of a crop store predicted: in this process, or by Ray Data on all workers. Both see the same crops.

Ray Data reads the shards and warps the crops in tasks; actors that loaded the checkpoint once predict them.
Legend: N persons, K joints, H W input pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from efafnet.models.config import HeatmapConfig
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.groups import COLUMNS
from efafnet.pipelines.crops.reader import EvalReader
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.config import TestConfig, Weights, WorkersConfig
from efafnet.pipelines.evaluation.crop_view import FAULT, CropView, warp
from efafnet.pipelines.evaluation.inference import placed, predict_batch, predict_batches
from efafnet.pipelines.evaluation.predictions import PERSON_COLUMNS, Predictions
from efafnet.pipelines.evaluation.trained import Trained, load_trained
from efafnet.platform import console, machine
from efafnet.platform.capacity import ActorPool

_COLUMNS = [*COLUMNS, "person_id"]


@dataclass(frozen=True)
class Predicted:
    """Every person of a store, and how they were computed."""

    persons: Predictions
    """In order of rows."""
    precision: str
    """The arithmetic; of actors on unlike machines all there were, as in ``bf16, fp32``."""


def predict_here(trained: Trained, store: CropStore, test: TestConfig, workers: WorkersConfig) -> Predicted:
    """Predict every person of ``store`` in this process."""
    device = workers.device_here()
    precision = machine.checked_precision(test.precision, device)
    network = placed(trained.network, device)
    machine.expect_constant_shapes()
    people = store.columns(list(PERSON_COLUMNS))
    parts = []
    with (
        console.progress("predicting", store.num_persons, unit="persons") as advance,
        EvalReader(
            store,
            input_size=trained.input_size,
            padding=trained.padding,
            batch_size=test.batch_size,
            config=workers.reader,
            pin_memory=device.type == "cuda",
            udp=trained.udp,
        ) as reader,
    ):
        predicted = predict_batches(
            network,
            reader.batches(),
            device,
            skeleton=store.skeleton,
            input_size=trained.input_size,
            heatmap=trained.heatmap,
            flip_test=test.flip_test,
            precision=precision,
        )
        for batch, joints_px, scores in predicted:
            parts.append(Predictions.gather(people, batch.rows.numpy(), joints_px, scores))
            advance(len(batch))
    return Predicted(Predictions.concat(parts), precision)


def _batch_of(table: pa.Table, size: InputSize, skeleton: Skeleton) -> Batch:
    """What :class:`CropView` made, as tensors; joints are not known here."""
    n = table.num_rows
    pixels = table["pixels"].combine_chunks()
    first, length = pixels.offset * pixels.type.byte_width, n * pixels.type.byte_width
    images = np.frombuffer(pixels.buffers()[1], np.uint8, count=length, offset=first).copy()
    affines = table["input_to_image"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Batch.unlabelled(
        torch.from_numpy(images.reshape(n, 3, size.height, size.width)),
        torch.from_numpy(table["person_id"].to_numpy().astype(np.int64)),
        torch.from_numpy(affines.reshape(n, 2, 3).copy()),
        skeleton.num_joints,
    )


@dataclass(frozen=True)
class _Task:
    """What an actor needs to know."""

    checkpoint: Path
    weights: Weights
    skeleton: Skeleton
    heatmap: HeatmapConfig
    test: TestConfig
    threads: int
    gpu: bool


@dataclass
class _Predictor:
    """An actor: loads the checkpoint once, then predicts batches of warped crops."""

    task: _Task
    trained: Trained = field(init=False)

    def __post_init__(self) -> None:
        torch.set_num_threads(self.task.threads)
        self.trained = load_trained(self.task.checkpoint, self.task.skeleton, weights=self.task.weights)
        self.device = torch.device("cuda" if self.task.gpu else "cpu")
        placed(self.trained.network, self.device)
        self.precision = machine.checked_precision(self.task.test.precision, self.device)
        machine.expect_constant_shapes()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Warped crops -> joints and scores by person."""
        if fault := _first_fault(table):
            return _fault(fault)
        try:
            return self._predict(table)
        except ValueError as error:
            return _fault(str(error))

    def _predict(self, table: pa.Table) -> pa.Table:
        trained, test = self.trained, self.task.test
        joints_px, scores = predict_batch(
            trained.network,
            _batch_of(table, trained.input_size, self.task.skeleton).to(self.device),
            skeleton=self.task.skeleton,
            input_size=trained.input_size,
            heatmap=self.task.heatmap,
            flip_test=test.flip_test,
            precision=self.precision,
        )
        return pa.table(
            {
                "person_id": table["person_id"],
                "joints_px": pa.array(list(joints_px.reshape(len(joints_px), -1)), pa.list_(pa.float64())),
                "scores": pa.array(list(scores), pa.list_(pa.float32())),
                _PRECISION: pa.repeat(self.precision, len(scores)),
                FAULT: pa.nulls(len(scores), pa.string()),
            }
        )


_PRECISION = "precision"


def _fault(message: str) -> pa.Table:
    """One row that says what went wrong, in place of the predictions of a batch."""
    return pa.table(
        {
            "person_id": pa.array([-1], pa.int64()),
            "joints_px": pa.array([[]], pa.list_(pa.float64())),
            "scores": pa.array([[]], pa.list_(pa.float32())),
            _PRECISION: pa.nulls(1, pa.string()),
            FAULT: [message],
        }
    )


def _first_fault(table: pa.Table) -> str | None:
    return next((message for message in table[FAULT].to_pylist() if message), None)


def predict_with_ray(
    trained: Trained, store: CropStore, test: TestConfig, workers: WorkersConfig, weights: Weights
) -> Predicted:
    """Predict every person of ``store`` on the workers of a Ray cluster; the result is in order of rows.

    Raises OSError where no cluster can be used or a worker failed, ValueError where rows are missing in the end.
    """
    from efafnet.platform.capacity import capacity
    from efafnet.platform.cluster import check_shared, connect

    found = connect(workers.cluster)
    console.note(str(found))
    check_shared(found, (trained.path, store.path), "the workers of several nodes read it")
    pool = workers.pool(capacity(found))
    task = _Task(trained.path.absolute(), weights, store.skeleton, trained.heatmap, test, workers.threads, pool.gpu)
    view = CropView(store.manifest.encoding, trained.input_size, trained.padding, trained.udp)
    return _collect(_computed(store, view, task, pool, min(workers.cpus, found.cpus / (pool.count + 1))), store)


def _computed(
    store: CropStore, view: CropView, task: _Task, pool: ActorPool, cpus_per_actor: float
) -> Iterator[pa.Table]:
    """Read and warp in tasks, predict in actors."""
    from efafnet.platform import ray_data

    shards = [store.file(shard) for shard in store.manifest.shards if shard.rows]
    size = task.test.batch_size
    persons = ray_data.from_parquet(shards, _COLUMNS, blocks=2 * pool.count)
    warped = ray_data.map_in_tasks(persons, warp, {"view": view}, batch_size=size)
    predicted = ray_data.map_in_actors(warped, _Predictor, (task,), pool, cpus=cpus_per_actor, batch_size=size)
    return ray_data.computed(predicted, "predicting")


def _collect(predicted: Iterator[pa.Table], store: CropStore) -> Predicted:
    people = store.columns(list(PERSON_COLUMNS))
    row_of = {int(person): row for row, person in enumerate(people["person_id"].to_pylist())}
    assert len(row_of) == store.num_persons, "person ids are unique in a store"
    parts, precisions = [], set[str]()
    with console.progress("predicting", store.num_persons, unit="persons") as advance:
        for table in predicted:
            if fault := _first_fault(table):
                raise ValueError(f"crop store {store.path}: {fault}")
            precisions.update(table[_PRECISION].unique().to_pylist())
            rows = np.array([row_of[i] for i in table["person_id"].to_pylist()], np.int64)
            scores = table["scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            joints = table["joints_px"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            parts.append(
                Predictions.gather(people, rows, joints.reshape(len(rows), -1, 2), scores.reshape(len(rows), -1))
            )
            advance(len(rows))
    predictions = Predictions.concat(parts)
    if len(predictions) != store.num_persons:
        raise ValueError(f"only {len(predictions)} of {store.num_persons} persons came back; run again")
    return Predicted(predictions, ", ".join(sorted(precisions)))
