"""Things among people: furniture, posts, plants, animals; and what people sit on or hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efafnet.pipelines.synth.body import Rng, pick
from efafnet.pipelines.synth.figure import Surface
from efafnet.pipelines.synth.kinematics import Stance, turn
from efafnet.pipelines.synth.outfit import Cloth, Fabric, Pattern, muted_colour, sample_fabric
from efafnet.pipelines.synth.pose import Bone
from efafnet.pipelines.synth.solids import Frames, Model, Tag


@dataclass(frozen=True)
class Thing:
    """Something that is no person, standing on the ground at the origin."""

    model: Model
    frames: Frames
    fabrics: tuple[Fabric, ...]
    height: float
    """Metres."""


def _tag(fabric: int) -> Tag:
    return (Surface.THING, fabric, 0)


def sample_thing(rng: Rng) -> Thing:
    """Draw a thing to put among people."""
    makers = tuple(_MAKERS)
    maker = makers[pick(rng, tuple(_MAKERS.values()))]
    model = Model()
    height = maker(model, rng)
    return _finished(rng, model, height, float(rng.uniform(-np.pi, np.pi)))


def sample_cover(rng: Rng, span: float, least: float = 0.0) -> Thing:
    """Draw a thing that hides somebody ``span`` metres high from the waist or the chest down, and faces the camera.

    Three in ten hide all but the head and the shoulders; all are higher than ``least`` metres, as far as that leaves
    these.
    """
    maker = _COVERS[pick(rng, (0.4, 0.3, 0.2, 0.1))]
    low, high = _TO_THE_NECK if rng.random() < 0.3 else _TO_THE_CHEST
    low = max(low, min(least / span + 0.05, _TO_THE_NECK[0]))
    model, height = Model(), span * float(rng.uniform(low, max(low + 0.05, high)))
    maker(model, rng, height)
    return _finished(rng, model, height, float(rng.uniform(-0.35, 0.35)))


def _finished(rng: Rng, model: Model, height: float, yaw: float) -> Thing:
    fabrics = tuple(sample_fabric(rng, muted_colour(rng), 0.5, muted_colour) for _ in range(3))
    leaves = (float(rng.uniform(0.1, 0.35)), float(rng.uniform(0.3, 0.55)), float(rng.uniform(0.08, 0.25)))
    dark = (0.5 * leaves[0], 0.5 * leaves[1], 0.5 * leaves[2])
    plant = Fabric(leaves, dark, Pattern.MOTTLED, 0.35, 0.2)
    frames = Frames(np.zeros((1, 3)), turn(yaw)[None])
    return Thing(model, frames, (*fabrics, plant), height)


def _table(model: Model, rng: Rng) -> float:
    height, half, deep = float(rng.uniform(0.55, 1.05)), float(rng.uniform(0.4, 0.8)), float(rng.uniform(0.3, 0.5))
    model.box((0, 0, height, 0), (half, 0.025, deep), _tag(0))
    for x in (-1, 1):
        for z in (-1, 1):
            model.box((0, x * 0.9 * half, 0.5 * height, z * 0.85 * deep), (0.03, 0.5 * height, 0.03), _tag(1))
    if rng.random() < 0.5:
        side = float(rng.uniform(-0.7, 0.7)) * half
        model.box((0, side, height + 0.12, 0), (0.10, 0.10, 0.10), _tag(2))
    return height


def _crate(model: Model, rng: Rng) -> float:
    height, half = float(rng.uniform(0.35, 1.1)), float(rng.uniform(0.25, 0.6))
    model.box((0, 0, 0.5 * height, 0), (half, 0.5 * height, float(rng.uniform(0.2, 0.45))), _tag(0))
    if rng.random() < 0.4:
        model.box((0, 0, height, 0), (1.03 * half, 0.02, 0.4), _tag(1))
    return height


def _post(model: Model, rng: Rng) -> float:
    height, radius = float(rng.uniform(1.6, 3.2)), float(rng.uniform(0.03, 0.13))
    model.cone((0, 0, 0, 0), (0, 0, height, 0), (radius, 0.9 * radius), _tag(0))
    if rng.random() < 0.5:
        model.box((0, 0, height - 0.3, 0.05), (float(rng.uniform(0.15, 0.4)), 0.28, 0.015), _tag(1))
    elif rng.random() < 0.5:
        model.ellipsoid((0, 0, height, 0), (0.16, 0.16, 0.16), _tag(2))
    return height


def _bush(model: Model, rng: Rng) -> float:
    size = float(rng.uniform(0.5, 1.1))
    for _ in range(7):
        x, z, r = rng.uniform(-0.45, 0.45), rng.uniform(-0.3, 0.3), float(rng.uniform(0.22, 0.42)) * size
        y = float(rng.uniform(0.3, 0.75)) * size
        model.ellipsoid((0, float(x) * size, y, float(z) * size), (r, 0.9 * r, r), _tag(3))
    return size


def _tree(model: Model, rng: Rng) -> float:
    height, radius = float(rng.uniform(2.4, 3.8)), float(rng.uniform(0.06, 0.16))
    model.cone((0, 0, 0, 0), (0, 0, height, 0), (1.3 * radius, 0.7 * radius), _tag(0))
    for _ in range(6):
        x, y, z = rng.uniform(-0.7, 0.7), height + rng.uniform(-0.4, 0.6), rng.uniform(-0.5, 0.5)
        r = float(rng.uniform(0.4, 0.75))
        model.ellipsoid((0, float(x), float(y), float(z)), (r, 0.8 * r, r), _tag(3))
    return height


def _fence(model: Model, rng: Rng) -> float:
    height, half = float(rng.uniform(0.7, 1.2)), float(rng.uniform(0.7, 1.3))
    for y in (0.4, 0.9):
        model.box((0, 0, y * height, 0), (half, 0.04, 0.02), _tag(0))
    for x in np.linspace(-half, half, int(rng.integers(4, 8))):
        model.box((0, float(x), 0.5 * height, 0.02), (0.035, 0.5 * height, 0.02), _tag(0))
    return height


def _ball(model: Model, rng: Rng) -> float:
    radius = float(rng.uniform(0.11, 0.45))
    model.ellipsoid((0, 0, radius, 0), (radius, radius, radius), _tag(0))
    return 2 * radius


def _barrel(model: Model, rng: Rng) -> float:
    height, radius = float(rng.uniform(0.6, 1.1)), float(rng.uniform(0.2, 0.35))
    model.cone((0, 0, 0, 0), (0, 0, height, 0), (radius, radius * float(rng.uniform(0.85, 1.1))), _tag(0))
    model.ellipsoid((0, 0, height, 0), (radius, 0.05, radius), _tag(1))
    return height


def _dog(model: Model, rng: Rng) -> float:
    """A four-legged animal: limbs, trunk and head as a person has, but never annotated."""
    h = float(rng.uniform(0.35, 0.9))
    back, chest = (0, -0.45 * h, 0.72 * h, 0), (0, 0.45 * h, 0.76 * h, 0)
    model.cone(back, chest, (0.19 * h, 0.22 * h), _tag(0))
    model.ellipsoid((0, -0.45 * h, 0.72 * h, 0), (0.2 * h, 0.19 * h, 0.19 * h), _tag(0))
    model.ellipsoid((0, 0.45 * h, 0.76 * h, 0), (0.2 * h, 0.22 * h, 0.2 * h), _tag(0))
    model.cone((0, 0.5 * h, 0.85 * h, 0), (0, 0.75 * h, 1.1 * h, 0), (0.13 * h, 0.11 * h), _tag(0))
    model.ellipsoid((0, 0.80 * h, 1.12 * h, 0), (0.17 * h, 0.14 * h, 0.13 * h), _tag(0))
    model.ellipsoid((0, 0.98 * h, 1.06 * h, 0), (0.12 * h, 0.07 * h, 0.07 * h), _tag(1))
    for x in (-0.5, 0.45):
        for z in (-0.12, 0.12):
            swing = float(rng.uniform(-0.12, 0.12)) * h
            model.cone((0, x * h, 0.65 * h, z * h), (0, x * h + swing, 0.03 * h, z * h), (0.09 * h, 0.05 * h), _tag(0))
    model.cone((0, -0.6 * h, 0.8 * h, 0), (0, -0.85 * h, 1.05 * h, 0), (0.05 * h, 0.03 * h), _tag(0))
    return 1.2 * h


def _parasol(model: Model, rng: Rng) -> float:
    height, radius = float(rng.uniform(2.0, 2.5)), float(rng.uniform(0.7, 1.2))
    model.cone((0, 0, 0, 0), (0, 0, height, 0), (0.03, 0.03), _tag(0))
    model.ellipsoid((0, 0, height, 0), (radius, 0.22, radius), _tag(1))
    return height


def _coat_stand(model: Model, rng: Rng) -> float:
    """Clothes without anybody in them."""
    model.cone((0, 0, 0, 0), (0, 0, 1.75, 0), (0.03, 0.03), _tag(0))
    for x in (-0.14, 0.14):
        length = float(rng.uniform(0.5, 1.0))
        model.cone((0, x, 1.6, 0), (0, 1.3 * x, 1.6 - length, 0), (0.09, 0.17), _tag(1 if x < 0 else 2), 0.5)
        model.ellipsoid((0, x, 1.6, 0), (0.10, 0.05, 0.06), _tag(1 if x < 0 else 2))
    return 1.75


def _board(model: Model, rng: Rng) -> float:
    low, tall, half = float(rng.uniform(0.3, 1.0)), float(rng.uniform(0.25, 0.6)), float(rng.uniform(0.3, 0.8))
    model.box((0, 0, low + 0.5 * tall, 0), (half, 0.5 * tall, 0.02), _tag(0))
    for x in (-0.9, 0.9):
        model.box((0, x * half, 0.5 * (low + tall), -0.03), (0.025, 0.5 * (low + tall), 0.02), _tag(1))
    return low + tall


_MAKERS: dict[Callable[[Model, Rng], float], float] = {
    _table: 0.16, _crate: 0.16, _post: 0.12, _bush: 0.12, _tree: 0.08, _fence: 0.10, _ball: 0.06, _barrel: 0.07,
    _dog: 0.06, _parasol: 0.03, _coat_stand: 0.04, _board: 0.10,
}  # fmt: skip


def _counter(model: Model, rng: Rng, height: float) -> None:
    half, deep = float(rng.uniform(0.5, 1.6)), float(rng.uniform(0.2, 0.35))
    model.box((0, 0, 0.5 * height, 0), (half, 0.5 * height, deep), _tag(0))
    model.box((0, 0, height, 0), (1.02 * half, 0.025, 1.1 * deep), _tag(1))
    for x in rng.uniform(-0.9, 0.9, int(rng.integers(0, 4))).tolist():
        size = float(rng.uniform(0.03, 0.09))
        model.box((0, x * half, height + size, 0), (size, size, size), _tag(2))


def _laid_table(model: Model, rng: Rng, height: float) -> None:
    """A table whose cloth hangs to the ground, with plates and bottles."""
    half, deep = float(rng.uniform(0.5, 1.2)), float(rng.uniform(0.3, 0.5))
    model.box((0, 0, 0.5 * height, 0), (half, 0.5 * height, deep), _tag(0))
    for x in rng.uniform(-0.85, 0.85, int(rng.integers(1, 5))).tolist():
        z = deep * float(rng.uniform(-0.7, 0.7))
        if rng.random() < 0.5:
            model.ellipsoid((0, x * half, height + 0.01, z), (0.12, 0.02, 0.12), _tag(1))
        else:
            model.cone((0, x * half, height, z), (0, x * half, height + 0.24, z), (0.04, 0.02), _tag(2))


def _hedge(model: Model, rng: Rng, height: float) -> None:
    half = float(rng.uniform(0.5, 1.2))
    for x in np.arange(-half, half, 0.22).tolist():
        high = 0.5 * height * float(rng.uniform(0.9, 1.05))
        model.ellipsoid((0, x, high, 0), (0.3, high, 0.25), _tag(3))


def _car(model: Model, rng: Rng, height: float) -> None:
    """A car seen from its side: its roof hides to ``height``, its bonnet less."""
    half, low = float(rng.uniform(1.2, 1.9)), 0.62 * height
    model.box((0, 0, 0.5 * low + 0.1 * height, 0), (half, 0.5 * low, 0.4), _tag(0))
    model.box((0, -0.15 * half, low + 0.5 * (height - low), 0), (0.55 * half, 0.5 * (height - low), 0.36), _tag(1))
    for x in (-0.62, 0.62):
        model.ellipsoid((0, x * half, 0.2 * height, 0.4), (0.2 * height, 0.2 * height, 0.06), _tag(2))


_TO_THE_CHEST, _TO_THE_NECK = (0.45, 0.72), (0.8, 0.9)
"""How high covers are, as shares of the height of who is behind them."""
_COVERS: tuple[Callable[[Model, Rng, float], None], ...] = (_counter, _laid_table, _hedge, _car)


def add_seat(model: Model, stance: Stance, rng: Rng) -> None:
    """Put something to sit on under a person: a block, a stool or a chair. Its fabrics are THING and THING + 1."""
    cushion: Tag = (Surface.THING, Cloth.THING, Bone.WORLD)
    frame: Tag = (Surface.THING, Cloth.THING + 1, Bone.WORLD)
    top = float(stance.origins[Bone.PELVIS][1]) - 0.056 * stance.body.stature * stance.body.hip_girth
    half = float(rng.uniform(0.19, 0.30))
    if top < 0.08:
        return
    kind = rng.random()
    if kind < 0.35:
        model.box((Bone.WORLD, 0, 0.5 * top, -0.05), (half, 0.5 * top, 0.22), cushion)
        return
    model.box((Bone.WORLD, 0, top - 0.025, -0.03), (half, 0.025, 0.21), cushion)
    for x in (-0.85, 0.85):
        for z in (-0.2, 0.14):
            model.box((Bone.WORLD, x * half, 0.5 * top, z), (0.018, 0.5 * top, 0.018), frame)
    if kind > 0.65:
        model.box((Bone.WORLD, 0, top + 0.30, -0.25), (half, 0.11, 0.015), cushion)
        for x in (-0.85, 0.85):
            model.box((Bone.WORLD, x * half, top + 0.2, -0.25), (0.018, 0.22, 0.018), frame)


def add_held(model: Model, stance: Stance, rng: Rng) -> None:
    """Put something into one hand. Its fabrics are THING + 2 and THING + 3."""
    hand = Bone.HAND_L + int(rng.integers(2))
    first: Tag = (Surface.THING, Cloth.THING + 2, hand)
    second: Tag = (Surface.THING, Cloth.THING + 3, hand)
    reach = 0.62 * stance.body.hand
    kind = pick(rng, (0.3, 0.25, 0.25, 0.2))
    if kind == 0:
        model.box((hand, 0.02, -reach, 0.0), (0.008, 0.075, 0.038), first)
    elif kind == 1:
        radius = float(rng.uniform(0.05, 0.13))
        model.ellipsoid((hand, 0, -reach - 0.8 * radius, 0), (radius, radius, radius), first)
    elif kind == 2:
        model.cone((hand, 0, -reach, -0.12), (hand, 0, -reach, 0.45), (0.013, 0.013), first)
        model.ellipsoid((hand, 0, -reach, 0.60), (0.012, 0.11, 0.15), second)
    else:
        model.ellipsoid((hand, 0, -reach - 0.22, 0), (0.05, 0.14, 0.16), second)
        model.cone((hand, 0, -reach, 0), (hand, 0, -reach - 0.12, 0), (0.012, 0.012), first)
