"""Bodies and poses: proportions against published anthropometry, joints against human ranges of motion."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.synth.body import Body, pick, sample_body
from efafnet.pipelines.synth.figure import joints_of
from efafnet.pipelines.synth.kinematics import JOINT, Stance, articulate, euler
from efafnet.pipelines.synth.pose import FAMILIES, LIMITS, PAIRS, Bone, Pose, mirrored, sample_pose


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _standing(body: Body | None = None, yaw: float = 0.0, angles: NDArray[np.float64] | None = None) -> Stance:
    body = sample_body(_rng(3)) if body is None else body
    angles = np.zeros((len(Bone), 3)) if angles is None else angles
    return articulate(body, Pose("standing", angles, "ground"), yaw)


def _point(stance: Stance, name: str) -> NDArray[np.float64]:
    found: NDArray[np.float64] = joints_of(stance)[JOINT[name]]
    return found


def test_people_stand_as_tall_as_their_joints_do_in_anthropometric_tables() -> None:
    # Winter, Biomechanics and Motor Control of Human Movement, figure 4.1: heights as fractions of stature.
    table = {"shoulder": 0.818, "hip": 0.530, "knee": 0.285, "ankle": 0.039}
    measured: dict[str, list[float]] = {name: [] for name in table}
    for seed in range(200):
        body = sample_body(_rng(seed))
        if body.kind != "child":
            stance = _standing(body)
            for name in table:
                measured[name].append(float(_point(stance, f"left_{name}")[1]) / body.stature)
    for name, fraction in table.items():
        assert np.mean(measured[name]) == pytest.approx(fraction, abs=0.012), name
        assert np.max(np.abs(np.array(measured[name]) - fraction)) < 0.06, name


def test_limb_lengths_stay_in_human_proportion_whatever_the_pose() -> None:
    # Means of adults: upper arm : forearm 1.27, thigh : shank 1.0, shoulders : hips of joint centres about 1.9.
    for seed in range(120):
        rng = _rng(seed)
        stance = articulate(sample_body(rng), sample_pose(rng), float(rng.uniform(-3, 3)))
        joints, stature = joints_of(stance), stance.body.stature

        def length(a: str, b: str, at: NDArray[np.float64] = joints) -> float:
            return float(np.linalg.norm(at[JOINT[a]] - at[JOINT[b]]))

        for side in ("left", "right"):
            assert 1.05 < length(f"{side}_shoulder", f"{side}_elbow") / length(f"{side}_elbow", f"{side}_wrist") < 1.55
            assert 0.80 < length(f"{side}_hip", f"{side}_knee") / length(f"{side}_knee", f"{side}_ankle") < 1.25
        assert length("left_shoulder", "left_elbow") == pytest.approx(length("right_shoulder", "right_elbow"))
        assert length("left_knee", "left_ankle") == pytest.approx(length("right_knee", "right_ankle"))
        assert 0.15 < length("left_shoulder", "right_shoulder") / stature < 0.27
        assert 0.09 < length("left_hip", "right_hip") / stature < 0.15
        assert 0.025 < length("left_eye", "right_eye") / stature < 0.06


def test_children_have_larger_heads() -> None:
    bodies = [sample_body(_rng(seed)) for seed in range(300)]
    heads = {
        kind: float(np.mean([b.head_height / b.stature for b in bodies if b.kind == kind])) for kind in ("man", "child")
    }
    # Head heights per stature: about 7.5 heads for adults, about 6 at the age of seven.
    assert 1 / heads["man"] == pytest.approx(7.5, abs=0.5)
    assert 1 / heads["child"] == pytest.approx(6.1, abs=0.5)


def test_every_pose_stays_inside_the_ranges_of_motion() -> None:
    families = set()
    for seed in range(400):
        pose = sample_pose(_rng(seed))
        families.add(pose.family)
        assert (pose.angles >= LIMITS[..., 0]).all()
        assert (pose.angles <= LIMITS[..., 1]).all()
        # Elbows and knees are hinges that bend one way.
        assert (pose.angles[[Bone.FOREARM_L, Bone.FOREARM_R, Bone.SHANK_L, Bone.SHANK_R], 0] >= 0).all()
    assert len(families) == len(FAMILIES) == 10


def test_moving_arms_out_of_the_trunk_keeps_the_ranges_of_motion() -> None:
    for seed in range(60):
        rng = _rng(seed)
        angles = articulate(sample_body(rng), sample_pose(rng), 0.0).pose.angles
        inside = (angles >= LIMITS[..., 0] - 1e-9) & (angles <= LIMITS[..., 1] + 1e-9)
        assert inside.all(), [Bone(int(b)).name for b in np.flatnonzero(~inside.all(axis=1))]


@pytest.mark.parametrize(
    ("bone", "joint", "axis", "sign"),
    [
        # (bone that bends by 60°, joint that moves, world axis, direction): z is the front of a person at yaw 0.
        (Bone.FOREARM_L, "left_wrist", 2, +1),
        (Bone.UPPER_ARM_R, "right_elbow", 2, +1),
        (Bone.THIGH_L, "left_knee", 2, +1),
        (Bone.SHANK_R, "right_ankle", 2, -1),
    ],
)
def test_flexion_bends_limbs_the_human_way(bone: Bone, joint: str, axis: int, sign: int) -> None:
    straight = _standing()
    angles = np.zeros((len(Bone), 3))
    angles[bone, 0] = 60.0
    bent = _standing(angles=angles)
    base = "shoulder" if "wrist" in joint or "elbow" in joint else "hip"
    side = joint.split("_")[0]
    moved = (_point(bent, joint) - _point(bent, f"{side}_{base}")) - (
        _point(straight, joint) - _point(straight, f"{side}_{base}")
    )
    assert sign * moved[axis] > 0.1


def test_abduction_lifts_a_limb_away_from_the_body_on_both_sides() -> None:
    angles = np.zeros((len(Bone), 3))
    angles[[Bone.UPPER_ARM_L, Bone.UPPER_ARM_R], 1] = 90.0
    stance = _standing(angles=angles)
    for side, sign in (("left", 1), ("right", -1)):
        arm = _point(stance, f"{side}_wrist") - _point(stance, f"{side}_shoulder")
        reach = stance.body.upper_arm + stance.body.forearm
        np.testing.assert_allclose(arm, (sign * reach, 0, 0), atol=1e-9)


def test_left_is_at_the_viewers_right_for_a_person_who_faces_the_viewer_and_not_from_behind() -> None:
    for yaw, sign in ((0.0, 1), (np.pi, -1)):
        joints = joints_of(_standing(yaw=yaw))
        for left, right in COCO_17.flip_pairs:
            assert sign * (joints[left, 0] - joints[right, 0]) > 0.02


def test_mirroring_a_pose_mirrors_its_joints() -> None:
    body, pose = sample_body(_rng(1)), sample_pose(_rng(9))
    straight = articulate(body, pose, 0.0)
    other = articulate(body, replace(pose, angles=mirrored(pose.angles)), 0.0)
    expected = joints_of(straight)[list(COCO_17.flip_permutation)] * (-1, 1, 1)
    np.testing.assert_allclose(joints_of(other), expected, atol=1e-9)


def test_nobody_floats_or_sinks() -> None:
    for seed in range(80):
        rng = _rng(seed)
        pose = sample_pose(rng)
        joints = joints_of(articulate(sample_body(rng), pose, 0.0))
        lowest = float(joints[:, 1].min())
        if pose.support == "air":
            assert 0.1 < lowest < 0.6
        elif pose.family == "lying":
            # A hand or a foot may sink into the ground, not more than the ground would give way.
            assert -0.1 <= lowest < 0.2
        else:
            # The lowest joint is a hand's breadth of flesh or a heel above the ground.
            assert 0.0 <= lowest < 0.2, pose.family


def test_rotations_are_rotations() -> None:
    matrices = euler(_rng(0).uniform(-3, 3, (50, 3)))
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0)
    # A quarter turn about x takes y to z; about z, x to y; about y, z to x.
    quarter = np.pi / 2
    for angles, start, end in (((quarter, 0, 0), 1, 2), ((0, quarter, 0), 0, 1), ((0, 0, quarter), 2, 0)):
        np.testing.assert_allclose(euler(np.array([angles]))[0][:, start], np.eye(3)[end], atol=1e-12)


def test_pairs_are_left_and_right_of_the_same_bone() -> None:
    assert all(a.name.removesuffix("_L") == b.name.removesuffix("_R") for a, b in PAIRS)
    assert [a for a, _ in PAIRS] == sorted(a for a, _ in PAIRS)
    assert all(b - a == 2 for a, b in pairwise(a for a, _ in PAIRS))


def test_pick_follows_its_weights() -> None:
    rng = _rng(0)
    counts = np.bincount([pick(rng, (1, 0, 3)) for _ in range(4000)], minlength=3)
    assert counts[1] == 0
    # Binomial with p = .25 and n = 4000: deviation 27.
    assert abs(counts[0] - 1000) < 4 * 27.4
