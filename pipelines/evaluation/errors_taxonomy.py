"""What kind of mistakes cost AP: jitter, inversion, swap, miss, scores, and persons not found.

Source: Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation" (ICCV 2017), as their
program computes it (matteorr/coco-analyze, ``COCOanalyze``). A predicted joint is judged by its keypoint similarity
ks = exp(-d² / (2 s² k²)) to true joints: its own, the mirror one of the same person, and those of other persons of the
image; the most similar one says what was meant. A mistake is put right by as little as is needed, not onto the truth: a
jitter is moved to where good begins, a miss to where jitter begins, an inversion or swap as near to the right joint as
it was to the wrong one. The program takes these distances with half of OKS's k, so that ks afterwards is the fourth
root of what it stands for (.5 becomes .84, .85 becomes .96); so is it here.

Differences from the program: persons of every size count (there from 32² px² of area), and a prediction that means a
crowd is not judged. "Not found" is what is missing to 1 in the end; the program finds it by leaving persons out.

Legend: M matched persons, G true persons, D predictions, K joints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.columns import Detections, Truth
from efafnet.pipelines.evaluation.matching import MatchTable, match, pairs_of
from efafnet.pipelines.evaluation.metrics import average_precision
from efafnet.pipelines.evaluation.oks import oks_among, oks_of_pairs, soft_oks_nms

KINDS = ("good", "jitter", "inversion", "swap", "miss")
GOOD, JITTER, INVERSION, SWAP, MISS = range(len(KINDS))
UNLABELLED = -1

GOOD_FROM = 0.85
"""Similarity above which a joint counts as right."""
NEAR_FROM = 0.5
"""Similarity from which a joint is taken to be meant."""
MATCH_FROM = 0.1
"""OKS from which a prediction is taken to mean a person at all."""

_DECAY = 0.5
"""Scale of the soft suppression of duplicates among optimal scores: exp(-OKS² / .5)."""
_TINY = np.spacing(1)


@dataclass(frozen=True)
class ErrorAnalysis:
    """Mistakes of a set of predictions."""

    joints: tuple[str, ...]
    """Joint names (K)."""
    counts: NDArray[np.int64]
    """int64 (K, 5), labelled joints of matched persons by kind, in the order of ``KINDS``."""
    ap_after: dict[str, float]
    """AP as it is, then with one kind of mistake after the other put right: miss, swap, inversion, jitter, scores (as
    high as the similarity that a prediction reaches, less for duplicates), background (predictions that then match
    nobody are left out, at each threshold). What is missing to 1 after that are persons not found."""
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
    kinds, likeness = judged_joints(truth, found.joints_px[detection], person)
    counts = np.stack([(kinds == kind).sum(axis=0) for kind in range(len(KINDS))], axis=1)
    return ErrorAnalysis(
        joints=truth.skeleton.joints,
        counts=counts.astype(np.int64),
        ap_after=_ap_after(truth, found, detection, _put_right(truth, person, kinds, likeness), kinds),
        matched=len(np.unique(person)),
        persons=int((~truth.ignored).sum()),
        unmatched=int(((table.match[0, 0] < 0) & ~table.ignored[0, 0]).sum()),
    )


def _matched(table: MatchTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index of each prediction that means a person who counts, and of that person."""
    means = (table.match[0, 0] >= 0) & ~table.ignored[0, 0]
    return table.detection[means], table.match[0, 0, means].astype(np.int64)


def judged_joints(
    truth: Truth, predicted_px: NDArray[np.float64], person: NDArray[np.int64]
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Kind (M, K) of every joint of predictions (M, K, 2) that mean the true persons ``person`` (M,), and its likeness.

    The likeness (M, K) is the similarity to the true joint of the image that is most similar. Below .5 the joint is a
    ``miss``. Else that true joint decides: ``good`` (above .85) or ``jitter`` if it is the own one, ``inversion`` if it
    is the mirror joint of the same person, ``swap`` if it is the same or the mirror joint of another. Of equally
    similar ones the own comes first, then another person's, as in the program. ``UNLABELLED`` where the truth has no
    joint.
    """
    own = similarity_to(truth, predicted_px, person, mirrored=False)
    inverted = similarity_to(truth, predicted_px, person, mirrored=True)
    others, mirrored_others = (_best_of_others(truth, predicted_px, person, mirrored=m) for m in (False, True))
    likeness = np.maximum.reduce([own, inverted, others, mirrored_others])
    kinds = np.full(own.shape, SWAP, np.int8)
    kinds[inverted == likeness] = INVERSION
    kinds[others == likeness] = SWAP
    kinds[own == likeness] = np.where(likeness > GOOD_FROM, GOOD, JITTER)[own == likeness]
    kinds[likeness < NEAR_FROM] = MISS
    kinds[truth.visibility[person] == 0] = UNLABELLED
    return kinds, likeness


def _put_right(
    truth: Truth, person: NDArray[np.int64], kinds: NDArray[np.int8], likeness: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where (M, K, 2) each wrong joint is moved to: right of the true one, at the distance of its kind."""
    kept = np.select([kinds == MISS, kinds == JITTER], [NEAR_FROM, GOOD_FROM], likeness)
    sigmas = np.array(truth.skeleton.sigmas)
    variances = 2 * truth.area_px2[person, None] * sigmas**2
    moved = truth.joints_px[person].copy()
    moved[:, :, 0] += np.sqrt(-np.log(np.clip(kept, _TINY, 1.0)) * variances)
    return moved


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


def _best_of_others(
    truth: Truth, predicted_px: NDArray[np.float64], person: NDArray[np.int64], *, mirrored: bool
) -> NDArray[np.float64]:
    """Highest similarity (M, K) to the same (or mirror) joint of any other person of the image; 0 without."""
    best = np.zeros(predicted_px.shape[:2])
    mine, other = pairs_of(truth.image[person], truth.image, len(truth.image_ids))
    apart = person[mine] != other
    mine, other = mine[apart], other[apart]
    np.maximum.at(best, mine, similarity_to(truth, predicted_px[mine], other, mirrored=mirrored))
    return best


def _ap_after(
    truth: Truth,
    found: Detections,
    detection: NDArray[np.int64],
    right_px: NDArray[np.float64],
    kinds: NDArray[np.int8],
) -> dict[str, float]:
    """AP with more and more kinds of mistakes put right, in the order of the source."""
    steps = {"as predicted": _ap(truth, found)}
    joints = found.joints_px.copy()
    for kind in (MISS, SWAP, INVERSION, JITTER):
        row, joint = np.nonzero(kinds == kind)
        joints[detection[row], joint] = right_px[row, joint]
        steps[KINDS[kind]] = _ap(truth, replace(found, joints_px=joints))
    ranked = replace(found, joints_px=joints, scores=_optimal_scores(truth, found.image, joints))
    table = match(truth, ranked, sizes=("all",))
    steps["scores"] = average_precision(table)
    steps["background"] = average_precision(replace(table, ignored=table.ignored | (table.match < 0)))
    return steps


def _optimal_scores(truth: Truth, image: NDArray[np.int64], joints_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D,) scores that say how right each prediction is: its highest OKS, decayed by soft suppression in its image."""
    scores = np.zeros(len(image))
    prediction, person = pairs_of(image, truth.image, len(truth.image_ids))
    counts = ~truth.ignored[person]
    prediction, person = prediction[counts], person[counts]
    sigmas = truth.skeleton.sigmas
    oks = oks_of_pairs(
        joints_px[prediction],
        truth.joints_px[person],
        truth.visibility[person],
        truth.area_px2[person],
        truth.box_xywh_px[person],
        sigmas,
    )
    np.maximum.at(scores, prediction, oks)
    extent = joints_px.max(axis=1, initial=-np.inf) - joints_px.min(axis=1, initial=np.inf)
    by_image = np.argsort(image, kind="stable")
    for members in np.split(by_image, np.flatnonzero(np.diff(image[by_image])) + 1):
        if len(members) > 1:
            alike = oks_among(joints_px[members], extent[members].prod(axis=1), sigmas)
            kept, decayed = soft_oks_nms(alike, scores[members], _DECAY, max_kept=len(members))
            scores[members[kept]] = decayed
    return scores


def _ap(truth: Truth, found: Detections) -> float:
    return average_precision(match(truth, found, sizes=("all",)))
