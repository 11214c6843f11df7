"""COCO's annotation layout and its relatives (CrowdPose, OCHuman, joints of one's own): the one reader of them.

What is accepted and what is refused is the table in docs/data.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import COCO_17, Skeleton
from efafnet.pipelines.formats.annotations import AREA_OF_BOX, Annotation, Annotations
from efafnet.pipelines.formats.categories import Chosen, choose, is_joint, skeleton_of
from efafnet.pipelines.formats.images import ImageTable
from efafnet.pipelines.formats.keypoints import keypoint_columns, keypoints_of
from efafnet.pipelines.formats.layouts import looks_like
from efafnet.pipelines.formats.rejects import Reject
from efafnet.pipelines.formats.values import (
    MAX_PX,
    flag,
    integer,
    no_integer,
    number,
    number_rows,
    numbers,
    shown,
    told,
)


def parse_coco(
    content: Any,
    path: Path,
    skeleton: Skeleton | None = None,
    categories: Sequence[str] = (),
    *,
    named: bool = True,
    joints: bool = True,
) -> Annotations:
    """COCO keypoint annotations; ``skeleton`` overrides the file's own, ``categories`` names those that are persons.

    ``named`` images must have a file name; measuring does without. Without ``joints`` boxes are read alone, of persons
    whose category need list none; everybody then has the known skeleton's joints, absent. Raises ValueError where
    ``content`` is not COCO's layout at all or its categories make no choice; single bad entries become rejects, and
    annotations of other categories are counted in the remarks.
    """
    check_layout(content, path)
    chosen, persons = choose(content.get("categories"), categories, path.name, by_joints=joints)
    found, remarks = skeleton or COCO_17, list[str]()
    if joints:
        found, remarks = skeleton_of(persons, skeleton, path.name, partial(_why_no_joints, content))
    images = ImageTable(content["images"], named=named)
    reader = _Reader(images, chosen, found, path.name, joints=joints)
    annotations = reader.read(content["annotations"])
    return Annotations(
        found,
        list(images.by_id.values()),
        annotations,
        [*images.rejects, *reader.rejects],
        "coco",
        [*remarks, *(f"{path.name}: {remark}" for remark in images.repeated()), *reader.remarks],
        chosen.numbers,
        chosen.names,
        reader.left_out,
    )


def check_layout(content: Any, path: Path) -> None:
    """Raise ValueError where ``content`` has no lists of images and annotations."""
    for name in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            given = isinstance(content, dict) and name in content
            no_list = f" (it is {shown(content[name], 20)}, no list)" if given else ""
            raise ValueError(
                f"{path} is not in COCO's layout: it needs the lists images, annotations and categories; {name!r} is "
                f"missing{no_list or looks_like(content)}. MPII's own JSON is read with format=mpii_json"
            )


def _why_no_joints(content: dict[str, Any]) -> str:
    """What to do about categories of which none lists joints. It looks through all annotations: for an error only."""
    names = [str(category.get("name")) for category in content.get("categories") or () if isinstance(category, dict)]
    joints = [name for name in names if is_joint(name)]
    if len(joints) > 1:
        return (
            f"the categories themselves are joints ({', '.join(joints[:3])}, …), and nobody can tell which annotations "
            "are one person: export COCO keypoints, one annotation a person"
        )
    if not any(isinstance(entry, dict) and entry.get("keypoints") for entry in content["annotations"]):
        return (
            "no annotation has keypoints either: boxes and outlines alone, as in COCO's instances_*.json? Give the "
            "keypoints' file, or for a detector's boxes the skeleton, for example skeleton=coco17"
        )
    return "give the skeleton, for example skeleton=coco17"


class _Reader:
    """The annotations of one file, on their way in."""

    def __init__(self, images: ImageTable, chosen: Chosen, skeleton: Skeleton, where: str, *, joints: bool) -> None:
        self.images = images
        self.chosen = chosen
        self.skeleton = skeleton
        self.where = where
        self.joints = joints
        self.rejects: list[Reject] = []
        self.remarks: list[str] = []
        self.left_out = ""
        self._seen: set[int] = set()

    def read(self, entries: list[Any]) -> list[Annotation]:
        """Annotations of the chosen categories, in file order."""
        kept = self._of_chosen(entries)
        numbers = self._numbered(kept)
        boxes, sound_boxes = number_rows([entry.get("bbox") for entry in kept], 4)
        nothing = [0] * (3 * self.skeleton.num_joints)
        given = [entry.get("keypoints") if self.joints else None for entry in kept]
        columns = keypoint_columns([nothing if row in (None, []) else row for row in given], self.skeleton.num_joints)
        self._tell_fractions(kept, numbers, columns.fractions)
        found = []
        rows = zip(kept, numbers, *map(_listed, (boxes, sound_boxes, columns.values, columns.sound)), strict=True)
        for entry, number_, box, has_box, keypoints, has_keypoints in rows:
            parsed = self._annotation(entry, number_, box if has_box else None, keypoints if has_keypoints else None)
            if isinstance(parsed, Reject):
                self.rejects.append(parsed)
            else:
                self._seen.add(parsed.annotation_id)
                found.append(parsed)
        return found

    def _of_chosen(self, entries: list[Any]) -> list[dict[str, Any]]:
        kept, others = [], Counter[int]()
        for place, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._reject_entry(f"annotation {place} must be an object; got {shown(entry)}")
                continue
            given = entry.get("category_id")
            category = given if type(given) is int else self.chosen.number_of(given)
            if category in self.chosen.numbers:
                kept.append(entry)
            elif category is not None:
                others[category] += 1
            else:
                known = ", ".join(map(self.chosen.shown, sorted(self.chosen.names))) or str(self.chosen)
                self._reject_entry(f"annotation {place}: category_id {no_integer(given)}; the categories are: {known}")
        if others:
            total = sum(others.values())
            which = ", ".join(f"category {self.chosen.shown(c)}: {number}" for c, number in others.most_common(5))
            self.left_out = (
                f"{total} of {len(entries)} annotations have another category ({which}) than {self.chosen}; they are "
                "left out"
            )
            self.remarks.append(f"{self.where}: {self.left_out}")
        return kept

    def _numbered(self, entries: list[dict[str, Any]]) -> list[int | None]:
        """Id of each annotation, free numbers from 1 for those without; None where it is no integer."""
        found = [integer(entry.get("id")) for entry in entries]
        missing = [n for n, entry in enumerate(entries) if entry.get("id") is None]
        if missing:
            taken = set(found)
            free = (number for number in count(1) if number not in taken)
            for n in missing:
                found[n] = next(free)
            self.remarks.append(f"{self.where}: {len(missing)} annotations have no id and are numbered in their order")
        return found

    def _tell_fractions(
        self, entries: list[dict[str, Any]], numbers: Sequence[int | None], fractions: NDArray[np.bool_]
    ) -> None:
        if fractions.any():
            n, joint = np.argwhere(fractions)[0].tolist()
            value = entries[n]["keypoints"][3 * joint + 2]
            self.remarks.append(
                f"{self.where}: {int(fractions.sum())} joints have a visibility between 0, 1 and 2 (the first: "
                f"v={value} at {self.skeleton.joints[joint]} of annotation {numbers[n]}); taken for visible"
            )

    def _reject_entry(self, detail: str) -> None:
        self.rejects.append(Reject("annotation_invalid", detail))

    def _annotation(
        self, entry: dict[str, Any], annotation_id: int | None, box: list[float] | None, keypoints: list[float] | None
    ) -> Annotation | Reject:
        if annotation_id is None:
            detail = f"annotation id {no_integer(entry['id'])}; without an id it is numbered"
            return Reject("annotation_invalid", detail)
        image = self.images.find(entry.get("image_id"))
        name = f"annotation {annotation_id}"
        if image is None:
            given = entry.get("image_id")
            return Reject("unknown_image", f"{name} {_no_image(entry)}", integer(given), annotation_id)

        def reject(reason: str, detail: str) -> Reject:
            return Reject(reason, f"{name} {detail}", image.image_id, annotation_id, image.file_name or None)

        if annotation_id in self._seen:
            return reject("duplicate_annotation_id", "occurs more than once")
        box = numbers(entry.get("bbox"), 4) if box is None else box
        if box is None or max(map(abs, box)) > MAX_PX:
            return reject("box_invalid", f"has {told(entry, 'bbox')}; it must be four finite numbers")
        if keypoints is None:
            repaired = keypoints_of(entry["keypoints"], self.skeleton)
            if isinstance(repaired, str):
                return reject("keypoints_invalid", repaired)
            keypoints = repaired
        fields = _fields(entry, box, keypoints)
        if isinstance(fields, Reject):
            return reject(fields.reason, fields.detail)
        area, is_crowd, labelled = fields
        category = self.chosen.number_of(entry.get("category_id"))
        assert category is not None
        return Annotation(
            annotation_id,
            image.image_id,
            category,
            (box[0], box[1], box[2], box[3]),
            area,
            is_crowd,
            labelled,
            tuple(keypoints),
            _positive(entry.get("head_size")),
        )


def _no_image(entry: dict[str, Any]) -> str:
    """Why an annotation is on no image."""
    given = entry.get("image_id")
    if given is None:
        return f"has {told(entry, 'image_id')}"
    if integer(given) is None and not isinstance(given, str):
        return f"has image_id {no_integer(given)}"
    return f"lies on image {shown(given)}, which is not listed"


def _listed(column: NDArray[Any]) -> list[Any]:
    return list(column.tolist())


def _fields(entry: dict[str, Any], box: list[float], keypoints: list[float]) -> tuple[float, bool, int] | Reject:
    """Area, crowd and number of joints, or what is wrong with them."""
    given = entry.get("area")
    # Height first, as the tool that the share comes from: the last bit of a product depends on the order.
    area = box[3] * box[2] * AREA_OF_BOX if given is None else number(given)
    if area is None or not 0 <= area <= MAX_PX**2:
        return Reject("area_invalid", f"has area {shown(given)}; it must be a finite number, 0 or more")
    is_crowd = flag(entry.get("iscrowd"))
    if is_crowd is None:
        return Reject("annotation_invalid", f"has iscrowd {shown(entry['iscrowd'])}; it must be 0 or 1")
    counted = entry.get("num_keypoints")
    labelled = sum(v > 0 for v in keypoints[2::3]) if counted is None else integer(counted)
    if labelled is None or not 0 <= labelled < 2**31:
        return Reject("annotation_invalid", f"has num_keypoints {shown(counted)}; it must be a number of joints")
    return area, is_crowd, labelled


def _positive(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and found > 0 else None
