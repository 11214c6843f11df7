"""Person boxes of a detector, in COCO's results layout: the one reader of them.

Legend: D boxes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.formats.categories import Chosen
from efafnet.pipelines.formats.images import ImageTable
from efafnet.pipelines.formats.layouts import looks_like
from efafnet.pipelines.formats.rejects import Reject, explained
from efafnet.pipelines.formats.values import MAX_PX, integer, no_integer, number, number_rows, numbers, shown, told

Scores = Literal["needed", "optional", "none"]
"""Whether every box must have a score; one that people drew has none."""


@dataclass(frozen=True)
class Detections:
    """Boxes of persons, as a file holds them."""

    entry: NDArray[np.int64]
    """int64 (D,), place in the file."""
    image_id: NDArray[np.int64]
    """int64 (D,)."""
    box_xywh_px: NDArray[np.float64]
    """float64 (D, 4), width and height above 0."""
    score: NDArray[np.float64]
    """float64 (D,)."""
    rejects: list[Reject]
    """Entries that cannot be used; their ``annotation_id`` is the place in the file."""
    remarks: list[str] = field(default_factory=list)
    """What a user should be told."""

    def __len__(self) -> int:
        return len(self.entry)

    def refuse_rejects(self) -> None:
        """Raise ValueError where an entry cannot be used."""
        if self.rejects:
            total = len(self) + len(self.rejects)
            raise ValueError(f"{len(self.rejects)} of {total} detections cannot be used: {explained(self.rejects)}")


def parse_detections(
    content: Any,
    where: str,
    chosen: Chosen,
    images: ImageTable | None = None,
    scores: Scores = "optional",
    remedy: str = "persons must have the category that they have in the annotations",
) -> Detections:
    """Boxes of the ``chosen`` categories; on ``images`` where they are given, else on any.

    A box without a score is certain, unless ``scores`` are needed; ``remedy`` is what to do where all have another
    category. Raises ValueError where ``content`` is no list of detections at all, and where every one of them has
    another category; single bad entries become rejects.
    """
    if not isinstance(content, list):
        raise ValueError(
            f"{where} is not a detections file: it needs a list of objects with image_id, bbox, score"
            f"{looks_like(content)}"
        )
    reader = _Reader(where, chosen, images, scores, remedy)
    kept = reader.of_chosen(content)
    boxes, plain = number_rows([content[n].get("bbox") for n in kept], 4)
    found: list[tuple[int, int, Sequence[float], float]] = []
    for n, box, is_plain in zip(kept, boxes.tolist(), plain.tolist(), strict=True):
        parsed = reader.detection(n, content[n], box if is_plain else None)
        if isinstance(parsed, Reject):
            reader.rejects.append(parsed)
        else:
            found.append(parsed)
    if reader.unscored:
        first = next(content[n] for n in kept if content[n].get("score") is None)
        fields = ", ".join(shown(name, 20) for name in first)
        remark = f"{reader.unscored} detections have no score; they count as certain (the first has: {fields})"
        reader.remarks.append(f"{where}: {remark}")
    return Detections(
        np.array([row[0] for row in found], np.int64),
        np.array([row[1] for row in found], np.int64),
        np.array([row[2] for row in found], np.float64).reshape(-1, 4),
        np.array([row[3] for row in found], np.float64),
        reader.rejects,
        reader.remarks,
    )


class _Reader:
    def __init__(self, where: str, chosen: Chosen, images: ImageTable | None, scores: Scores, remedy: str) -> None:
        self.where = where
        self.chosen = chosen
        self.images = images
        self.scores = scores
        self.remedy = remedy
        self.unscored = 0
        self.rejects: list[Reject] = []
        self.remarks: list[str] = []

    def of_chosen(self, entries: list[Any]) -> list[int]:
        """Places of the detections of persons."""
        kept: list[int] = []
        others: Counter[int] = Counter()
        for place, entry in enumerate(entries):
            if not isinstance(entry, dict):
                detail = f"entry {place} is {shown(entry)}; it needs image_id, bbox (x, y, width, height) and score"
                self.rejects.append(Reject("detection_invalid", detail, None, place))
                continue
            category = self.chosen.number_of(entry.get("category_id"))
            if category in self.chosen.numbers:
                kept.append(place)
            elif category is None:
                detail = f"entry {place} has the category_id {no_integer(entry['category_id'])}"
                self.rejects.append(Reject("detection_invalid", detail, None, place))
            else:
                others[category] += 1
        self._tell_others(others, len(entries), any_kept=bool(kept))
        return kept

    def _tell_others(self, others: Counter[int], total: int, *, any_kept: bool) -> None:
        if not others:
            return
        which = ", ".join(
            f"category {self.chosen.shown(category)}: {count}" for category, count in others.most_common(5)
        )
        if not any_kept and sum(others.values()) == total:
            raise ValueError(
                f"{self.where}: no detection of category {self.chosen} among {total} ({which}); {self.remedy}"
            )
        self.remarks.append(
            f"{self.where}: {sum(others.values())} of {total} detections have another category ({which}) than "
            f"{self.chosen} and are left out"
        )

    def detection(
        self, place: int, entry: dict[str, Any], box: list[float] | None
    ) -> tuple[int, int, Sequence[float], float] | Reject:
        """Place, image, box and score of one entry, or what is wrong with it."""
        given = entry.get("image_id")
        if self.images is not None:
            image = self.images.find_from_outside(given)
            image_id = None if image is None else image.image_id
        else:
            image_id = integer(given)
        if image_id is None:
            if self.images is None or (integer(given) is None and not isinstance(given, str)):
                what = f"image_id {no_integer(given)}" if "image_id" in entry else told(entry, "image_id")
                detail = f"entry {place} has {what}"
                return Reject("detection_invalid", detail, None, place)
            if why := self.images.ambiguous(given):
                return Reject("unknown_image", f"entry {place} lies on image {shown(given)}, which {why}", None, place)
            first = next(iter(self.images.by_id.values()), None)
            known = "" if first is None else f" (the first that is: {first.image_id}, {first.file_name})"
            detail = f"entry {place} lies on image {shown(given)}, which is not listed{known}"
            return Reject("unknown_image", detail, None, place)
        box = numbers(entry.get("bbox"), 4) if box is None else box
        if box is None or max(map(abs, box)) > MAX_PX:
            detail = f"entry {place} has {told(entry, 'bbox')}; it must be four finite numbers"
            return Reject("box_invalid", detail, image_id, place)
        if box[2] <= 0 or box[3] <= 0:
            detail = f"entry {place} has bbox {shown(entry['bbox'])}; width and height above 0 are needed"
            return Reject("box_empty", detail, image_id, place)
        score = self._score(entry.get("score"))
        if score is None:
            detail = f"entry {place} has score {shown(entry.get('score'))}; bbox and score must be finite numbers"
            return Reject("detection_invalid", detail, image_id, place)
        return place, image_id, box, score

    def _score(self, value: Any) -> float | None:
        if self.scores == "none" or (value is None and self.scores == "optional"):
            self.unscored += self.scores == "optional"
            return 1.0
        return number(value)
