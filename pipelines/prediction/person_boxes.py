"""Where persons are: boxes from a file of detections or annotations, fitted to the images and videos by id or name.

Legend: N boxes of one picture. Boxes are left, top, width, height in pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.crops import geometry
from efafnet.pipelines.crops.geometry import BoxRule
from efafnet.pipelines.formats.annotations import ImageEntry
from efafnet.pipelines.formats.categories import PERSON_CATEGORY, Chosen, choose
from efafnet.pipelines.formats.detections import Detections, parse_detections
from efafnet.pipelines.formats.files import read_json
from efafnet.pipelines.formats.images import ImageTable
from efafnet.pipelines.formats.layouts import looks_like
from efafnet.pipelines.formats.names import name_parts
from efafnet.pipelines.formats.plausibility import odd_boxes, odd_scores
from efafnet.pipelines.formats.results import Names
from efafnet.pipelines.formats.values import flag, integer, shown, text, told
from efafnet.pipelines.prediction.media import Source
from efafnet.platform import console

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
    told: tuple[str, ...] = ()
    """What is odd about the boxes and was told."""


@dataclass(frozen=True)
class Placed:
    """Boxes by picture, and the ids that the file gives the pictures."""

    boxes: dict[Key, Boxes] = field(default_factory=dict)
    ids: dict[Key, int] = field(default_factory=dict)
    listed: bool = False
    """Whether the ids are those of a list of images."""
    free_from: int = 1
    """First id that no picture has, predicted or not."""


def read_box_file(
    path: Path,
    image_list: Path | None,
    min_score: float,
    categories: Sequence[str] = (),
    sources: Sequence[Source] = (),
) -> BoxFile:
    """Read person boxes: COCO annotations, or COCO detections, whose ids a COCO file ``image_list`` may explain.

    Without it detections may call the images among ``sources`` by their files' names. Crowds, other ``categories`` than
    persons, and boxes scored below ``min_score`` are left out. Raises ValueError for what is neither, naming entry and
    value.
    """
    content = read_json(path, setting="boxes")
    list_content = None if image_list is None else read_json(image_list, setting="image_list")
    listed = None if image_list is None else _listed(list_content, image_list)
    annotated = isinstance(content, dict) and isinstance(content.get("annotations"), list)
    if not annotated and not isinstance(content, list):
        raise ValueError(
            f"boxes={path} holds neither annotations in COCO's layout (an object with images and annotations) nor "
            f"detections (a list of objects with image_id, bbox and score){looks_like(content)}"
        )
    where = f"boxes={path}"
    if not annotated:
        named = list_content.get("categories") if isinstance(list_content, dict) else None
        chosen = _chosen_of_detections(named, categories, image_list)
        if listed is not None:
            content = Names(_table(list_content), {}).numbered(content)
        elif sources and any(_is_name(entry) for entry in content):
            content, listed = _of_sources(content, sources, where)
        remedy = "categories=[NUMBER] says which are persons"
        found = parse_detections(content, where, chosen, remedy=remedy)
        boxes, odd = _checked(found, where, min_score, _sizes(list_content))
        return BoxFile(path, boxes, listed, False, chosen.default, odd)
    chosen, _ = choose(content.get("categories"), categories, where, by_joints=False)
    people = [entry for entry in content["annotations"] if not _is_crowd(entry, where)]
    if crowds := len(content["annotations"]) - len(people):
        console.note(f"{where}: {crowds} crowds are left out")
    found = parse_detections(people, where, chosen, scores="none")
    boxes, odd = _checked(found, where, 0.0, _sizes(content))
    return BoxFile(path, boxes, listed or _listed(content, path), True, chosen.default, odd)


def _is_name(entry: Any) -> bool:
    """Whether a detection calls its image by text that is no number."""
    image = entry.get("image_id") if isinstance(entry, dict) else None
    return isinstance(image, str) and integer(image) is None


def _of_sources(content: list[Any], sources: Sequence[Source], where: str) -> tuple[list[Any], list[Listed]]:
    """Detections that call images by their files' names, with the numbers of those to predict; and what these mean."""
    known = numbers_of_names(sources) or {(source.index, 0): source.index + 1 for source in sources}
    listed = [Listed(known[source.index, 0], source.path.name, 0) for source in sources if not source.is_video]
    table = ImageTable.of(ImageEntry(entry.image_id, entry.file_name, None, None) for entry in listed)
    numbered = Names(table, {}).numbered(content)
    found = [entry for entry in numbered if not _is_name(entry)]
    if not found:
        raise ValueError(
            f"{where}: none of its {len(content)} boxes lies on the images to predict: the first is on image "
            f"{shown(content[0]['image_id'])}, the first to predict is {sources[0].path.name}"
        )
    if len(found) < len(content):
        console.note(
            f"{len(content) - len(found)} of {len(content)} boxes lie on images of other names, or of names that "
            "several have, and are left out"
        )
    return found, listed


def _chosen_of_detections(listed: Any, categories: Sequence[str], image_list: Path | None) -> Chosen:
    """Categories of detections: those named or numbered, else COCO's persons."""
    person = PERSON_CATEGORY if listed is None else None
    numbers = [person if category.casefold() == "person" else integer(category) for category in categories]
    if categories and None not in numbers:
        known = [number for number in numbers if number is not None]
        return Chosen(frozenset(known), known[0], {PERSON_CATEGORY: "person"})
    if categories and listed is None:
        raise ValueError(
            f"categories={list(categories)}: nobody says which numbers of the detections these names mean; give the "
            "numbers, or image_list=ANNOTATIONS.json with its categories"
        )
    if categories:
        return choose(listed, categories, f"image_list={image_list}")[0]
    return Chosen(frozenset({PERSON_CATEGORY}), PERSON_CATEGORY, {PERSON_CATEGORY: "person"})


def _is_crowd(entry: Any, where: str) -> bool:
    if not isinstance(entry, dict):
        return False
    found = flag(entry.get("iscrowd"))
    if found is None:
        raise ValueError(f"{where}: the annotation {told(entry, 'id')} has {told(entry, 'iscrowd')}; it must be 0 or 1")
    return found


def _sizes(content: Any) -> dict[int, tuple[int | None, int | None]]:
    """Width and height of the images that a COCO file lists, by id; sizes that are none are left out."""
    return {number: (image.width, image.height) for number, image in _table(content).by_id.items()}


def _table(content: Any) -> ImageTable:
    images = content.get("images") if isinstance(content, dict) else None
    return ImageTable(images if isinstance(images, list) else [], named=False)


def _checked(
    found: Detections, where: str, min_score: float, sizes: dict[int, tuple[int | None, int | None]]
) -> tuple[list[tuple[int, list[float], float]], tuple[str, ...]]:
    """Image, box and score of each, and what is odd about them, which is told.

    Boxes without size and unsure ones are told and left out, others refused.
    """
    without_size = [reject for reject in found.rejects if reject.reason == "box_empty"]
    try:
        replace(found, rejects=[r for r in found.rejects if r.reason != "box_empty"]).refuse_rejects()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    odd = [*odd_boxes(found.box_xywh_px, found.image_id, sizes), *odd_scores(found.score)]
    for remark in (*found.remarks, *(f"{where}: {remark}" for remark in odd)):
        console.warn(remark)
    if without_size:
        console.warn(f"{where}: {len(without_size)} boxes without width or height are left out")
    sure = found.score >= min_score
    if not sure.all():
        console.note(f"{where}: {int((~sure).sum())} boxes scored below min_box_score={min_score:g} are left out")
    columns = (found.image_id[sure], found.box_xywh_px[sure], found.score[sure])
    return list(zip(*(column.tolist() for column in columns), strict=True)), tuple(odd)


def _listed(content: Any, path: Path) -> list[Listed]:
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise ValueError(f"{path} lists no images: COCO's layout has a list 'images' with id and file_name of each")
    return [_listed_entry(entry, path) for entry in images]


def _listed_entry(entry: Any, path: Path) -> Listed:
    if isinstance(entry, dict):
        image_id, name = integer(entry.get("id")), text(entry.get("file_name"))
        frame = integer(entry.get("frame") or 0)
        if image_id is not None and name is not None and frame is not None:
            return Listed(image_id, name, frame)
    raise ValueError(f"{path}: an image needs an integer id and a file_name; got {shown(entry, 80)}")


def place(file: BoxFile, sources: Sequence[Source]) -> Placed:
    """Which boxes lie on which of the pictures to predict.

    Pictures are found by name where they are listed, else by id: the number that an image's name is (as in COCO), or a
    frame's number where a single video is predicted. Boxes of listed pictures that nobody wants predicted are left out.
    Raises ValueError for a box on a picture that is not listed, and where no box lies on any picture to predict.
    """
    pairs = _ids_by_name(file, sources) if file.listed is not None else [*_ids_by_number(file, sources).items()]
    # A picture that is listed twice has the first id, and the boxes of both.
    ids = dict(reversed(pairs))
    by_id = {image_id: key for key, image_id in pairs}
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


def _ids_by_name(file: BoxFile, sources: Sequence[Source]) -> list[tuple[Key, int]]:
    """Pictures to predict with the ids that they are listed under, in the list's order for each."""
    assert file.listed is not None
    by_name: dict[str, dict[str, list[Listed]]] = {}
    for entry in file.listed:
        parts = name_parts(entry.file_name) or (entry.file_name,)
        by_name.setdefault(parts[-1], {}).setdefault(entry.file_name, []).append(entry)
    ids: list[tuple[Key, int]] = []
    for source in sources:
        candidates = by_name.get(normalize("NFC", source.path.name), {})
        if len(candidates) > 1:
            tails = [name for name in candidates if _is_tail(name, source.path)]
            if not tails:
                raise ValueError(f"{source.path} may be any of several listed images called {source.path.name}")
            candidates = {name: candidates[name] for name in [max(tails, key=len)]}
        entries = (entry for several in candidates.values() for entry in several)
        ids.extend(((source.index, entry.frame), entry.image_id) for entry in entries)
    found = {index for (index, _), _ in ids}
    if missing := sum(source.index not in found for source in sources):
        console.warn(f"{missing} of {len(sources)} images are not listed with the boxes: nobody is looked for in them")
    return ids


def _is_tail(name: str, path: Path) -> bool:
    parts = name_parts(name)
    return name_parts(str(path))[-len(parts) :] == parts


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
