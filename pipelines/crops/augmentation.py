"""Training augmentation: which region of the image a sample shows, drawn by counter from (seed, epoch, row).

Sources: simple baselines and HRNet (``JointsDataset.__getitem__``), mmpose (``RandomHalfBody``,
``RandomBBoxTransform``). HRNet asks for 3 joints of an upper half where mmpose asks for 2; of 9 annotated joints of
COCO's 17 at least 3 are upper ones, so there is no difference at ``half_body_min_joints`` 9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from efafnet.models.settings import InputSize, Settings
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops import geometry, philox
from efafnet.pipelines.crops.geometry import Float64

_SCALE_AND_ROTATION, _FLIP_AND_BODY, _SHIFT = 1, 2, 3
_MIN_UPPER, _MIN_LOWER = 2, 3
_NUMERATOR = (
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080,
)  # fmt: skip
_DENOMINATOR = (
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0,
)  # fmt: skip


class AugmentationConfig(Settings):
    """How training samples are varied. Order: half body, shift, scale, rotation, flip, warp. The defaults are SBN's
    for COCO."""

    padding: float = Field(default=1.25, ge=1.0)
    """Factor by which the aspect-fixed box grows before cropping (1.3 for CrowdPose)."""
    scale_factor: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Half-width f of the scale, between 1 - f and 1 + f. SBN on COCO .3, on MPII .25; HRNet .35, mmpose .5."""
    rotation_deg: float = Field(default=40.0, ge=0.0, le=90.0)
    """Half the largest rotation in degrees: it reaches +-2r, and r is the standard deviation of a clipped normal. SBN
    on COCO 40, on MPII 30; HRNet 45; mmpose's +-80 is 40 with distribution=truncated_normal."""
    rotation_probability: float = Field(default=0.6, ge=0.0, le=1.0)
    """Share of samples that are rotated at all."""
    shift_factor: float = Field(default=0.0, ge=0.0, le=1.0)
    """Largest shift of the region's centre along x and y, as a share of the padded box's own width and height (before
    it is widened to the input's aspect). mmpose .16."""
    shift_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of samples that are shifted. mmpose .3 on COCO, 0 on MPII."""
    distribution: Literal["clipped_normal", "truncated_normal"] = "clipped_normal"
    """How scale, rotation and shift lie between their limits: a normal whose tails are moved onto the limits (SBN,
    HRNet: clip(1 + f * normal, 1 - f, 1 + f), clip(r * normal, -2r, 2r)), or a normal truncated at one standard
    deviation, which is the limit (mmpose)."""
    flip_probability: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of samples that are mirrored."""
    half_body_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of samples that show half the body, of persons with enough joints. 0 in the paper, .3 in mmpose."""
    half_body_min_joints: int = Field(default=9, ge=1)
    """Annotated joints that a person needs for half-body samples."""
    half_body_upper_probability: float = Field(default=0.7, ge=0.0, le=1.0)
    """Share of half-body samples that show the upper body, where both halves have enough joints."""
    half_body_padding: float = Field(default=1.5, ge=1.0)
    """Takes the place of ``padding`` for half-body samples."""

    def without_variation(self) -> AugmentationConfig:
        """The same padding and nothing random: how validation samples are cropped."""
        off = (
            "scale_factor", "rotation_deg", "rotation_probability", "shift_factor", "shift_probability",
            "flip_probability", "half_body_probability",
        )  # fmt: skip
        return self.model_copy(update=dict.fromkeys(off, 0.0))


@dataclass(frozen=True)
class Draws:
    """The random part of N samples."""

    scale: Float64
    """(N,) factor on the region's size."""
    rotation_deg: Float64
    """(N,) counter-clockwise rotation of the picture in degrees."""
    shift: Float64
    """(N, 2) displacement of the region's centre along x and y, as shares of the padded box's width and height."""
    flip: npt.NDArray[np.bool_]
    """(N,) whether the sample is mirrored."""
    half_body: npt.NDArray[np.bool_]
    """(N,) whether a half-body sample is wanted."""
    upper: npt.NDArray[np.bool_]
    """(N,) which half is preferred."""


def draw(config: AugmentationConfig, seed: int, epochs: npt.ArrayLike, rows: npt.ArrayLike) -> Draws:
    """Draw for N samples, each a pure function of (``seed``, its epoch, its row).

    Every sample spends the same numbers whatever the settings, so two settings under one seed see paired draws.
    """
    key = philox.key_of("augmentation", seed)
    u, v = philox.uniforms(rows, epochs, (_SCALE_AND_ROTATION, _FLIP_AND_BODY), key)
    f, r = config.scale_factor, config.rotation_deg
    if config.distribution == "truncated_normal":
        unit = _truncated_normal(u[:, :2])
        scale, rotation = 1.0 + f * unit[:, 0], 2.0 * r * unit[:, 1]
    else:
        normal = _normal(u[:, :2], f, r)
        scale, rotation = np.clip(1.0 + normal[:, 0], 1.0 - f, 1.0 + f), np.clip(normal[:, 1], -2.0 * r, 2.0 * r)
    return Draws(
        scale=scale,
        rotation_deg=np.where(u[:, 2] < config.rotation_probability, rotation, 0.0),
        shift=_shifts(config, rows, epochs, key),
        flip=v[:, 0] < config.flip_probability,
        half_body=v[:, 1] < config.half_body_probability,
        upper=v[:, 2] < config.half_body_upper_probability,
    )


def _shifts(config: AugmentationConfig, rows: npt.ArrayLike, epochs: npt.ArrayLike, key: int) -> Float64:
    """(N, 2) shifts, of a stream of their own: settings without shifts neither draw nor pay for them."""
    if config.shift_probability == 0:
        return np.zeros((np.size(rows), 2))
    (w,) = philox.uniforms(rows, epochs, (_SHIFT,), key)
    truncated = config.distribution == "truncated_normal"
    unit = _truncated_normal(w[:, :2]) if truncated else np.clip(_normal(w[:, :2], 1.0, 1.0), -1.0, 1.0)
    return np.where(w[:, 2:3] < config.shift_probability, config.shift_factor * unit, 0.0)


def _normal(uniform: Float64, first: float, second: float) -> Float64:
    """Two independent normals (N, 2) of the given standard deviations of two uniforms, by Box and Muller."""
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:, 0])), 2.0 * np.pi * uniform[:, 1]
    return np.stack([first * radius * np.cos(angle), second * radius * np.sin(angle)], axis=-1)


def _truncated_normal(uniform: Float64) -> Float64:
    """Normals between -1 and 1 (and no others), elementwise by the inverse of their distribution function.

    Source: Wichura's algorithm AS 241 (Applied Statistics 37, 1988), of which only the middle part is needed, a
    quotient of polynomials: no logarithm, so the same on every machine.
    """
    centred = math.erf(math.sqrt(0.5)) * (uniform - 0.5)
    r = 0.180625 - centred * centred
    normals: Float64 = centred * np.polyval(_NUMERATOR, r) / np.polyval(_DENOMINATOR, r)
    return normals


def halves(visibility: Sequence[int], skeleton: Skeleton, min_joints: int) -> dict[str, list[int]]:
    """Annotated joints of the halves ("upper", "lower") that have enough of them; ``visibility`` is (K,).

    Empty for a person with too few joints, and where the skeleton names no upper body.
    """
    annotated = [joint for joint, v in enumerate(visibility) if v > 0]
    if len(annotated) < min_joints or not skeleton.upper_body:
        return {}
    upper = [joint for joint in annotated if joint in skeleton.upper_body]
    lower = [joint for joint in annotated if joint not in skeleton.upper_body]
    enough = {"upper": len(upper) >= _MIN_UPPER, "lower": len(lower) >= _MIN_LOWER}
    return {name: joints for name, joints in (("upper", upper), ("lower", lower)) if enough[name]}


def half_body_box(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float] | None:
    """Centre x, y and width, height around the joints (P, 2) of a half body, as in HRNet and mmpose.

    The centre is the joints' mean, not the middle of their box. None where all lie on one point.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    if width <= 0 and height <= 0:
        return None
    return sum(xs) / len(xs), sum(ys) / len(ys), width, height


def regions(
    config: AugmentationConfig,
    draws: Draws,
    skeleton: Skeleton,
    aspect: float,
    boxes_xywh: Float64,
    joints_px: Float64,
    visibility: npt.NDArray[np.uint8],
) -> tuple[Float64, Float64]:
    """Centres and sizes (N, 2) in image pixels that the samples show, before rotation and flip.

    ``boxes_xywh`` (N, 4) and ``joints_px`` (N, K, 2) are in image pixels, ``visibility`` is (N, K).
    """
    centre, size = geometry.box_to_centre_scale(boxes_xywh, aspect, config.padding)
    extent = config.padding * np.asarray(boxes_xywh, dtype=np.float64)[:, 2:]
    for n in np.flatnonzero(draws.half_body):
        found = halves(visibility[n].tolist(), skeleton, config.half_body_min_joints)
        if not found:
            continue
        preferred = "upper" if draws.upper[n] else "lower"
        box = half_body_box(joints_px[n][found.get(preferred, next(iter(found.values())))].tolist())
        if box is not None:
            x, y, width, height = box
            centre[n] = x, y
            size[n] = max(width, aspect * height), max(height, width / aspect)
            size[n] *= config.half_body_padding
            extent[n] = config.half_body_padding * width, config.half_body_padding * height
    return centre + draws.shift * extent, size * draws.scale[:, None]


def input_affines(
    config: AugmentationConfig,
    draws: Draws,
    skeleton: Skeleton,
    input_size: InputSize,
    boxes_xywh: Float64,
    joints_px: Float64,
    visibility: npt.NDArray[np.uint8],
    *,
    udp: bool = False,
) -> Float64:
    """Affines (N, 2, 3) from image to input pixels of N augmented samples; arguments as in :func:`regions`."""
    aspect = input_size.width / input_size.height
    centre, size = regions(config, draws, skeleton, aspect, boxes_xywh, joints_px, visibility)
    return geometry.input_affine(centre, size, draws.rotation_deg, input_size, draws.flip, udp=udp)


def mirror_joints(
    joints: npt.NDArray[np.float64],
    visibility: npt.NDArray[np.uint8],
    flip: npt.NDArray[np.bool_],
    skeleton: Skeleton,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Swap left and right joints (N, K, 2) and visibilities (N, K) of the mirrored samples ``flip`` (N,)."""
    swap = list(skeleton.flip_permutation)
    return (
        np.where(flip[:, None, None], joints[:, swap], joints),
        np.where(flip[:, None], visibility[:, swap], visibility),
    )
