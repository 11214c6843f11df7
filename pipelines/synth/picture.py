"""A picture being painted from back to front, with a second picture that knows who shows at each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.synth.backdrop import Image
from efafnet.pipelines.synth.body import Rng
from efafnet.pipelines.synth.figure import Surface, build_person, flesh_of, joints_of
from efafnet.pipelines.synth.kinematics import Stance
from efafnet.pipelines.synth.outfit import Fabric, Outfit
from efafnet.pipelines.synth.painting import paint_person
from efafnet.pipelines.synth.raster import Depth, draw
from efafnet.pipelines.synth.shading import Layer, Light, Painter, shade
from efafnet.pipelines.synth.solids import Array, Camera, Float32, Frames, Model, Screen, see
from efafnet.pipelines.synth.textures import TILE, Bank
from efafnet.pipelines.synth.things import Thing
from efafnet.pipelines.synth.visibility import Evidence, judge

SMALL_AREA_PX = 32 * 32
"""COCO's annotators left the joints of persons smaller than this unlabelled."""
LEAST_AREA_PX = 12
"""A person of whom fewer pixels show is not annotated at all."""
_FINE_BELOW_PX = 60.0
"""Below this many px/m things are drawn with 2 x 2 samples per pixel."""


@dataclass(frozen=True)
class Actor:
    """A person or a thing with a camera on it."""

    model: Model
    frames: Frames
    camera: Camera
    fabrics: Sequence[Fabric]
    painter: Painter
    stance: Stance | None = None
    outfit: Outfit | None = None
    crowd: bool = False
    """One of many far away who are annotated together."""


@dataclass(frozen=True)
class Label:
    """What an annotator would note about one person, or about a crowd."""

    keypoints: Array
    """(17, 3): x, y in px (pixel centres are whole numbers) and visibility 0, 1 or 2; zeros where not labelled."""
    area_px: int
    """Pixels of the picture that show this person."""
    box_xywh_px: Array
    """(4,): around those pixels."""
    runs: list[int]
    """Those pixels as COCO's uncompressed run lengths: column by column, first a run of others."""
    crowd: bool = False


@dataclass(frozen=True)
class Drawn:
    """An actor after it was painted."""

    actor: Actor
    screen: Screen
    depth: Depth
    number: int
    """Number in the picture's ids; 0 for a thing."""


def person(stance: Stance, outfit: Outfit, camera: Camera, model: Model | None = None) -> Actor:
    """Make an actor of a posed, dressed person (``model``: with a seat or something in a hand already added)."""

    def paint(
        surface: NDArray[np.int64], cloth: NDArray[np.int64], frame: NDArray[np.int64], place: Float32
    ) -> NDArray[np.int64]:
        return paint_person(surface, cloth, frame, place, stance.body, outfit)

    whole = build_person(stance, outfit) if model is None else model
    return Actor(whole, stance.frames, camera, outfit.fabrics, paint, stance, outfit)


def _as_made(
    surface: NDArray[np.int64], cloth: NDArray[np.int64], frame: NDArray[np.int64], place: Float32
) -> NDArray[np.int64]:
    del surface, frame, place
    return cloth


def thing(thing: Thing, camera: Camera) -> Actor:
    """Make an actor of a thing."""
    return Actor(thing.model, thing.frames, camera, thing.fabrics, _as_made)


class Picture:
    """Colours, uint8 (H, W, 3), red first, and who shows at each pixel, (H, W): 0 nobody, else a person's number."""

    def __init__(
        self, backdrop: Image, light: Light, noise: Bank, *, sparing: bool = False, hides_at_most: float = 0.8
    ) -> None:
        self.colour = backdrop.copy()
        height, width = backdrop.shape[:2]
        self.ids: NDArray[np.int16] = np.zeros((height, width), dtype=np.int16)
        self.drawn: list[Drawn] = []
        self._light = light
        self._noise = noise
        self._sparing = sparing
        self._hides_at_most = hides_at_most

    def add(self, actor: Actor) -> int:
        """Paint an actor over what is there; return its number (0 for a thing, or for what misses the picture)."""
        height, width = self.ids.shape
        screen = see(actor.model, actor.frames, actor.camera)
        depth = draw(screen, width, height, 2 if actor.camera.scale < _FINE_BELOW_PX else 1)
        if depth is None or not (depth.solid >= 0).any():
            return 0
        fabrics, painter = actor.fabrics, actor.painter
        layer = shade(depth, screen, actor.camera, actor.frames, painter, fabrics, self._light, self._noise, width)
        if actor.stance is None and self._hides_somebody(layer):
            return 0
        number = 1 + sum(drawn.number > 0 for drawn in self.drawn) if actor.stance is not None else 0
        self._lay(layer, number)
        self.drawn.append(Drawn(actor, screen, depth, number))
        return number

    def _hides_somebody(self, layer: Layer) -> bool:
        people = max((drawn.number for drawn in self.drawn), default=0)
        if not people:
            return False
        pixels = layer.pixels if layer.coverage is None else layer.pixels[layer.coverage >= 0.5]
        lost = np.bincount(self.ids.ravel()[pixels], minlength=people + 1)[1:]
        if not lost.any():
            return False
        shown = np.bincount(self.ids.ravel(), minlength=people + 1)[1:]
        return bool((lost > self._hides_at_most * shown).any())

    def _lay(self, layer: Layer, number: int) -> None:
        colour, ids = self.colour.reshape(-1, 3), self.ids.reshape(-1)
        names = np.where(layer.own, number, 0)
        if layer.coverage is None:
            colour[layer.pixels] = layer.colour
            ids[layer.pixels] = names
            return
        colour[layer.pixels] = colour[layer.pixels] * (1 - layer.coverage)[:, None] + layer.colour
        covered = layer.coverage >= 0.5
        ids[layer.pixels[covered]] = names[covered]

    def shadow(self, camera: Camera, point: Array, radius: float, strength: float) -> None:
        """Darken the ground around a world point (3,) by a soft ellipse of ``radius`` metres."""
        (x, y, _), scale = camera.project(point[None])[0][0], camera.scale
        wide = radius * scale
        high = max(wide * abs(float(camera.rotation[2, 1])), 0.12 * wide)
        height, width = self.ids.shape
        x0, x1 = max(0, int(x - 1.5 * wide)), min(width, int(x + 1.5 * wide) + 1)
        y0, y1 = max(0, int(y - 1.5 * high)), min(height, int(y + 1.5 * high) + 1)
        if x0 >= x1 or y0 >= y1:
            return
        across = ((np.arange(x0, x1) - x) / wide) ** 2
        along = ((np.arange(y0, y1) - y) / high) ** 2
        dark = np.clip(1.2 - (along[:, None] + across), 0, 1) * strength
        ground_px = self.colour[y0:y1, x0:x1]
        ground_px[:] = ground_px * (1 - dark).astype(np.float32)[..., None]

    def labels(self) -> list[Label]:
        """Note what the finished picture shows of everybody, in the order of painting; crowds last and as one."""
        people = [drawn for drawn in self.drawn if drawn.number and not drawn.actor.crowd]
        found = [self.label(drawn) for drawn in people]
        crowd = [drawn.number for drawn in self.drawn if drawn.number and drawn.actor.crowd]
        if crowd:
            found.append(_outline(np.isin(self.ids, crowd), np.zeros((17, 3)), crowd=True))
        return [label for label in found if label is not None]

    def label(self, drawn: Drawn) -> Label | None:
        """Note what the finished picture shows of a person; None when next to nothing does."""
        stance, outfit = drawn.actor.stance, drawn.actor.outfit
        assert stance is not None
        assert outfit is not None
        mask = self.ids == drawn.number
        keypoints = np.zeros((17, 3))
        if np.count_nonzero(mask) >= SMALL_AREA_PX:
            joints, _ = drawn.actor.camera.project(joints_of(stance))
            surface, _, frame = drawn.screen.tags.T
            evidence = Evidence(
                self.ids, drawn.number, drawn.depth, own=surface < Surface.WORN, bone=frame,
                hair=surface == Surface.HAIR,
            )  # fmt: skip
            flesh_px = flesh_of(stance, outfit) * drawn.screen.scale
            keypoints[:, 2] = judge(joints, flesh_px, evidence, sparing=self._sparing)
            keypoints[:, :2] = np.where(keypoints[:, 2:] > 0, joints[:, :2], 0.0)
        return _outline(mask, keypoints, crowd=False)

    def photograph(self, rng: Rng, *, developed: bool = False) -> Image:
        """Finish the picture as a camera would: blur, exposure, white balance, sensor noise. uint8 (H, W, 3).

        ``developed``: with the contrast and the range from dark to bright that photographs have.
        """
        height, width = self.ids.shape
        image: Image = np.asarray(cv2.GaussianBlur(self.colour, (0, 0), float(rng.uniform(0.4, 1.0))), dtype=np.uint8)
        gain = float(rng.uniform(0.75, 1.15)) * rng.uniform(0.93, 1.07, 3)
        curve = np.arange(256)[:, None] * gain + float(rng.uniform(0, 14))
        if developed:
            curve = _tone(rng, curve)
            image = _muted(rng, image)
        image = np.asarray(cv2.LUT(image, np.clip(curve, 0, 255).astype(np.uint8)[:, None, :]), dtype=np.uint8)
        tile = self._noise.sensor[int(rng.integers(len(self._noise.sensor)))]
        y, x = (int(v) for v in rng.integers(0, TILE, 2))
        grain = tile[y : y + min(height, TILE), x : x + min(width, TILE)]
        if grain.shape[:2] != (height, width):
            times = (-(-height // grain.shape[0]), -(-width // grain.shape[1]), 1)
            grain = np.tile(grain, times)[:height, :width]
        return np.asarray(cv2.add(image, np.ascontiguousarray(grain), dtype=cv2.CV_8U), dtype=np.uint8)


def _tone(rng: Rng, curve: Array) -> Array:
    """Bend a camera's curves (256, 3): black and white points inside the range, a gamma around 1, a tint."""
    black, white = float(rng.uniform(0, 30)), float(rng.uniform(175, 255))
    share = np.clip((curve - black) / (white - black), 0, 1)
    bent: Array = 255 * share ** np.exp(rng.normal(0.1, 0.25) + rng.normal(0, 0.1, 3))
    return bent


def _muted(rng: Rng, image: Image) -> Image:
    """Take some of the colour out of an image; out of few all of it."""
    kept = 0.0 if rng.random() < 0.04 else float(rng.uniform(0.4, 1.0))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(image, kept, grey, 1 - kept, 0), dtype=np.uint8)


def _outline(mask: NDArray[np.bool_], keypoints: Array, *, crowd: bool) -> Label | None:
    """Label of the pixels in ``mask`` (H, W); None when they are too few to be noticed."""
    area = int(np.count_nonzero(mask))
    if area < LEAST_AREA_PX:
        return None
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x, y, right, bottom = (int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    # Only the columns between its sides need a look: before and after them nothing changes.
    flat = np.concatenate(([False], mask[:, x:right].T.ravel(), [False]))
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + x * len(mask)
    runs = np.diff(changes, prepend=0, append=mask.size).tolist()
    box = np.array((x, y, right - x, bottom - y), dtype=np.float64)
    return Label(keypoints, area, box, runs, crowd)
