"""Which joints the picture shows, which it lets one infer, and which nobody could place.

The rules, joint by joint:

2 (visible): the picture shows this person at the joint's pixel, and what shows there is the flesh or cloth around the
  joint, not another part of the body that happens to be in front.
1 (hidden, but inferable): it lies in the picture behind something (another person, a thing, the person's own body),
  and enough of the limb it belongs to shows to place it; for hips and shoulders also when the partner shows; for the
  face when two other points of it show. Sparingly, as COCO's annotators did: an elbow or a knee only where both
  limbs that meet there show.
0 (not labelled): outside the picture, or hidden without such a clue, or a face turned away (COCO's annotators leave
  the nose of a head seen from behind unlabelled).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.synth.kinematics import JOINT
from efafnet.pipelines.synth.pose import Bone
from efafnet.pipelines.synth.raster import Depth
from efafnet.pipelines.synth.solids import Array

Flags = NDArray[np.bool_]

_FACE = tuple(range(5))
_SEGMENTS = tuple(
    (JOINT[f"{side}_{a}"], JOINT[f"{side}_{b}"])
    for side in ("left", "right")
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("shoulder", "hip"))
)
_PARTNERS = {
    JOINT[f"{a}_{name}"]: JOINT[f"{b}_{name}"]
    for name in ("shoulder", "hip")
    for a, b in (("left", "right"), ("right", "left"))
}
_MIDDLE = tuple(JOINT[f"{side}_{name}"] for side in ("left", "right") for name in ("elbow", "knee"))
"""Joints between two limbs."""
_OBLIQUE = np.array([1.0] * 7 + [1.6] * 4 + [1.2] * 2 + [1.6] * 4)
"""Factor on the flesh around a joint where its own bones show: a limb seen obliquely is thicker along the view. The
hips' is small, for through the pelvis the far hip is not much deeper than that."""


_SLACK_PX = 0.7
"""The nearest sample lies up to half a pixel beside a joint, and surfaces can be steep."""


def _meets() -> Flags:
    table = np.zeros((17, len(Bone)), dtype=np.bool_)
    table[list(_FACE), Bone.HEAD] = True
    chains = (
        ("shoulder", Bone.UPPER_ARM_L, "elbow", Bone.FOREARM_L, "wrist", Bone.HAND_L),
        ("hip", Bone.THIGH_L, "knee", Bone.SHANK_L, "ankle", Bone.FOOT_L),
    )
    for side, name in enumerate(("left", "right")):
        for root, (first, upper, second, lower, third, end) in zip((Bone.CHEST, Bone.PELVIS), chains, strict=True):
            table[JOINT[f"{name}_{first}"], [root, upper + side]] = True
            table[JOINT[f"{name}_{second}"], [upper + side, lower + side]] = True
            table[JOINT[f"{name}_{third}"], [lower + side, end + side]] = True
    return table


_MEETS = _meets()
"""(17, bones): the bones that meet at each joint."""
_SHOWN = 0.4
"""Share of a limb's middle line that must show for its ends to be placed."""
_STEPS = np.linspace(0.1, 0.9, 9)


@dataclass(frozen=True)
class Evidence:
    """What is known about one person in a finished picture."""

    ids: NDArray[np.int16]
    """(H, W): which person each pixel of the picture shows; 0 for none."""
    person: int
    """This person's number in ``ids``."""
    depth: Depth
    """This person drawn alone."""
    own: Flags
    """(S,): which of the solids in ``depth`` are flesh or clothes (and no bag, chair or ball)."""
    bone: NDArray[np.int64]
    """(S,): which bone each of them follows."""
    hair: Flags
    """(S,): which of them are hair or a hat, under which no point of the face shows."""

    def inside(self, points: Array) -> Flags:
        """Whether points (P, ≥2) lie in the picture."""
        height, width = self.ids.shape
        x, y = points[:, 0], points[:, 1]
        within: Flags = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
        return within

    def in_picture(self, points: Array) -> Flags:
        """Whether the picture shows this person at the pixels of points (P, ≥2)."""
        inside = self.inside(points)
        column, row = np.floor(points[inside, :2] + 0.5).astype(np.intp).T
        shown = np.zeros(len(points), dtype=np.bool_)
        shown[inside] = self.ids[row, column] == self.person
        return shown

    def front(self, points: Array) -> tuple[NDArray[np.intp], Array]:
        """The person's nearest solid at points (P, 3), -1 for none, and how far in front of the points it is, px."""
        n, (height, width) = self.depth.oversampling, self.depth.z.shape
        sample = np.floor((points[:, :2] - (self.depth.left, self.depth.top) + 0.5) * n).astype(np.intp)
        inside = ((sample >= 0) & (sample < (width, height))).all(axis=1)
        column, row = np.minimum(np.maximum(sample, 0), (width - 1, height - 1)).T
        solid = np.where(inside, self.depth.solid[row, column], -1).astype(np.intp)
        return solid, np.where(solid >= 0, self.depth.z[row, column], 0.0) - points[:, 2]


def judge(joints: Array, flesh_px: Array, evidence: Evidence, *, sparing: bool = False) -> NDArray[np.int64]:
    """Visibility (17,) of joints (17, 3) in screen pixels whose flesh is ``flesh_px`` (17,) thick.

    ``sparing``: whether hidden joints are labelled as sparingly as COCO's annotators did.
    """
    solid, before = evidence.front(joints)
    rows = np.arange(17)
    drawn, face = solid >= 0, rows < len(_FACE)
    reach = np.where(_MEETS[rows, evidence.bone[solid]], flesh_px * _OBLIQUE, flesh_px) + _SLACK_PX
    on_surface = drawn & evidence.own[solid] & (before <= reach) & ~(face & evidence.hair[solid])
    visible = evidence.in_picture(joints) & on_surface
    turned_away = drawn & ~on_surface & (evidence.bone[solid] == Bone.HEAD)
    shown = _shown_segments(joints, flesh_px, evidence)
    verdict = np.where(visible, 2, 0)
    for joint in np.flatnonzero(evidence.inside(joints) & ~visible).tolist():
        if _inferable(joint, visible, shown, turned_away, all if sparing and joint in _MIDDLE else any):
            verdict[joint] = 1
    return verdict


def _inferable(
    joint: int, visible: Flags, shown: Array, turned_away: Flags, enough: Callable[[Iterable[bool]], bool]
) -> bool:
    if joint in _FACE:
        return not turned_away[joint] and int(visible[list(_FACE)].sum()) >= 2
    if joint in _PARTNERS and visible[_PARTNERS[joint]]:
        return True
    return enough(bool(shown[index] >= _SHOWN) for index, segment in enumerate(_SEGMENTS) if joint in segment)


def _shown_segments(joints: Array, flesh_px: Array, evidence: Evidence) -> Array:
    """Share of each segment's middle line that the picture shows, (segments,)."""
    start, end = np.array(_SEGMENTS).T
    t = _STEPS[:, None]
    points = joints[start, None] * (1 - t) + joints[end, None] * t
    flesh = flesh_px[start, None] * (1 - _STEPS) + flesh_px[end, None] * _STEPS
    flat = points.reshape(-1, 3)
    solid, before = evidence.front(flat)
    seen = evidence.in_picture(flat) & (solid >= 0) & evidence.own[solid] & (before <= flesh.ravel() * 1.3)
    return np.asarray(seen.reshape(flesh.shape).mean(axis=1), dtype=np.float64)
