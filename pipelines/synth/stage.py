"""Where people and things stand: one camera for a picture, the ground, and who stands beside whom."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from efafnet.pipelines.synth.body import Rng, pick
from efafnet.pipelines.synth.kinds import Kind
from efafnet.pipelines.synth.kinematics import Stance
from efafnet.pipelines.synth.solids import Array, Camera

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, px."""

NEAREST_M = 2.2
"""Nobody stands nearer to the camera: wide-angle portraits distort limbs beyond human proportions."""
_TRIES = 8
_LIMB_M = 0.14
"""How far flesh, hands and clothes reach beyond the joints, sideways."""
_ENDS_M = 0.22
"""The same upwards and downwards: from the eyes to the hair, and from the ankles to the toes."""
_CUT_OFF_NEARER = (1.2, 1.8)
"""How much nearer than others people are of whom a side of the picture cuts off most."""


@dataclass(frozen=True)
class View:
    """A level camera above flat ground."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    horizon: float
    """Row of the horizon, px; may lie outside the picture."""
    eye: float
    """Height of the camera above the ground, metres."""
    focal: float
    """Focal length, px."""

    def ground(self, scale: float) -> float:
        """Row where things of ``scale`` px/m touch the ground."""
        return self.horizon + scale * self.eye

    def aim(self, x: float, scale: float, middle: float) -> Camera:
        """Camera aimed at a point ``middle`` metres above the ground that appears in column ``x`` at ``scale`` px/m."""
        away, above = self.focal / scale, self.eye - middle
        tilt = float(np.arctan2(above, away))
        c, s = np.cos(tilt), np.sin(tilt)
        rotation = np.array(((1.0, 0.0, 0.0), (0.0, c, -s), (0.0, s, c)))
        centre = np.array((0.0, middle, 0.0))
        return Camera(rotation, centre, float(np.hypot(away, above)), scale, (x, self.horizon + scale * above))


@dataclass(frozen=True)
class Place:
    """Where one person stands."""

    x: float
    """Column of the point between the feet, px."""
    scale: float
    """Pixels per metre."""
    cut_off: bool = False
    """Whether a side of the picture cuts off most of the person."""


def sample_yaw(rng: Rng) -> float:
    """Draw where a person faces: often to the camera, else away or sideways. Radians."""
    kind = pick(rng, (0.58, 0.22, 0.20))
    if kind == 2:
        return float(rng.uniform(-np.pi, np.pi))
    return float(np.deg2rad(rng.normal(180 * kind, 35)))


def sample_stature_px(rng: Rng, height: int, close_ups: float) -> float:
    """Draw how tall a standing person would appear: whole figures mostly, with probability ``close_ups`` more than the
    frame can hold."""
    low, high = ((0.42, 0.95), (1.0, 2.3))[pick(rng, (1 - close_ups, close_ups))]
    return float(height * np.exp(rng.uniform(np.log(low), np.log(high))))


@dataclass(frozen=True)
class Guest:
    """A person who is to be placed."""

    stance: Stance
    joints: Array
    """(17, 3) metres."""
    scale: float
    """Pixels per metre that the person would best have."""
    across: bool = False
    """Whether they are seen across a table or the like."""

    @property
    def span(self) -> float:
        """Height of the head's top above the ground, metres."""
        return float(self.joints[:, 1].max()) + 0.07 * self.stance.body.stature


def sample_view(rng: Rng, width: int, height: int, guests: list[Guest], kind: Kind) -> View:
    """Choose the camera so that the near people are well framed: whole if they fit, else mostly from the head down."""
    eye = float(rng.uniform(0.8, 2.3))
    if guests[0].stance.pose.family == "lying" or rng.random() < 0.1:
        eye = float(rng.uniform(1.4, 3.2))
    scale = guests[0].scale
    focal = max(width * float(rng.uniform(0.9, 1.9)), NEAREST_M * scale)
    span = max(guest.span for guest in guests if guest.scale > 0.75 * scale)
    room = height - scale * span
    if room > 0:
        top = room * float(rng.uniform(0.1, 0.95))
    elif rng.random() < 0.88:
        top = height * float(rng.uniform(0.03 if kind.framed else -0.02, 0.22))
    else:
        top = room * float(rng.uniform(0.0, 1.0))
    view = View(width, height, top - scale * (eye - span), eye, focal)
    return _framed(view, guests) if kind.framed else view


def _framed(view: View, guests: list[Guest]) -> View:
    """Raise or lower a view so that the near people are in it from their hands to their feet, if they fit."""
    near = [guest for guest in guests if guest.scale > 0.75 * guests[0].scale]
    boxes = [_extent(view, guest, Place(0.5 * view.width, guest.scale)) for guest in near]
    top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
    margin = min(_ENDS_M * guests[0].scale, 0.5 * (view.height - bottom + top))
    if margin < 0:
        return view
    shift = max(0.0, margin - top) - max(0.0, bottom + margin - view.height)
    return replace(view, horizon=view.horizon + shift)


def place_people(rng: Rng, view: View, guests: list[Guest], kind: Kind) -> list[Place | None]:
    """Place people, the nearest first. None for one who found no room.

    With probability ``kind.crowding`` a person stands right beside another one, else where it is freest.
    """
    places: list[Place | None] = []
    boxes: list[Box] = []
    for guest in guests:
        if kind.cut_off and rng.random() < kind.cut_off:
            aside = _cut_off(rng, view, guest)
            places.append(aside)
            boxes.append(_extent(view, guest, aside))
            continue
        neighbours = [place for place in places if place is not None]
        beside = bool(neighbours) and rng.random() < kind.crowding
        best: tuple[float, Place, Box] | None = None
        for _ in range(_TRIES):
            place = _draw_place(rng, view, guest, neighbours, kind.at_sides, beside=beside)
            box = _extent(view, guest, place)
            overlap = max((_overlap(box, other) for other in boxes), default=0.0)
            cost = _loss(view, box) + (max(0.0, overlap - 0.55) if beside else overlap)
            if best is None or cost < best[0]:
                best = (cost, place, box)
            if cost < 0.15:
                break
        assert best is not None
        if kind.framed:
            best = (best[0], *_inside(view, best[1], best[2]))
        kept = best[0] < (0.75 if not neighbours else 0.6)
        places.append(best[1] if kept else None)
        if kept:
            boxes.append(best[2])
    return places


def _draw_place(rng: Rng, view: View, guest: Guest, neighbours: list[Place], at_sides: float, *, beside: bool) -> Place:
    if beside:
        other = neighbours[int(rng.integers(len(neighbours)))]
        scale = other.scale * float(np.exp(rng.uniform(-0.25, 0.08)))
        side = -1 if rng.random() < 0.5 else 1
        return Place(other.x + side * scale * float(rng.uniform(0.2, 0.6)), scale)
    margin = -0.08 if rng.random() < at_sides else 0.12
    return Place(view.width * float(rng.uniform(margin, 1 - margin)), guest.scale)


def _cut_off(rng: Rng, view: View, guest: Guest) -> Place:
    """Place a person so near, and so far aside, that the picture's left or right side cuts off most of the figure's
    width. What reaches farthest from the feet stays in the picture."""
    nearest = view.focal / NEAREST_M
    middle = Place(0.5 * view.width, min(guest.scale * float(rng.uniform(*_CUT_OFF_NEARER)), nearest), cut_off=True)
    left, _, right, _ = _extent(view, guest, middle)
    shown = float(rng.uniform(0.15, 0.45)) * (right - left)
    at_left = right - middle.x > middle.x - left
    return replace(middle, x=middle.x + (shown - right if at_left else view.width - shown - left))


def _inside(view: View, place: Place, box: Box) -> tuple[Place, Box]:
    """Move a place and the box of who stands there between the picture's sides, if the box fits."""
    x0, y0, x1, y1 = box
    margin = _LIMB_M * place.scale
    if x1 - x0 + 2 * margin > view.width:
        return place, box
    shift = max(0.0, margin - x0) - max(0.0, x1 + margin - view.width)
    return replace(place, x=place.x + shift), (x0 + shift, y0, x1 + shift, y1)


def _extent(view: View, guest: Guest, place: Place) -> Box:
    """Left, top, right, bottom of a person's joints, px."""
    camera = view.aim(place.x, place.scale, 0.5 * guest.stance.body.stature)
    points = camera.project(guest.joints)[0]
    (left, top, _), (right, bottom, _) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def _loss(view: View, box: Box) -> float:
    """Share of a box's width outside the picture, or nearly 1 for a box hardly inside it."""
    x0, y0, x1, y1 = box
    w, h = min(x1, view.width) - max(x0, 0), min(y1, view.height) - max(y0, 0)
    if w <= 4 or h <= 4:
        return 1.0
    return float(1 - w / (x1 - x0)) * 0.6


def _overlap(a: Box, b: Box) -> float:
    """Intersection of two boxes as a share of the smaller one."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return float(w * h / max(smaller, 1e-6))


def jittered(view: View, rng: Rng) -> View:
    """The same camera a little higher or lower: nobody's ground is perfectly flat."""
    return replace(view, eye=view.eye * float(rng.uniform(0.97, 1.03)))
