"""`efafnet predict CHECKPOINT INPUTS…`: joints of the persons in images and videos, as COCO results and as pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.geometry import BoxRule
from efafnet.pipelines.crops.images import tell_orientation
from efafnet.pipelines.formats.categories import PERSON_CATEGORY
from efafnet.pipelines.prediction.config import PredictConfig
from efafnet.pipelines.prediction.file_prediction import Job, Task, Worker, work_with_ray
from efafnet.pipelines.prediction.media import Source, UnreadableError, find_sources
from efafnet.pipelines.prediction.people import People
from efafnet.pipelines.prediction.person_boxes import BoxFile, Key, Placed, numbers_of_names, place, read_box_file
from efafnet.pipelines.prediction.seen import Seen
from efafnet.pipelines.prediction.spool import JsonList, Record, Spool
from efafnet.platform import console
from efafnet.platform.provenance import code_version
from efafnet.platform.storage import atomic_directory, check_output, write_text

PREDICTIONS = "predictions.json"
IMAGES = "images.json"
PICTURES = "pictures"
PEOPLE = "people.csv"


@dataclass(frozen=True)
class Prediction:
    """What came out: counts here, the rest in files, however much it is."""

    output: Path
    num_images: int
    num_persons: int
    people: People
    """The tracks of videos."""
    remarks: tuple[str, ...]
    """What was wrong with videos, a sentence each."""
    skeleton: Skeleton
    seconds: float

    @property
    def results(self) -> list[dict[str, Any]]:
        """COCO results with `bbox`, by image, persons by falling score; read from the file."""
        found: list[dict[str, Any]] = json.loads((self.output / PREDICTIONS).read_text(encoding="utf-8"))
        return found

    @property
    def images(self) -> list[dict[str, Any]]:
        """id, file_name, width, height of every picture; frame and time_s of a video's; read from the file."""
        found: list[dict[str, Any]] = json.loads((self.output / IMAGES).read_text(encoding="utf-8"))["images"]
        return found


def run_predict(config: PredictConfig) -> Prediction:
    """Predict, write everything to ``config.output``, say how much it was.

    Raises ValueError or OSError, and leaves nothing behind, for inputs, boxes, a checkpoint, a detector or an output
    that cannot be used; UnreadableError, once everything is written, for videos that are cut or damaged, unless they
    may be (``skip_unreadable``).
    """
    check_output(config.output, overwrite=config.overwrite)
    sources = find_sources(config.inputs, skip_unreadable=config.skip_unreadable)
    file = _box_file(config, sources)
    placed = Placed(ids=numbers_of_names(sources) or {}) if file is None else place(file, sources)
    with atomic_directory(config.output, overwrite=config.overwrite) as folder:
        done = _predict(config, sources, placed, file, folder)
    _tell(config, sources, done)
    if done.remarks and not config.skip_unreadable:
        # After hours of work what is there is worth keeping; whoever asks for the exit code learns that it is not all.
        raise UnreadableError(
            f"{'; '.join(done.remarks)}. What can be read is in {config.output}; skip_unreadable=true takes that"
        )
    return done


def _box_file(config: PredictConfig, sources: Sequence[Source]) -> BoxFile | None:
    if not isinstance(config.boxes, Path):
        return None
    return read_box_file(config.boxes, config.image_list, config.min_box_score, config.categories, sources)


def _predict(
    config: PredictConfig, sources: Sequence[Source], placed: Placed, file: BoxFile | None, folder: Path
) -> Prediction:
    job = _job(config, file, folder)
    # In this process too where Ray does the work: what is wrong with a checkpoint is one error, before workers start.
    worker = Worker(job, config.workers.device_here() if config.workers.without_ray else torch.device("cpu"))
    worker.predictor.trained.tell_visibility()
    if job.pictures is not None:
        job.pictures.mkdir()
    tasks = _tasks(sources, placed)
    began = time.monotonic()
    people, seen = People(), Seen(placed, config.frame_step)
    with Spool(folder / ".records") as spool:
        records = worker(tasks) if config.workers.without_ray else work_with_ray(tasks, job, config.workers)
        for record in _counted(records, sources, config):
            spool.add(record)
            seen.add(record)
        seconds = time.monotonic() - began
        numbered = _numbered(spool, sources, placed)
        category = _category(worker.predictor.skeleton, PERSON_CATEGORY if file is None else file.category_id)
        info = {"settings": config.model_dump(mode="json"), "code": code_version(), "seconds": seconds}
        images, persons, remarks = _write(folder, numbered, sources, category, info, people)
    if len(people):
        write_text(folder / PEOPLE, people.csv())
    tell_orientation(seen.tagged, images, upright=job.upright)
    for remark in [] if file is None else seen.remarks(file, sources):
        console.warn(remark)
    return Prediction(config.output, images, persons, people, tuple(remarks), worker.predictor.skeleton, seconds)


def _job(config: PredictConfig, file: BoxFile | None, folder: Path) -> Job:
    usual: BoxRule = "sbn" if file is not None and file.is_annotated else "unclipped"
    upright = file is None if config.orientation == "auto" else config.orientation == "upright"
    return Job(
        checkpoint=config.checkpoint,
        skeleton=config.skeleton,
        weights=config.weights,
        test=config.test,
        boxes_from="file" if file else "whole_image" if config.boxes == "whole_image" else "detector",
        box_rule=usual if config.box_rule == "auto" else config.box_rule,
        detector=config.detector,
        upright=upright,
        frame_step=config.frame_step,
        skip_unreadable=config.skip_unreadable,
        tracking=config.tracking,
        pictures=folder / PICTURES if config.pictures else None,
        labels=config.labels,
        picture_scale=config.picture_scale,
    )


def _tasks(sources: Sequence[Source], placed: Placed) -> list[Task]:
    boxes: dict[int, dict[int, Any]] = {}
    for (index, frame), found in placed.boxes.items():
        boxes.setdefault(index, {})[frame] = found
    taken: set[str] = set()
    tasks = []
    for source in sources:
        # Pictures of one name from several folders, or of several formats, must not replace each other.
        names = (source.path.stem if n == 1 else f"{source.path.stem}-{n}" for n in count(1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        tasks.append(Task(source, name, boxes.get(source.index, {})))
    return tasks


def _counted(records: Iterable[Record], sources: Sequence[Source], config: PredictConfig) -> Iterator[Record]:
    """The records, while progress is shown."""
    pictures = sum(-(-source.frames // config.frame_step) for source in sources)
    with console.progress("predicting", pictures, unit="pictures") as advance:
        for record in records:
            advance(1)
            yield record


def _numbered(records: Iterable[Record], sources: Sequence[Source], placed: Placed) -> Iterator[tuple[Record, int]]:
    """Each picture with its id: the one it is known by, else the next free number; of a video alone, its frame's."""
    known: dict[Key, int] = placed.ids
    alone = len(sources) == 1 and sources[0].is_video and not placed.listed
    fresh = count(placed.free_from)
    for record in records:
        found = record.frame if alone else known.get((record.source, record.frame))
        yield record, next(fresh) if found is None else found


def _image(record: Record, image_id: int, source: Source) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": image_id,
        "file_name": source.path.name,
        "width": record.width,
        "height": record.height,
        "path": str(source.path),
    }
    return {**entry, "frame": record.frame, "time_s": round(record.time_s, 6)} if source.is_video else entry


def _category(skeleton: Skeleton, category_id: int) -> dict[str, Any]:
    return {
        "id": category_id,
        "name": "person",
        "keypoints": list(skeleton.joints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.limbs],
        "sigmas": list(skeleton.sigmas),
        "flip_pairs": [list(pair) for pair in skeleton.flip_pairs],
    }


def _write(
    folder: Path,
    numbered: Iterable[tuple[Record, int]],
    sources: Sequence[Source],
    category: dict[str, Any],
    info: dict[str, Any],
    people: People,
) -> tuple[int, int, list[str]]:
    """Write predictions and images, a picture at a time; the numbers of both, and what was wrong with videos."""
    persons, remarks = 0, list[str]()
    with JsonList(folder / PREDICTIONS) as results, JsonList(folder / IMAGES, "images") as images:
        for record, image_id in numbered:
            source = sources[record.source]
            images.add(_image(record, image_id, source))
            people.add(record, source.path.name)
            for entry in record.results:
                results.add({**entry, "image_id": image_id, "category_id": category["id"]})
            persons += len(record.results)
            if record.remark:
                remarks.append(record.remark)
                console.warn(record.remark)
        # COCO's layout without annotations: pycocotools reads it, and the predictions as its results.
        images.rest = {"info": {**info, "remarks": remarks}, "annotations": [], "categories": [category]}
    return images.count, persons, remarks


def _tell(config: PredictConfig, sources: Sequence[Source], done: Prediction) -> None:
    pictures, persons = done.num_images, done.num_persons
    if not persons:
        console.warn("no person was found in any picture")
    if len(done.people):
        done.people.tell(str(config.output / PEOPLE))
    rate = pictures / done.seconds if done.seconds > 0 else 0.0
    found, shown = console.counted(persons, "person"), console.counted(pictures, "picture")
    console.say(f"{found} in {shown} of {console.counted(len(sources), 'file')}; files in {config.output}")
    console.note(f"{done.seconds:.1f} s ({rate:.3g} pictures/s)")
