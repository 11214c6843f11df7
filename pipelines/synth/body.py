"""Bodies: the lengths and girths of one person, in metres, drawn around published proportions."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

Rng = np.random.Generator


def pick(rng: Rng, weights: Sequence[float]) -> int:
    """Draw an index with the given weights (a fast ``rng.choice``)."""
    return bisect(tuple(accumulate(weights)), rng.random() * sum(weights), hi=len(weights) - 1)


# Segment lengths as fractions of stature: Drillis and Contini (1966), as tabulated in Winter, Biomechanics and Motor
# Control of Human Movement, figure 4.1. The half widths are those of the joint centres, not of the skin.
SEGMENTS = {
    "upper_arm": 0.186,
    "forearm": 0.146,
    "hand": 0.100,
    "thigh": 0.245,
    "shank": 0.246,
    "foot": 0.152,
    "ankle_height": 0.039,
    "shoulder_half": 0.110,
    "hip_half": 0.060,
    "trunk": 0.288,
    "head_height": 0.132,
}


@dataclass(frozen=True)
class Body:
    """One person's build. Lengths and radii in metres, the others are factors around 1."""

    kind: str
    """woman, man or child."""
    stature: float
    upper_arm: float
    forearm: float
    hand: float
    thigh: float
    shank: float
    foot: float
    ankle_height: float
    shoulder_half: float
    """Half the distance between the shoulder joints."""
    hip_half: float
    """Half the distance between the hip joints."""
    trunk: float
    """From the line of the hips to the line of the shoulders."""
    head_height: float
    """From the chin to the crown."""
    limb_girth: float
    """Factor on the radii of arms and legs."""
    waist_girth: float
    """Factor on the radii of the abdomen."""
    hip_girth: float
    """Factor on the radii of the pelvis."""
    bust: float
    """How far the breasts stand out, 0 to 1."""


# kind: probability, stature mean and deviation (m), factors of shoulder width, hip width, limb girth, head height.
_KINDS = {
    "man": (0.45, 1.76, 0.07, 1.04, 0.97, 1.04, 1.00),
    "woman": (0.40, 1.64, 0.065, 0.95, 1.05, 0.96, 1.02),
    "child": (0.15, 1.22, 0.13, 0.93, 0.94, 0.98, 1.24),
}


def sample_body(rng: Rng, girth: float = 1.0) -> Body:
    """Draw a build: a kind of person, then lengths and girths around its proportions, these times ``girth``."""
    kinds = list(_KINDS)
    kind = kinds[pick(rng, [_KINDS[name][0] for name in kinds])]
    _, mean, deviation, shoulders, hips, limbs, head = _KINDS[kind]
    stature = float(np.clip(rng.normal(mean, deviation), mean - 2.5 * deviation, mean + 2.5 * deviation))
    varied = dict(zip(SEGMENTS, (1 + 0.035 * np.clip(rng.standard_normal(len(SEGMENTS)), -2, 2)).tolist(), strict=True))
    length = {name: fraction * varied[name] * stature for name, fraction in SEGMENTS.items()}
    # Long legs go with a short trunk: the two add up to the same stature.
    legginess = float(np.clip(rng.normal(1.0, 0.025), 0.95, 1.05))
    length["thigh"] *= legginess
    length["shank"] *= legginess
    length["trunk"] *= 2 - legginess
    length["shoulder_half"] *= shoulders
    length["hip_half"] *= hips
    length["head_height"] *= head
    weight = girth * float(np.exp(np.clip(rng.normal(0.13, 0.13), -0.2, 0.4)))
    return Body(
        kind=kind,
        stature=stature,
        **length,
        limb_girth=limbs * weight,
        waist_girth=weight ** float(rng.uniform(0.9, 1.5)) * (0.95 if kind == "woman" else 1.0),
        hip_girth=hips * weight**0.8,
        bust=float(rng.uniform(0.35, 1.0)) if kind == "woman" else 0.0,
    )
