"""The three kinds of pictures that ``people=`` names: how many people, how near, and what stands before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from efafnet.pipelines.synth.pose import WEIGHTS

People = Literal["clear", "coco", "crowd"]


@dataclass(frozen=True)
class Kind:
    """How the people of a picture are chosen and placed."""

    fewest: int
    """Fewest people placed in a picture."""
    most: int
    """Most people placed in a picture."""
    crowding: float
    """Probability that a person stands right beside another one."""
    occlusion: float
    """Probability that a thing stands in front of a person."""
    hides_at_most: float
    """Share of somebody that a thing may hide; one that would hide more is left out."""
    covers: float
    """Share of those things that hide a person from the waist or the chest down: counters, tables, hedges, cars."""
    across: float
    """Share of the pictures whose near people are seen across such a thing, nearer than a whole figure would fit.
    Unless it is 0, one also stands in front of everybody of whom a side of the picture cuts off most."""
    close_ups: float
    """Share of the people who are nearer than a whole figure would fit into the picture."""
    at_sides: float
    """Probability that a person may stand where the picture's left or right side cuts the figure."""
    cut_off: float
    """Share of the people of whom the picture's left or right side cuts off most."""
    framed: bool
    """Whether the other near people are kept inside the picture from their hands to their feet, where they fit."""
    poses: tuple[float, ...]
    """Weights of the families of poses, in the order of ``FAMILIES``."""
    sparing: bool
    """Whether hidden joints are labelled as sparingly as COCO's annotators did."""
    girth: float
    """Factor on the girths of bodies."""
    photographic: bool
    """Whether backgrounds are as full of edges and exposures as varied as those of photographs."""
    distant_crowds: float
    """Share of the pictures with a crowd in the distance, annotated as one (where the view reaches that far)."""


_MANY_SEATED = (0.22, 0.15, 0.05, 0.29, 0.07, 0.06, 0.06, 0.05, 0.01, 0.04)
"""More people sit, on chairs and on the ground, squat and bend: their boxes are wider."""

KINDS: dict[People, Kind] = {
    "clear": Kind(
        fewest=1, most=2, crowding=0.0, occlusion=0.1, hides_at_most=0.8, covers=0.0, across=0.0, close_ups=0.12,
        at_sides=0.2, cut_off=0.0, framed=False, poses=WEIGHTS, sparing=False, girth=1.0, photographic=False,
        distant_crowds=0.0,
    ),
    "coco": Kind(
        fewest=1, most=4, crowding=0.2, occlusion=0.07, hides_at_most=0.95, covers=0.95, across=0.3, close_ups=0.0,
        at_sides=0.0, cut_off=0.2, framed=True, poses=_MANY_SEATED, sparing=True, girth=1.3, photographic=True,
        distant_crowds=0.05,
    ),
    "crowd": Kind(
        fewest=2, most=6, crowding=0.75, occlusion=0.2, hides_at_most=0.8, covers=0.0, across=0.0, close_ups=0.12,
        at_sides=0.5, cut_off=0.0, framed=False, poses=WEIGHTS, sparing=False, girth=1.0, photographic=False,
        distant_crowds=0.05,
    ),
}  # fmt: skip
