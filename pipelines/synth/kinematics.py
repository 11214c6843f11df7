"""Forward kinematics: from a body and a pose to bone frames and joints in metres.

Axes of every frame, and of the world: x to the person's left, y up (along the spine, or against a hanging limb), z to
the front. At yaw 0 the person faces the viewer, so that x points to the right of the picture and z to the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.synth.body import Body
from efafnet.pipelines.synth.pose import LIMITS, Angles, Bone, Pose
from efafnet.pipelines.synth.solids import Array, Frames

JOINT = {name: index for index, name in enumerate(COCO_17.joints)}

_PARENT = (0, 0, 1, 2, 3, 2, 2, 5, 6, 7, 8, 0, 0, 11, 12, 13, 14)
_SIGNS = np.array(
    # flexion about x, abduction or bending to the left about z, rotation or turning to the left about y
    [[1, -1, 1]] * 5 + [[-1, 1, 1], [-1, -1, -1]] * 4 + [[1, 1, 1], [1, -1, -1]] + [[-1, 1, 1], [-1, -1, -1]],
    dtype=np.float64,
)


@dataclass(frozen=True)
class Stance:
    """A posed body in the world: y = 0 is the ground, the pelvis stands above the origin."""

    body: Body
    pose: Pose
    origins: Array
    """(bones, 3): the proximal joint of each bone, metres."""
    rotations: Array
    """(bones, 3, 3): columns are the axes of each bone in the world."""
    yaw: float
    """Turn about the vertical in radians; 0 faces the viewer, positive turns the face to the viewer's right."""

    @property
    def frames(self) -> Frames:
        """The bones' frames, for solids to be placed in."""
        return Frames(self.origins, self.rotations)

    def at(self, bone: Bone, x: float, y: float, z: float) -> Array:
        """Point (x, y, z) of a bone's frame in the world, (3,)."""
        point: Array = self.origins[bone] + self.rotations[bone] @ np.array((x, y, z))
        return point


def euler(angles_rad: Array) -> Array:
    """Rotation matrices Rx(a)·Rz(b)·Ry(c) of angles (N, 3) = (a, b, c), shape (N, 3, 3)."""
    (cx, cz, cy), (sx, sz, sy) = np.cos(angles_rad).T, np.sin(angles_rad).T
    rows = (
        (cz * cy, -sz, cz * sy),
        (cx * sz * cy + sx * sy, cx * cz, cx * sz * sy - sx * cy),
        (sx * sz * cy - cx * sy, sx * cz, sx * sz * sy + cx * cy),
    )
    return np.array(rows).transpose(2, 0, 1)


def turn(yaw: float) -> Array:
    """Rotation about the vertical by ``yaw`` radians, (3, 3)."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array(((c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c)))


def articulate(body: Body, pose: Pose, yaw: float) -> Stance:
    """Pose a body, move its arms out of its trunk, set its feet level and put its lowest point on the ground."""
    pose = replace(pose, angles=pose.angles.copy())
    for _ in range(6):
        stance = _chain(body, pose, yaw)
        if not _spread_arms(stance):
            break
    if pose.support != "air" and pose.family != "lying":
        _level_feet(stance)
    lift = 0.12 * body.stature if pose.support == "air" else 0.0
    stance.origins[: Bone.WORLD] += (0.0, lift - _lowest(stance), 0.0)
    _hang_hem(stance)
    return stance


def _chain(body: Body, pose: Pose, yaw: float) -> Stance:
    local = euler(np.deg2rad(pose.angles[: Bone.WORLD] * _SIGNS))
    offsets = _offsets(body, pose.angles)
    rotations = np.empty((len(Bone), 3, 3))
    origins = np.zeros((len(Bone), 3))
    rotations[Bone.WORLD] = turn(yaw)
    rotations[0] = rotations[Bone.WORLD] @ local[0]
    for bone in range(1, Bone.WORLD):
        parent = _PARENT[bone]
        rotations[bone] = rotations[parent] @ local[bone]
        origins[bone] = origins[parent] + rotations[parent] @ offsets[bone]
    return Stance(body, pose, origins, rotations, yaw)


def _offsets(body: Body, angles: Angles) -> Array:
    """Where each bone begins in its parent's frame, (bones - 1, 3) metres."""
    h = body.stature
    offsets = np.zeros((int(Bone.WORLD), 3))
    offsets[Bone.ABDOMEN] = (0, 0.28 * body.trunk, -0.004 * h)
    offsets[Bone.CHEST] = (0, 0.27 * body.trunk, 0)
    offsets[Bone.NECK] = (0, 0.45 * body.trunk + 0.020 * h, -0.008 * h)
    offsets[Bone.HEAD] = (0, 0.036 * h, 0.010 * h)
    for side, sign in ((0, 1), (1, -1)):
        offsets[Bone.UPPER_ARM_L + side] = _shoulder(body, angles[Bone.UPPER_ARM_L + side], sign)
        offsets[Bone.FOREARM_L + side] = (0, -body.upper_arm, 0)
        offsets[Bone.HAND_L + side] = (0, -body.forearm, 0)
        offsets[Bone.THIGH_L + side] = (sign * body.hip_half, 0, 0)
        offsets[Bone.SHANK_L + side] = (0, -body.thigh, 0)
        offsets[Bone.FOOT_L + side] = (0, -body.shank, 0)
    return offsets


def _shoulder(body: Body, arm: NDArray[np.float64], sign: int) -> tuple[float, float, float]:
    """Shoulder joint in the chest's frame: the collar bone rises by a sixth of the arm's elevation beyond 30°."""
    flexion, abduction = np.deg2rad(arm[:2])
    elevation = float(np.arccos(np.clip(np.cos(flexion) * np.cos(abduction), -1, 1)))
    rise = max(0.0, elevation - np.deg2rad(30)) / 6
    inner = 0.02 * body.stature
    reach = body.shoulder_half - inner
    return sign * (inner + reach * float(np.cos(rise))), 0.45 * body.trunk + reach * float(np.sin(rise)), 0.0


def _spread_arms(stance: Stance) -> bool:
    """Raise the abduction of every arm that runs through the trunk or the head; tell whether one did."""
    hands = stance.frames.resolve(
        np.array([(Bone.HAND_L, 0, -0.6 * stance.body.hand, 0), (Bone.HAND_R, 0, -0.6 * stance.body.hand, 0)])
    )
    elbows = stance.origins[[Bone.FOREARM_L, Bone.FOREARM_R]]
    wrists = stance.origins[[Bone.HAND_L, Bone.HAND_R]]
    points = np.stack((elbows, 0.5 * (elbows + wrists), wrists, hands), axis=1)
    inside = _inside_trunk(stance, points, 0.018 * stance.body.stature).any(axis=1)
    inside |= _inside_head(stance, points[:, 1:]).any(axis=1)
    for side in np.flatnonzero(inside).tolist():
        arm, limits = stance.pose.angles[Bone.UPPER_ARM_L + side], LIMITS[Bone.UPPER_ARM_L + side]
        arm[1:] = np.minimum(arm[1:] + np.array((9.0, 6.0)), limits[1:, 1])
    return bool(inside.any())


def _inside_trunk(stance: Stance, points: Array, margin: float) -> NDArray[np.bool_]:
    """Whether points (..., 3) are inside the elliptic cylinders around the trunk, widened by ``margin`` metres."""
    body, h = stance.body, stance.body.stature
    girth = max(body.waist_girth, body.hip_girth)
    bones = [Bone.CHEST, Bone.ABDOMEN, Bone.PELVIS]
    width = np.array((0.090 * h, 0.082 * h * girth, 0.096 * h * girth)) + margin
    depth = np.array((0.062 * h, 0.062 * h * girth, 0.066 * h * girth)) + margin
    low, high = np.array((0, 0, -0.06 * h)), np.array((0.50, 0.27, 0.28)) * body.trunk
    shifted = points[..., None, :] - stance.origins[bones]
    local = (shifted[..., None, :] @ stance.rotations[bones])[..., 0, :]
    radial = (local[..., 0] / width) ** 2 + (local[..., 2] / depth) ** 2
    inside: NDArray[np.bool_] = (radial < 1) & (local[..., 1] > low) & (local[..., 1] < high)
    return np.asarray(inside.any(axis=-1), dtype=np.bool_)


def _inside_head(stance: Stance, points: Array) -> NDArray[np.bool_]:
    away = points - stance.at(Bone.HEAD, 0, 0.45 * stance.body.head_height, 0.01 * stance.body.stature)
    found: NDArray[np.bool_] = (away * away).sum(axis=-1) < (0.55 * stance.body.head_height) ** 2
    return found


def _level_feet(stance: Stance) -> None:
    """Turn each ankle so that the sole is level as far as the ankle allows; a foot in mid-swing hangs."""
    for side in (0, 1):
        foot, shank = Bone.FOOT_L + side, stance.rotations[Bone.SHANK_L + side]
        if shank[1, 1] < 0.35:
            continue
        dorsiflexion = np.rad2deg(np.arctan2(-shank[1, 2], shank[1, 1]))
        angles = stance.pose.angles[foot]
        angles[0] = np.clip(dorsiflexion, *LIMITS[foot, 0])
        stance.rotations[foot] = shank @ euler(np.deg2rad(angles * _SIGNS[foot])[None])[0]


def _hang_hem(stance: Stance) -> None:
    """Put the frame HEM between the knees: x from the right thigh to the left one, y up the thighs."""
    thighs = stance.rotations[[Bone.THIGH_L, Bone.THIGH_R]]
    knees = stance.origins[[Bone.SHANK_L, Bone.SHANK_R]]
    x = knees[0] - knees[1] + 0.2 * stance.rotations[Bone.PELVIS][:, 0]
    x /= np.sqrt(x @ x)
    y = thighs[0, :, 1] + thighs[1, :, 1]
    y -= (y @ x) * x
    y /= max(float(np.sqrt(y @ y)), 1e-6)
    stance.origins[Bone.HEM] = 0.5 * (knees[0] + knees[1])
    z = (x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0])
    stance.rotations[Bone.HEM] = np.array((x, y, z)).T


def _lowest(stance: Stance) -> float:
    """Height of the lowest of the points that can touch the ground, metres."""
    body, h = stance.body, stance.body.stature
    girth, sole = body.limb_girth, -body.ankle_height
    spots: list[tuple[float, ...]] = [
        (Bone.HEAD, 0, 0.45 * body.head_height, 0, 0.5 * body.head_height),
        (Bone.PELVIS, 0, 0, 0, 0.066 * h * body.hip_girth),
        (Bone.CHEST, 0, 0.2 * body.trunk, 0, 0.064 * h),
    ]
    for side in (0, 1):
        spots += [
            (Bone.FOOT_L + side, 0, sole, 0.72 * body.foot, 0.0),
            (Bone.FOOT_L + side, 0, sole, -0.22 * body.foot, 0.0),
            (Bone.SHANK_L + side, 0, 0, 0, 0.030 * h * girth),
            (Bone.THIGH_L + side, 0, 0, 0, 0.055 * h * girth),
            (Bone.FOREARM_L + side, 0, 0, 0, 0.020 * h * girth),
            (Bone.HAND_L + side, 0, -body.hand, 0, 0.010 * h),
        ]
    table = np.array(spots)
    if stance.pose.family == "lying":
        # Who lies rests on the trunk: a hand's breadth of toes and elbows gives way instead of holding the body up.
        table[3:, 4] -= 0.1
    return float((stance.frames.resolve(table[:, :4])[:, 1] - table[:, 4]).min())
