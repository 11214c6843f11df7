"""How probably a joint is visible, told by the height of its heatmap's peak: isotonic regression on a validation store.

Visible means annotated as seen, COCO's v = 2. A joint that is hidden (v = 1) and one that a person has no label for
(v = 0: out of the picture, or hidden so well that nobody could say where it is) are not. Left out are persons without
any labelled joint, joints that a data set annotates in nobody, and data sets that never tell seen joints from hidden
ones. That a person is there is taken for granted: boxes around nothing say nothing of joints.

The Brier score is the mean squared difference of the probability and what was the case (0 or 1). It is found on images
whose persons the regression has not seen, and stands beside that of always saying each joint's own share.

Legend: N persons, K joints, L levels of a peak. Source of the regression: Barlow et al., Statistical inference under
order restrictions, 1972 (pool adjacent violators); of its use: Zadrozny and Elkan, KDD 2002.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from efafnet.models.settings import Settings
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.drawing.persons import VISIBLE_FROM
from efafnet.pipelines.evaluation.columns import Truth
from efafnet.pipelines.evaluation.matching import NOBODY, oks_of_persons
from efafnet.pipelines.evaluation.predictions import Predictions

META = "visibility"
"""Key of a calibration in a checkpoint's metadata."""
FEWEST_OF_A_JOINT, FEWEST_OF_AN_OUTCOME = 100, 10
"""Persons, and persons of the rarer outcome, from which on a joint has a regression of its own. Joints differ much in
how high their peaks are: on images left out, maps of their own were better with as few (docs/prediction.md)."""
FEWEST_IN_ALL, FEWEST_OF_AN_OUTCOME_IN_ALL = 200, 20
"""Joints, likewise, without which there is none at all."""
_FOLDS = 5
_LEVEL = 0.01
"""Peaks are told apart to this height: finer steps only describe the store they were fitted on."""
_FOUND_FROM_OKS = 0.5
"""OKS from which on a detector's box is taken for a true person's."""


class NoCalibrationError(ValueError):
    """A store that says too little about what is visible."""


class PeakMap(Settings):
    """A non-decreasing, piecewise linear function from a peak's height to a probability, constant beyond its ends."""

    peaks: tuple[float, ...]
    """Heights, ascending."""
    probabilities: tuple[float, ...]
    """That the joint is visible, at each of them."""
    joints: int
    """Joints it was fitted on."""

    def __call__(self, peaks: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities of heights, in their shape."""
        return np.asarray(np.interp(peaks, self.peaks, self.probabilities), np.float64)


class Calibration(Settings):
    """From peaks to probabilities of one network, and how good these are."""

    own: dict[str, PeakMap]
    """Of the joints with enough persons for one of their own."""
    pooled: PeakMap
    """Of all joints together: for the others."""
    unknown: tuple[str, ...] = ()
    """Joints that no data set of the store annotates: nothing is said of them."""
    brier: float
    """Brier score on images that the regression did not see."""
    brier_base: float
    """That of always saying each joint's own share."""
    persons: int
    """Persons it was fitted on."""
    store: str
    """Digest of their crop store."""
    flip_test: bool
    """Whether the peaks were those of the flip test, which are lower than without it."""

    def probabilities(self, peaks: NDArray[np.floating], joints: Sequence[str]) -> NDArray[np.float32]:
        """That each joint is visible, float32 (N, K), of peaks (N, K); NaN for joints that nothing is known of."""
        found = np.full(peaks.shape, np.nan, np.float32)
        for k, name in enumerate(joints):
            if name not in self.unknown:
                found[:, k] = self.own.get(name, self.pooled)(peaks[:, k])
        return found

    def figures(self) -> dict[str, float]:
        """What is logged beside AP."""
        return {"visibility_brier": self.brier, "visibility_brier_base": self.brier_base}


def calibration_of(meta: Mapping[str, Any]) -> Calibration | None:
    """The calibration in a checkpoint's metadata; None where there is none, or one of a later version."""
    try:
        return Calibration.model_validate(meta[META]) if meta.get(META) else None
    except ValidationError:
        return None


def shown_as_sure(
    calibration: Calibration | None, peaks: NDArray[np.floating], joints: Sequence[str], sure_from: float
) -> NDArray[np.bool_]:
    """Which joints (N, K) pictures show as sure: those rather visible than not; uncalibrated, from a peak on."""
    if calibration is None:
        return np.asarray(peaks >= sure_from)
    return np.asarray(calibration.probabilities(peaks, joints) >= VISIBLE_FROM)


def pool_adjacent_violators(
    values: NDArray[np.floating], weights: NDArray[np.floating | np.integer]
) -> NDArray[np.float64]:
    """The non-decreasing sequence (L,) nearest to ``values`` (L,) by the sum of weighted squares."""
    means: list[float] = []
    masses: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        length = 1
        while means and means[-1] >= value:
            mass = masses.pop()
            value = (means.pop() * mass + value * weight) / (mass + weight)
            weight += mass
            length += lengths.pop()
        means.append(value)
        masses.append(weight)
        lengths.append(length)
    return np.repeat(np.array(means, np.float64), lengths)


def fit(peaks: NDArray[np.floating], visible: NDArray[np.bool_]) -> PeakMap:
    """Isotonic regression of ``visible`` (M,) on ``peaks`` (M,), at least one of them."""
    levels, place = np.unique(np.rint(peaks / _LEVEL), return_inverse=True)
    weights = np.bincount(place)
    fitted = pool_adjacent_violators(np.bincount(place, weights=visible) / weights, weights)
    # Of each level stretch the ends say all.
    inner = np.zeros(len(fitted), bool)
    inner[1:-1] = (fitted[1:-1] == fitted[:-2]) & (fitted[1:-1] == fitted[2:])
    heights = np.round(levels[~inner] * _LEVEL, 4)
    return PeakMap(
        peaks=tuple(heights.tolist()),
        probabilities=tuple(np.round(fitted[~inner], 4).tolist()),
        joints=len(peaks),
    )


def calibrate(
    peaks: NDArray[np.floating],
    visible: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    image: NDArray[np.int64],
    joints: Sequence[str],
    *,
    store: str,
    flip_test: bool,
) -> Calibration:
    """Fit on N persons, and measure on images left out, a fifth at a time.

    Args:
        peaks: (N, K).
        visible: (N, K), what was the case.
        counted: (N, K), where that is known.
        image: (N,), image of each person.
        joints: names of the K joints.
        store: digest of the store they are of.
        flip_test: whether the peaks are those of the flip test.

    Raises:
        NoCalibrationError: too few joints, or hardly any that are visible, or hidden.
    """
    seen, total = int(visible[counted].sum()), int(counted.sum())
    if total < FEWEST_IN_ALL or min(seen, total - seen) < FEWEST_OF_AN_OUTCOME_IN_ALL:
        raise NoCalibrationError(
            f"{seen} visible and {total - seen} hidden or unlabelled joints are too few to say from a peak how "
            f"probably a joint is visible: {FEWEST_IN_ALL} joints are needed, {FEWEST_OF_AN_OUTCOME_IN_ALL} of either "
            "kind"
        )
    alone = [k for k in range(len(joints)) if _is_enough(visible[counted[:, k], k])]
    brier, base = _held_out_scores(peaks, visible, counted, image, alone)
    return Calibration(
        own={joints[k]: fit(peaks[counted[:, k], k], visible[counted[:, k], k]) for k in alone},
        pooled=fit(peaks[counted], visible[counted]),
        unknown=tuple(name for k, name in enumerate(joints) if not counted[:, k].any()),
        brier=brier,
        brier_base=base,
        persons=int(counted.any(axis=1).sum()),
        store=store,
        flip_test=flip_test,
    )


def _is_enough(visible: NDArray[np.bool_]) -> bool:
    seen = int(visible.sum())
    return len(visible) >= FEWEST_OF_A_JOINT and min(seen, len(visible) - seen) >= FEWEST_OF_AN_OUTCOME


def _held_out_scores(
    peaks: NDArray[np.floating],
    visible: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    image: NDArray[np.int64],
    alone: Sequence[int],
) -> tuple[float, float]:
    """Brier scores of the regression and of each joint's share, both of the images left out."""
    fold = np.unique(image, return_inverse=True)[1] % _FOLDS
    said, usual = np.zeros(peaks.shape), np.zeros(peaks.shape)
    for out in range(_FOLDS):
        known, asked = counted & (fold != out)[:, None], counted & (fold == out)[:, None]
        if not asked.any():
            continue
        # Where one image holds all persons there is nothing to hold out.
        known = known if known.any() else counted
        said[asked] = fit(peaks[known], visible[known])(peaks[asked])
        overall = visible[known].mean()
        for k in range(peaks.shape[1]):
            mine, theirs = asked[:, k], known[:, k]
            usual[mine, k] = visible[theirs, k].mean() if theirs.any() else overall
            if k in alone:
                said[mine, k] = fit(peaks[theirs, k], visible[theirs, k])(peaks[mine, k])
    return brier_score(said[counted], visible[counted]), brier_score(usual[counted], visible[counted])


def brier_score(probabilities: NDArray[np.floating], happened: NDArray[np.bool_]) -> float:
    """Mean squared difference of probabilities (M,) and what was the case (M,); smaller is better (Brier, 1950)."""
    return float(np.mean((probabilities - happened) ** 2))


def calibrate_on(store: CropStore, predictions: Predictions, truth: Truth, *, flip_test: bool) -> Calibration:
    """Fit on the predictions of a store's persons; ``truth`` is its ground truth.

    Of a detector's boxes those count that lie on a true person (OKS of at least 0.5). Raises NoCalibrationError where
    the annotations say too little.
    """
    matched, visible, counted = _known_visibility(store, predictions, truth)
    return calibrate(
        predictions.scores[matched],
        visible,
        counted,
        predictions.image_id[matched],
        store.skeleton.joints,
        store=store.digest,
        flip_test=flip_test,
    )


def brier_on(
    calibration: Calibration, store: CropStore, predictions: Predictions, truth: Truth
) -> tuple[float, float] | None:
    """Brier scores of a calibration on the persons of another store, and of the shares of its joints there.

    None where the store does not say what is visible.
    """
    matched, visible, counted = _known_visibility(store, predictions, truth)
    said = calibration.probabilities(predictions.scores[matched], store.skeleton.joints)
    counted &= ~np.isnan(said)
    if not counted.any():
        return None
    shares = np.where(counted, visible, 0).sum(axis=0) / np.maximum(counted.sum(axis=0), 1)
    usual = np.broadcast_to(shares, said.shape)
    return brier_score(said[counted], visible[counted]), brier_score(usual[counted], visible[counted])


def _known_visibility(
    store: CropStore, predictions: Predictions, truth: Truth
) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]:
    """Predictions (M,) of true persons, which of their joints are visible (M, K), and of which that is known (M, K)."""
    annotated = store.has_annotated_boxes
    oks, person = oks_of_persons(predictions, truth, annotated_boxes=annotated)
    matched = np.flatnonzero((person != NOBODY) & (annotated | (oks >= _FOUND_FROM_OKS)))
    visibility = truth.visibility[person[matched]]
    names = np.asarray(store.columns(["data_set"])["data_set"].to_pylist(), object)[predictions.rows[matched]]
    counted = np.repeat((visibility > 0).any(axis=1, keepdims=True), visibility.shape[1], axis=1)
    for name in set(names.tolist()):
        own = names == name
        tells = (visibility[own] == 2).any()
        counted[own] &= tells & (visibility[own] > 0).any(axis=0)
    return matched, visibility == 2, counted
