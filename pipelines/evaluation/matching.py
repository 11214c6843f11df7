"""Who found whom: predictions matched to true persons by OKS, once, for every threshold and size of person.

The rules, their order and their arithmetic are those of pycocotools (`evaluateImg`), computed for many images at once.

Legend: I images, G true persons, D predictions, K joints, A size classes, T OKS thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.columns import Detections, Truth
from efafnet.pipelines.evaluation.oks import oks_of_pairs

OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES_PX2 = {"all": (0.0, 1e5**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
MAX_DETECTIONS = 20
"""Predictions per image that count, by score (COCO keypoints)."""


@dataclass(frozen=True)
class MatchTable:
    """Matches of D counting predictions, ordered by image and falling score."""

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
    pair_detection: NDArray[np.int64]
    """int64 (P,), position in this table of each prediction-truth pair of one image."""
    pair_truth: NDArray[np.int64]
    """int64 (P,), index of the true person of the pair."""
    pair_oks: NDArray[np.float64]
    """float64 (P,)."""


def match(truth: Truth, found: Detections) -> MatchTable:
    """Match predictions to true persons in each image; see the rules at :func:`_match_images`."""
    detection = _counting(found)
    image, scores = found.image[detection], found.scores[detection]
    ignored_truth = _ignored_by_class(truth)
    pair_d, pair_g = _pairs(image, truth.image, len(truth.image_ids))
    oks = oks_of_pairs(
        found.joints_px[detection[pair_d]],
        truth.joints_px[pair_g],
        truth.visibility[pair_g],
        truth.area_px2[pair_g],
        truth.box_xywh_px[pair_g],
        truth.skeleton.sigmas,
    )
    matched = np.full((len(AREA_RANGES_PX2), len(OKS_THRESHOLDS), len(detection)), -1, np.int32)
    for block in _blocks(image, truth.image, pair_d, pair_g, oks):
        _match_images(block, ignored_truth, truth.crowd, matched)
    area = found.area_px2[detection]
    outside = np.stack([(area < low) | (area > high) for low, high in AREA_RANGES_PX2.values()])
    classes = np.arange(len(AREA_RANGES_PX2))[:, None, None]
    on_ignored = (matched >= 0) & (ignored_truth[classes, matched] if len(truth.image) else False)
    return MatchTable(
        detection=detection,
        image=image,
        scores=scores,
        match=matched,
        ignored=on_ignored | ((matched < 0) & outside[:, None, :]),
        num_true=np.stack(
            [np.bincount(truth.image[~flags], minlength=len(truth.image_ids)) for flags in ignored_truth]
        ),
        pair_detection=pair_d,
        pair_truth=pair_g,
        pair_oks=oks,
    )


def _counting(found: Detections) -> NDArray[np.int64]:
    """Indices of the best 20 predictions of each image, by image and falling score; equal scores keep their order."""
    order = np.lexsort((-found.scores, found.image))
    image = found.image[order]
    first = np.searchsorted(image, image, side="left")
    rank = np.arange(len(order)) - first
    return order[rank < MAX_DETECTIONS].astype(np.int64)


def _ignored_by_class(truth: Truth) -> NDArray[np.bool_]:
    """bool (A, G): true persons that need not be found because of what they are or because of their size."""
    return np.stack(
        [truth.ignored | (truth.area_px2 < low) | (truth.area_px2 > high) for low, high in AREA_RANGES_PX2.values()]
    )


def _pairs(
    image_of_detection: NDArray[np.int64], image_of_truth: NDArray[np.int64], num_images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs within an image, by detection and, within it, by the true persons' order in the annotations."""
    by_image = np.argsort(image_of_truth, kind="stable")
    count = np.bincount(image_of_truth, minlength=num_images)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    repeats = count[image_of_detection]
    pair_d = np.repeat(np.arange(len(image_of_detection)), repeats)
    within = np.arange(len(pair_d)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    pair_g = by_image[start[image_of_detection[pair_d]] + within] if len(pair_d) else np.zeros(0, np.int64)
    return pair_d.astype(np.int64), pair_g.astype(np.int64)


@dataclass(frozen=True)
class _Block:
    """Images with similar numbers of true persons, as rectangles: B images, R ranks of prediction, S true persons."""

    detection: NDArray[np.int64]  # (B, R) position in the table, -1 where there is none
    truth: NDArray[np.int64]  # (B, S) index, -1 where there is none
    oks: NDArray[np.float64]  # (B, R, S), -1 where there is no pair


def _blocks(
    image_d: NDArray[np.int64],
    image_g: NDArray[np.int64],
    pair_d: NDArray[np.int64],
    pair_g: NDArray[np.int64],
    oks: NDArray[np.float64],
) -> list[_Block]:
    """Rectangles over all images that hold both predictions and true persons."""
    if not len(pair_d):
        return []
    pair_image = image_d[pair_d]
    rank_d = np.arange(len(image_d)) - np.searchsorted(image_d, image_d, side="left")
    by_image = np.argsort(image_g, kind="stable")
    rank_g = np.empty(len(image_g), np.int64)
    rank_g[by_image] = np.arange(len(image_g)) - np.searchsorted(image_g[by_image], image_g[by_image], side="left")
    # The size class is the power of two above the number of true persons: rectangles waste at most half of themselves.
    size = np.zeros(pair_image.max() + 1, np.int64)
    np.maximum.at(size, pair_image, rank_g[pair_g] + 1)
    blocks = []
    for columns in np.unique(2 ** np.ceil(np.log2(size[size > 0])).astype(np.int64)):
        images = np.flatnonzero((size > columns // 2) & (size <= columns))
        mine = np.flatnonzero(np.isin(pair_image, images))
        row = np.searchsorted(images, pair_image[mine])
        d, g = pair_d[mine], pair_g[mine]
        shape = (len(images), int(rank_d[d].max()) + 1, int(columns))
        block = _Block(np.full(shape[:2], -1), np.full((shape[0], shape[2]), -1), np.full(shape, -1.0))
        block.detection[row, rank_d[d]] = d
        block.truth[row, rank_g[g]] = g
        block.oks[row, rank_d[d], rank_g[g]] = oks[mine]
        blocks.append(block)
    return blocks


def _match_images(
    block: _Block, ignored: NDArray[np.bool_], crowd: NDArray[np.bool_], matched: NDArray[np.int32]
) -> None:
    """Write the matches of a block into ``matched`` (A, T, D).

    Predictions choose in order of score. Each takes the free true person of the highest OKS at or above the threshold,
    the later one of two equals; an ignored person only where no other is to be had; a crowd is never used up.
    """
    present = block.truth >= 0
    # Axes: size class, threshold, image, true person.
    ignorable = (ignored[:, block.truth] & present)[:, None]
    regular = (~ignored[:, block.truth] & present)[:, None]
    reusable = crowd[block.truth] & present
    free = np.broadcast_to(present, (len(ignored), len(OKS_THRESHOLDS), *present.shape)).copy()
    thresholds = np.minimum(OKS_THRESHOLDS, 1 - 1e-10)[None, :, None, None]
    for rank in range(block.detection.shape[1]):
        oks = block.oks[:, rank]
        candidate = free & (oks >= thresholds)
        chosen = _last_best(oks, candidate & regular)
        chosen = np.where(chosen >= 0, chosen, _last_best(oks, candidate & ignorable))
        a, t, b = np.nonzero(chosen >= 0)
        s = chosen[a, t, b]
        matched[a, t, block.detection[b, rank]] = block.truth[b, s]
        free[a, t, b, s] = reusable[b, s]


def _last_best(oks: NDArray[np.float64], allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index of the highest ``oks`` (B, S) among ``allowed`` (A, T, B, S), the last of equals; -1 for none."""
    values = np.where(allowed, oks, -1.0)[..., ::-1]
    index = values.shape[-1] - 1 - values.argmax(axis=-1)
    return np.where(allowed.any(axis=-1), index, -1)
