"""Where persons are: boxes from a file of detections or annotations, fitted to the images and videos by id or name.

Legend: N boxes of one picture. Boxes are left, top, width, height in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.crops import geometry
from efafnet.pipelines.crops.annotations import finite
from efafnet.pipelines.crops.geometry import BoxRule
from efafnet.pipelines.evaluation.columns import PERSON_CATEGORY
from efafnet.pipelines.prediction.sources import Source
from efafnet.platform import console
from efafnet.platform.storage import read_json

Key = tuple[int, int]
"""A picture: index of its source, number of its frame (0 for an image)."""


@dataclass(frozen=True)
class Boxes:
    """The persons of one picture."""

    xywh_px: NDArray[np.float64]
    """float64 (N, 4)."""
    scores: NDArray[np.float32]
    """float32 (N,), the detector's confidence; 1 for annotated boxes."""

    @classmethod
    def of(cls, entries: Sequence[tuple[Sequence[float], float]]) -> Boxes:
        """Of pairs of box and score."""
        boxes = np.array([box for box, _ in entries], np.float64).reshape(-1, 4)
        return cls(boxes, np.array([score for _, score in entries], np.float32))

    def cut(self, width: int, height: int, rule: BoxRule) -> Boxes:
        """Clipped to a picture of ``width`` x ``height`` pixels by ``rule``; those with no part in it are gone."""
        x, y, w, h = self.xywh_px.T
        clipped = geometry.clip_box(self.xywh_px, width, height, rule)
        inside = (x + w > 0) & (y + h > 0) & (x < width) & (y < height) & (clipped[:, 2:] > 0).all(axis=1)
        return Boxes(clipped[inside], self.scores[inside])


def whole_image(width: int, height: int) -> Boxes:
    """The picture itself as one person's box."""
    return Boxes.of([((0.0, 0.0, float(width), float(height)), 1.0)])


@dataclass(frozen=True)
class Listed:
    """A picture as a JSON file lists it."""

    image_id: int
    file_name: str
    frame: int


@dataclass(frozen=True)
class BoxFile:
    """Boxes as a file holds them."""

    path: Path
    boxes: list[tuple[int, list[float], float]]
    """Image id, box, score."""
    listed: list[Listed] | None
    """The pictures that ids mean; None where no file says."""
    is_annotated: bool
    """Whether people drew the boxes, and not a detector."""
    category_id: int = PERSON_CATEGORY


@dataclass(frozen=True)
class Placed:
    """Boxes by picture, and the ids that the file gives the pictures."""

    boxes: dict[Key, Boxes] = field(default_factory=dict)
    ids: dict[Key, int] = field(default_factory=dict)
    listed: bool = False
    """Whether the ids are those of a list of images."""
    free_from: int = 1
    """First id that no picture has, predicted or not."""


def read_box_file(path: Path, image_list: Path | None, min_score: float) -> BoxFile:
    """Read person boxes: COCO annotations, or COCO detections, whose ids a COCO file ``image_list`` may explain.

    Crowds, other categories than persons, and boxes scored below ``min_score`` are left out. Raises ValueError or
    OSError for what is neither, naming entry and value.
    """
    content = _read(path, "boxes")
    listed = None if image_list is None else _listed(_read(image_list, "image_list"), image_list)
    if isinstance(content, list):
        return BoxFile(path, _chosen(path, content, PERSON_CATEGORY, min_score), listed, is_annotated=False)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise ValueError(
            f"boxes={path} holds neither annotations in COCO's layout (an object with images and annotations) nor "
            "detections (a list of objects with image_id, bbox and score)"
        )
    category = _person_category(content.get("categories"))
    people = [entry for entry in content["annotations"] if not (isinstance(entry, dict) and entry.get("iscrowd"))]
    boxes = [(image, box, 1.0) for image, box, _ in _chosen(path, people, category, 0.0)]
    return BoxFile(path, boxes, listed or _listed(content, path), is_annotated=True, category_id=category)


def _read(path: Path, setting: str) -> Any:
    if not path.is_file():
        raise ValueError(f"{setting}={path}: there is no such file; give a JSON file")
    return read_json(path)


def _person_category(categories: Any) -> int:
    """Id of the category that is called person, or has joints, or is the only one; COCO's where there is none."""
    known = [c for c in categories or [] if isinstance(c, dict) and isinstance(c.get("id"), int)]
    for wanted in ([c for c in known if c.get("name") == "person"], [c for c in known if c.get("keypoints")], known):
        if wanted:
            return int(wanted[0]["id"])
    return PERSON_CATEGORY


def _chosen(path: Path, entries: list[Any], category: int, min_score: float) -> list[tuple[int, list[float], float]]:
    found, without_size = [], 0
    for number, entry in enumerate(entries):
        if problem := _problem(entry):
            raise ValueError(f"boxes={path}: entry {number} {problem}; it needs image_id, bbox (x, y, w, h) and score")
        score = float(entry.get("score", 1.0))
        if entry.get("category_id", category) != category or score < min_score:
            continue
        if entry["bbox"][2] <= 0 or entry["bbox"][3] <= 0:
            without_size += 1
            continue
        found.append((entry["image_id"], [float(v) for v in entry["bbox"]], score))
    if without_size:
        console.warn(f"boxes={path}: {without_size} boxes without width or height are left out")
    return found


def _problem(entry: Any) -> str:
    if not isinstance(entry, dict):
        return f"is {str(entry)[:60]!r}"
    box = entry.get("bbox")
    if not isinstance(entry.get("image_id"), int):
        return f"has image_id {entry.get('image_id')!r}"
    if not (isinstance(box, list) and len(box) == 4 and all(map(finite, box))):
        return f"has bbox {str(box)[:60]}"
    return "" if finite(entry.get("score", 1.0)) else f"has score {entry['score']!r}"


def _listed(content: Any, path: Path) -> list[Listed]:
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise ValueError(f"{path} lists no images: COCO's layout has a list 'images' with id and file_name of each")
    return [_listed_entry(entry, path) for entry in images]


def _listed_entry(entry: Any, path: Path) -> Listed:
    if isinstance(entry, dict):
        image_id, name, frame = entry.get("id"), entry.get("file_name"), entry.get("frame", 0)
        if isinstance(image_id, int) and isinstance(name, str) and isinstance(frame, int):
            return Listed(image_id, name, frame)
    raise ValueError(f"{path}: an image needs an integer id and a file_name; got {str(entry)[:80]}")


def place(file: BoxFile, sources: Sequence[Source]) -> Placed:
    """Which boxes lie on which of the pictures to predict.

    Pictures are found by name where they are listed, else by id: the number that an image's name is (as in COCO), or a
    frame's number where a single video is predicted. Boxes of listed pictures that nobody wants predicted are left out.
    Raises ValueError for a box on a picture that is not listed, and where no box lies on any picture to predict.
    """
    ids = _ids_by_name(file, sources) if file.listed is not None else _ids_by_number(file, sources)
    by_id = {image_id: key for key, image_id in ids.items()}
    known = None if file.listed is None else {entry.image_id for entry in file.listed}
    found: dict[Key, list[tuple[list[float], float]]] = {}
    for image_id, box, score in file.boxes:
        if known is not None and image_id not in known:
            raise ValueError(
                f"boxes={file.path}: a box lies on image {image_id}, which is not listed; give the list that the boxes "
                "belong to as image_list=ANNOTATIONS.json"
            )
        if image_id in by_id:
            found.setdefault(by_id[image_id], []).append((box, score))
    used = sum(map(len, found.values()))
    if not used:
        what = f"none of its {len(file.boxes)} boxes lies on" if file.boxes else "it holds no box of a person for"
        raise ValueError(f"boxes={file.path}: {what} the images to predict{_example(file, sources)}")
    if used < len(file.boxes):
        console.note(f"{len(file.boxes) - used} of {len(file.boxes)} boxes lie on other images and are left out")
    free_from = max([*ids.values(), *(known or ())], default=0) + 1
    boxes = {key: Boxes.of(entries) for key, entries in found.items()}
    return Placed(boxes, ids, listed=known is not None, free_from=free_from)


def _example(file: BoxFile, sources: Sequence[Source]) -> str:
    if not file.boxes:
        return ""
    first = file.boxes[0][0]
    name = next((entry.file_name for entry in file.listed or [] if entry.image_id == first), None)
    return f": the first is on image {first if name is None else name}, the first to predict is {sources[0].path.name}"


def _ids_by_name(file: BoxFile, sources: Sequence[Source]) -> dict[Key, int]:
    assert file.listed is not None
    by_name: dict[str, dict[str, list[Listed]]] = {}
    for entry in file.listed:
        by_name.setdefault(PurePath(entry.file_name).name, {}).setdefault(entry.file_name, []).append(entry)
    ids: dict[Key, int] = {}
    for source in sources:
        candidates = by_name.get(source.path.name, {})
        if len(candidates) > 1:
            tails = [name for name in candidates if _is_tail(name, source.path)]
            if not tails:
                raise ValueError(f"{source.path} may be any of several listed images called {source.path.name}")
            candidates = {name: candidates[name] for name in [max(tails, key=len)]}
        for entry in (entry for entries in candidates.values() for entry in entries):
            ids[source.index, entry.frame] = entry.image_id
    if missing := sum(not any(key[0] == source.index for key in ids) for source in sources):
        console.warn(f"{missing} of {len(sources)} images are not listed with the boxes: nobody is looked for in them")
    return ids


def _is_tail(name: str, path: Path) -> bool:
    parts = PurePath(name).parts
    return path.parts[-len(parts) :] == parts


def _ids_by_number(file: BoxFile, sources: Sequence[Source]) -> dict[Key, int]:
    numbered = numbers_of_names(sources)
    if numbered is not None:
        return numbered
    if len(sources) == 1 and sources[0].is_video:
        return {(0, image_id): image_id for image_id, _, _ in file.boxes}
    raise ValueError(
        f"boxes={file.path} names images by id, and the names of the files to predict ({sources[0].path.name}, …) are "
        "not numbers of their own; give a COCO file whose images say which id each name has: "
        "image_list=ANNOTATIONS.json"
    )


def numbers_of_names(sources: Sequence[Source]) -> dict[Key, int] | None:
    """Ids of images called by a number each, as COCO's are; None where one is not, or two share a number."""
    if any(source.is_video or not source.path.stem.isdecimal() for source in sources):
        return None
    ids = {(source.index, 0): int(source.path.stem) for source in sources}
    return ids if len(set(ids.values())) == len(ids) else None
