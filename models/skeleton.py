"""Skeletons: what the joints of a data set are called, how they mirror, and how precisely each can be annotated."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import model_validator

from efafnet.models.settings import Settings


class Skeleton(Settings):
    """The joints of one annotation convention. Joint indices are 0-based throughout."""

    name: str
    """Name of the convention, for example coco17."""
    joints: tuple[str, ...]
    """Joint names, in annotation order."""
    flip_pairs: tuple[tuple[int, int], ...]
    """Joint indices that swap when the image is mirrored."""
    limbs: tuple[tuple[int, int], ...]
    """Joint indices connected in drawings."""
    sigmas: tuple[float, ...]
    """Per-joint standard deviation of OKS, as a fraction of the object's scale."""
    upper_body: tuple[int, ...]
    """Joints of the upper body, for half-body augmentation."""

    @model_validator(mode="after")
    def _consistent(self) -> Skeleton:
        k = len(self.joints)
        if k == 0 or len(set(self.joints)) != k:
            raise ValueError(f"skeleton {self.name!r}: joint names must be present and unique; got {self.joints}")
        if len(self.sigmas) != k:
            raise ValueError(f"skeleton {self.name!r}: {k} joints need {k} sigmas; got {len(self.sigmas)}")
        if any(s <= 0 for s in self.sigmas):
            raise ValueError(f"skeleton {self.name!r}: sigmas must be positive; got {self.sigmas}")
        indices = [i for pair in (*self.flip_pairs, *self.limbs) for i in pair] + list(self.upper_body)
        if any(not 0 <= i < k for i in indices):
            raise ValueError(f"skeleton {self.name!r}: joint indices must lie in 0..{k - 1}")
        paired = [i for pair in self.flip_pairs for i in pair]
        if len(set(paired)) != len(paired):
            raise ValueError(f"skeleton {self.name!r}: a joint can be in one flip pair only; got {self.flip_pairs}")
        return self

    @property
    def num_joints(self) -> int:
        """K, the number of joints."""
        return len(self.joints)

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """Permutation of length K: joint ``j`` of a mirrored image is joint ``flip_permutation[j]`` of the original."""
        permutation = list(range(self.num_joints))
        for a, b in self.flip_pairs:
            permutation[a], permutation[b] = b, a
        return tuple(permutation)


def _limbs(joints: Sequence[str], pairs: Sequence[tuple[str, str]]) -> tuple[tuple[int, int], ...]:
    return tuple((joints.index(a), joints.index(b)) for a, b in pairs)


# fmt: off
_COCO_JOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)

COCO_17 = Skeleton(
    name="coco17",
    joints=_COCO_JOINTS,
    flip_pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    # The `skeleton` entry of the COCO category, made 0-based.
    limbs=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    # cocodataset.org, keypoint evaluation: standard deviations of repeated annotations.
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
        0.089, 0.089,
    ),
    upper_body=tuple(range(11)),
)

_MPII_JOINTS = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax", "upper_neck",
    "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
)

MPII_16 = Skeleton(
    name="mpii16",
    joints=_MPII_JOINTS,
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    limbs=_limbs(
        _MPII_JOINTS,
        (
            ("right_ankle", "right_knee"), ("right_knee", "right_hip"), ("right_hip", "pelvis"),
            ("left_hip", "pelvis"), ("left_knee", "left_hip"), ("left_ankle", "left_knee"), ("pelvis", "thorax"),
            ("thorax", "upper_neck"), ("upper_neck", "head_top"), ("right_wrist", "right_elbow"),
            ("right_elbow", "right_shoulder"), ("right_shoulder", "thorax"), ("left_shoulder", "thorax"),
            ("left_elbow", "left_shoulder"), ("left_wrist", "left_elbow"),
        ),
    ),
    # MPII defines no OKS; these are mmpose's values for MPII, used for OKS-NMS and comparisons only.
    sigmas=(
        0.089, 0.083, 0.107, 0.107, 0.083, 0.089, 0.026, 0.026, 0.026, 0.026, 0.062, 0.072, 0.179, 0.179, 0.072,
        0.062,
    ),
    upper_body=(7, 8, 9, 10, 11, 12, 13, 14, 15),
)

_CROWDPOSE_JOINTS = (
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
    "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck",
)

CROWDPOSE_14 = Skeleton(
    name="crowdpose14",
    joints=_CROWDPOSE_JOINTS,
    flip_pairs=((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)),
    limbs=_limbs(
        _CROWDPOSE_JOINTS,
        (
            ("head", "neck"), ("neck", "left_shoulder"), ("neck", "right_shoulder"), ("left_shoulder", "left_elbow"),
            ("right_shoulder", "right_elbow"), ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"),
            ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"), ("left_hip", "right_hip"),
            ("left_hip", "left_knee"), ("right_hip", "right_knee"), ("left_knee", "left_ankle"),
            ("right_knee", "right_ankle"),
        ),
    ),
    # The official CrowdPose evaluation tool.
    sigmas=(
        0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089, 0.079, 0.079,
    ),
    upper_body=(0, 1, 2, 3, 4, 5, 12, 13),
)

# fmt: on

SKELETONS = {s.name: s for s in (COCO_17, MPII_16, CROWDPOSE_14)}
