"""MPII's PCKh: the share of joints within a fraction of the head's size of where they should be.

Legend: N persons, K = 16 joints.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from efafnet.models.skeleton import MPII_16
from efafnet.pipelines.formats.mpii import HEAD_SHARE

GROUPS: dict[str, tuple[str, ...]] = {
    "head": ("head_top",),
    "shoulder": ("left_shoulder", "right_shoulder"),
    "elbow": ("left_elbow", "right_elbow"),
    "wrist": ("left_wrist", "right_wrist"),
    "hip": ("left_hip", "right_hip"),
    "knee": ("left_knee", "right_knee"),
    "ankle": ("left_ankle", "right_ankle"),
}
_LEFT_OUT = ("pelvis", "thorax")
MPII_NAMES = (*(f"pckh_{group}" for group in GROUPS), "pckh", "pckh_01")
"""MPII's figures, in their order."""


def head_size(box_xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
    """Head sizes (N,) in pixels of head boxes (N, 4) given by two corners: 0.6 of the diagonal."""
    corners = np.asarray(box_xyxy, np.float64)
    return np.asarray(HEAD_SHARE * np.linalg.norm(corners[:, 2:] - corners[:, :2], axis=1))


def pckh(
    predicted_px: NDArray[np.floating],
    true_px: NDArray[np.floating],
    visibility: NDArray[np.integer],
    head_size_px: NDArray[np.floating],
) -> dict[str, float]:
    """PCKh@0.5 by group of joints, its mean ``pckh``, and the mean at 0.1 ``pckh_01``: fractions, NaN without joints.

    ``predicted_px`` and ``true_px`` are (N, 16, 2) in one frame of coordinates, ``visibility`` (N, 16) counts above 0,
    ``head_size_px`` is (N,). A group is the mean of its left and right joint; the means weigh every joint but pelvis
    and thorax by how often it is annotated. "@0.1" is 0.1 exactly: older tools take the next threshold, 0.11.
    Raises ValueError for head sizes that are not positive.
    """
    size = np.asarray(head_size_px, np.float64)
    if not (size > 0).all():
        person = int(np.flatnonzero(~(size > 0))[0])
        raise ValueError(
            f"person {person} has head size {size[person]}; PCKh needs the size of every head: use annotations that "
            "hold head boxes"
        )
    counted = np.asarray(visibility) > 0
    distance = np.linalg.norm(np.asarray(predicted_px, np.float64) - np.asarray(true_px, np.float64), axis=2)
    relative = distance / size[:, None]
    at_half = _share(relative <= 0.5, counted)
    index = {name: MPII_16.joints.index(name) for name in MPII_16.joints}
    figures = {
        f"pckh_{group}": float(np.mean([at_half[index[name]] for name in names])) for group, names in GROUPS.items()
    }
    measured = np.array([i for name, i in index.items() if name not in _LEFT_OUT])
    for name, limit in (("pckh", 0.5), ("pckh_01", 0.1)):
        # Joints weighed by how often they are annotated: the share of all annotated joints.
        figures[name] = float((relative <= limit)[:, measured][counted[:, measured]].mean())
    return figures


def _share(right: NDArray[np.bool_], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share (K,) of the counted joints that are right; NaN for a joint never annotated."""
    number = counted.sum(axis=0)
    correct = (right & counted).sum(axis=0)
    shares = np.full(len(number), np.nan)
    np.divide(correct, number, out=shares, where=number > 0)
    return shares
