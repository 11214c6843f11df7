"""Ground truth and results as columns, checked once on the way in: what OKS, matching and every analysis work on.

Legend: I images, G true persons, D predictions, K joints. Coordinates are pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.formats.annotations import Annotations
from efafnet.pipelines.formats.categories import PERSON_CATEGORY
from efafnet.pipelines.formats.coco import parse_coco
from efafnet.pipelines.formats.images import ImageTable
from efafnet.pipelines.formats.rejects import explained
from efafnet.pipelines.formats.results import Names, parse_results

if TYPE_CHECKING:
    from efafnet.pipelines.crops.store import GroundTruth

_FAR_PX = 1e100

__all__ = ["PERSON_CATEGORY", "Detections", "Truth", "detections", "index_of_images", "truth", "truth_of"]


@dataclass(frozen=True)
class Truth:
    """Every annotated person of a set of images, crowds and persons without joints included."""

    skeleton: Skeleton
    image_ids: NDArray[np.int64]
    """int64 (I,), ascending."""
    image: NDArray[np.int64]
    """int64 (G,), index into ``image_ids``."""
    annotation_id: NDArray[np.int64]
    """int64 (G,), the source's id."""
    joints_px: NDArray[np.float64]
    """float64 (G, K, 2)."""
    visibility: NDArray[np.int64]
    """int64 (G, K): 0 not annotated, 1 hidden, 2 visible."""
    box_xywh_px: NDArray[np.float64]
    """float64 (G, 4)."""
    area_px2: NDArray[np.float64]
    """float64 (G,), area of the person's segment."""
    crowd: NDArray[np.bool_]
    """bool (G,): a group annotated as one region."""
    ignored: NDArray[np.bool_]
    """bool (G,): crowds and persons without joints, which no prediction has to find."""
    category_id: int
    """Id of the person category."""
    crowd_index: NDArray[np.float64]
    """float64 (I,), CrowdPose's crowding of each image; NaN where not given."""
    category_ids: tuple[int, ...] = ()
    """Categories that results may name; none for ``category_id`` alone."""
    names: Names | None = None
    """What results may call images and categories instead of by their ids; None for nothing."""


@dataclass(frozen=True)
class Detections:
    """D predicted persons with final scores."""

    image: NDArray[np.int64]
    """int64 (D,), index into the truth's ``image_ids``."""
    joints_px: NDArray[np.float64]
    """float64 (D, K, 2)."""
    scores: NDArray[np.float64]
    """float64 (D,)."""
    area_px2: NDArray[np.float64]
    """float64 (D,), area of the box around all joints (or of the result's own box, see ``detections``)."""


def truth(ground_truth: GroundTruth | Mapping[str, Any], skeleton: Skeleton | None = None) -> Truth:
    """Columns of a store's ground truth or of a dictionary in COCO layout, read as everything else reads it.

    An annotation without ``area`` gets 0.53 · width · height of its box, as in CrowdPose's tool; one without joints
    counts as ignored. Raises ValueError for what is not COCO layout, for annotations that cannot be used, and where
    they do not fit ``skeleton`` (by default that of the category).
    """
    if isinstance(ground_truth, Mapping):
        return truth_of(parse_coco(ground_truth, Path("ground truth"), skeleton, named=False))
    content = parse_coco(
        ground_truth.to_coco(),
        Path("ground_truth.parquet"),
        skeleton or ground_truth.skeleton,
        sorted({str(c) for c in ground_truth.annotations.column("category_id").to_pylist()}),
        named=False,
    )
    # A store holds persons only; what its source called them does not matter any more.
    ids = tuple(sorted({PERSON_CATEGORY, *content.category_ids}))
    return replace(truth_of(content), category_id=PERSON_CATEGORY, category_ids=ids)


def truth_of(content: Annotations) -> Truth:
    """Columns of an annotation file; ValueError where it lists no images, or holds annotations that cannot be used."""
    causes = explained(reject for reject in content.rejects if reject.reason == "image_entry_invalid")
    if not content.images:
        raise ValueError(f"the annotations list no images{causes and f' ({causes})'}: there is nothing to measure on")
    content.refuse_rejects()
    if content.left_out and not content.annotations:
        raise ValueError(f"{content.nothing()}; give categories=[NAME], or the annotations the category with joints")
    people, num_joints = content.annotations, content.skeleton.num_joints
    crowding = {image.image_id: image.crowd_index for image in content.images}
    image_ids = np.array(sorted(crowding), np.int64)
    keypoints = np.array([a.keypoints for a in people], np.float64).reshape(-1, num_joints, 3)
    crowd = np.array([a.is_crowd for a in people], bool)
    return Truth(
        skeleton=content.skeleton,
        image_ids=image_ids,
        image=np.searchsorted(image_ids, np.array([a.image_id for a in people], np.int64)).astype(np.int64),
        annotation_id=np.array([a.annotation_id for a in people], np.int64),
        joints_px=np.ascontiguousarray(keypoints[:, :, :2]),
        visibility=keypoints[:, :, 2].astype(np.int64),
        box_xywh_px=np.array([a.box_xywh for a in people], np.float64).reshape(-1, 4),
        area_px2=np.array([a.area for a in people], np.float64),
        crowd=crowd,
        ignored=crowd | (np.array([a.num_keypoints for a in people], np.int64) == 0),
        category_id=min(content.category_ids),
        crowd_index=np.array([crowding[int(i)] for i in image_ids], np.float64),
        category_ids=tuple(sorted(content.category_ids)),
        names=Names(ImageTable.of(content.images), content.category_names),
    )


def _index(ids: NDArray[np.int64], sorted_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], int | None]:
    """Position of each id in ``sorted_ids``, and the first one that is not there."""
    position = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    wrong = np.flatnonzero(sorted_ids[position] != ids)
    return position.astype(np.int64), int(wrong[0]) if len(wrong) else None


def index_of_images(
    ids: NDArray[np.int64], truth: Truth, what: str, entries: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Index of each image id among the truth's; ValueError for one that is not there, named as ``what`` N.

    ``entries`` are the places of the ids in their file, where they are not its first ones.
    """
    image, unknown = _index(ids, truth.image_ids)
    if unknown is not None:
        raise ValueError(
            f"{what} {unknown if entries is None else entries[unknown]}: image {ids[unknown]} is not among the "
            f"{len(truth.image_ids)} images of the annotations; give the annotations that it belongs to"
        )
    return image


def detections(results: Sequence[Mapping[str, Any]], truth: Truth, *, area_from_box: bool = False) -> Detections:
    """Columns of COCO results, checked against ``truth``.

    ``area_from_box`` takes a person's area from the result's ``bbox``, as COCO's tools do where the first result has
    one. Raises ValueError naming the first entries with a missing field, an unknown image, another category, another
    number of joints, or NaN or infinity.
    """
    if truth.names is not None:
        results = truth.names.numbered(results)
    found = parse_results(results, truth.skeleton, truth.category_ids or (truth.category_id,), boxed=area_from_box)
    image = index_of_images(found.image_id, truth, "results entry")
    # What diverged is as wrong at 1e100 px as at 1e308, whose square is no number.
    joints = np.ascontiguousarray(found.keypoints[:, :, :2])
    np.clip(joints, -_FAR_PX, _FAR_PX, out=joints)
    boxes = None if found.box_xywh_px is None else np.clip(found.box_xywh_px, -_FAR_PX, _FAR_PX)
    return Detections(image=image, joints_px=joints, scores=found.score, area_px2=_areas(joints, boxes))


def _areas(joints_px: NDArray[np.float64], boxes: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if boxes is not None:
        return np.asarray(boxes[:, 2] * boxes[:, 3])
    if not len(joints_px):
        return np.zeros(0)
    extent = joints_px.max(axis=1) - joints_px.min(axis=1)
    return np.asarray(extent[:, 0] * extent[:, 1])
