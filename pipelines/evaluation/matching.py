"""Who found whom: predictions matched to true persons, once, for every threshold and size of person.

The rules, their order and their arithmetic are those of pycocotools (`evaluateImg`), computed for many images at once.
The same code matches joints by OKS and boxes by IoU.

Legend: I images, G true persons, D predictions, P pairs of both in one image, A size classes, T thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.columns import Detections, Truth
from efafnet.pipelines.evaluation.oks import oks_of_pairs
from efafnet.pipelines.evaluation.predictions import Predictions

OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES_PX2 = {"all": (0.0, 1e5**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
MAX_DETECTIONS = 20
"""Predictions per image that count, by score (COCO keypoints)."""
NOBODY = -1
"""In place of a true person, for a prediction that is compared with none."""


@dataclass(frozen=True)
class MatchTable:
    """Matches of the D counting predictions, ordered by image and falling score."""

    detection: NDArray[np.int64]
    """int64 (D,), index into the detections given."""
    image: NDArray[np.int64]
    """int64 (D,), index of the image."""
    scores: NDArray[np.float64]
    """float64 (D,)."""
    match: NDArray[np.int32]
    """int32 (A, T, D), index of the true person matched, -1 for none."""
    ignored: NDArray[np.bool_]
    """bool (A, T, D): counts neither as right nor as wrong."""
    num_true: NDArray[np.int64]
    """int64 (A, I), true persons of the class that should be found in each image."""
    pairs: Pairs
    """How alike every prediction and true person of one image are."""


@dataclass(frozen=True)
class Pairs:
    """All P pairs of a prediction and a true person of the same image."""

    detection: NDArray[np.int64]
    """int64 (P,), position of the prediction in the match table."""
    truth: NDArray[np.int64]
    """int64 (P,), index of the true person."""
    similarity: NDArray[np.float64]
    """float64 (P,), OKS or IoU."""


def match(
    truth: Truth,
    found: Detections,
    thresholds: NDArray[np.float64] = OKS_THRESHOLDS,
    sizes: Sequence[str] = tuple(AREA_RANGES_PX2),
) -> MatchTable:
    """Match predicted to true persons in each image by OKS, for persons of each of ``sizes``."""
    detection = counting(found.image, found.scores, MAX_DETECTIONS)
    pair_d, pair_g = pairs_of(found.image[detection], truth.image, len(truth.image_ids))
    oks = oks_of_pairs(
        found.joints_px[detection[pair_d]],
        truth.joints_px[pair_g],
        truth.visibility[pair_g],
        truth.area_px2[pair_g],
        truth.box_xywh_px[pair_g],
        truth.skeleton.sigmas,
    )
    return match_pairs(
        Pairs(pair_d, pair_g, oks),
        detection,
        found,
        truth,
        ignored=truth.ignored,
        ranges=[AREA_RANGES_PX2[size] for size in sizes],
        thresholds=thresholds,
    )


def match_pairs(
    pairs: Pairs,
    detection: NDArray[np.int64],
    found: Detections,
    truth: Truth,
    *,
    ignored: NDArray[np.bool_],
    ranges: list[tuple[float, float]],
    thresholds: NDArray[np.float64],
) -> MatchTable:
    """Match by any similarity: ``detection`` (D,) are the predictions that count, ``ignored`` (G,) need not be found.

    ``ranges`` are the size classes in px². A true person outside a class is ignored in it, and so is a prediction
    outside it that matches nobody.
    """
    image, area = found.image[detection], found.area_px2[detection]
    by_class = np.stack([ignored | (truth.area_px2 < low) | (truth.area_px2 > high) for low, high in ranges])
    matched = np.full((len(ranges), len(thresholds), len(detection)), -1, np.int32)
    for block in _blocks(image, truth.image, pairs):
        _match_images(block, by_class, truth.crowd, thresholds, matched)
    outside = np.stack([(area < low) | (area > high) for low, high in ranges])[:, None]
    on_ignored = matched >= 0
    if len(truth.image):
        on_ignored &= by_class[np.arange(len(ranges))[:, None, None], matched]
    num_images = len(truth.image_ids)
    return MatchTable(
        detection=detection,
        image=image,
        scores=found.scores[detection],
        match=matched,
        ignored=on_ignored | ((matched < 0) & outside),
        num_true=np.stack([np.bincount(truth.image[~flags], minlength=num_images) for flags in by_class]),
        pairs=pairs,
    )


def counting(image: NDArray[np.int64], scores: NDArray[np.float64], max_per_image: int) -> NDArray[np.int64]:
    """Indices of each image's best predictions, by image and falling score; equal scores keep their order."""
    order = np.lexsort((-scores, image))
    ranks = _rank_in_run(image[order])
    return order[ranks < max_per_image].astype(np.int64)


def _rank_in_run(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each entry among its equals, of sorted ``values``."""
    return np.arange(len(values)) - np.searchsorted(values, values, side="left")


def pairs_of(
    image_of_detection: NDArray[np.int64], image_of_truth: NDArray[np.int64], num_images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs within an image, by detection and, within it, by the true persons' order in the annotations."""
    by_image = np.argsort(image_of_truth, kind="stable")
    count = np.bincount(image_of_truth, minlength=num_images)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    repeats = count[image_of_detection]
    pair_d = np.repeat(np.arange(len(image_of_detection)), repeats)
    within = np.arange(len(pair_d)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    pair_g = by_image[start[image_of_detection[pair_d]] + within]
    return pair_d.astype(np.int64), pair_g.astype(np.int64)


@dataclass(frozen=True)
class _Block:
    """Images with similar numbers of true persons, as rectangles: B images, R ranks of prediction, S true persons."""

    detection: NDArray[np.int64]  # (B, R) position in the table, -1 where there is none
    truth: NDArray[np.int64]  # (B, S) index, -1 where there is none
    similarity: NDArray[np.float64]  # (B, R, S), -1 where there is no pair


def _blocks(image_d: NDArray[np.int64], image_g: NDArray[np.int64], pairs: Pairs) -> list[_Block]:
    """Rectangles over all images that hold both predictions and true persons."""
    pair_image = image_d[pairs.detection]
    rank_d = _rank_in_run(image_d)
    by_image = np.argsort(image_g, kind="stable")
    rank_g = np.empty(len(image_g), np.int64)
    rank_g[by_image] = _rank_in_run(image_g[by_image])
    size = np.bincount(image_g, minlength=int(pair_image.max()) + 1 if len(pair_image) else 0)
    # Rectangles as wide as the next power of two waste at most half of themselves on images with fewer persons.
    width = 2 ** np.ceil(np.log2(np.maximum(size, 1))).astype(np.int64)
    blocks = []
    for columns in np.unique(width[pair_image]):
        mine = np.flatnonzero(width[pair_image] == columns)
        images, row = np.unique(pair_image[mine], return_inverse=True)
        d, g = pairs.detection[mine], pairs.truth[mine]
        shape = (len(images), int(rank_d[d].max()) + 1, int(columns))
        block = _Block(np.full(shape[:2], -1), np.full((shape[0], shape[2]), -1), np.full(shape, -1.0))
        block.detection[row, rank_d[d]] = d
        block.truth[row, rank_g[g]] = g
        block.similarity[row, rank_d[d], rank_g[g]] = pairs.similarity[mine]
        blocks.append(block)
    return blocks


def _match_images(
    block: _Block,
    ignored: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
    matched: NDArray[np.int32],
) -> None:
    """Write the matches of a block into ``matched`` (A, T, D).

    Predictions choose in order of score. Each takes the free true person of the highest similarity at or above the
    threshold, the later one of two equals; an ignored person only where no other is to be had; a crowd is never used
    up.
    """
    present = block.truth >= 0
    # Axes: size class, threshold, image, true person.
    ignorable = (ignored[:, block.truth] & present)[:, None]
    regular = (~ignored[:, block.truth] & present)[:, None]
    reusable = crowd[block.truth] & present
    free = np.broadcast_to(present, (len(ignored), len(thresholds), *present.shape)).copy()
    at_least = np.minimum(thresholds, 1 - 1e-10)[None, :, None, None]
    for rank in range(block.detection.shape[1]):
        similarity = block.similarity[:, rank]
        candidate = free & (similarity >= at_least)
        chosen = _last_best(similarity, candidate & regular)
        chosen = np.where(chosen >= 0, chosen, _last_best(similarity, candidate & ignorable))
        a, t, b = np.nonzero(chosen >= 0)
        s = chosen[a, t, b]
        matched[a, t, block.detection[b, rank]] = block.truth[b, s]
        free[a, t, b, s] = reusable[b, s]


def _last_best(similarity: NDArray[np.float64], allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index of the highest ``similarity`` (B, S) among ``allowed`` (A, T, B, S), the last of equals; -1 for none."""
    values = np.where(allowed, similarity, -1.0)[..., ::-1]
    index = values.shape[-1] - 1 - values.argmax(axis=-1)
    return np.where(allowed.any(axis=-1), index, -1)


def oks_of_persons(
    predictions: Predictions, truth: Truth, *, annotated_boxes: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """OKS (N,) of each of N predictions and the true person (N,) it was compared with; ``NOBODY`` and OKS 0 where none.

    With ``annotated_boxes`` that is the person whose box was cropped, else the most similar one of the image.
    """
    image = np.searchsorted(truth.image_ids, predictions.image_id).astype(np.int64)
    mine, other = pairs_of(image, truth.image, len(truth.image_ids))
    wanted = ~truth.ignored[other]
    if annotated_boxes:
        wanted &= truth.annotation_id[other] == predictions.person_id[mine]
    mine, other = mine[wanted], other[wanted]
    oks = oks_of_pairs(
        predictions.joints_px[mine],
        truth.joints_px[other],
        truth.visibility[other],
        truth.area_px2[other],
        truth.box_xywh_px[other],
        truth.skeleton.sigmas,
    )
    # Ascending by OKS within a prediction, so that the last one written is the most similar.
    order = np.lexsort((oks, mine))
    best, person = np.zeros(len(predictions)), np.full(len(predictions), NOBODY)
    best[mine[order]], person[mine[order]] = oks[order], other[order]
    return best, person.astype(np.int64)
