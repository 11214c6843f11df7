"""Poses: joint angles in anatomical degrees, by family (walking, sitting, …), inside human ranges of motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.synth.body import Rng, pick

Angles = NDArray[np.float64]
"""Anatomical angles in degrees, shape (bones, 3): flexion, abduction (or bending to the left), outward rotation (or
turning to the left)."""


class Bone(IntEnum):
    """The rigid parts of a body, parents before children, and two frames that no joint turns.

    WORLD turns with the person and stands on the ground below; HEM is the lower edge of a skirt or a coat.
    """

    PELVIS = 0
    ABDOMEN = 1
    CHEST = 2
    NECK = 3
    HEAD = 4
    UPPER_ARM_L = 5
    UPPER_ARM_R = 6
    FOREARM_L = 7
    FOREARM_R = 8
    HAND_L = 9
    HAND_R = 10
    THIGH_L = 11
    THIGH_R = 12
    SHANK_L = 13
    SHANK_R = 14
    FOOT_L = 15
    FOOT_R = 16
    WORLD = 17
    HEM = 18


PAIRS = tuple((Bone(left), Bone(left + 1)) for left in range(Bone.UPPER_ARM_L, Bone.WORLD, 2))

# Ranges of motion in degrees (American Academy of Orthopaedic Surgeons' normal values, rounded; the spine's and the
# neck's are shared between two joints each). The pelvis is free: it carries the whole body.
_RANGES = {
    "ABDOMEN": ((-15, 40), (-18, 18), (-20, 20)),
    "CHEST": ((-10, 35), (-15, 15), (-20, 20)),
    "NECK": ((-25, 25), (-18, 18), (-35, 35)),
    "HEAD": ((-20, 25), (-15, 15), (-35, 35)),
    "UPPER_ARM": ((-55, 180), (-20, 175), (-80, 90)),
    "FOREARM": ((0, 148), (0, 0), (-80, 80)),
    "HAND": ((-60, 70), (-20, 30), (0, 0)),
    "THIGH": ((-25, 125), (-20, 50), (-40, 50)),
    "SHANK": ((0, 145), (0, 0), (-5, 5)),
    "FOOT": ((-45, 25), (-15, 15), (-5, 20)),
}


def _limits() -> Angles:
    table = np.zeros((len(Bone), 3, 2))
    table[Bone.PELVIS] = (-180, 180)
    for bone in Bone:
        name = bone.name.removesuffix("_L").removesuffix("_R")
        if name in _RANGES:
            table[bone] = _RANGES[name]
    return table


LIMITS = _limits()
"""Lowest and highest anatomical angle of each bone in degrees, shape (bones, 3, 2)."""


@dataclass(frozen=True)
class Pose:
    """Joint angles and what the body rests on."""

    family: str
    angles: Angles
    support: str
    """ground, air (a jump) or seat (something to sit on belongs under the pelvis)."""


def _rest(rng: Rng) -> Angles:
    """Stand at ease: small deviations everywhere."""
    angles = np.zeros((len(Bone), 3))
    angles[: Bone.UPPER_ARM_L] = rng.normal(0, 1, (Bone.UPPER_ARM_L, 3)) * (4, 3, 5)
    angles[Bone.PELVIS] = (rng.normal(2, 2), rng.normal(0, 1.5), 0)
    angles[Bone.NECK, 2] = rng.normal(0, 14)
    angles[Bone.HEAD] = rng.normal(0, 1, 3) * (7, 5, 12)
    angles[Bone.UPPER_ARM_L : Bone.THIGH_L] = rng.normal(0, 1, (6, 3)) * (5, 4, 12)
    for side in (0, 1):
        gesture(angles, rng, side, "hang")
        angles[Bone.THIGH_L + side] = (rng.normal(2, 5), rng.normal(4, 2.5), rng.normal(8, 6))
        angles[Bone.SHANK_L + side, 0] = abs(rng.normal(4, 4))
    return angles


# Arm gestures: mean flexion, abduction, outward rotation of the shoulder, flexion of the elbow, and their deviation.
_GESTURES: dict[str, tuple[tuple[float, float, float, float], tuple[float, float, float, float]]] = {
    "hang": ((2, 11, 0, 14), (8, 4, 12, 8)),
    "hip": ((-18, 38, -48, 82), (6, 5, 8, 8)),
    "face": ((52, 16, -22, 130), (14, 8, 12, 9)),
    "forward": ((80, 6, 0, 16), (16, 8, 12, 13)),
    "up": ((160, 12, 0, 16), (14, 9, 15, 14)),
    "side": ((6, 82, 0, 15), (12, 16, 20, 12)),
    "wave": ((18, 86, 75, 85), (12, 12, 12, 20)),
    "folded": ((36, 2, -62, 98), (7, 4, 7, 8)),
    "hold": ((14, 10, -10, 88), (9, 5, 12, 12)),
    "behind": ((-38, 12, -30, 42), (7, 4, 9, 10)),
    "lap": ((38, 9, -16, 48), (9, 5, 9, 14)),
    "down": ((70, 6, 0, 12), (16, 6, 10, 9)),
    "prop": ((-30, 16, 0, 10), (8, 6, 8, 6)),
}


def gesture(angles: Angles, rng: Rng, side: int, name: str) -> None:
    """Set one arm (0 left, 1 right) to a gesture."""
    mean, deviation = _GESTURES[name]
    flexion, abduction, rotation, elbow = rng.normal(mean, deviation)
    angles[Bone.UPPER_ARM_L + side] = (flexion, abduction, rotation)
    angles[Bone.FOREARM_L + side] = (elbow, 0, rng.normal(0, 30))
    angles[Bone.HAND_L + side] = (rng.normal(5, 14), rng.normal(0, 7), 0)


def _arms(angles: Angles, rng: Rng, names: tuple[str, ...], weights: tuple[float, ...], *, both: float = 0.3) -> None:
    """Draw a gesture for each arm; with probability ``both`` the two arms do the same."""
    left, right = pick(rng, weights), pick(rng, weights)
    gesture(angles, rng, 0, names[left])
    gesture(angles, rng, 1, names[left if rng.random() < both else right])


def _standing(rng: Rng) -> Pose:
    angles = _rest(rng)
    if rng.random() < 0.4:
        angles[Bone.SHANK_L, 0] = rng.uniform(15, 35)
        angles[Bone.THIGH_L] = (rng.uniform(10, 22), rng.uniform(5, 15), rng.uniform(5, 25))
    names = ("hang", "hip", "face", "hold", "folded", "wave", "forward", "behind")
    _arms(angles, rng, names, (0.34, 0.16, 0.14, 0.12, 0.08, 0.06, 0.06, 0.04))
    return Pose("standing", angles, "ground")


def _gait(rng: Rng, phase: float, swing: float, bend: float, knee: float) -> Angles:
    """Put the legs at ``phase`` (radians) of a stride: hips swing, the knee bends most while its leg swings forward."""
    angles = _rest(rng)
    for side in (0, 1):
        p = (phase + np.pi * side) % (2 * np.pi)
        angles[Bone.THIGH_L + side, 0] = bend + swing * np.cos(p)
        late = (p - 1.32 * np.pi + np.pi) % (2 * np.pi) - np.pi
        angles[Bone.SHANK_L + side, 0] = 8 + 0.4 * bend + knee * np.exp(-((late / 0.75) ** 2))
        angles[Bone.UPPER_ARM_L + side, 0] = -0.95 * swing * np.cos(p)
    angles[Bone.CHEST, 2] = -0.25 * swing * np.cos(phase)
    angles[Bone.PELVIS, 2] = 0.15 * swing * np.cos(phase)
    return angles


def _walking(rng: Rng) -> Pose:
    angles = _gait(rng, rng.uniform(0, 2 * np.pi), rng.uniform(16, 30), 4, 50)
    angles[Bone.FOREARM_L : Bone.HAND_L, 0] = rng.uniform(8, 38, 2)
    if rng.random() < 0.3:
        gesture(angles, rng, int(rng.integers(2)), ("face", "hold", "wave", "forward")[int(rng.integers(4))])
    return Pose("walking", angles, "ground")


def _running(rng: Rng) -> Pose:
    swing = rng.uniform(34, 54)
    angles = _gait(rng, rng.uniform(0, 2 * np.pi), swing, rng.uniform(10, 22), rng.uniform(75, 105))
    angles[Bone.PELVIS, 0] = rng.uniform(4, 16)
    angles[Bone.UPPER_ARM_L : Bone.FOREARM_L, 1] = rng.uniform(8, 25)
    angles[Bone.UPPER_ARM_L : Bone.FOREARM_L, 2] = rng.uniform(-30, 5, 2)
    angles[Bone.FOREARM_L : Bone.HAND_L, 0] = rng.uniform(65, 115, 2)
    return Pose("running", angles, "air" if rng.random() < 0.4 else "ground")


def _sitting(rng: Rng) -> Pose:
    angles = _rest(rng)
    angles[Bone.PELVIS, 0] = rng.uniform(-15, 8)
    angles[Bone.ABDOMEN, 0] = rng.uniform(-2, 18)
    angles[Bone.CHEST, 0] = rng.uniform(-2, 18)
    for side in (0, 1):
        angles[Bone.THIGH_L + side] = (rng.normal(82, 7), rng.normal(9, 6), rng.normal(3, 6))
        angles[Bone.SHANK_L + side, 0] = rng.normal(78, 13)
    if rng.random() < 0.2:
        angles[Bone.THIGH_L] = (rng.uniform(95, 108), rng.uniform(-14, -8), rng.uniform(0, 15))
        angles[Bone.SHANK_L, 0] = rng.uniform(65, 95)
    names = ("lap", "hold", "face", "forward", "prop", "wave", "up")
    _arms(angles, rng, names, (0.46, 0.18, 0.14, 0.1, 0.05, 0.04, 0.03), both=0.4)
    return Pose("sitting", angles, "seat")


def _floor_sitting(rng: Rng) -> Pose:
    angles = _rest(rng)
    style = int(rng.integers(3))
    angles[Bone.PELVIS, 0] = rng.uniform(-22, -2)
    angles[Bone.ABDOMEN, 0] = rng.uniform(5, 25)
    for side in (0, 1):
        if style == 0:
            legs = (rng.uniform(72, 85), rng.uniform(4, 18), rng.uniform(0, 20), rng.uniform(0, 25))
        elif style == 1:
            legs = (rng.uniform(92, 105), rng.uniform(32, 46), rng.uniform(32, 48), rng.uniform(105, 125))
        else:
            legs = (rng.uniform(102, 118), rng.uniform(2, 18), rng.uniform(-5, 15), rng.uniform(95, 120))
        angles[Bone.THIGH_L + side], angles[Bone.SHANK_L + side, 0] = legs[:3], legs[3]
    _arms(angles, rng, ("lap", "prop", "forward", "face", "hold"), (0.35, 0.25, 0.2, 0.1, 0.1), both=0.5)
    return Pose("floor sitting", angles, "ground")


def _squatting(rng: Rng) -> Pose:
    angles = _rest(rng)
    angles[Bone.PELVIS, 0] = rng.uniform(5, 28)
    if rng.random() < 0.5:
        for side in (0, 1):
            angles[Bone.THIGH_L + side] = (rng.uniform(100, 122), rng.uniform(6, 28), rng.uniform(0, 25))
            angles[Bone.SHANK_L + side, 0] = rng.uniform(105, 138)
    else:
        angles[Bone.PELVIS, 0] = rng.uniform(-5, 15)
        angles[Bone.THIGH_L], angles[Bone.SHANK_L, 0] = (
            (rng.uniform(75, 100), rng.uniform(2, 15), 5),
            rng.uniform(80, 105),
        )
        angles[Bone.THIGH_R], angles[Bone.SHANK_R, 0] = (rng.uniform(-15, 12), 4, 0), rng.uniform(85, 110)
        angles[Bone.FOOT_R, 0] = -35
    _arms(angles, rng, ("lap", "forward", "down", "face", "hold"), (0.35, 0.25, 0.2, 0.1, 0.1))
    return Pose("squatting", angles, "ground")


def _bending(rng: Rng) -> Pose:
    angles = _rest(rng)
    lean = rng.uniform(30, 78)
    angles[Bone.PELVIS, 0] = lean
    angles[Bone.ABDOMEN, 0] = rng.uniform(5, 30)
    angles[Bone.CHEST, 0] = rng.uniform(2, 25)
    angles[Bone.HEAD, 0] = rng.uniform(-20, 10)
    for side in (0, 1):
        angles[Bone.THIGH_L + side, 0] = lean + rng.normal(8, 9)
        angles[Bone.SHANK_L + side, 0] = abs(rng.normal(18, 14))
    _arms(angles, rng, ("down", "forward", "hip", "lap", "hang"), (0.5, 0.2, 0.1, 0.1, 0.1), both=0.6)
    return Pose("bending", angles, "ground")


def _reaching(rng: Rng) -> Pose:
    angles = _rest(rng)
    names = ("up", "side", "forward", "wave", "hang", "hip")
    _arms(angles, rng, names, (0.36, 0.2, 0.18, 0.1, 0.1, 0.06), both=0.45)
    angles[Bone.HEAD, 0] = rng.normal(-8, 10)
    if rng.random() < 0.3:
        angles[Bone.ABDOMEN, 1], angles[Bone.CHEST, 1] = rng.uniform(-18, 18), rng.uniform(-12, 12)
    return Pose("reaching", angles, "ground")


# Arms that do not reach through the ground.
_LYING_ARMS = {
    "back": (("hang", "up", "side", "wave", "folded", "face"), (0.35, 0.2, 0.2, 0.1, 0.08, 0.07)),
    "front": (("hang", "up", "side"), (0.4, 0.3, 0.3)),
    "side": (("hang", "forward", "up", "folded", "face"), (0.3, 0.2, 0.2, 0.15, 0.15)),
}


def _lying(rng: Rng) -> Pose:
    angles = _rest(rng)
    lay = ("back", "front", "side")[int(rng.integers(3))]
    pitch = rng.normal(90 if lay == "front" else -90, 4)
    angles[Bone.PELVIS] = (pitch, rng.normal(0, 2), rng.normal(80 if lay == "side" else 0, 4))
    for side in (0, 1):
        bent = lay != "front" and rng.random() < 0.4
        flexion = rng.uniform(25, 65) if bent else rng.uniform(-4, 6)
        spread = rng.uniform(-2, 8) if lay == "side" else rng.uniform(3, 20)
        angles[Bone.THIGH_L + side] = (flexion, spread, rng.uniform(0, 20))
        angles[Bone.SHANK_L + side, 0] = rng.uniform(40, 110) if bent else rng.uniform(2, 14)
        angles[Bone.FOOT_L + side, 0] = rng.uniform(-45, -20)
    names, weights = _LYING_ARMS[lay]
    _arms(angles, rng, names, weights, both=0.5)
    return Pose("lying", angles, "ground")


def _active(rng: Rng) -> Pose:
    """Dance, jump, kick, throw: a wide draw inside the ranges of motion."""
    angles = _rest(rng)
    angles[Bone.PELVIS] = (rng.normal(4, 10), rng.normal(0, 8), 0)
    angles[Bone.ABDOMEN : Bone.NECK] = rng.normal(0, 1, (2, 3)) * (9, 8, 10)
    for side in (0, 1):
        angles[Bone.THIGH_L + side] = (rng.uniform(-15, 75), rng.uniform(0, 40), rng.uniform(-5, 30))
        angles[Bone.SHANK_L + side, 0] = rng.uniform(0, 95)
        angles[Bone.UPPER_ARM_L + side] = (rng.uniform(-35, 140), rng.uniform(10, 120), rng.uniform(-40, 60))
        angles[Bone.FOREARM_L + side, 0] = rng.uniform(0, 115)
    kick = rng.random() < 0.35
    if kick:
        angles[Bone.THIGH_R], angles[Bone.SHANK_R, 0] = (rng.normal(8, 8), 6, 5), abs(rng.normal(14, 8))
    return Pose("active", angles, "ground" if kick or rng.random() < 0.4 else "air")


FAMILIES = (
    (_standing, 0.31), (_walking, 0.18), (_running, 0.07), (_sitting, 0.17), (_floor_sitting, 0.05), (_squatting, 0.05),
    (_bending, 0.05), (_reaching, 0.05), (_lying, 0.03), (_active, 0.04),
)  # fmt: skip

WEIGHTS = tuple(weight for _, weight in FAMILIES)
"""How often each family is drawn, unless others are given."""


def sample_pose(rng: Rng, weights: Sequence[float] = WEIGHTS) -> Pose:
    """Draw a pose: a family by ``weights``, its angles, mirrored half of the time, clipped to the ranges of motion."""
    chosen = pick(rng, weights)
    pose = FAMILIES[chosen][0](rng)
    angles = mirrored(pose.angles) if rng.random() < 0.5 else pose.angles
    return Pose(pose.family, np.clip(angles, LIMITS[..., 0], LIMITS[..., 1]), pose.support)


def mirrored(angles: Angles) -> Angles:
    """Swap left and right; what leans or turns to the left now does so to the right."""
    swapped = angles.copy()
    swapped[: Bone.UPPER_ARM_L, 1:] *= -1
    for left, right in PAIRS:
        swapped[left], swapped[right] = angles[right], angles[left]
    return swapped
