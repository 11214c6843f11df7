"""Training augmentation: which region of the image a sample shows, drawn by counter from (seed, epoch, row)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from efafnet.models.settings import InputSize, Settings
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops import geometry, philox
from efafnet.pipelines.crops.geometry import Float64

_SCALE_AND_ROTATION, _FLIP_AND_BODY = 1, 2
_MIN_UPPER, _MIN_LOWER = 2, 3


class AugmentationConfig(Settings):
    """How training samples are varied. Order: half body, scale, rotation, flip, warp. The defaults are COCO's."""

    padding: float = Field(default=1.25, ge=1.0)
    """Factor by which the aspect-fixed box grows before cropping (1.3 for CrowdPose)."""
    scale_factor: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Half-width f of the scale: clip(1 + f * normal, 1 - f, 1 + f). COCO .3, MPII .25."""
    rotation_deg: float = Field(default=40.0, ge=0.0, le=90.0)
    """Standard deviation r of the rotation in degrees, clipped to +-2r. COCO 40, MPII 30."""
    rotation_probability: float = Field(default=0.6, ge=0.0, le=1.0)
    """Share of samples that are rotated at all."""
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
        off = ("scale_factor", "rotation_deg", "rotation_probability", "flip_probability", "half_body_probability")
        return self.model_copy(update=dict.fromkeys(off, 0.0))


@dataclass(frozen=True)
class Draws:
    """The random part of N samples."""

    scale: Float64
    """(N,) factor on the region's size."""
    rotation_deg: Float64
    """(N,) counter-clockwise rotation of the picture in degrees."""
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
    # Box and Muller: two normals from two uniforms.
    radius, angle = np.sqrt(-2.0 * np.log(u[:, 0])), 2.0 * np.pi * u[:, 1]
    f, r = config.scale_factor, config.rotation_deg
    rotation = np.clip(r * radius * np.sin(angle), -2.0 * r, 2.0 * r)
    return Draws(
        scale=np.clip(1.0 + f * radius * np.cos(angle), 1.0 - f, 1.0 + f),
        rotation_deg=np.where(u[:, 2] < config.rotation_probability, rotation, 0.0),
        flip=v[:, 0] < config.flip_probability,
        half_body=v[:, 1] < config.half_body_probability,
        upper=v[:, 2] < config.half_body_upper_probability,
    )


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
    return centre, size * draws.scale[:, None]


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
