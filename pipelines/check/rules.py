"""What can be wrong with annotations that are well-formed: told by where the joints of many persons lie.

Legend: N persons, K joints. Coordinates are pixels of the original image. Nothing here refuses: each rule gives
sentences, none where it finds nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import Skeleton

FEWEST = 8
"""Fewest persons from which a rule concludes anything about a convention."""
_RARE = 0.02
_AT_ORIGIN = 0.05
_AGAINST = -0.25
"""Mean agreement (-1 to 1) of a pair with the others below which its sides are called exchanged. Of persons seen from
the front or behind shoulders, hips and knees agree nearly always and wrists more often than not."""
_REVERSED = 0.2
"""Share of faces from which sides are called exchanged. None of the 41 in 28 images of COCO is; some of persons upside
down are."""
_WIDE, _HIGH, _ALWAYS = 0.05, 0.1, 0.9

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]


def unlabelled_joints(seen: Mask, skeleton: Skeleton) -> list[str]:
    """Joints of ``seen`` (N, K) that no person, or hardly any, has: their heatmaps stay empty, and what is
    predicted for them is never scored."""
    shares = seen.mean(axis=0)
    never = [name for name, share in zip(skeleton.joints, shares, strict=True) if share == 0]
    rare = [f"{name} ({share:.1%})" for name, share in zip(skeleton.joints, shares, strict=True) if 0 < share < _RARE]
    remarks = []
    if never:
        remarks.append(
            f"unlabelled joints: no person has {_listed(never)}; the network cannot learn them: give "
            "prepare a joint_map, or a skeleton without them"
        )
    if rare:
        remarks.append(f"unlabelled joints: hardly any person has {_listed(rare)}; expect no figure for them")
    return remarks


def joints_at_origin(joints_px: Floats, seen: Mask) -> list[str]:
    """Joints (N, K, 2) at exactly (0, 0) that are called annotated: how many tools write a missing joint."""
    share = (seen & (joints_px == 0).all(axis=2)).sum() / max(1, seen.sum())
    if share < _AT_ORIGIN:
        return []
    return [f"unlabelled joints: {share:.0%} of the annotated joints lie at (0, 0): missing ones need visibility 0"]


def exchanged_sides(joints_px: Floats, seen: Mask, skeleton: Skeleton) -> list[str]:
    """Pairs whose left joint lies on the side where the other pairs have their right one.

    Needs three pairs that are named by sides. Where ALL sides of a person are exchanged, ``reversed_faces`` tells.
    """
    sides = skeleton.sides
    pairs = [(b, a) if sides[a] == "right" else (a, b) for a, b in skeleton.flip_pairs]
    pairs = [(a, b) for a, b in pairs if (sides[a], sides[b]) == ("left", "right")]
    if len(pairs) < 3:
        return []
    width = np.maximum(_extent(joints_px, seen)[:, 0], 1e-9)
    signs = np.zeros((len(joints_px), len(pairs)))
    for index, (a, b) in enumerate(pairs):
        apart = (joints_px[:, a, 0] - joints_px[:, b, 0]) / width
        signs[:, index] = np.where(seen[:, a] & seen[:, b] & (np.abs(apart) > _WIDE), np.sign(apart), 0)
    against = []
    for index, (a, b) in enumerate(pairs):
        others = np.sign(signs.sum(axis=1) - signs[:, index])
        agreement = (signs[:, index] * others)[(signs[:, index] != 0) & (others != 0)]
        if len(agreement) >= FEWEST and agreement.mean() < _AGAINST:
            against.append(f"{skeleton.joints[a]}/{skeleton.joints[b]}")
    if not against:
        return []
    return [
        f"swapped sides: {_listed(against)} lie the other way round than the other pairs in most persons; left and "
        "right are the PERSON's own: exchange the two names, or mend the joint map"
    ]


def reversed_faces(joints_px: Floats, seen: Mask, skeleton: Skeleton) -> list[str]:
    """Faces whose left eye lies left of the right one in the picture, as a face that is not mirrored never does.

    Both eyes are seen from in front only. Where all joints of a person are exchanged, no pair contradicts the others,
    and the face still does.
    """
    if not {"left_eye", "right_eye"} <= set(skeleton.joints):
        return []
    left, right = skeleton.joints.index("left_eye"), skeleton.joints.index("right_eye")
    both = seen[:, left] & seen[:, right]
    reverse = (joints_px[:, left, 0] < joints_px[:, right, 0])[both]
    if len(reverse) < FEWEST or reverse.mean() < _REVERSED:
        return []
    return [
        f"swapped sides: in {reverse.mean():.0%} of {len(reverse)} faces with both eyes the left eye lies left of the "
        "right one in the picture; left and right are the PERSON's own: exchange the names, or mend the joint map"
    ]


def unlike_pairs(joints_px: Floats, seen: Mask, skeleton: Skeleton) -> list[str]:
    """Flip pairs of which one joint is always higher than the other: they mirror nothing."""
    height = np.maximum(_extent(joints_px, seen)[:, 1], 1e-9)
    unlike = []
    for a, b in skeleton.flip_pairs:
        both = seen[:, a] & seen[:, b]
        lower = ((joints_px[:, a, 1] - joints_px[:, b, 1]) / height)[both]
        if len(lower) < FEWEST or abs(lower.mean()) < _HIGH:
            continue
        if max((lower > 0).mean(), (lower < 0).mean()) >= _ALWAYS:
            unlike.append(f"{skeleton.joints[a]}/{skeleton.joints[b]}")
    if not unlike:
        return []
    return [
        f"flip pairs: {_listed(unlike)} are exchanged in mirrored samples, and one is always higher than the other; "
        "give the right flip_pairs in the category or a skeleton file"
    ]


def cut_off_joints(joints_px: Floats, seen: Mask, input_size_px: tuple[int, int]) -> list[str]:
    """Annotated joints (in pixels of the input, N crops) that lie outside their crop of (height, width)."""
    height, width = input_size_px
    outside = ((joints_px < 0) | (joints_px > np.array([width - 1, height - 1]))).any(axis=2) & seen
    share = outside.sum() / max(1, seen.sum())
    if share < _AT_ORIGIN:
        return []
    return [
        f"boxes: {share:.0%} of the annotated joints lie outside the crops of their persons; boxes in other units, of "
        "other persons or too tight (augmentation.padding)"
    ]


def odd_pixels(images: NDArray[np.uint8]) -> list[str]:
    """Crops (N, 3, H, W) without contrast: pictures that could not be decoded as they should, or of another depth."""
    values = images.astype(np.float32)
    flat = values.std(axis=(1, 2, 3)) < 4
    dark = values.mean(axis=(1, 2, 3)) < 8
    if flat.mean() >= 0.5:
        return [f"normalisation: {flat.mean():.0%} of the crops have hardly any contrast: 16-bit or empty pictures?"]
    if dark.mean() >= 0.5:
        return [f"normalisation: {dark.mean():.0%} of the crops are nearly black: values of 0 to 1 stored as 8 bits?"]
    return []


def odd_sigmas(skeleton: Skeleton) -> list[str]:
    """Sigmas far from what people annotate: COCO's lie between 0.025 (eyes) and 0.107 (hips)."""
    odd = [
        f"{name} {sigma:g}"
        for name, sigma in zip(skeleton.joints, skeleton.sigmas, strict=True)
        if not 0.01 <= sigma <= 0.25
    ]
    if not odd:
        return []
    return [
        f"sigmas: {_listed(odd)} (COCO's lie between 0.025 and 0.107, as shares of the person's size): small ones make "
        "every AP low, large ones every AP high"
    ]


def unreachable(ceiling: float, typical_error_px: float, skeleton: Skeleton) -> list[str]:
    """What is wrong where even perfect heatmaps miss an AP of 0.9.

    Args:
        ceiling: AP of targets decoded again.
        typical_error_px: their median error, pixels of the input; nan where no joint lies in its crop, which
            ``cut_off_joints`` remarks.
        skeleton: whose sigmas measure it.
    """
    if ceiling > 0.9 or np.isnan(typical_error_px):
        return []
    smallest = skeleton.joints[int(np.argmin(skeleton.sigmas))]
    return [
        f"sigmas: perfect heatmaps reach AP {ceiling:.3f} only, with a median error of {typical_error_px:.2f} px of "
        f"the input: sigmas too small (the smallest: {smallest}, {min(skeleton.sigmas):g}), areas too small, or an "
        "input too coarse for it; heatmap.encoding=unquantised heatmap.decoding=dark are finer"
    ]


def _extent(joints_px: Floats, seen: Mask) -> Floats:
    """Width and height (N, 2) of the seen joints; 0 without any."""
    some = np.asarray(seen.any(axis=1))
    low = np.where(seen[..., None], joints_px, np.inf).min(axis=1)
    high = np.where(seen[..., None], joints_px, -np.inf).max(axis=1)
    return np.asarray(np.where(some[:, None], high - low, 0.0))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + ", …" * (len(names) > 6)
