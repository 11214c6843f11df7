"""From files to records: decode once, find the persons, predict them in batches, draw; here or by Ray Data.

Decoding, finding persons, predicting them, and drawing are four stages. They work side by side, each a little ahead of
the next, where the networks leave a core to the others, and in series elsewhere. What a video takes of memory does not
depend on its length.

With Ray Data a row is a file (a video is one row), a block of rows is one task of an actor that loaded the network
once, and what comes back are records: the drawn pictures are written by the actors.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from efafnet.pipelines.crops.geometry import BoxRule
from efafnet.pipelines.drawing.persons import Label
from efafnet.pipelines.drawing.poses import Picture
from efafnet.pipelines.evaluation.config import ActorsConfig, TestOverrides, Weights
from efafnet.pipelines.evaluation.predictions import Predictions, coco_results
from efafnet.pipelines.prediction.config import DetectorConfig, TrackingConfig
from efafnet.pipelines.prediction.detector import PersonDetector, in_batches
from efafnet.pipelines.prediction.media import Frame, Source, UnreadableError, read_image, read_video
from efafnet.pipelines.prediction.person_boxes import Boxes, whole_image
from efafnet.pipelines.prediction.pictures import Pictures, draw_results, explained
from efafnet.pipelines.prediction.pose_predictor import PosePredictor
from efafnet.pipelines.prediction.spool import Record
from efafnet.pipelines.prediction.stages import ahead
from efafnet.pipelines.prediction.tracking import Tracker
from efafnet.platform import console, machine

_HELD_BYTES = 2**28
"""Decoded pictures that may wait for their batch to fill."""
_FRAMES_AHEAD = 2
"""Pictures decoded in advance, and as many with their persons found."""
_VIEWS_AHEAD = 32
"""Predicted pictures that may wait to be drawn."""
_RECORDS_TOGETHER = 64
"""Records that a Ray worker hands over at a time."""
_FILES_PER_TASK = 32
"""Most files of one Ray task: a batch of persons is filled from the files of one task."""


@dataclass(frozen=True)
class Job:
    """How files are predicted: all that a worker needs to know."""

    checkpoint: Path
    skeleton: str
    weights: Weights
    test: TestOverrides
    boxes_from: Literal["file", "detector", "whole_image"]
    box_rule: BoxRule
    detector: DetectorConfig
    upright: bool
    frame_step: int
    skip_unreadable: bool
    tracking: TrackingConfig
    pictures: Path | None
    """Folder of the drawn pictures; None for none."""
    labels: tuple[Label, ...] = ()
    picture_scale: int | Literal["auto"] = 1


@dataclass(frozen=True)
class Task:
    """One file to predict."""

    source: Source
    name: str
    """Name of its picture, without the ending."""
    boxes: dict[int, Boxes] = field(default_factory=dict)
    """Boxes from a file, by frame."""


@dataclass(frozen=True)
class _View:
    """A picture whose persons wait to be predicted."""

    frame: Frame
    task: Task
    boxes: Boxes
    crops: NDArray[np.uint8]
    to_image: NDArray[np.float64]


class Worker:
    """The network and the detector, loaded once."""

    def __init__(self, job: Job, device: torch.device) -> None:
        """Raises ValueError or OSError for a checkpoint or a detector that cannot be used."""
        self.job = job
        self.predictor = PosePredictor.load(
            job.checkpoint, weights=job.weights, skeleton=job.skeleton, test=job.test, device=device
        )
        self._detector = PersonDetector(job.detector, device) if job.boxes_from == "detector" else None
        self._side_by_side = machine.has_core_beside(device)
        # Both networks may compute at once: neither may change the arithmetic under the other.
        machine.set_float32(machine.precision_for(self.predictor.trained.test.precision, device))

    def __call__(self, tasks: Iterable[Task]) -> Iterator[Record]:
        """Records of every picture of ``tasks``, in order.

        Raises UnreadableError for a file that cannot be read, unless the job skips those.
        """
        frames = ahead(self._frames(tasks), _FRAMES_AHEAD, side_by_side=self._side_by_side)
        views = ahead(self._views(frames), _FRAMES_AHEAD, side_by_side=self._side_by_side)
        predicted = ahead(self._predicted(views), _VIEWS_AHEAD, side_by_side=self._side_by_side)
        pictures = None if self.job.pictures is None else Pictures(self.job.pictures, self.job.frame_step)
        tracker, video = None, -1
        try:
            for view, keypoints in predicted:
                frame = view.frame
                if frame.source.is_video and self.job.tracking.enabled and frame.source.index != video:
                    tracker = Tracker(self.predictor.skeleton.sigmas, self.job.tracking, self._sure_from)
                    video = frame.source.index
                record = self._record(view, keypoints)
                if tracker is not None and frame.source.index == video:
                    record = replace(record, results=tracker(record.results, frame.time_s))
                if pictures is not None:
                    pictures.write(frame, self._drawn(frame, record), view.task.name)
                yield record
        finally:
            predicted.close()
            if pictures is not None:
                pictures.close()

    def _drawn(self, frame: Frame, record: Record) -> Picture:
        scale = self.job.picture_scale
        drawn = draw_results(
            frame.pixels,
            record.results,
            self.predictor.skeleton,
            self._sure_from,
            labels=self.job.labels,
            scale=1 if scale == "auto" and frame.source.is_video else scale,
        )
        calibrated = self.predictor.trained.visibility is not None
        return explained(drawn, frame, len(record.results), calibrated=calibrated)

    @property
    def _sure_from(self) -> float:
        return self.predictor.trained.test.joint_score_threshold

    def _frames(self, tasks: Iterable[Task]) -> Generator[tuple[Task, Frame]]:
        for task in tasks:
            try:
                if task.source.is_video:
                    yield from ((task, frame) for frame in read_video(task.source, self.job.frame_step))
                else:
                    yield task, read_image(task.source, upright=self.job.upright)
            except UnreadableError as error:
                if not self.job.skip_unreadable:
                    raise UnreadableError(f"{error}, for all such with skip_unreadable=true") from error
                console.warn(error)

    def _views(self, frames: Generator[tuple[Task, Frame]]) -> Generator[_View]:
        with closing(frames):
            size = 1 if self._detector is None else self._detector.batch_size
            for together in in_batches(frames, lambda item: item[1].pixels, size):
                for (task, frame), boxes in zip(together, self._boxes(together), strict=True):
                    yield _View(frame, task, boxes, *self.predictor.crops(frame.pixels, boxes.xywh_px))

    def _boxes(self, together: Sequence[tuple[Task, Frame]]) -> list[Boxes]:
        if self._detector is not None:
            return self._detector.together([frame.pixels for _, frame in together])
        return [self._known_boxes(task, frame) for task, frame in together]

    def _known_boxes(self, task: Task, frame: Frame) -> Boxes:
        height, width = frame.pixels.shape[:2]
        if self.job.boxes_from == "whole_image":
            return whole_image(width, height)
        return task.boxes.get(frame.number, Boxes.of([])).cut(width, height, self.job.box_rule)

    def _predicted(self, views: Generator[_View]) -> Generator[tuple[_View, NDArray[np.float64]]]:
        """Views with their keypoints (N, K, 3): as many together as fill a batch, or the memory set aside for it."""
        waiting: list[_View] = []
        persons = held = 0
        with closing(views):
            for view in views:
                waiting.append(view)
                persons += len(view.crops)
                held += view.frame.pixels.nbytes
                if persons >= self.predictor.trained.test.batch_size or held >= _HELD_BYTES:
                    yield from self._together(waiting)
                    waiting, persons, held = [], 0, 0
            yield from self._together(waiting)

    def _together(self, views: Sequence[_View]) -> Iterator[tuple[_View, NDArray[np.float64]]]:
        if not views:
            return
        keypoints = self.predictor.predict_crops(
            np.concatenate([view.crops for view in views]), np.concatenate([view.to_image for view in views])
        )
        ends = np.cumsum([len(view.crops) for view in views])
        yield from zip(views, np.split(keypoints, ends[:-1]), strict=True)

    def _record(self, view: _View, keypoints: NDArray[np.float64]) -> Record:
        trained, rows = self.predictor.trained, np.arange(len(keypoints))
        predictions = Predictions(
            rows=rows,
            person_id=rows,
            image_id=np.zeros_like(rows),
            box_xywh_px=view.boxes.xywh_px,
            box_score=view.boxes.scores,
            joints_px=keypoints[:, :, :2],
            scores=keypoints[:, :, 2].astype(np.float32),
        )
        results = coco_results(
            predictions,
            skeleton=self.predictor.skeleton,
            input_size=trained.input_size,
            padding=trained.padding,
            test=trained.test,
            with_box=True,
            visible=trained.visible(predictions.scores, self.predictor.skeleton),
        )
        frame = view.frame
        height, width = frame.pixels.shape[:2]
        place = (frame.source.index, frame.number)
        return Record(*place, width, height, results, frame.time_s, frame.remark, frame.tagged)


def work_with_ray(tasks: Sequence[Task], job: Job, actors: ActorsConfig) -> Iterator[Record]:
    """Records of ``tasks`` in any order, by actors on a Ray cluster.

    Raises OSError where no cluster can be used or a worker failed, ValueError for what a worker refused.
    """
    from efafnet.platform import ray_data
    from efafnet.platform.capacity import capacity
    from efafnet.platform.cluster import check_shared, connect

    found = connect(actors.cluster)
    console.note(str(found))
    places = [job.checkpoint, *{task.source.path.parent for task in tasks}, *filter(None, [job.pictures])]
    check_shared(found, places, "the workers of several nodes use it")
    pool = actors.pool(capacity(found))
    cpus = min(actors.cpus, found.cpus / pool.count)
    size = min(_FILES_PER_TASK, math.ceil(len(tasks) / pool.count))
    blocks = [_block(tasks[first : first + size]) for first in range(0, len(tasks), size)]
    busy = replace(pool, count=min(pool.count, len(blocks)), living=min(pool.living, len(blocks)))
    told = (job, actors.threads, pool.gpu)
    records = ray_data.map_in_actors(ray_data.from_tables(blocks), _Actor, told, busy, cpus=cpus)
    for table in ray_data.computed(records, "predicting"):
        for content in table["record"].to_pylist():
            record = pickle.loads(content)
            if isinstance(record, str):
                raise ValueError(record)
            yield record


def _block(tasks: Sequence[Task]) -> pa.Table:
    return pa.table({"task": pa.array([pickle.dumps(task) for task in tasks], pa.large_binary())})


class _Actor:
    """Ray Data's actor. A fault comes back as text: an exception would reach the driver as a wall of text."""

    def __init__(self, job: Job, threads: int, gpu: bool) -> None:
        torch.set_num_threads(threads)
        self._worker = Worker(job, torch.device("cuda" if gpu else "cpu"))

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Rows of tasks -> rows of records, a few at a time."""
        tasks = [pickle.loads(content) for content in table["task"].to_pylist()]
        told = self._told(tasks)
        while records := list(islice(told, _RECORDS_TOGETHER)):
            yield pa.table({"record": pa.array([pickle.dumps(record) for record in records], pa.large_binary())})

    def _told(self, tasks: Sequence[Task]) -> Iterator[Record | str]:
        try:
            yield from self._worker(tasks)
        except (ValueError, OSError) as error:
            yield str(error)
