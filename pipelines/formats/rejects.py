"""What is left out of a file, and the sentence that explains a file whose entries fail in the same way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Reject:
    """Something left out, and why."""

    reason: str
    detail: str
    """Entry, value and rule, in words."""
    image_id: int | None = None
    annotation_id: int | None = None
    file_name: str | None = None
    persons: int = 1


REMEDIES = {
    "image_entry_invalid": "give every image an integer id and a file_name",
    "duplicate_image_id": "number the images",
    "annotation_invalid": "mend these fields",
    "duplicate_annotation_id": "number the annotations",
    "unknown_image": "give the annotations and the list of images that belong together",
    "box_invalid": "boxes are x, y, width, height in pixels, both sides above 0",
    "keypoints_invalid": "keypoints are x, y, v for every joint, v being 0, 1 or 2",
    "area_invalid": "write areas above 0, or none at all: then 0.53 of the box is taken",
    "detection_invalid": "detections are objects with image_id, bbox and score",
    "no_joints": "annotate joints, or give a detector's boxes with detections=",
    "image_missing": "give the folder that file_name is relative to",
    "image_outside": "copy the images into the folder, or allow it with outside_images=true",
    "image_size_differs": "annotate the images that are there, or give those that were annotated",
    "box_outside_image": "boxes are x, y, width, height in pixels of the image",
}
"""What to do about a reason, in the order in which one explains another."""

_ORDER = {reason: place for place, reason in enumerate(REMEDIES)}


def by_reason(rejects: Iterable[Reject]) -> dict[str, list[Reject]]:
    """Rejects by reason: causes before what follows from them, then the order of the file."""
    found: dict[str, list[Reject]] = {}
    for reject in rejects:
        found.setdefault(reject.reason, []).append(reject)
    return dict(sorted(found.items(), key=lambda item: _ORDER.get(item[0], len(_ORDER))))


def explained(rejects: Iterable[Reject]) -> str:
    """Every reason with its count, its first three examples and the remedy; empty where nothing was left out."""
    return "; ".join(_explained(reason, group) for reason, group in by_reason(rejects).items())


def _explained(reason: str, group: Sequence[Reject]) -> str:
    examples = " | ".join(map(example, group[:EXAMPLES]))
    more = " | …" if len(group) > EXAMPLES else ""
    remedy = f" -> {REMEDIES[reason]}" if reason in REMEDIES else ""
    return f"{reason} {len(group)} ({examples}{more}){remedy}"


def example(reject: Reject) -> str:
    """One reject in words, with the image it is about."""
    named = reject.file_name is not None and reject.file_name not in reject.detail
    return f"{reject.file_name}: {reject.detail}" if named else reject.detail
