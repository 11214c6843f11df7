"""Annotation files as one neutral form: images, annotated persons, what was left out and what is worth knowing.

Legend: K joints. Coordinates are in pixels of the image as it was annotated, the first pixel's centre at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.formats.rejects import Reject, explained

AREA_OF_BOX = 0.53
"""Person area over box area where annotations hold no area (source: the CrowdPose evaluation tool)."""
SOURCE_STRIDE = 10**12
"""Ids of further sources are shifted by this much each, so that merged ids stay unique and can be read back."""


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image of a source."""

    image_id: int
    file_name: str
    """Empty where the file gives none, which only measuring does without."""
    width: int | None
    """Pixels; None where the annotation file does not say."""
    height: int | None
    crowd_index: float | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated person, or crowd."""

    annotation_id: int
    image_id: int
    category_id: int
    box_xywh: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    num_keypoints: int
    keypoints: tuple[float, ...]
    """x, y, v per joint: 3K numbers, v being 0 absent, 1 hidden, 2 visible."""
    head_size: float | None = None
    """MPII's head size in pixels."""


@dataclass(frozen=True)
class Annotations:
    """What one annotation file says."""

    skeleton: Skeleton
    images: list[ImageEntry]
    annotations: list[Annotation]
    rejects: list[Reject]
    format: str
    remarks: list[str] = field(default_factory=list)
    """What a user should be told."""
    category_ids: frozenset[int] = frozenset({1})
    """The file's categories that are persons."""
    category_names: dict[int, str] = field(default_factory=dict)
    """Of every category of the file."""
    left_out: str = ""
    """How many annotations have which other categories, in words; empty where none has."""

    def shifted(self, source: int) -> Annotations:
        """The same with ids of source number ``source`` in a merged store; ValueError where they are too large."""
        if source == 0:
            return self
        offset = source * SOURCE_STRIDE

        def moved(number: int | None) -> int | None:
            # An id that cannot be moved is told in the detail.
            return number + offset if number is not None and 0 <= number < SOURCE_STRIDE else None

        return replace(
            self,
            images=[replace(image, image_id=_shift(image.image_id, offset)) for image in self.images],
            annotations=[
                replace(a, image_id=_shift(a.image_id, offset), annotation_id=_shift(a.annotation_id, offset))
                for a in self.annotations
            ],
            rejects=[
                replace(r, image_id=moved(r.image_id), annotation_id=moved(r.annotation_id)) for r in self.rejects
            ],
        )

    def unused_images(self, where: str) -> list[str]:
        """A remark on entries of the list of images that are not used; persons on them are rejects of their own."""
        unused = [reject for reject in self.rejects if not reject.persons]
        if not unused:
            return []
        return [f"{where}: {len(unused)} of {len(self.images) + len(unused)} images are left out: {explained(unused)}"]

    def nothing(self) -> str:
        """Why there is no annotation at all, where there is none and none was rejected."""
        return f"no annotation is a person: {self.left_out}" if self.left_out else "there are no annotations"

    def refuse_rejects(self) -> None:
        """Raise ValueError where persons were left out: what is measured must not lose any in silence."""
        lost = [reject for reject in self.rejects if reject.persons]
        if lost:
            causes = [reject for reject in self.rejects if not reject.persons]
            total = len(self.annotations) + sum(reject.persons for reject in lost)
            raise ValueError(f"{len(lost)} of {total} annotations cannot be used: {explained([*causes, *lost])}")


def _shift(number: int, offset: int) -> int:
    if not 0 <= number < SOURCE_STRIDE:
        raise ValueError(
            f"id {number} cannot be merged: ids of merged sources must lie in 0..{SOURCE_STRIDE - 1}; renumber"
        )
    return number + offset
