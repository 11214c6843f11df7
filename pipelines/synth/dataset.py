"""`efafnet synth`: write a data set of synthetic people in the layout of COCO."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pydantic import Field, model_validator

from efafnet.models.settings import Settings, size_from_text
from efafnet.pipelines.synth.coco import ImageRecord, coco_document, describe_people, image_record
from efafnet.pipelines.synth.kinds import KINDS, People
from efafnet.pipelines.synth.scene import Recipe, draw_scene
from efafnet.pipelines.synth.textures import bank
from efafnet.pipelines.synth.version import drawing_digest
from efafnet.platform import console
from efafnet.platform.storage import atomic_directory, check_output, sha256_json, write_text

SPLITS = ("train", "val")
SMALLEST_SIDE_PX = 96
LARGEST_SIDE_PX = 4096
_IMAGES_EACH = 50
"""Fewest images for which one more process is started: drawing them takes as long as its imports, half a second."""
_NOT_CONTENT = {"out", "workers", "overwrite"}
"""Settings that must not show in the files: they do not change what is drawn."""


class SplitCounts(Settings):
    """How many images each split gets."""

    train: int = Field(1800, ge=0)
    """Number of images to train on."""
    val: int = Field(400, ge=0)
    """Number of images to validate on."""


class PictureSize(Settings):
    """Size of the pictures in pixels. Also accepted as text, height x width: ``240x320``."""

    height: int = Field(240, ge=SMALLEST_SIDE_PX, le=LARGEST_SIDE_PX)
    """Height of every picture in pixels."""
    width: int = Field(320, ge=SMALLEST_SIDE_PX, le=LARGEST_SIDE_PX)
    """Width of every picture in pixels."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return size_from_text(value, "a picture size", "240x320")


class PeopleRange(Settings):
    """Fewest and most people in a picture. Also accepted as text: ``1-4``, or ``2`` for always two."""

    fewest: int = Field(1, ge=1, le=40)
    """Fewest people placed in a picture."""
    most: int = Field(4, ge=1, le=40)
    """Most people placed in a picture."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"fewest": value, "most": value}
        if not isinstance(value, str):
            return value
        fewest, _, most = value.partition("-")
        if not (fewest.isdigit() and (most or fewest).isdigit()):
            raise ValueError(f"people per image are written FEWEST-MOST, for example 1-4; got {value!r}")
        return {"fewest": int(fewest), "most": int(most or fewest)}

    @model_validator(mode="after")
    def _ordered(self) -> PeopleRange:
        if self.fewest > self.most:
            raise ValueError(f"fewest ({self.fewest}) must not exceed most ({self.most}); swap them")
        return self


class SynthConfig(Settings):
    """Settings of `efafnet synth`."""

    out: Path
    """Directory to write: images/{train,val}/*.jpg and annotations/{train,val}.json."""
    images: SplitCounts = SplitCounts()
    """Number of images of each split."""
    image_size: PictureSize = PictureSize()
    """Size of the pictures, height x width in pixels."""
    people: People = "coco"
    """clear: one or two people, hardly anything in front of them, for networks that learn in minutes. coco: as many, as
    near and as hidden as in COCO. crowd: groups with CrowdPose's crowd index. Each sets the four settings below."""
    people_per_image: PeopleRange | None = None
    """Fewest and most people placed in a picture; some may find no room or end up wholly hidden. Null: as `people`."""
    crowding: float | None = Field(None, ge=0, le=1)
    """Probability that a person stands right beside another one, instead of where it is freest. Null: as `people`."""
    occlusion: float | None = Field(None, ge=0, le=1)
    """Probability, per person, that a thing stands in front of them. Null: as `people`, and in three of ten
    pictures of `coco` the near people are seen across a table or the like, unless this or close_ups is given."""
    close_ups: float | None = Field(None, ge=0, le=1)
    """Share of the people who are too near to fit into the picture whole. Null: as `people`."""
    seed: int = Field(0, ge=0)
    """Seed of everything. The files depend on it and the settings above alone, not on the number of workers."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that draw: null for one per CPU this process may use, but not more than one for each 50 images; 0 for
    this very process."""
    overwrite: bool = False
    """Replace what is in the output directory."""

    @model_validator(mode="after")
    def _something(self) -> SynthConfig:
        if self.images.train + self.images.val == 0:
            raise ValueError("images.train and images.val are both 0; ask for at least one image")
        return self

    def digest(self) -> str:
        """Return 16 hexadecimal digits that name what is drawn: the settings that matter, and the drawing code."""
        return sha256_json([self.content(), drawing_digest()])[:16]

    def content(self) -> dict[str, Any]:
        """The settings that decide what is drawn, as a tree."""
        return self.model_dump(mode="json", exclude=_NOT_CONTENT)

    @property
    def recipe(self) -> Recipe:
        """What the pictures are like."""
        given = {name: getattr(self, name) for name in ("crowding", "occlusion", "close_ups")}
        if self.people_per_image is not None:
            given |= self.people_per_image.model_dump()
        if self.occlusion is not None or self.close_ups is not None:
            # People seen across a table are both: near, and hidden by a thing.
            given["across"] = 0.0
        kind = replace(KINDS[self.people], **{name: value for name, value in given.items() if value is not None})
        return Recipe(self.image_size.width, self.image_size.height, kind)


class Task(NamedTuple):
    """A run of consecutive images of one split."""

    split: str
    first: int
    last: int
    """Exclusive."""


def run_synth(config: SynthConfig) -> None:
    """Draw the data set; it appears under its name only when it is complete.

    Raises:
        OutputExistsError: the output is there and ``overwrite`` is false.
        UnwritableError: the output cannot be written.
    """
    began = time.perf_counter()
    check_output(config.out, overwrite=config.overwrite)
    records: dict[str, list[ImageRecord]] = {split: [] for split in SPLITS}
    with atomic_directory(config.out, overwrite=config.overwrite) as directory:
        for split in SPLITS:
            (directory / "images" / split).mkdir(parents=True)
        (directory / "annotations").mkdir()
        total = config.images.train + config.images.val
        with console.progress("drawing people", total, unit="images") as advance:
            for task, made in _made(config, directory, advance):
                records[task.split] += made
        for split in SPLITS:
            document = coco_document(records[split], split, config.content(), drawing_digest())
            write_text(directory / "annotations" / f"{split}.json", document)
    _summarise(config.out, records, time.perf_counter() - began)


def _tasks(config: SynthConfig, workers: int) -> list[Task]:
    """Cut the splits into runs: short enough to keep all workers busy to the end, and to stop soon when told to."""
    total = config.images.train + config.images.val
    length = max(1, min(16, math.ceil(total / (8 * workers))))
    return [
        Task(split, first, min(first + length, count))
        for split, count in (("train", config.images.train), ("val", config.images.val))
        for first in range(0, count, length)
    ]


def _number_of_workers(config: SynthConfig) -> int:
    if config.workers is not None:
        return config.workers
    return min(len(os.sched_getaffinity(0)), (config.images.train + config.images.val) // _IMAGES_EACH)


Made = Iterator[tuple[Task, list[ImageRecord]]]


def _made(config: SynthConfig, directory: Path, advance: Callable[[float], None]) -> Made:
    """Yield every task with what it made, in order."""
    workers = _number_of_workers(config)
    tasks = _tasks(config, max(1, workers))
    maker = Maker(config.recipe, config.seed, directory)
    if workers <= 1 or len(tasks) == 1:
        for task in tasks:
            yield task, maker(task)
            advance(task.last - task.first)
        return
    # Spawned, not forked: a fork would copy locks that a progress bar's or a library's thread may hold.
    context = multiprocessing.get_context("spawn")
    ending, end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=_become_worker, initargs=(ending,)
    )
    try:
        for task, made in zip(tasks, pool.map(maker, tasks), strict=True):
            yield task, made
            advance(task.last - task.first)
    except BrokenProcessPool as error:
        raise OSError(
            f"a drawing process died (killed, or out of memory); run again with fewer than workers={workers}"
        ) from error
    except BaseException:
        end.close()  # else all that was handed out would be drawn first: up to five tasks, of large pictures a minute
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _become_worker(ending: connection.Connection) -> None:
    """Leave Ctrl-C to the parent, and end when it closes the other end of `ending`, or is gone: a killed parent cannot
    tell its workers to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel, ending])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Maker:
    """Draws and writes runs of images; may run in any process, for the result depends on its arguments alone."""

    def __init__(self, recipe: Recipe, seed: int, directory: Path) -> None:
        self._recipe = recipe
        self._seed = seed
        self._directory = directory

    def __call__(self, task: Task) -> list[ImageRecord]:
        """Draw and write the images of a task."""
        # One thread per process: OpenCV's own threads would fight over the CPUs that the workers already fill.
        before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            return [self._image(task.split, index) for index in range(task.first, task.last)]
        finally:
            cv2.setNumThreads(before)

    def _image(self, split: str, index: int) -> ImageRecord:
        # Every image has its own counter-based stream: which process draws it, and when, cannot matter.
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, SPLITS.index(split), index))))
        image, labels = draw_scene(rng, self._recipe, bank(self._seed))
        name = f"{index:012d}.jpg"
        quality = int(rng.integers(72, 96))
        done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        (self._directory / "images" / split / name).write_bytes(data.tobytes())
        return image_record(index, name, image.shape[1], image.shape[0], labels)


def _summarise(out: Path, records: dict[str, list[ImageRecord]], elapsed_s: float) -> None:
    """Say what was made, as a table on standard output."""
    rows = [describe_people(split, records[split]) for split in SPLITS if records[split]]
    console.table(list(rows[0]), [list(row.values()) for row in rows], title=f"{out}, drawn in {elapsed_s:.1f} s")
