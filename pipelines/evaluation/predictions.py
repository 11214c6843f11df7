"""Predicted persons as columns, and as COCO results: rescored, duplicates suppressed, ordered.

Legend: N persons, K joints. Coordinates are pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.evaluation.config import TestConfig
from efafnet.pipelines.evaluation.oks import descending, oks_among, oks_nms, soft_oks_nms
from efafnet.pipelines.formats.categories import PERSON_CATEGORY

if TYPE_CHECKING:
    import pyarrow as pa

VISIBLE = "keypoints_visible"
"""Key of a result's probabilities that its joints are visible, as mmpose calls them."""
PERSON_COLUMNS = ("person_id", "image_id", "box_xywh", "box_score")


@dataclass(frozen=True)
class Predictions:
    """N predicted persons; ``rows`` says which person of the crop store each one is."""

    rows: NDArray[np.int64]
    """int64 (N,), row in the crop store."""
    person_id: NDArray[np.int64]
    """int64 (N,), id of the annotation or detection behind the crop."""
    image_id: NDArray[np.int64]
    """int64 (N,)."""
    box_xywh_px: NDArray[np.float64]
    """float64 (N, 4), the box the crop was cut by: left, top, width, height."""
    box_score: NDArray[np.float32]
    """float32 (N,), the detector's confidence; 1 for annotated boxes."""
    joints_px: NDArray[np.float64]
    """float64 (N, K, 2), x and y."""
    scores: NDArray[np.float32]
    """float32 (N, K), height of the heatmap's peak."""

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def gather(
        cls, people: pa.Table, rows: NDArray[np.int64], joints_px: NDArray[np.floating], scores: NDArray[np.floating]
    ) -> Predictions:
        """Join the network's output (N, K, 2) and (N, K) for ``rows`` (N,) with the store's ``PERSON_COLUMNS``."""
        rows = np.asarray(rows, np.int64)
        # These rows alone: to turn a whole column at each batch takes longer than the network, in a large store.
        these = people.take(rows)
        boxes = these["box_xywh"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return cls(
            rows=rows,
            person_id=these["person_id"].to_numpy().astype(np.int64),
            image_id=these["image_id"].to_numpy().astype(np.int64),
            box_xywh_px=boxes.astype(np.float64).reshape(-1, 4),
            box_score=these["box_score"].to_numpy().astype(np.float32),
            joints_px=np.asarray(joints_px, np.float64),
            scores=np.asarray(scores, np.float32),
        )

    @classmethod
    def concat(cls, parts: Iterable[Predictions]) -> Predictions:
        """Join parts, for example of several workers, in order of rows: the result does not depend on who did what.

        Raises ValueError where a row was predicted twice.
        """
        pieces = list(parts)
        if not pieces:
            raise ValueError("no predictions to join: the store holds no persons, or no worker reported any")
        columns = {f.name: np.concatenate([getattr(p, f.name) for p in pieces]) for f in fields(cls)}
        order = np.argsort(columns["rows"], kind="stable")
        rows = columns["rows"][order]
        if len(rows) > 1 and (repeated := rows[1:][rows[1:] == rows[:-1]]).size:
            raise ValueError(f"row {repeated[0]} was predicted twice; join the parts of one pass over one store")
        return cls(**{name: column[order] for name, column in columns.items()})


def padded_area(box_xywh_px: NDArray[np.floating], input_size: InputSize, padding: float) -> NDArray[np.float64]:
    """Areas (N,) in px² of boxes (N, 4) widened to the input's aspect and by ``padding``: what OKS-NMS scales by."""
    width, height = np.asarray(box_xywh_px, np.float64).T[2:4]
    aspect = input_size.width / input_size.height
    wide = np.maximum(width, height * aspect)
    area: NDArray[np.float64] = wide * (wide / aspect) * padding**2
    return area


def person_scores(
    joint_scores: NDArray[np.floating], box_scores: NDArray[np.floating], threshold: float
) -> NDArray[np.float32]:
    """Scores (N,): box score (N,) times the mean of the joint scores (N, K) above ``threshold``, 0 without any.

    Summed joint by joint in float32, as the field's tools do: another order or precision changes which scores are
    equal, hence the ranking, hence AP in its third digit on small sets.
    """
    scores = np.asarray(joint_scores, np.float32)
    total = np.zeros(len(scores), np.float32)
    count = np.zeros(len(scores), np.float32)
    for column in scores.T:
        counted = column > np.float32(threshold)
        total += np.where(counted, column, np.float32(0))
        count += counted
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return np.asarray(box_scores, np.float32) * mean


def coco_results(
    predictions: Predictions,
    *,
    skeleton: Skeleton,
    input_size: InputSize,
    padding: float,
    test: TestConfig,
    by_person: bool = False,
    with_box: bool = False,
    visible: NDArray[np.floating] | None = None,
) -> list[dict[str, Any]]:
    """COCO results of the predictions: images in order of first row, persons by falling score, duplicates gone.

    ``by_person`` keeps duplicates and adds the id of the annotation behind each crop, both of which PCKh needs.
    ``with_box`` adds the box each crop was cut by as ``bbox``; not for what is to be scored, since COCO's tools then
    take a person's area from it instead of from its joints, which moves AP by object size. ``visible`` (N, K) adds the
    probabilities that joints are visible as ``keypoints_visible``, null where there is none.
    """
    scores = person_scores(predictions.scores, predictions.box_score, test.joint_score_threshold)
    areas = padded_area(predictions.box_xywh_px, input_size, padding)
    return results_of_columns(
        predictions.image_id,
        predictions.joints_px,
        predictions.scores,
        scores,
        areas,
        skeleton.sigmas,
        test.model_copy(update={"nms": "none"}) if by_person else test,
        person_id=predictions.person_id if by_person else None,
        box_xywh_px=predictions.box_xywh_px if with_box else None,
        visible=visible,
    )


def results_of_columns(
    image_id: NDArray[np.int64],
    joints_px: NDArray[np.floating],
    joint_scores: NDArray[np.floating],
    scores: NDArray[np.floating],
    area_px2: NDArray[np.floating],
    sigmas: Sequence[float],
    test: TestConfig,
    person_id: NDArray[np.int64] | None = None,
    box_xywh_px: NDArray[np.float64] | None = None,
    visible: NDArray[np.floating] | None = None,
) -> list[dict[str, Any]]:
    """COCO results of N persons with final ``scores`` (N,); ``area_px2`` (N,) scales the OKS of the suppression."""
    triplets = np.concatenate([np.asarray(joints_px, np.float64), np.asarray(joint_scores)[..., None]], axis=2)
    results: list[dict[str, Any]] = []
    for members in _by_first_appearance(image_id):
        kept = members[kept_persons(joints_px[members], scores[members], area_px2[members], sigmas, test)]
        for i in kept:
            keypoints = triplets[i].reshape(-1).tolist()
            results.append(_result(int(image_id[i]), keypoints, float(scores[i])))
            if person_id is not None:
                results[-1]["person_id"] = int(person_id[i])
            if box_xywh_px is not None:
                results[-1]["bbox"] = box_xywh_px[i].tolist()
            if visible is not None:
                results[-1][VISIBLE] = as_json(visible[i])
    return results


def as_json(visible: NDArray[np.floating]) -> list[float | None]:
    """Probabilities (K,) as JSON has them, with three digits; null for a joint that nothing is known of."""
    return [None if value != value else round(value, 3) for value in visible.tolist()]


def _result(image_id: int, keypoints: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": PERSON_CATEGORY, "keypoints": keypoints, "score": score}


def kept_persons(
    joints_px: NDArray[np.floating],
    scores: NDArray[np.floating],
    area_px2: NDArray[np.floating],
    sigmas: Sequence[float],
    test: TestConfig,
) -> NDArray[np.intp]:
    """Which of one image's N persons remain when duplicates are suppressed as ``test`` says, by falling score."""
    if test.nms == "none":
        return descending(scores)
    similarity = oks_among(joints_px, area_px2, sigmas)
    if test.nms == "oks":
        return np.asarray(oks_nms(similarity, scores, test.nms_threshold), np.intp)
    return np.asarray(soft_oks_nms(similarity, scores, test.nms_threshold)[0], np.intp)


def _by_first_appearance(image_id: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    _, first, inverse = np.unique(image_id, return_index=True, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(inverse))[:-1]) if len(image_id) else []
    return [groups[i] for i in np.argsort(first, kind="stable")]
