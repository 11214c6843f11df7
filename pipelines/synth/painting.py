"""What is painted on a person: which cloth shows at each sample, by its place in the frame of its bone.

Places are in metres in the frames of ``kinematics``; legend: N samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.synth.body import Body
from efafnet.pipelines.synth.figure import EYE, Surface
from efafnet.pipelines.synth.outfit import Cloth, Outfit
from efafnet.pipelines.synth.pose import Bone
from efafnet.pipelines.synth.solids import Float32

Cloths = NDArray[np.int64]
Bones = NDArray[np.int64]
Places = tuple[Float32, Float32, Float32]


def paint_person(
    surface: NDArray[np.int64], cloth: Cloths, frame: NDArray[np.int64], place: Float32, body: Body, outfit: Outfit
) -> Cloths:  # fmt: skip
    """Return the cloth (N,) of each sample, given its solid's surface, cloth and frame (N,) and its place (3, N).

    ``surface`` must be ascending.
    """
    painted = cloth.copy()
    borders = np.searchsorted(surface, np.arange(Surface.THING + 1)).tolist()
    for kind, rule in _RULES:
        part = slice(borders[kind], borders[kind + 1])
        if part.stop > part.start:
            x, y, z = place[:, part]
            rule(painted[part], (x, y, z), frame[part], body, outfit)
    return painted


def _torso(cloth: Cloths, at: Places, bones: Bones, body: Body, outfit: Outfit) -> None:
    x, y, z = at
    h = body.stature
    across = np.abs(x) / h
    del bones
    up = y / body.trunk
    front = z > 0
    if outfit.placket:
        cloth[front & (across < 0.007)] = Cloth.DARK
    if outfit.logo:
        cloth[front & (across < 0.042) & (up > 0.12) & (up < 0.28)] = Cloth.PRINT
    if outfit.number:
        cloth[~front & (across > 0.012) & (across < 0.042) & (up > 0.08) & (up < 0.32)] = Cloth.BADGE
    if outfit.badge:
        cloth[front & (x > 0.034 * h) & (x < 0.062 * h) & (up > 0.23) & (up < 0.34)] = Cloth.BADGE
    if outfit.strap:
        # From the left shoulder (+x) down to the right hip.
        line = 0.066 - 0.165 * (0.45 - up) / 0.9
        cloth[np.abs(x / h - line) < 0.012] = Cloth.DARK
    if outfit.backpack:
        cloth[front & (np.abs(across - 0.058) < 0.011) & (up > 0.08)] = Cloth.DARK
    if outfit.neckline >= 0:
        bare = np.where(front, 0.50 - outfit.neckline + 1.9 * across, 0.535 + 0.8 * across)
        cloth[(up > bare)] = Cloth.SKIN
    if outfit.sleeve == 0:
        cloth[(across > 0.075) & (up > 0.3)] = Cloth.SKIN


def _pelvis(cloth: Cloths, at: Places, bones: Bones, body: Body, outfit: Outfit) -> None:
    del bones
    up = at[1] / body.stature
    if outfit.tucked:
        cloth[(up > 0.030) & (up <= 0.046)] = Cloth.BELT
        cloth[up > 0.046] = Cloth.TOP
    else:
        cloth[up > 0.028] = Cloth.TOP


def _upper_arm(cloth: Cloths, at: Places, bones: Bones, body: Body, outfit: Outfit) -> None:
    along = -at[1] / body.upper_arm
    cloth[along < outfit.sleeve] = Cloth.TOP
    if outfit.armband:
        cloth[(bones == Bone.UPPER_ARM_L) & (along > 0.45) & (along < 0.66)] = Cloth.BADGE


def _forearm(cloth: Cloths, at: Places, bones: Bones, body: Body, outfit: Outfit) -> None:
    along = 1 - at[1] / body.forearm
    cloth[along < outfit.sleeve] = Cloth.TOP
    if outfit.watch:
        cloth[(bones == Bone.FOREARM_L) & (along > 1.83) & (along < 1.96)] = Cloth.DARK


def _thigh(cloth: Cloths, at: Places, bones: Bones, body: Body, outfit: Outfit) -> None:
    del bones
    cloth[-at[1] < outfit.hem * body.thigh] = Cloth.BOTTOM


def _shank(cloth: Cloths, at: Places, bones: Bones, body: Body, outfit: Outfit) -> None:
    del bones
    along = -at[1] / body.shank
    cloth[along > outfit.socks] = Cloth.SOCK
    if not outfit.skirt:
        cloth[along < outfit.hem - 1] = Cloth.BOTTOM


def _hair(cloth: Cloths, at: Places, bones: Bones, body: Body, outfit: Outfit) -> None:
    del bones
    x, y, z = (value / body.head_height for value in at)
    if outfit.parted:
        line = (np.abs(x - 0.13) < 0.022) & (y > 0.72) & (z > -0.35)
        cloth[line & (cloth == Cloth.HAIR)] = Cloth.SKIN


def _head(cloth: Cloths, at: Places, bones: Bones, body: Body, outfit: Outfit) -> None:
    x, y, z = (value / body.head_height for value in at)
    if outfit.hair != "bald":
        cloth[y > 0.52 + z] = Cloth.HAIR
        _hair(cloth, at, bones, body, outfit)
    face = z > 0.08
    across, up = np.abs(x) - EYE[0], y - EYE[1]
    if outfit.beard:
        cloth[(y < 0.25 - 0.4 * (0.1 - np.minimum(z, 0.1))) & (z > -0.12)] = Cloth.HAIR
    cloth[face & (np.abs(x) < 0.115) & (np.abs(y - 0.165) < 0.028)] = Cloth.LIP
    cloth[face & (np.abs(across) < 0.09) & (np.abs(up - 0.095) < 0.018)] = Cloth.HAIR
    cloth[face & ((across / 0.078) ** 2 + (up / 0.046) ** 2 < 1)] = Cloth.WHITE
    cloth[face & ((across / 0.038) ** 2 + (up / 0.046) ** 2 < 1)] = Cloth.IRIS
    if outfit.glasses:
        ring = (across / 0.115) ** 2 + (up / 0.085) ** 2
        bridge = (np.abs(up) < 0.016) & ((across < -0.1) | (across > 0.1)) & (z > -0.1)
        cloth[(face & (ring > 0.62) & (ring < 1.15)) | bridge] = Cloth.DARK


_RULES = (
    (Surface.TORSO, _torso), (Surface.PELVIS, _pelvis), (Surface.UPPER_ARM, _upper_arm), (Surface.FOREARM, _forearm),
    (Surface.HEAD, _head), (Surface.HAIR, _hair), (Surface.THIGH, _thigh), (Surface.SHANK, _shank),
)  # fmt: skip
