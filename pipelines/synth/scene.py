"""One picture of people: who, where, among what; drawn from far to near, then labelled."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from efafnet.pipelines.synth.backdrop import Image, paint_backdrop
from efafnet.pipelines.synth.body import Rng, pick, sample_body
from efafnet.pipelines.synth.figure import build_person, joints_of
from efafnet.pipelines.synth.kinds import Kind
from efafnet.pipelines.synth.kinematics import Stance, articulate
from efafnet.pipelines.synth.outfit import sample_outfit
from efafnet.pipelines.synth.picture import Actor, Label, Picture, person, thing
from efafnet.pipelines.synth.pose import Bone, sample_pose
from efafnet.pipelines.synth.shading import Light
from efafnet.pipelines.synth.stage import (
    Guest,
    Place,
    View,
    jittered,
    place_people,
    sample_stature_px,
    sample_view,
    sample_yaw,
)
from efafnet.pipelines.synth.textures import Bank
from efafnet.pipelines.synth.things import Thing, add_held, add_seat, sample_cover, sample_thing

_LEAST_COVERED_M = 0.9
"""Whoever lies or sits on the ground is not put behind a counter: nothing but a strip would show."""
_ACROSS = (0.9, 1.65)
"""Stature of people who are seen across a table, in heights of the picture."""


@dataclass(frozen=True)
class Recipe:
    """What pictures are like."""

    width: int
    height: int
    kind: Kind


def draw_scene(rng: Rng, recipe: Recipe, noise: Bank) -> tuple[Image, list[Label]]:
    """Draw one picture (height, width, 3), red first, and its labels."""
    kind, guests = recipe.kind, _sample_people(rng, recipe)
    view = sample_view(rng, recipe.width, recipe.height, guests, kind)
    places = place_people(rng, view, guests, kind)
    standing = [(guest, place) for guest, place in zip(guests, places, strict=True) if place is not None]
    queue = [(place.scale, _person_actor(rng, view, guest.stance, place)) for guest, place in standing]
    queue += _before(rng, view, standing, kind)
    queue += _about(rng, view, [place for _, place in standing])
    if rng.random() < kind.distant_crowds:
        queue += _crowd(rng, view)
    queue.sort(key=lambda pair: pair[0])
    backdrop = paint_backdrop(rng, recipe.width, recipe.height, view.horizon, noise, busy=kind.photographic)
    picture = Picture(backdrop, _sample_light(rng), noise, sparing=kind.sparing, hides_at_most=kind.hides_at_most)
    for _, actor in queue:
        _cast_shadow(picture, actor)
        picture.add(actor)
    return picture.photograph(rng, developed=kind.photographic), picture.labels()


def _sample_people(rng: Rng, recipe: Recipe) -> list[Guest]:
    """Draw who is there and how large, the nearest first."""
    count = int(rng.integers(recipe.kind.fewest, recipe.kind.most + 1))
    across = recipe.kind.across > 0 and rng.random() < recipe.kind.across
    common = sample_stature_px(rng, recipe.height, recipe.kind.close_ups)
    if across:
        common = recipe.height * float(rng.uniform(*_ACROSS))
    guests = []
    for index in range(count):
        stance = articulate(sample_body(rng, recipe.kind.girth), sample_pose(rng, recipe.kind.poses), sample_yaw(rng))
        # Half of the others are about as far away as the first.
        near = index == 0 or rng.random() < 0.5
        stature_px = (
            common * float(rng.uniform(0.8, 1.0))
            if near
            else sample_stature_px(rng, recipe.height, recipe.kind.close_ups)
        )
        guests.append(Guest(stance, joints_of(stance), stature_px / 1.65, across and near))
    return sorted(guests, key=lambda guest: -guest.scale)


def _person_actor(rng: Rng, view: View, stance: Stance, place: Place) -> Actor:
    outfit = sample_outfit(rng, stance.body)
    model = build_person(stance, outfit)
    if stance.pose.support == "seat":
        add_seat(model, stance, rng)
    if rng.random() < 0.18:
        add_held(model, stance, rng)
    camera = jittered(view, rng).aim(place.x, place.scale, 0.5 * stance.body.stature)
    return person(stance, outfit, camera, model)


def _crowd(rng: Rng, view: View) -> list[tuple[float, Actor]]:
    """Draw people so far away that COCO's annotators would mark them as one crowd."""
    if not -0.1 * view.height < view.horizon < 0.75 * view.height:
        return []
    scale = float(rng.uniform(7, 12))
    middle = view.width * float(rng.uniform(0.2, 0.8))
    actors = []
    for _ in range(int(rng.integers(5, 10))):
        near = Place(middle + scale * float(rng.normal(0, 1.2)), scale * float(rng.uniform(0.95, 1.05)))
        stance = articulate(sample_body(rng), sample_pose(rng), sample_yaw(rng))
        actors.append((near.scale, replace(_person_actor(rng, view, stance, near), crowd=True)))
    return actors


def _before(rng: Rng, view: View, standing: list[tuple[Guest, Place]], kind: Kind) -> list[tuple[float, Actor]]:
    """Draw things that stand in front of people."""
    actors = []
    for guest, place in standing:
        across = guest.across or (place.cut_off and kind.across > 0)
        if not across and rng.random() >= kind.occlusion:
            continue
        if guest.span > _LEAST_COVERED_M and (across or rng.random() < kind.covers):
            actors.append(_cover(rng, view, guest.span, place))
        else:
            made, x = sample_thing(rng), place.x + place.scale * float(rng.uniform(-0.6, 0.6))
            actors.append(_thing_actor(view, made, Place(x, place.scale * float(rng.uniform(1.04, 1.3)))))
    return actors


def _cover(rng: Rng, view: View, span: float, place: Place) -> tuple[float, Actor]:
    """Draw a counter or the like before a person ``span`` metres high. Its top is in the picture, if it may be."""
    scale = place.scale * float(rng.uniform(1.04, 1.12))
    made = sample_cover(rng, span, view.eye - (view.height - view.horizon) / scale)
    return _thing_actor(view, made, Place(place.x + place.scale * float(rng.uniform(-0.3, 0.3)), scale))


def _about(rng: Rng, view: View, places: list[Place]) -> list[tuple[float, Actor]]:
    """Draw things that just stand about."""
    nearest = max((place.scale for place in places), default=100.0)
    spots = [
        Place(view.width * float(rng.random()), nearest * float(np.exp(rng.uniform(-1.2, 0.1))))
        for _ in range(pick(rng, (0.45, 0.4, 0.15)))
    ]
    return [_thing_actor(view, sample_thing(rng), spot) for spot in spots]


def _thing_actor(view: View, made: Thing, spot: Place) -> tuple[float, Actor]:
    return spot.scale, thing(made, view.aim(spot.x, spot.scale, 0.5 * made.height))


def _cast_shadow(picture: Picture, actor: Actor) -> None:
    if actor.stance is None:
        return
    bones = actor.stance.origins[: Bone.WORLD]
    ground = bones.mean(axis=0) * (1, 0, 1)
    spread = float(np.abs(bones - ground)[:, [0, 2]].max())
    picture.shadow(actor.camera, ground, max(0.25, 0.8 * spread), 0.4)


def _sample_light(rng: Rng) -> Light:
    azimuth, height = float(rng.uniform(-1.2, 1.2)), float(rng.uniform(0.1, 1.2))
    across = math.cos(height)
    direction = (across * math.sin(azimuth), math.sin(height), across * math.cos(azimuth))
    warm = float(rng.uniform(-0.08, 0.08))
    return Light(direction, float(rng.uniform(0.4, 0.75)), (1 + warm, 1.0, 1 - warm))
