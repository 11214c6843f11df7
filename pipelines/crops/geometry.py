"""Boxes and affines of the top-down protocol, in float64.

Frames: *image* is pixels of the original image, *crop* pixels of a stored crop, *input* pixels of the network's input.
A pixel's centre has integer coordinates. Affines are (..., 2, 3) and map column vectors (x, y, 1). Every function
broadcasts over leading dimensions.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from efafnet.models.settings import InputSize

Float64 = npt.NDArray[np.float64]

BoxRule = Literal["sbn", "mmpose", "unclipped"]


def clip_box(box_xywh: npt.ArrayLike, image_width: int, image_height: int, rule: BoxRule) -> Float64:
    """Annotated box (..., 4) to the box that is cropped, both x, y, width, height in image pixels.

    ``sbn`` clips to the image and loses one pixel of width and height (simple baselines and HRNet, COCO ground truth),
    ``mmpose`` clips without losing it, ``unclipped`` returns the box as it is (detections, MPII). A box outside the
    image comes back with a width or height that is not positive.
    """
    box = np.asarray(box_xywh, dtype=np.float64)
    if rule == "unclipped":
        return box.copy()
    lost = 1.0 if rule == "sbn" else 0.0
    last = np.array([image_width - 1, image_height - 1], dtype=np.float64)
    low = np.maximum(0.0, box[..., :2])
    size = np.maximum(0.0, box[..., 2:] - lost)
    # SBN measures the far corner from the clipped near corner, mmpose from the annotated one.
    high = np.minimum(last, (low if rule == "sbn" else box[..., :2]) + size)
    return np.concatenate([low, high - low], axis=-1)


def box_to_centre_scale(
    box_xywh: npt.ArrayLike, aspect: float, padding: float | Float64 = 1.0
) -> tuple[Float64, Float64]:
    """Centre (..., 2) and size (..., 2) in image pixels of the region that a box (..., 4) stands for.

    The shorter side is widened until width / height is ``aspect``, then both sides grow by the factor ``padding``.
    """
    box = np.asarray(box_xywh, dtype=np.float64)
    centre = box[..., :2] + box[..., 2:] * 0.5
    width, height = box[..., 2], box[..., 3]
    widened = np.stack([np.maximum(width, aspect * height), np.maximum(height, width / aspect)], axis=-1)
    return centre, widened * np.asarray(padding, dtype=np.float64)[..., None]


def input_affine(
    centre: npt.ArrayLike,
    size: npt.ArrayLike,
    rotation_deg: npt.ArrayLike,
    input_size: InputSize,
    flip: npt.ArrayLike = False,
    *,
    udp: bool = False,
) -> Float64:
    """Affine (..., 2, 3) from image pixels to input pixels: a similarity whose zoom is set by the width alone.

    ``centre`` and ``size`` are (..., 2) in image pixels, ``rotation_deg`` turns the picture counter-clockwise, ``flip``
    mirrors the image before everything else (so a mirrored sample is the sample of the mirrored image, as in simple
    baselines). The centre lands on (width / 2, height / 2).

    With ``udp`` (unbiased data processing, Huang et al., CVPR 2020; mmpose's ``get_udp_warp_matrix``) it lands on the
    centre between the outermost pixel centres, and each axis has its own zoom, (width - 1) / box width and (height - 1)
    / box height, after the rotation: no similarity, since the two differ by 0.13 % at 256x192.
    """
    centre, size = np.asarray(centre, dtype=np.float64), np.asarray(size, dtype=np.float64)
    angle = np.deg2rad(np.asarray(rotation_deg, dtype=np.float64))
    lost = 1.0 if udp else 0.0
    zoom_x = (input_size.width - lost) / size[..., 0]
    zoom_y = (input_size.height - lost) / size[..., 1] if udp else zoom_x
    mirror = np.where(flip, -1.0, 1.0)
    rows = (
        (zoom_x * np.cos(angle) * mirror, zoom_x * np.sin(angle)),
        (-zoom_y * np.sin(angle) * mirror, zoom_y * np.cos(angle)),
    )
    linear = np.stack(np.broadcast_arrays(*rows[0], *rows[1]), axis=-1)
    linear = linear.reshape(*linear.shape[:-1], 2, 2)
    target = np.array([(input_size.width - lost) * 0.5, (input_size.height - lost) * 0.5])
    shift = target - np.einsum("...ij,...j->...i", linear, centre)
    return np.concatenate([linear, shift[..., None]], axis=-1)


def view_of_boxes(
    boxes_xywh: npt.ArrayLike, input_size: InputSize, padding: float | Float64, *, udp: bool = False
) -> Float64:
    """Affines (..., 2, 3) from input pixels to image pixels of boxes (..., 4) as a network is tested: upright."""
    centre, size = box_to_centre_scale(boxes_xywh, input_size.width / input_size.height, padding)
    return invert_affine(input_affine(centre, size, 0.0, input_size, udp=udp))


def invert_affine(affine: Float64) -> Float64:
    """Inverse of affines (..., 2, 3)."""
    (a, b), (c, d) = (affine[..., 0, 0], affine[..., 0, 1]), (affine[..., 1, 0], affine[..., 1, 1])
    determinant = a * d - b * c
    linear = np.stack([d, -b, -c, a], axis=-1).reshape(*a.shape, 2, 2) / determinant[..., None, None]
    shift = -np.einsum("...ij,...j->...i", linear, affine[..., 2])
    return np.concatenate([linear, shift[..., None]], axis=-1)


def compose_affine(outer: Float64, inner: Float64) -> Float64:
    """The affine (..., 2, 3) that applies ``inner`` first and ``outer`` to its result."""
    linear = outer[..., :2] @ inner[..., :2]
    shift = np.einsum("...ij,...j->...i", outer[..., :2], inner[..., 2]) + outer[..., 2]
    return np.concatenate([linear, shift[..., None]], axis=-1)


def apply_affine(affine: Float64, points: npt.ArrayLike) -> Float64:
    """Points (..., P, 2) through affines (..., 2, 3)."""
    points = np.asarray(points, dtype=np.float64)
    moved: Float64 = np.einsum("...ij,...pj->...pi", affine[..., :2], points) + affine[..., None, :, 2]
    return moved


def box_iou(found_xywh: Float64, true_xywh: Float64, crowd: npt.NDArray[np.bool_] | None = None) -> Float64:
    """Intersection over union (P,) of box pairs (P, 4); over the found box alone where the true one is a ``crowd``.

    0 for two boxes without area.
    """
    corner = np.maximum(found_xywh[:, :2], true_xywh[:, :2])
    end = np.minimum(found_xywh[:, :2] + found_xywh[:, 2:], true_xywh[:, :2] + true_xywh[:, 2:])
    side = np.maximum(end - corner, 0.0)
    common = side[:, 0] * side[:, 1]
    found_area, true_area = found_xywh[:, 2] * found_xywh[:, 3], true_xywh[:, 2] * true_xywh[:, 3]
    whole = found_area + true_area - common
    whole = whole if crowd is None else np.where(crowd, found_area, whole)
    return np.asarray(np.divide(common, whole, out=np.zeros_like(common), where=whole > 0))
