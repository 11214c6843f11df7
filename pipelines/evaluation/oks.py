"""Object keypoint similarity (OKS), and the suppression of duplicate predictions by it.

Legend: P pairs, D predictions of one image, K joints. Coordinates are pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
_TINY = np.spacing(1)


def oks_of_pairs(
    predicted_px: FloatArray,
    true_px: FloatArray,
    visibility: NDArray[np.integer],
    area_px2: FloatArray,
    box_xywh_px: FloatArray,
    sigmas: Sequence[float],
) -> NDArray[np.float64]:
    """OKS (P,) of predictions (P, K, 2) against true joints (P, K, 2), to the last bit as pycocotools computes it.

    With d the distance of a joint, s² the true person's ``area_px2`` (P,) and k = 2·sigma, OKS is the mean of
    exp(-d² / (2 s² k²)) over joints of ``visibility`` (P, K) above 0. For a true person without joints (a crowd, or one
    too small to annotate) d is the distance of a predicted joint from a region three times as wide and high as the box
    ``box_xywh_px`` (P, 4), over all joints (source: COCO keypoint evaluation).
    """
    predicted = np.asarray(predicted_px, np.float64)
    labelled = np.asarray(visibility) > 0
    num_labelled = labelled.sum(axis=1)
    dx, dy = np.moveaxis(predicted - np.asarray(true_px, np.float64), -1, 0)
    regions = np.flatnonzero(num_labelled == 0)
    if len(regions):
        dx[regions], dy[regions] = _outside_region(predicted[regions], np.asarray(box_xywh_px, np.float64)[regions])
    variances = (np.asarray(sigmas, np.float64) * 2) ** 2
    exponent = (dx**2 + dy**2) / variances / (np.asarray(area_px2, np.float64)[:, None] + _TINY) / 2
    oks = np.zeros(len(predicted))
    # One group per number of labelled joints: every row is then summed over a contiguous vector of its own length,
    # which keeps numpy's order of summation, and so the last bit.
    for count in np.unique(num_labelled):
        members = np.flatnonzero(num_labelled == count)
        mask = labelled[members] if count else np.ones_like(labelled[members])
        values = exponent[members][mask].reshape(len(members), -1)
        oks[members] = np.exp(-values).sum(axis=1) / values.shape[1]
    return oks


def _outside_region(predicted_px: FloatArray, box_xywh_px: FloatArray) -> tuple[FloatArray, FloatArray]:
    x, y, width, height = box_xywh_px.T[:, :, None]
    px, py = predicted_px[..., 0], predicted_px[..., 1]
    dx = np.maximum(0, (x - width) - px) + np.maximum(0, px - (x + width * 2))
    dy = np.maximum(0, (y - height) - py) + np.maximum(0, py - (y + height * 2))
    return dx, dy


def oks_among(joints_px: FloatArray, area_px2: FloatArray, sigmas: Sequence[float]) -> NDArray[np.float64]:
    """OKS (D, D) of the predictions (D, K, 2) of one image with each other; a pair's area is the mean of both (D,)."""
    joints = np.asarray(joints_px, np.float64)
    area = np.asarray(area_px2, np.float64)
    squared = ((joints[:, None] - joints[None]) ** 2).sum(axis=-1)
    pair_area = ((area[:, None] + area[None]) / 2 + _TINY)[..., None]
    variances = (np.asarray(sigmas, np.float64) * 2) ** 2
    similarity: NDArray[np.float64] = np.exp(-squared / variances / pair_area / 2).mean(axis=-1)
    return similarity


def descending(scores: FloatArray) -> NDArray[np.intp]:
    """Indices by falling score; equal scores come in reverse order of entry.

    The reverse order is that of the field's tools (an ascending sort, read backwards). It matters: the order of
    predictions with equal scores is part of their AP.
    """
    return np.argsort(scores, kind="stable")[::-1]


def oks_nms(similarity: FloatArray, scores: FloatArray, threshold: float) -> list[int]:
    """Greedy suppression: indices kept, by falling score; a prediction more similar than ``threshold`` is dropped.

    ``similarity`` is (D, D) from :func:`oks_among`, ``scores`` is (D,).
    """
    order = descending(scores)
    keep: list[int] = []
    while len(order):
        best, rest = int(order[0]), order[1:]
        keep.append(best)
        order = rest[similarity[best, rest] <= threshold]
    return keep


def soft_oks_nms(
    similarity: FloatArray, scores: FloatArray, threshold: float, max_kept: int = 20
) -> tuple[list[int], list[float]]:
    """Soft suppression: (indices kept, their decayed scores); at most ``max_kept``, picked by decayed score.

    Each pick multiplies the others' scores by exp(-OKS² / threshold). Nothing is dropped by similarity itself. The
    field's tools use the decayed scores for the picking only and report the original ones.
    """
    order = descending(scores)
    decayed = np.asarray(scores, np.float64)[order]
    keep: list[int] = []
    kept_scores: list[float] = []
    while len(order) and len(keep) < max_kept:
        best, rest = int(order[0]), order[1:]
        keep.append(best)
        kept_scores.append(float(decayed[0]))
        decayed = decayed[1:] * np.exp(-(similarity[best, rest] ** 2) / threshold)
        again = descending(decayed)
        order, decayed = rest[again], decayed[again]
    return keep, kept_scores
