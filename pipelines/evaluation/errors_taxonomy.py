"""What kind of mistakes cost AP: jitter, inversion, swap, miss, scores, and persons not found.

Source: Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation" (ICCV 2017). A predicted
joint is judged by its keypoint similarity ks = exp(-d² / (2 s² k²)) to true joints: its own, the mirror one of the same
person, and those of other persons of the image.

Legend: M matched persons, G true persons, D predictions, K joints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.columns import Detections, Truth
from efafnet.pipelines.evaluation.matching import MatchTable, match, pairs_of
from efafnet.pipelines.evaluation.metrics import average_precision

KINDS = ("good", "jitter", "inversion", "swap", "miss")
GOOD, JITTER, INVERSION, SWAP, MISS = range(len(KINDS))
UNLABELLED = -1

GOOD_FROM = 0.85
"""Similarity from which a joint counts as right: within about one standard deviation of human annotators."""
NEAR_FROM = 0.5
"""Similarity from which a joint is taken to be meant."""
MATCH_FROM = 0.1
"""OKS from which a prediction is taken to mean a person at all."""

_TINY = np.spacing(1)


@dataclass(frozen=True)
class ErrorAnalysis:
    """Mistakes of a set of predictions."""

    joints: tuple[str, ...]
    """Joint names (K)."""
    counts: NDArray[np.int64]
    """int64 (K, 5), labelled joints of matched persons by kind, in the order of ``KINDS``."""
    ap_after: dict[str, float]
    """AP as it is, then with one kind of mistake after the other put right: miss, swap, inversion, jitter, scores (a
    prediction that means a person ranks before others). What is missing to 1 after that are persons never found."""
    matched: int
    """True persons that some prediction means."""
    persons: int
    """True persons with annotated joints."""
    unmatched: int
    """Predictions that mean no annotated person or region."""


def analyse(truth: Truth, found: Detections) -> ErrorAnalysis:
    """Sort every labelled joint of every matched person by kind of mistake, and say what each kind costs."""
    table = match(truth, found, np.array([MATCH_FROM]), sizes=("all",))
    detection, person = _matched(table)
    kinds = joint_kinds(truth, found.joints_px[detection], person)
    counts = np.stack([(kinds == kind).sum(axis=0) for kind in range(len(KINDS))], axis=1)
    return ErrorAnalysis(
        joints=truth.skeleton.joints,
        counts=counts.astype(np.int64),
        ap_after=_ap_after(truth, found, detection, person, kinds),
        matched=len(np.unique(person)),
        persons=int((~truth.ignored).sum()),
        unmatched=int(((table.match[0, 0] < 0) & ~table.ignored[0, 0]).sum()),
    )


def _matched(table: MatchTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index of each prediction that means a person who counts, and of that person."""
    means = (table.match[0, 0] >= 0) & ~table.ignored[0, 0]
    return table.detection[means], table.match[0, 0, means].astype(np.int64)


def joint_kinds(truth: Truth, predicted_px: NDArray[np.float64], person: NDArray[np.int64]) -> NDArray[np.int8]:
    """Kind (M, K) of every joint of predictions (M, K, 2) that mean the true persons ``person`` (M,).

    ``good`` from ks .85, ``jitter`` from .5 to the own true joint; else ``inversion`` if the mirror joint of the same
    person has ks of at least .5, ``swap`` if the same or the mirror joint of another person has (the more similar of
    the two decides), else ``miss``. ``UNLABELLED`` where the truth has no joint.
    """
    own = similarity_to(truth, predicted_px, person, mirrored=False)
    inverted = similarity_to(truth, predicted_px, person, mirrored=True)
    swapped = _best_of_others(truth, predicted_px, person)
    kinds = np.full(own.shape, MISS, np.int8)
    kinds[swapped >= NEAR_FROM] = SWAP
    kinds[(inverted >= NEAR_FROM) & (inverted >= swapped)] = INVERSION
    kinds[own >= NEAR_FROM] = JITTER
    kinds[own >= GOOD_FROM] = GOOD
    kinds[truth.visibility[person] == 0] = UNLABELLED
    return kinds


def similarity_to(
    truth: Truth, predicted_px: NDArray[np.float64], person: NDArray[np.int64], *, mirrored: bool
) -> NDArray[np.float64]:
    """Similarity (M, K) to the same (or mirror) joints of the persons ``person`` (M,), by their size; 0 without."""
    joints = np.array(truth.skeleton.flip_permutation) if mirrored else np.arange(truth.skeleton.num_joints)
    squared = ((predicted_px - truth.joints_px[person][:, joints]) ** 2).sum(axis=2)
    variances = (2 * np.array(truth.skeleton.sigmas)[joints]) ** 2
    similarity = np.exp(-squared / variances / (truth.area_px2[person, None] + _TINY) / 2)
    similarity[truth.visibility[person][:, joints] == 0] = 0.0
    if mirrored:
        # A joint without a mirror partner cannot be inverted.
        similarity[:, joints == np.arange(len(joints))] = 0.0
    return np.asarray(similarity)


def _best_of_others(truth: Truth, predicted_px: NDArray[np.float64], person: NDArray[np.int64]) -> NDArray[np.float64]:
    """Highest similarity (M, K) to the same or mirror joint of any other person of the image; 0 without."""
    best = np.zeros(predicted_px.shape[:2])
    mine, other = pairs_of(truth.image[person], truth.image, len(truth.image_ids))
    apart = person[mine] != other
    mine, other = mine[apart], other[apart]
    for mirrored in (False, True):
        np.maximum.at(best, mine, similarity_to(truth, predicted_px[mine], other, mirrored=mirrored))
    return best


def _ap_after(
    truth: Truth,
    found: Detections,
    detection: NDArray[np.int64],
    person: NDArray[np.int64],
    kinds: NDArray[np.int8],
) -> dict[str, float]:
    """AP with more and more kinds of mistakes put right, in the order of the source."""
    steps = {"as predicted": _ap(truth, found)}
    joints = found.joints_px.copy()
    for kind in (MISS, SWAP, INVERSION, JITTER):
        row, joint = np.nonzero(kinds == kind)
        joints[detection[row], joint] = truth.joints_px[person[row], joint]
        steps[KINDS[kind]] = _ap(truth, replace(found, joints_px=joints))
    ranks = np.zeros(len(found.scores))
    ranks[detection] = 1.0
    ranked = replace(found, joints_px=joints, scores=ranks)
    steps["scores"] = _ap(truth, ranked)
    return steps


def _ap(truth: Truth, found: Detections) -> float:
    return average_precision(match(truth, found, sizes=("all",)))
