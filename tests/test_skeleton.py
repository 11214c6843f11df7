"""The skeletons against the public definitions, and what a skeleton must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efafnet.models.skeleton import COCO_17, CROWDPOSE_14, MPII_16, SKELETONS, Skeleton


def _skeleton(**changes: Any) -> Skeleton:
    fields: dict[str, Any] = {
        "name": "three", "joints": ("head", "left", "right"), "flip_pairs": ((1, 2),), "limbs": ((0, 1), (0, 2)),
        "sigmas": (0.1, 0.2, 0.2), "upper_body": (0,),
    }  # fmt: skip
    return Skeleton.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("skeleton", "pairs"),
    [
        (COCO_17, [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]),
        (MPII_16, [(0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)]),
        (CROWDPOSE_14, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]),
    ],
    ids=lambda value: value.name if isinstance(value, Skeleton) else "",
)
def test_flip_pairs_are_the_peers(skeleton: Skeleton, pairs: list[tuple[int, int]]) -> None:
    assert list(skeleton.flip_pairs) == pairs
    for a, b in pairs:
        left, right = sorted((skeleton.joints[a], skeleton.joints[b]))
        assert (left.removeprefix("left_"), left[:5]) == (right.removeprefix("right_"), "left_")


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda s: s.name)
def test_flip_permutation_is_its_own_inverse(skeleton: Skeleton) -> None:
    p = skeleton.flip_permutation
    assert [p[p[j]] for j in range(skeleton.num_joints)] == list(range(skeleton.num_joints))
    for j, name in enumerate(skeleton.joints):
        mirrored = {"left": "right", "right": "left"}.get(name.partition("_")[0])
        assert skeleton.joints[p[j]] == (name if mirrored is None else f"{mirrored}_{name.partition('_')[2]}")


def test_sigmas_are_the_evaluation_tools() -> None:
    coco = [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]
    crowdpose = [79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89, 79, 79]
    assert [round(1000 * s) for s in COCO_17.sigmas] == coco
    assert [round(1000 * s) for s in CROWDPOSE_14.sigmas] == crowdpose


def test_coco_agrees_with_the_data_sets_own_category(shared_data: Path) -> None:
    path = shared_data / "coco-mini" / "annotations" / "person_keypoints_train.json"
    (category,) = [c for c in json.loads(path.read_text())["categories"] if c["name"] == "person"]
    assert list(COCO_17.joints) == category["keypoints"]
    assert [[a + 1, b + 1] for a, b in COCO_17.limbs] == category["skeleton"]


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda s: s.name)
def test_limbs_connect_all_joints(skeleton: Skeleton) -> None:
    reached = {skeleton.limbs[0][0]}
    for _ in range(skeleton.num_joints):
        reached |= {j for limb in skeleton.limbs if reached & set(limb) for j in limb}
    assert len(reached) == skeleton.num_joints


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": ("a", "a", "b")}, "joint names must be present and unique"),
        ({"joints": (), "sigmas": ()}, "joint names must be present and unique"),
        ({"sigmas": (0.1, 0.2)}, "3 joints need 3 sigmas; got 2"),
        ({"sigmas": (0.1, 0.2, 0.0)}, "sigmas must be positive"),
        ({"limbs": ((0, 3),)}, r"joint indices must lie in 0\.\.2"),
        ({"upper_body": (-1,)}, r"joint indices must lie in 0\.\.2"),
        ({"flip_pairs": ((0, 1), (1, 2))}, "a joint can be in one flip pair only"),
    ],
)
def test_an_inconsistent_skeleton_is_refused(changes: dict[str, Any], message: str) -> None:
    assert _skeleton().num_joints == 3
    with pytest.raises(ValueError, match=message):
        _skeleton(**changes)
