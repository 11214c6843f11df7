"""Ground truth and results as columns, checked once on the way in: what OKS, matching and every analysis work on.

Legend: I images, G true persons, D predictions, K joints. Coordinates are pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import SKELETONS, Skeleton

if TYPE_CHECKING:
    from efafnet.pipelines.crops.store import GroundTruth

PERSON_CATEGORY = 1
CROWDPOSE_AREA_PER_BOX = 0.53
"""Person area over box area where annotations hold no area (source: the CrowdPose evaluation tool)."""


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
    """Columns of a store's ground truth or of a dictionary in COCO layout.

    An annotation without ``area`` gets 0.53 · width · height of its box, as in CrowdPose's tool; one without joints
    counts as ignored. Raises ValueError for what is not COCO layout or does not fit ``skeleton`` (by default the known
    skeleton that the category names).
    """
    source = ground_truth if isinstance(ground_truth, Mapping) else ground_truth.to_coco()
    if skeleton is None:
        skeleton = skeleton_of(ground_truth)
    _check_layout(source)
    # A store holds persons only; what its source called them does not matter any more.
    category_id = _person_category(source.get("categories") or []) if source is ground_truth else None
    image_ids, crowd_index = _images(source["images"])
    annotations = [
        a for a in source["annotations"] if category_id is None or a.get("category_id", category_id) == category_id
    ]
    boxes, areas, image, keypoints = _annotation_columns(annotations, image_ids, skeleton)
    visibility = keypoints[:, :, 2].astype(np.int64)
    num_labelled = np.array(
        [a.get("num_keypoints", n) for a, n in zip(annotations, (visibility > 0).sum(1), strict=True)], np.int64
    )
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    return Truth(
        skeleton=skeleton,
        image_ids=image_ids,
        image=image,
        annotation_id=np.array([a.get("id", i) for i, a in enumerate(annotations)], np.int64),
        joints_px=keypoints[:, :, :2],
        visibility=visibility,
        box_xywh_px=boxes,
        area_px2=areas,
        crowd=crowd,
        ignored=crowd | (num_labelled == 0),
        category_id=PERSON_CATEGORY if category_id is None else category_id,
        crowd_index=crowd_index,
    )


def _check_layout(source: Mapping[str, Any]) -> None:
    for key in ("images", "annotations"):
        if not isinstance(source.get(key), list):
            raise ValueError(f"annotations in COCO layout need a list {key!r}; found the keys {sorted(source)}")


def _person_category(categories: Sequence[Mapping[str, Any]]) -> int:
    with_joints = [c for c in categories if c.get("keypoints")] or [{"id": PERSON_CATEGORY}]
    return int(with_joints[0]["id"])


def _images(images: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if not images:
        raise ValueError("the annotations list no images: there is nothing to measure on")
    crowding = {int(i["id"]): i.get("crowdIndex", i.get("crowd_index")) for i in images}
    image_ids = np.array(sorted(crowding), np.int64)
    return image_ids, np.array([crowding[int(i)] for i in image_ids], np.float64)


def _annotation_columns(
    annotations: Sequence[Mapping[str, Any]], image_ids: NDArray[np.int64], skeleton: Skeleton
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    none = [0] * (3 * skeleton.num_joints)
    boxes, areas, images, keypoints = [], [], [], []
    for number, annotation in enumerate(annotations):
        name = f"annotation {annotation.get('id', number)}"
        if missing := [k for k in ("image_id", "bbox") if k not in annotation]:
            raise ValueError(f"{name} has no {missing[0]!r}: not in COCO layout")
        x, y, width, height = annotation["bbox"]
        values = annotation.get("keypoints") or none
        if len(values) != len(none):
            raise ValueError(
                f"{name} has {len(values)} keypoint values; skeleton {skeleton.name} needs {len(none)} "
                f"(x, y, visibility of {skeleton.num_joints} joints)"
            )
        boxes.append((x, y, width, height))
        areas.append(annotation.get("area", height * width * CROWDPOSE_AREA_PER_BOX))
        images.append(annotation["image_id"])
        keypoints.append(values)
    index, unknown = _index(np.array(images, np.int64), image_ids)
    if unknown is not None:
        raise ValueError(
            f"annotation {annotations[unknown].get('id', unknown)} lies on image {images[unknown]}, which is not listed"
        )
    joints = np.array(keypoints, np.float64).reshape(len(annotations), skeleton.num_joints, 3)
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(areas, np.float64), index, joints


def _index(ids: NDArray[np.int64], sorted_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], int | None]:
    """Position of each id in ``sorted_ids``, and the first one that is not there."""
    position = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    wrong = np.flatnonzero(sorted_ids[position] != ids)
    return position.astype(np.int64), int(wrong[0]) if len(wrong) else None


def index_of_images(ids: Sequence[int], truth: Truth, what: str) -> NDArray[np.int64]:
    """Index of each image id among the truth's; ValueError for one that is not there, named as ``what`` N."""
    image, unknown = _index(np.array(ids, np.int64), truth.image_ids)
    if unknown is not None:
        raise ValueError(
            f"{what} {unknown}: image {ids[unknown]} is not among the {len(truth.image_ids)} images of the "
            "annotations; give the annotations that it belongs to"
        )
    return image


def skeleton_of(ground_truth: GroundTruth | Mapping[str, Any]) -> Skeleton:
    """The skeleton of a ground truth: a store's own, or the known one whose joints the COCO category lists."""
    if not isinstance(ground_truth, Mapping):
        return ground_truth.skeleton
    categories = [c for c in ground_truth.get("categories") or [] if c.get("keypoints")]
    names = tuple(categories[0]["keypoints"]) if categories else ()
    for known in SKELETONS.values():
        if known.joints == names:
            return known
    raise ValueError(
        f"no known skeleton has the joints {list(names)} of the annotations' category; known are "
        f"{', '.join(SKELETONS)}: name the skeleton, whose sigmas OKS needs"
    )


def detections(results: Sequence[Mapping[str, Any]], truth: Truth, *, area_from_box: bool = False) -> Detections:
    """Columns of COCO results, checked against ``truth``.

    ``area_from_box`` takes a person's area from the result's ``bbox``, as COCO's tools do where the first result has
    one. Raises ValueError naming the first entry with a missing field, an unknown image, another category, another
    number of joints, or NaN or infinity.
    """
    length = 3 * truth.skeleton.num_joints
    for number, entry in enumerate(results):
        if problem := _shape_problem(entry, length, truth.category_id):
            raise ValueError(f"results entry {number}: {problem}")
    image = index_of_images([r["image_id"] for r in results], truth, "results entry")
    keypoints = np.array([r["keypoints"] for r in results], np.float64)
    keypoints = keypoints.reshape(len(results), truth.skeleton.num_joints, 3)
    scores = np.array([r["score"] for r in results], np.float64)
    finite = np.isfinite(scores) & np.isfinite(keypoints).all(axis=(1, 2))
    if not finite.all():
        number = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"results entry {number}: NaN or infinity among keypoints or score ({scores[number]})")
    joints = np.ascontiguousarray(keypoints[:, :, :2])
    return Detections(image=image, joints_px=joints, scores=scores, area_px2=_areas(joints, results, area_from_box))


def _shape_problem(entry: Mapping[str, Any], length: int, category_id: int) -> str:
    try:
        keypoints, category = entry["keypoints"], entry["category_id"]
        image, score = entry["image_id"], entry["score"]
    except (KeyError, TypeError) as error:
        return f"no {error}; a result has image_id, category_id, keypoints and score"
    if category != category_id:
        return f"category {category} is not the person category, {category_id}"
    if not isinstance(image, int) or not isinstance(score, int | float):
        return f"image_id and score must be numbers; got {image!r} and {score!r}"
    if len(keypoints) != length:
        return f"{len(keypoints)} keypoint values; the skeleton has {length} (x, y, score of each joint)"
    return ""


def _areas(joints_px: NDArray[np.float64], results: Sequence[Mapping[str, Any]], from_box: bool) -> NDArray[np.float64]:
    if from_box:
        boxes = np.array([r["bbox"] for r in results], np.float64).reshape(-1, 4)
        return np.asarray(boxes[:, 2] * boxes[:, 3])
    if not len(joints_px):
        return np.zeros(0)
    extent = joints_px.max(axis=1) - joints_px.min(axis=1)
    return np.asarray(extent[:, 0] * extent[:, 1])
