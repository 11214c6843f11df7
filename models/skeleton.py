"""Skeletons: what the joints of a data set are called, how they mirror, and how precisely each can be annotated."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from pydantic import model_validator

from efafnet.models.settings import Settings

Side = Literal["left", "right", "middle"]


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
    def sides(self) -> tuple[Side, ...]:
        """Side of the body each joint belongs to, told by its name."""
        found: list[Side] = [_side_of(name) for name in self.joints]
        for left, right in pairs_by_name(self.joints):
            found[left], found[right] = "left", "right"
        return tuple(found)

    @property
    def sided_without_partner(self) -> tuple[str, ...]:
        """Joints whose names say left or right and that no flip pair holds."""
        paired = {joint for pair in self.flip_pairs for joint in pair}
        return tuple(name for n, name in enumerate(self.joints) if n not in paired and looks_sided(name))

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """Permutation of length K: joint ``j`` of a mirrored image is joint ``flip_permutation[j]`` of the original."""
        permutation = list(range(self.num_joints))
        for a, b in self.flip_pairs:
            permutation[a], permutation[b] = b, a
        return tuple(permutation)


# Chinese says left and right in one character, without a space; other letters than Latin ones are words of their own.
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+|[左右]|[^\W\d_A-Za-z左右]+")


def _plain(name: str) -> str:
    """A name without accents."""
    return "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c))


# fmt: off
_SIDES = tuple(
    (_plain(left), _plain(right))
    for left, right in (
        ("left", "right"), ("l", "r"), ("lt", "rt"), ("lft", "rgt"), ("左", "右"), ("왼쪽", "오른쪽"),
        ("links", "rechts"), ("linke", "rechte"), ("linker", "rechter"), ("linkes", "rechtes"),
        ("gauche", "droite"), ("gauche", "droit"), ("izquierdo", "derecho"), ("izquierda", "derecha"),
        ("esquerdo", "direito"), ("esquerda", "direita"), ("sinistro", "destro"), ("sinistra", "destra"),
        ("левый", "правый"), ("левая", "правая"), ("левое", "правое"),
    )
)
# fmt: on
_LEFT, _RIGHT = (frozenset(words) for words in zip(*_SIDES, strict=True))


@lru_cache(maxsize=1024)
def _words(joint: str) -> tuple[str, ...]:
    """Words of a joint's name, in small letters: left_eye, leftEye, LEye, L_Eye, hand.L."""
    return tuple(word.lower() for word in _WORD.findall(_plain(joint)))


def spelled_alike(joints: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists name the same joints in the same order but for spelling: Left_Eye, L_Eye, left_eye."""
    whole = {short: word for word, short in zip(("left", "right"), ("l", "r"), strict=True)}

    def canonical(names: Sequence[str]) -> list[tuple[str, ...]]:
        return [tuple(whole.get(word, word) for word in _words(name)) for name in names]

    return all(names := canonical(joints)) and names == canonical(others)


def pairs_by_name(joints: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Joints that mirror each other by their names: (left, right) indices, in order of the left ones.

    A side is a word of the name: left or L, right or R, in any case and in some languages, apart by underscore, point,
    space, minus or a change of case. Where no such partner is found the side may be written into a word: lknee, kneeL,
    LF_paw, lefthand.
    """
    by_words = {_words(joint): index for index, joint in enumerate(joints)}
    found: dict[int, int] = {}
    for mirrored in (_mirrored_words, _mirrored_letters):
        for index, joint in enumerate(joints):
            taken = {*found, *found.values()}
            partners = [by_words[words] for words in mirrored(_words(joint)) if words in by_words]
            free = [partner for partner in partners if partner not in taken and partner != index]
            if index not in taken and free:
                found[index] = free[0]
    return tuple(sorted(found.items()))


def _mirrored_words(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The names of the right partner, by words that say left."""
    return [
        (*words[:n], right, *words[n + 1 :]) for n, word in enumerate(words) for left, right in _SIDES if word == left
    ]


def _mirrored_letters(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The names of the right partner, by words that begin with left or l, or end with them."""
    return [
        (*words[:n], changed, *words[n + 1 :])
        for n, word in enumerate(words)
        for left, right in _SIDES
        for changed in (right + word.removeprefix(left), word.removesuffix(left) + right)
        if changed not in (right + word, word + right)
    ]


def _side_of(joint: str) -> Side:
    words = _words(joint)
    return "left" if _LEFT & set(words) else "right" if _RIGHT & set(words) else "middle"


def looks_sided(joint: str) -> bool:
    """Whether a word of the name says left or right."""
    return _side_of(joint) != "middle"


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
