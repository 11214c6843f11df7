"""Looks: skin, hair, clothes and accessories of one person, as fabrics and as cuts (where a sleeve or a hem ends)."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from efafnet.pipelines.synth.body import Body, Rng, pick

Colour = tuple[float, float, float]
"""Red, green, blue, each 0 to 1."""


class Cloth(IntEnum):
    """Which fabric a surface has; a person's fabrics are stored in this order, those of things follow."""

    SKIN = 0
    HAIR = 1
    TOP = 2
    BOTTOM = 3
    SHOE = 4
    SOCK = 5
    WHITE = 6
    IRIS = 7
    LIP = 8
    BADGE = 9
    DARK = 10
    BELT = 11
    HAT = 12
    PRINT = 13
    THING = 14
    """The first of four fabrics of what the person sits on and holds."""


class Pattern(IntEnum):
    """How the two colours of a fabric are mixed."""

    PLAIN = 0
    BANDS = 1
    STRIPES = 2
    CHECK = 3
    DOTS = 4
    MOTTLED = 5
    BLOCKS = 6


@dataclass(frozen=True)
class Fabric:
    """Two colours and a pattern."""

    first: Colour
    second: Colour
    pattern: Pattern = Pattern.PLAIN
    period: float = 0.1
    """Length of one repeat, metres."""
    grain: float = 0.06
    """Contrast of the fine texture, 0 to 1."""


@dataclass(frozen=True)
class Outfit:
    """How one person looks. Lengths along a limb are fractions of it: 0 at its root, 1 at the elbow or knee, 2 at its
    end."""

    fabrics: tuple[Fabric, ...]
    sleeve: float
    hem: float
    skirt: bool
    coat: float
    """Where a coat or a long shirt ends, as a fraction of the thigh; 0 for a top that ends at the hips."""
    loose_top: float
    loose_bottom: float
    tucked: bool
    neckline: float
    """Depth of the neckline below the shoulders as a fraction of the trunk; negative for a high collar."""
    hair: str
    hat: str
    parted: bool
    glasses: bool
    beard: bool
    watch: bool
    badge: bool
    armband: bool
    placket: bool
    logo: bool
    number: bool
    strap: bool
    backpack: bool
    socks: float
    """Where the socks begin on the lower leg, as a fraction of it; 1 for none."""


_SKINS: tuple[Colour, ...] = (
    (0.96, 0.83, 0.74), (0.93, 0.76, 0.64), (0.87, 0.67, 0.53), (0.78, 0.57, 0.42), (0.65, 0.45, 0.32),
    (0.50, 0.33, 0.23), (0.36, 0.24, 0.17), (0.26, 0.17, 0.13),
)  # fmt: skip
_HAIRS: tuple[Colour, ...] = (
    (0.06, 0.05, 0.05), (0.12, 0.08, 0.06), (0.24, 0.15, 0.09), (0.38, 0.25, 0.14), (0.55, 0.40, 0.22),
    (0.78, 0.63, 0.38), (0.50, 0.22, 0.10), (0.60, 0.60, 0.60), (0.85, 0.84, 0.82),
)  # fmt: skip
_TROUSERS: tuple[Colour, ...] = (
    (0.12, 0.14, 0.22), (0.20, 0.28, 0.45), (0.35, 0.45, 0.62), (0.10, 0.10, 0.10), (0.30, 0.30, 0.32),
    (0.55, 0.48, 0.36), (0.76, 0.70, 0.58), (0.28, 0.32, 0.22), (0.40, 0.26, 0.18), (0.88, 0.87, 0.85),
)  # fmt: skip


def _shaken(rng: Rng, colour: Colour, amount: float) -> Colour:
    r, g, b = np.clip(np.asarray(colour) * rng.uniform(1 - amount, 1 + amount, 3), 0.02, 1.0).tolist()
    return r, g, b


def any_colour(rng: Rng) -> Colour:
    """Draw a colour of clothes: vivid, muted, dark, light or grey."""
    return colorsys.hsv_to_rgb(rng.random(), float(rng.beta(1.3, 1.6)), float(rng.uniform(0.12, 0.98)))


def muted_colour(rng: Rng) -> Colour:
    """Draw a colour as walls, floors, skies and furniture have it: earth, leaves or sky, seldom vivid or dark."""
    middle, spread = _HUES[pick(rng, _HUE_WEIGHTS)]
    hue = (middle + spread * float(rng.standard_normal())) % 1.0
    return colorsys.hsv_to_rgb(hue, float(rng.beta(1.1, 3.2)), float(rng.uniform(0.2, 0.95)))


# Hues from 0 to 1 with their deviations: wood, stone and skin; leaves; sky and water; anything.
_HUES = ((0.085, 0.035), (0.28, 0.06), (0.58, 0.05), (0.5, 0.5))
_HUE_WEIGHTS = (0.45, 0.18, 0.22, 0.15)


def sample_fabric(rng: Rng, first: Colour, plain: float, other: Callable[[Rng], Colour] = any_colour) -> Fabric:
    """Draw a fabric in a colour, plain with probability ``plain``; ``other`` draws a pattern's second colour."""
    if rng.random() < plain:
        return Fabric(first, first, grain=float(rng.uniform(0.03, 0.14)))
    pattern = Pattern(int(rng.integers(Pattern.BANDS, Pattern.BLOCKS + 1)))
    second = other(rng)
    # Two colours too alike are no pattern.
    if sum(abs(a - b) for a, b in zip(first, second, strict=True)) < 0.5:
        second = (1 - first[0], 1 - first[1], 1 - first[2]) if rng.random() < 0.3 else (0.95, 0.95, 0.93)
    return Fabric(first, second, pattern, float(rng.uniform(0.05, 0.16)), float(rng.uniform(0.03, 0.1)))


def sample_outfit(rng: Rng, body: Body) -> Outfit:
    """Draw a look for a body."""
    has = dict(zip(_CHANCES, (rng.random(len(_CHANCES)) < list(_CHANCES.values())).tolist(), strict=True))
    female = body.kind == "woman" or (body.kind == "child" and rng.random() < 0.5)
    hair = _STYLES[pick(rng, (6, 4, 4, 2, 1, 2, 0) if female else (0.5, 1, 0.5, 0, 1, 11, 2))]
    skirt = female and rng.random() < 0.38
    hem = float(rng.uniform(0.5, 0.85)) if skirt else _HEMS[pick(rng, (0.08, 0.1, 0.12, 0.1, 0.6))]
    return Outfit(
        fabrics=_fabrics(rng, dress=skirt and rng.random() < 0.4),
        sleeve=_SLEEVES[pick(rng, (0.07, 0.12, 0.18, 0.12, 0.05, 0.1, 0.36))],
        hem=hem,
        skirt=skirt,
        coat=float(rng.uniform(0.2, 0.95)) if has["coat"] else 0.0,
        loose_top=float(rng.uniform(1.1, 1.8)),
        loose_bottom=float(rng.uniform(1.1, 1.8)),
        tucked=has["tucked"],
        neckline=(-0.1, 0.03, 0.08, 0.16)[int(rng.integers(4))],
        hair=hair,
        hat=("cap", "beanie")[int(rng.integers(2))] if has["hat"] else "",
        parted=has["parted"],
        glasses=has["glasses"],
        beard=has["beard"] and body.kind == "man",
        watch=has["watch"],
        badge=has["badge"],
        armband=has["armband"],
        placket=has["placket"],
        logo=has["logo"],
        number=has["number"],
        strap=has["strap"],
        backpack=has["backpack"] and not has["strap"],
        socks=float(rng.uniform(0.55, 0.93)) if has["socks"] else 1.0,
    )


_STYLES = ("long", "bob", "ponytail", "bun", "afro", "short", "bald")
_HEMS = (0.32, 0.55, 0.7, 1.4, 1.9)
_SLEEVES = (0.0, 0.35, 0.5, 0.62, 1.0, 1.5, 1.93)

# Worn on one side only (the watch and the armband on the left, the badge on the left of the chest, the parting on the
# left, the strap from the left shoulder to the right hip), so that they tell left from right; a logo is in front, a
# number on the back.
_CHANCES = {
    "tucked": 0.35, "hat": 0.14, "parted": 0.6, "glasses": 0.15, "beard": 0.3, "watch": 0.5, "badge": 0.4,
    "armband": 0.2, "placket": 0.4, "logo": 0.35, "number": 0.35, "strap": 0.2, "backpack": 0.15, "socks": 0.5,
    "coat": 0.4,
}  # fmt: skip


def _fabrics(rng: Rng, *, dress: bool) -> tuple[Fabric, ...]:
    skin = _shaken(rng, _SKINS[int(rng.integers(len(_SKINS)))], 0.05)
    hair = _shaken(rng, _HAIRS[pick(rng, (5, 4, 4, 3, 2, 2, 1, 1, 1))], 0.15)
    top = sample_fabric(rng, any_colour(rng), plain=0.4)
    jeans = _shaken(rng, _TROUSERS[int(rng.integers(len(_TROUSERS)))], 0.15)
    bottom = sample_fabric(rng, jeans if rng.random() < 0.7 else any_colour(rng), plain=0.8)
    shoe = ((0.1, 0.1, 0.1), (0.9, 0.9, 0.9), (0.35, 0.2, 0.12), any_colour(rng))[int(rng.integers(4))]
    contrast = (0.95, 0.95, 0.95) if sum(top.first) < 1.5 else (0.1, 0.1, 0.12)
    belt = (0.15, 0.1, 0.08) if sum(bottom.first) > 0.9 else (0.6, 0.5, 0.38)
    lip = (min(1.0, skin[0] * 0.95), skin[1] * 0.62, skin[2] * 0.62)
    hat = any_colour(rng)
    return (
        Fabric(skin, skin, grain=0.03),
        Fabric(hair, hair, grain=0.22),
        top,
        top if dress else bottom,
        Fabric(shoe, shoe, grain=0.05),
        Fabric((0.93, 0.93, 0.92), (0.9, 0.9, 0.9)),
        Fabric((0.96, 0.96, 0.95), (0.9, 0.9, 0.9), grain=0.0),
        Fabric((0.09, 0.07, 0.06), (0.1, 0.1, 0.1), grain=0.0),
        Fabric(lip, lip, grain=0.0),
        Fabric(contrast, contrast, grain=0.0),
        Fabric((0.08, 0.08, 0.09), (0.1, 0.1, 0.1), grain=0.03),
        Fabric(belt, belt, grain=0.05),
        sample_fabric(rng, hat, plain=0.8),
        Fabric(any_colour(rng), contrast, Pattern.CHECK, 0.06, 0.0),
        *(sample_fabric(rng, muted_colour(rng), 0.6, muted_colour) for _ in range(4)),
    )
