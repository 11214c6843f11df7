"""The check of new data: rules on made people with one thing wrong each, and persons overfitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17, MPII_16
from efafnet.pipelines.check import rules
from efafnet.pipelines.check.check import chosen_rows, fresh_directory, run_check
from efafnet.pipelines.check.config import CheckConfig
from efafnet.pipelines.check.fit import ceiling, measured, people_of
from efafnet.pipelines.crops.store import CropStore
from efafnet.platform.configuration import apply_overrides, load_preset, resolve
from tests.training_cases import write_store


def standing(count: int = 20, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """People of COCO's joints who stand upright, half of them seen from behind, 100 px wide and 300 high."""
    rng = np.random.default_rng(seed)
    heights = {"nose": 20, "eye": 15, "ear": 18, "shoulder": 60, "elbow": 110, "wrist": 150, "hip": 160, "knee": 230}
    joints = np.zeros((count, 17, 2))
    for index, name in enumerate(COCO_17.joints):
        side = {"left": 1, "right": -1}.get(name.split("_")[0], 0)
        facing = np.where(np.arange(count) % 2, 1, -1)
        half = {"eye": 8, "ear": 14, "wrist": 50}.get(name.split("_")[-1], 30)
        joints[:, index, 0] = 50 + side * facing * half + rng.uniform(-2, 2, count)
        joints[:, index, 1] = heights.get(name.split("_")[-1], 300) + rng.uniform(-2, 2, count)
    return joints, np.ones((count, 17), bool)


def joint(name: str) -> int:
    return COCO_17.joints.index(name)


def test_sound_people_are_not_remarked_on() -> None:
    joints, seen = standing()
    assert rules.exchanged_sides(joints, seen, COCO_17) == []
    assert rules.unlike_pairs(joints, seen, COCO_17) == []
    assert rules.unlabelled_joints(seen, COCO_17) == []
    assert rules.joints_at_origin(joints, seen) == []
    assert rules.odd_sigmas(COCO_17) == []
    assert rules.cut_off_joints(joints, seen, (320, 120)) == []


def test_a_pair_with_exchanged_sides_is_named_and_no_other() -> None:
    joints, seen = standing()
    left, right = joint("left_hip"), joint("right_hip")
    joints[:, [left, right]] = joints[:, [right, left]]
    (remark,) = rules.exchanged_sides(joints, seen, COCO_17)
    assert remark.startswith("swapped sides: left_hip/right_hip lie")


def test_faces_tell_that_all_sides_are_exchanged_or_those_of_some_persons() -> None:
    joints, seen = standing(20)
    facing, mirrored = joints[1::2], joints[::2]  # the left eye right of the other, and left of it
    assert rules.reversed_faces(facing, seen[1::2], COCO_17) == []
    (remark,) = rules.reversed_faces(mirrored, seen[::2], COCO_17)
    assert remark.startswith(
        "swapped sides: in 100% of 10 faces with both eyes the left eye lies left of the right one"
    )
    assert rules.exchanged_sides(mirrored, seen[::2], COCO_17) == [], "no pair contradicts the others"
    (remark,) = rules.reversed_faces(joints, seen, COCO_17)
    assert remark.startswith("swapped sides: in 50% of 20 faces")
    seen[::2, joint("left_eye")] = False  # from behind
    assert rules.reversed_faces(joints, seen, COCO_17) == []
    assert rules.reversed_faces(mirrored[:7], np.ones((7, 17), bool), COCO_17) == [], "too few to conclude from"
    assert rules.reversed_faces(mirrored[:, :16], np.ones((10, 16), bool), MPII_16) == [], "no eyes"


def test_a_flip_pair_that_mirrors_nothing_is_named() -> None:
    joints, seen = standing()
    pairs = [pair for pair in COCO_17.flip_pairs if joint("left_knee") not in pair and joint("left_hip") not in pair]
    wrong = COCO_17.model_copy(update={"flip_pairs": (*pairs, (joint("left_hip"), joint("right_knee")))})
    (remark,) = rules.unlike_pairs(joints, seen, wrong)
    assert remark.startswith("flip pairs: left_hip/right_knee are exchanged")


def test_joints_that_nobody_has_and_joints_at_the_origin() -> None:
    joints, seen = standing(100)
    seen[:, joint("nose")] = False
    seen[1:, joint("left_ear")] = False
    never, rare = rules.unlabelled_joints(seen, COCO_17)
    assert "no person has nose;" in never
    assert "hardly any person has left_ear (1.0%)" in rare
    joints, seen = standing()
    joints[:, joint("nose")] = 0  # one of 17 joints: 5.9 %
    (remark,) = rules.joints_at_origin(joints, seen)
    assert "6% of the annotated joints lie at (0, 0)" in remark


def test_joints_outside_their_crops_pixels_without_contrast_and_sigmas() -> None:
    joints, seen = standing()
    joints[:, :, 0] += 10
    joints[:10] += 1000
    (remark,) = rules.cut_off_joints(joints, seen, (320, 120))
    assert remark.startswith("boxes: 50% of the annotated joints")
    rng = np.random.default_rng(0)
    assert rules.odd_pixels(rng.integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)) == []
    assert "hardly any contrast" in rules.odd_pixels(np.full((4, 3, 8, 8), 90, np.uint8))[0]
    dark = np.zeros((4, 3, 8, 8), np.uint8)
    dark[..., 0] = 40  # one column of eight: a mean of 5, a standard deviation of 13
    assert "nearly black" in rules.odd_pixels(dark)[0]
    small = COCO_17.model_copy(update={"sigmas": (0.001, *COCO_17.sigmas[1:])})
    assert rules.odd_sigmas(small)[0].startswith("sigmas: nose 0.001 (")
    assert rules.unreachable(0.95, 1.0, small) == []
    assert rules.unreachable(0.0, float("nan"), small) == [], "no joint in its crop: another rule's remark"
    assert "reach AP 0.200 only, with a median error of 1.00 px" in rules.unreachable(0.2, 1.0, small)[0]


def settings(tmp_path: Path, *overrides: str) -> CheckConfig:
    if not (tmp_path / "train").exists():
        write_store(tmp_path / "train", 12)
    given = [f"data.train={tmp_path}/train", f"out={tmp_path}/check", "precision=fp32", *overrides]
    return resolve(CheckConfig, apply_overrides(load_preset("nano_test"), given))


def test_perfect_joints_measure_as_perfect_as_they_are_and_mirrored(tmp_path: Path) -> None:
    config = settings(tmp_path, "persons=4")
    store = CropStore.open(str(tmp_path / "train"))
    people = people_of(config, store, chosen_rows(store, 4, 0))
    exact = people.batch.joints_px.double().numpy()
    plain, mirrored, oks = measured(people, exact)
    assert (plain, mirrored) == (1.0, 1.0)
    assert oks == pytest.approx(1.0)
    # Regions are mirrored about their middle, at 32 of 64 columns.
    assert exact[4:, :, 0] == pytest.approx(64 - exact[:4, :, 0], abs=1e-3)
    exact[4:] += 30
    assert measured(people, exact)[:2] == (1.0, 0.0)
    top, error_px = ceiling(config, people)
    assert top == 1.0
    assert 0 < error_px < 2.83  # quantised targets at stride 4, refined by a quarter: at most 2 px along either axis


def test_pictures_never_replace_those_of_an_earlier_check(tmp_path: Path) -> None:
    assert [fresh_directory(tmp_path / "check").name for _ in range(3)] == ["check", "check-2", "check-3"]
    with pytest.raises(OSError, match=r"^out=/proc/check cannot be made: .+; name a writable place$"):
        fresh_directory(Path("/proc/check"))


def test_a_store_without_persons_to_learn_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "one", 1)
    with pytest.raises(ValueError, match="a check needs two persons with joints; it has 1"):
        chosen_rows(CropStore.open(str(tmp_path / "one")), 16, 0)


@pytest.mark.slow
@pytest.mark.no_ray
def test_persons_are_learned_by_heart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(settings(tmp_path, "persons=4", "limit_s=300")) == 0
    out = capsys.readouterr().out
    assert "in order: the persons were overfitted" in out
    assert sorted(path.name for path in (tmp_path / "check").iterdir()) == ["fit.jpg", "samples.jpg"]
    assert run_check(settings(tmp_path, "persons=4", "limit_s=0.001")) == 1
    assert "may be too few: give limit_s=0.004" in " ".join(capsys.readouterr().err.split())
