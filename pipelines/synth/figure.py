"""A dressed person as solids: bones wrapped in ellipsoids and cones, with hair, hat, sleeves, a skirt and a coat."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from efafnet.pipelines.synth.kinematics import JOINT, Stance
from efafnet.pipelines.synth.outfit import Cloth, Outfit
from efafnet.pipelines.synth.pose import Bone
from efafnet.pipelines.synth.solids import Array, Model, Spot, Tag


class Surface(IntEnum):
    """Which rules paint a solid. A THING is not the person's: it hides the person and is no part of its silhouette."""

    HEAD = 0
    SKIN = 1
    HAIR = 2
    TORSO = 3
    PELVIS = 4
    UPPER_ARM = 5
    FOREARM = 6
    THIGH = 7
    SHANK = 8
    FOOT = 9
    WORN = 10
    THING = 11


# The head, as fractions of its height from chin to crown, in the frame of the bone HEAD. The eyes lie on the surface,
# the points of ears and nose in the middle of what stands out.
EYE = (0.15, 0.47, 0.332)
NOSE = (0.0, 0.355, 0.455)
EAR = (0.352, 0.42, -0.03)

_HeadPart = tuple[tuple[float, float, float], tuple[float, float, float]]
_SKULL: _HeadPart = ((0.0, 0.60, -0.04), (0.355, 0.40, 0.44))
_JAW: _HeadPart = ((0.0, 0.30, 0.10), (0.285, 0.32, 0.31))
_NOSE: _HeadPart = ((0.0, 0.37, 0.40), (0.052, 0.085, 0.08))
_SCALP: _HeadPart = ((0, 0.66, -0.08), (0.378, 0.388, 0.447))
# Hair that stands off the skull; the rest is painted on it.
_HAIR: dict[str, tuple[_HeadPart, ...]] = {
    "bald": (),
    "short": (_SCALP,),
    "afro": (((0, 0.74, -0.12), (0.52, 0.46, 0.50)),),
    "bun": (_SCALP, ((0, 0.92, -0.42), (0.17, 0.17, 0.17))),
    "ponytail": (_SCALP, ((0, 0.45, -0.58), (0.11, 0.40, 0.12))),
    "bob": (_SCALP, ((0, 0.36, -0.24), (0.37, 0.40, 0.24))),
    "long": (
        _SCALP, ((0, 0.15, -0.27), (0.37, 0.66, 0.22)), ((0.33, 0.22, -0.14), (0.08, 0.45, 0.16)),
        ((-0.33, 0.22, -0.14), (0.08, 0.45, 0.16)),
    ),
}  # fmt: skip


def build_person(stance: Stance, outfit: Outfit) -> Model:
    """Wrap a posed skeleton in flesh and clothes."""
    model = Model()
    _trunk(model, stance, outfit)
    _head(model, stance, outfit)
    for side in (0, 1):
        _arm(model, stance, outfit, side)
        _leg(model, stance, outfit, side)
    if fits_skirt(stance):
        if outfit.skirt:
            _skirt(model, stance, outfit.hem, Cloth.BOTTOM, outfit.loose_bottom)
        if outfit.coat:
            _skirt(model, stance, outfit.coat, Cloth.TOP, 1.15 * outfit.loose_top)
    _luggage(model, stance, outfit)
    return model


def joints_of(stance: Stance) -> Array:
    """The 17 COCO joints in the world, (17, 3) metres: joint centres of the limbs, the face's points on its surface."""
    hh = stance.body.head_height
    joints = np.empty((17, 3))
    joints[JOINT["nose"]] = stance.at(Bone.HEAD, *(hh * v for v in NOSE))
    for side, sign, name in ((0, 1, "left"), (1, -1, "right")):
        for part, (x, y, z) in (("eye", EYE), ("ear", EAR)):
            joints[JOINT[f"{name}_{part}"]] = stance.at(Bone.HEAD, sign * hh * x, hh * y, hh * z)
        for part, bone in (
            ("shoulder", Bone.UPPER_ARM_L), ("elbow", Bone.FOREARM_L), ("wrist", Bone.HAND_L), ("hip", Bone.THIGH_L),
            ("knee", Bone.SHANK_L), ("ankle", Bone.FOOT_L),
        ):  # fmt: skip
            joints[JOINT[f"{name}_{part}"]] = stance.origins[bone + side]
    return joints


def flesh_of(stance: Stance, outfit: Outfit) -> Array:
    """How far in front of each joint its own surface can lie, (17,) metres: the flesh and cloth around it."""
    body, h, hh = stance.body, stance.body.stature, stance.body.head_height
    g = h * body.limb_girth
    sleeve, cuff = (outfit.loose_top if outfit.sleeve > reach else 1.0 for reach in (0.9, 1.6))
    leg, turn_up = (outfit.loose_bottom if outfit.hem > reach else 1.0 for reach in (1.0, 1.6))
    flesh = np.empty(17)
    flesh[JOINT["nose"]] = 0.10 * hh
    for name in ("left", "right"):
        flesh[JOINT[f"{name}_eye"]] = 0.09 * hh
        flesh[JOINT[f"{name}_ear"]] = 0.11 * hh
        flesh[JOINT[f"{name}_shoulder"]] = 0.052 * g * outfit.loose_top
        flesh[JOINT[f"{name}_elbow"]] = 0.034 * g * sleeve
        flesh[JOINT[f"{name}_wrist"]] = 0.027 * g * cuff
        flesh[JOINT[f"{name}_hip"]] = 0.098 * max(g * outfit.loose_bottom, h * body.hip_girth)
        flesh[JOINT[f"{name}_knee"]] = 0.052 * g * leg
        flesh[JOINT[f"{name}_ankle"]] = 0.036 * g * turn_up
    return flesh


def _trunk(model: Model, stance: Stance, outfit: Outfit) -> None:
    body, h, trunk = stance.body, stance.body.stature, stance.body.trunk
    loose, woman = (0.53 if outfit.coat else 0.5) * (1 + outfit.loose_top), body.kind == "woman"
    hips = 0.096 * h * body.hip_girth
    waist = (0.079 if woman else 0.088) * h * body.waist_girth * loose
    ribs = (0.087 if woman else 0.096) * h * (0.6 + 0.4 * body.waist_girth) * loose
    top: Tag = (Surface.TORSO, Cloth.TOP, Bone.CHEST)
    below: Tag = (Surface.PELVIS, Cloth.BOTTOM, Bone.PELVIS)
    crotch, lumbar = (Bone.PELVIS, 0, -0.008 * h, -0.002 * h), (Bone.ABDOMEN, 0, 0, 0)
    navel, breast = (Bone.CHEST, 0, 0, 0), (Bone.CHEST, 0, 0.20 * trunk, 0)
    between = 0.45 * hips + 0.55 * waist
    model.ellipsoid(crotch, (hips, 0.056 * h, 0.72 * hips), below)
    model.cone(crotch, lumbar, (hips, between), below, 0.72)
    model.ellipsoid(lumbar, (between, 0.05 * h, 0.72 * between), top)
    model.cone(lumbar, navel, (between, waist), top, 0.72)
    model.ellipsoid(navel, (waist, 0.05 * h, 0.72 * waist), top)
    model.cone(navel, breast, (waist, ribs), top, 0.72)
    model.ellipsoid(breast, (ribs, 0.29 * trunk, 0.72 * ribs), top)
    model.ellipsoid((Bone.CHEST, 0, 0.33 * trunk, 0.010 * h), (0.92 * ribs, 0.16 * trunk, 0.60 * ribs), top)
    for sign, arm in ((1, Bone.UPPER_ARM_L), (-1, Bone.UPPER_ARM_R)):
        glute = 0.047 * h * body.hip_girth
        model.ellipsoid((Bone.PELVIS, sign * 0.038 * h, -0.016 * h, -0.5 * glute), (glute, 1.1 * glute, glute), below)
        if body.bust:
            cup = 0.036 * h * (0.7 + 0.3 * body.bust)
            model.ellipsoid((Bone.CHEST, sign * 0.041 * h, 0.25 * trunk, 0.044 * h), (cup, cup, 0.9 * cup), top)
        collar = (Bone.CHEST, sign * 0.020 * h, 0.45 * trunk + 0.010 * h, -0.008 * h)
        model.cone(collar, (arm, 0, 0, 0), (0.033 * h, 0.030 * h), top, 1.1, width=1)
        model.ellipsoid(collar, (0.030 * h, 0.033 * h, 0.034 * h), top)


def _head(model: Model, stance: Stance, outfit: Outfit) -> None:
    body, hh, h = stance.body, stance.body.head_height, stance.body.stature
    head: Tag = (Surface.HEAD, Cloth.SKIN, Bone.HEAD)
    skin: Tag = (Surface.SKIN, Cloth.SKIN, Bone.HEAD)
    neck: Tag = (Surface.SKIN, Cloth.TOP if outfit.neckline < 0 else Cloth.SKIN, Bone.NECK)
    thick = (0.031 if body.kind == "man" else 0.026) * h * (0.6 + 0.4 * body.limb_girth)
    below, above = (Bone.NECK, 0, -0.02 * h, 0), (Bone.HEAD, 0, 0.22 * hh, -0.06 * hh)
    model.cone(below, above, (1.12 * thick, thick), neck)

    def part(shape: _HeadPart, tag: Tag) -> None:
        (x, y, z), (a, b, c) = shape
        model.ellipsoid((Bone.HEAD, hh * x, hh * y, hh * z), (hh * a, hh * b, hh * c), tag)

    for shape, tag in ((_SKULL, head), (_JAW, head), (_NOSE, skin)):
        part(shape, tag)
    for sign in (1, -1):
        part(((sign * EAR[0], EAR[1], EAR[2]), (0.042, 0.105, 0.072)), skin)
    for shape in _HAIR[outfit.hair]:
        part(shape, (Surface.HAIR, Cloth.HAIR, Bone.HEAD))
    if outfit.hat:
        part(((0, 0.70, -0.05), (0.39, 0.355, 0.475)), (Surface.HAIR, Cloth.HAT, Bone.HEAD))
    if outfit.hat == "cap":
        part(((0, 0.76, 0.46), (0.27, 0.035, 0.27)), (Surface.HAIR, Cloth.HAT, Bone.HEAD))


def _arm(model: Model, stance: Stance, outfit: Outfit, side: int) -> None:
    body, h, g = stance.body, stance.body.stature, stance.body.stature * stance.body.limb_girth
    upper, fore, hand = Bone.UPPER_ARM_L + side, Bone.FOREARM_L + side, Bone.HAND_L + side
    arm: Tag = (Surface.UPPER_ARM, Cloth.SKIN, upper)
    forearm: Tag = (Surface.FOREARM, Cloth.SKIN, fore)
    skin: Tag = (Surface.SKIN, Cloth.SKIN, hand)
    loose = outfit.loose_top if outfit.sleeve >= 0.9 else 1.0
    cuff = loose if outfit.sleeve > 1.6 else 1.0
    shoulder, elbow, wrist = (upper, 0, 0, 0), (fore, 0, 0, 0), (hand, 0, 0, 0)
    bulge = (fore, 0, -0.3 * body.forearm, 0)
    at_elbow = 0.0255 * g * loose
    model.ellipsoid(shoulder, (0.036 * g, 0.037 * g, 0.036 * g), arm)
    model.cone(shoulder, elbow, (0.034 * g * loose, at_elbow), arm)
    model.ellipsoid(elbow, (at_elbow, at_elbow, at_elbow), forearm)
    model.cone(elbow, bulge, (at_elbow, 0.0255 * g * cuff), forearm)
    model.cone(bulge, wrist, (0.0255 * g * cuff, 0.0180 * g * cuff), forearm)
    model.ellipsoid(wrist, (0.0165 * g, 0.0165 * g, 0.0165 * g), forearm)
    if 0 < outfit.sleeve < 0.9:
        end = (upper, 0, -outfit.sleeve * body.upper_arm, 0)
        model.cone(shoulder, end, (0.038 * g, 0.035 * g * outfit.loose_top), arm)
    length = body.hand
    model.ellipsoid((hand, 0, -0.42 * length, 0), (0.011 * h, 0.44 * length, 0.022 * h), skin)
    model.ellipsoid((hand, 0, -0.74 * length, 0), (0.009 * h, 0.27 * length, 0.019 * h), skin)
    model.ellipsoid((hand, 0, -0.36 * length, 0.019 * h), (0.008 * h, 0.26 * length, 0.010 * h), skin)


def _leg(model: Model, stance: Stance, outfit: Outfit, side: int) -> None:
    body, h, g = stance.body, stance.body.stature, stance.body.stature * stance.body.limb_girth
    upper, lower, foot = Bone.THIGH_L + side, Bone.SHANK_L + side, Bone.FOOT_L + side
    thigh: Tag = (Surface.THIGH, Cloth.SKIN, upper)
    shank: Tag = (Surface.SHANK, Cloth.SKIN, lower)
    shoe: Tag = (Surface.FOOT, Cloth.SHOE, foot)
    loose = outfit.loose_bottom if outfit.hem > 1 else 1.0
    cuff = outfit.loose_bottom if outfit.hem > 1.6 else 1.0
    hip, knee, ankle = (upper, 0, 0, 0), (lower, 0, 0, 0), (foot, 0, 0, 0)
    calf = (lower, 0, -0.32 * body.shank, -0.006 * h)
    model.ellipsoid(hip, (0.054 * g, 0.058 * g, 0.058 * g), thigh)
    model.cone(hip, knee, (0.054 * g * loose, 0.036 * g * loose), thigh)
    model.ellipsoid(knee, (0.0335 * g * loose, 0.036 * g, 0.0345 * g * loose), shank)
    model.cone(knee, calf, (0.032 * g * loose, 0.0345 * g * cuff), shank)
    model.cone(calf, ankle, (0.0345 * g * cuff, 0.0215 * g * cuff * cuff), shank)
    model.ellipsoid(calf, (0.034 * g, 0.07 * body.shank, 0.036 * g), shank)
    model.ellipsoid(ankle, (0.0215 * g, 0.0215 * g, 0.0215 * g), shank)
    if 0 < outfit.hem <= 1 and not (outfit.skirt and fits_skirt(stance)):
        wide = 0.051 * g * (1 - 0.35 * outfit.hem) * (0.1 + outfit.loose_bottom)
        model.cone(hip, (upper, 0, -outfit.hem * body.thigh, 0), (0.055 * g, wide), thigh)
    sole, length = body.ankle_height, body.foot
    for y, z, radii in (
        (-0.52, 0.22, (0.029 * h, 0.54 * sole, 0.45 * length)),
        (-0.62, 0.48, (0.030 * h, 0.42 * sole, 0.28 * length)),
        (-0.45, -0.03, (0.026 * h, 0.62 * sole, 0.20 * length)),
    ):
        model.ellipsoid((foot, 0, y * sole, z * length), radii, shoe)


def fits_skirt(stance: Stance) -> bool:
    """Whether the thighs are near enough to each other and to the trunk's line for a skirt."""
    left, right = (stance.rotations[bone][:, 1] for bone in (Bone.THIGH_L, Bone.THIGH_R))
    trunk = stance.rotations[Bone.PELVIS][:, 1]
    return bool(left @ right > 0.80 and min(left @ trunk, right @ trunk) > 0.6)


def _skirt(model: Model, stance: Stance, hem: float, cloth: Cloth, loose: float) -> None:
    """Hang cloth around both thighs, down to the fraction ``hem`` of them."""
    body, h = stance.body, stance.body.stature
    tag: Tag = (Surface.PELVIS, cloth, Bone.PELVIS)
    apart = float(np.linalg.norm(stance.origins[Bone.SHANK_L] - stance.origins[Bone.SHANK_R]))
    waist = 0.092 * h * body.hip_girth
    edge = max(1.2 * waist, 0.5 * hem * apart + 0.06 * h * body.limb_girth * loose)
    top: Spot = (Bone.PELVIS, 0, 0.03 * h, 0)
    model.cone(top, (Bone.HEM, 0, (1 - hem) * body.thigh, 0), (waist, edge), tag, 0.86)


def _luggage(model: Model, stance: Stance, outfit: Outfit) -> None:
    h, trunk = stance.body.stature, stance.body.trunk
    if outfit.backpack:
        pack = (Bone.CHEST, 0, 0.18 * trunk, -0.115 * h)
        model.ellipsoid(pack, (0.088 * h, 0.13 * h, 0.058 * h), (Surface.WORN, Cloth.PRINT, Bone.CHEST))
    if outfit.strap:
        bag = (Bone.PELVIS, -0.12 * h * stance.body.hip_girth, -0.03 * h, 0.01 * h)
        model.ellipsoid(bag, (0.04 * h, 0.08 * h, 0.09 * h), (Surface.WORN, Cloth.PRINT, Bone.PELVIS))
