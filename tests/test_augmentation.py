"""Draws and regions of augmented samples."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17, MPII_16
from efafnet.pipelines.crops import augmentation, geometry
from efafnet.pipelines.crops.augmentation import AugmentationConfig, Draws

_SIZE = InputSize(height=256, width=192)


def _draws(
    scale: float = 1.0,
    rotation: float = 0.0,
    flip: bool = False,
    half: bool = False,
    upper: bool = True,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Draws:
    shifts = np.array([shift])
    return Draws(np.array([scale]), np.array([rotation]), shifts, np.array([flip]), np.array([half]), np.array([upper]))


def test_distribution_is_the_protocols() -> None:
    """scale: clip(1 + .3 z, .7, 1.3); rotation with p = .6: clip(40 z, +-80); flip .5."""
    draws = augmentation.draw(AugmentationConfig(), seed=3, epochs=0, rows=np.arange(40_000))
    assert draws.scale.min() == pytest.approx(0.7)
    assert draws.scale.max() == pytest.approx(1.3)
    # A third of a normal's mass lies beyond one deviation, so that share sits on the two limits.
    assert np.isin(draws.scale, [draws.scale.min(), draws.scale.max()]).mean() == pytest.approx(0.3173, abs=0.01)
    turned = draws.rotation_deg != 0
    assert turned.mean() == pytest.approx(0.6, abs=0.01)
    assert np.abs(draws.rotation_deg).max() == 80.0
    assert (np.abs(draws.rotation_deg[turned]) == 80.0).mean() == pytest.approx(0.0455, abs=0.005)
    assert (np.abs(draws.rotation_deg[turned]) < 40).mean() == pytest.approx(0.6827, abs=0.01)
    assert draws.flip.mean() == pytest.approx(0.5, abs=0.01)
    assert not draws.half_body.any()
    together = np.corrcoef(np.stack([draws.scale, draws.rotation_deg, draws.flip.astype(float)]))
    np.testing.assert_allclose(together, np.eye(3), atol=0.02)


_MMPOSE = AugmentationConfig(
    scale_factor=0.5, shift_factor=0.16, shift_probability=0.3, distribution="truncated_normal"
)


def test_mmposes_distribution() -> None:
    """scale 1 + .5 t and rotation 80 t, t a normal truncated to -1..1: its standard deviation is .5396, and 56.09 % of
    it lies within +-.5 (scipy.stats.truncnorm, which mmpose draws from). Shift .16 t along each axis with p = .3."""
    draws = augmentation.draw(_MMPOSE, seed=3, epochs=0, rows=np.arange(40_000))
    unit = (draws.scale - 1) / 0.5
    assert np.abs(unit).max() < 1
    assert unit.std() == pytest.approx(0.5396, abs=0.005)
    assert (np.abs(unit) < 0.5).mean() == pytest.approx(0.5609, abs=0.01)
    turned = draws.rotation_deg != 0
    assert turned.mean() == pytest.approx(0.6, abs=0.01)
    assert 79 < np.abs(draws.rotation_deg).max() < 80
    assert (draws.rotation_deg[turned] / 80).std() == pytest.approx(0.5396, abs=0.005)
    shifted = (draws.shift != 0).all(axis=1)
    assert shifted.mean() == pytest.approx(0.3, abs=0.01)
    assert (draws.shift[~shifted] == 0).all()
    assert (draws.shift[shifted] / 0.16).std(axis=0) == pytest.approx(0.5396, abs=0.01)
    columns = np.stack([unit, draws.rotation_deg, *draws.shift.T])
    np.testing.assert_allclose(np.corrcoef(columns), np.eye(4), atol=0.02)


def test_shifts_of_a_clipped_normal_stop_at_the_factor() -> None:
    config = AugmentationConfig(shift_factor=0.1, shift_probability=1.0)
    shift = augmentation.draw(config, seed=3, epochs=0, rows=np.arange(10_000)).shift
    assert np.abs(shift).max() == pytest.approx(0.1)
    # A third of a normal's mass lies beyond one deviation.
    assert (np.abs(shift) == np.abs(shift).max()).mean() == pytest.approx(0.3173, abs=0.01)


def test_draws_of_settings_without_shifts_are_what_they_were() -> None:
    """Runs resume bit by bit across versions. The digest was taken before there were shifts and other distributions."""
    config = AugmentationConfig(half_body_probability=0.3)
    draws = augmentation.draw(config, 3, np.arange(5000) % 7, np.arange(5000))
    columns = (draws.scale, draws.rotation_deg, draws.flip, draws.half_body, draws.upper)
    values = np.stack([np.round(column.astype(np.float64), 9) for column in columns])
    assert (
        hashlib.sha256(values.tobytes()).hexdigest()
        == "dd492e673ede8eb3ded4110901460b4d08a1ea6c6cdcdc05cb02aae0ba443687"
    )
    assert (draws.shift == 0).all()
    with_shifts = augmentation.draw(
        config.model_copy(update={"shift_factor": 0.16, "shift_probability": 0.3}),
        3,
        np.arange(5000) % 7,
        np.arange(5000),
    )
    np.testing.assert_array_equal(with_shifts.scale, draws.scale)
    np.testing.assert_array_equal(with_shifts.rotation_deg, draws.rotation_deg)


# RandomBBoxTransform, TopdownAffine's widening and get_warp_matrix of mmpose (759b39c), run once on boxes padded by
# 1.25 with these truncated normals for x, y, scale and rotation (the class's own factors .16, .5 to 1.5, 80).
@pytest.mark.parametrize(
    ("normals", "box", "expected"),
    [
        (
            (0.5, -0.25, 0.4, 0.125),
            [100, 50, 60, 200],
            [[0.8403692465, 0.1481797785, -39.0353865130], [-0.1481797785, 0.8403691741, 30.5007655040]],
        ),
        (
            (0.5, -0.25, 0.4, 0.125),
            [10, 20, 150, 90],
            [[0.8403692472, 0.1481797621, 2.9981996719], [-0.1481797548, 0.8403692111, 91.9756382146]],
        ),
        (
            (-1, 0.75, -0.9, -0.6),
            [100, 50, 60, 200],
            [[1.2457995174, -1.3836006269, 198.0437697895], [1.3836006269, 1.2457995174, -259.5087871143]],
        ),
        (
            (-1, 0.75, -0.9, -0.6),
            [10, 20, 150, 90],
            [[1.2457994523, -1.3836006235, 136.0936790666], [1.3836005546, 1.2457995215, -45.8932929209]],
        ),
    ],
)
def test_shift_scale_and_rotation_of_mmposes_own_code(
    normals: tuple[float, float, float, float], box: list[float], expected: list[list[float]]
) -> None:
    x, y, scale, rotation = normals
    draws = _draws(1 + 0.5 * scale, 80 * rotation, shift=(0.16 * x, 0.16 * y))
    nobody = np.zeros((1, 17, 2)), np.zeros((1, 17), dtype=np.uint8)
    affine = augmentation.input_affines(_MMPOSE, draws, COCO_17, _SIZE, np.array([box], dtype=float), *nobody)
    corners = np.array([[0.0, 0.0], [300.0, 0.0], [0.0, 300.0]])
    theirs = geometry.apply_affine(np.array(expected), corners)
    # Their float32 shows in the fourth digit.
    np.testing.assert_allclose(geometry.apply_affine(affine[0], corners), theirs, atol=5e-4)


def test_a_shifted_half_body_moves_by_shares_of_its_own_box() -> None:
    """The legs of test_half_body_worked_out: mean (15, 250), box 30 x 100, padding 1.5."""
    joints = np.zeros((1, 17, 2))
    joints[0, 11:15] = np.array([[0, 200], [30, 200], [0, 300], [30, 300]])
    visibility = np.zeros((1, 17), dtype=np.uint8)
    visibility[0, 11:15] = 1
    config = _MMPOSE.model_copy(update={"half_body_min_joints": 4})
    draws = _draws(half=True, shift=(0.1, -0.2))
    boxes = np.array([[0.0, 0, 60, 320]])
    centre, _ = augmentation.regions(config, draws, COCO_17, 0.75, boxes, joints, visibility)
    np.testing.assert_allclose(centre[0], [15 + 0.1 * 45, 250 - 0.2 * 150])


def test_draws_depend_on_seed_epoch_and_row_alone() -> None:
    config = AugmentationConfig()
    epochs, rows = np.array([0, 0, 5, 5]), np.array([7, 8, 7, 8])
    together = augmentation.draw(config, 1, epochs, rows)
    alone = [augmentation.draw(config, 1, epoch, [row]) for epoch, row in zip(epochs, rows, strict=True)]
    np.testing.assert_array_equal(together.scale, np.concatenate([draw.scale for draw in alone]))
    assert len(np.unique(together.rotation_deg[together.rotation_deg != 0])) == (together.rotation_deg != 0).sum()
    assert not np.array_equal(together.scale, augmentation.draw(config, 2, epochs, rows).scale)


def test_two_settings_under_one_seed_see_paired_draws() -> None:
    rows = np.arange(500)
    wide = augmentation.draw(AugmentationConfig(scale_factor=0.3), 1, 0, rows)
    narrow = augmentation.draw(AugmentationConfig(scale_factor=0.1, rotation_probability=0.0), 1, 0, rows)
    np.testing.assert_array_equal(wide.flip, narrow.flip)
    inside = np.abs(wide.scale - 1) < 0.3
    np.testing.assert_allclose((wide.scale[inside] - 1) / 3, narrow.scale[inside] - 1, atol=1e-12)


def test_validation_is_still() -> None:
    still = augmentation.draw(_MMPOSE.without_variation(), 0, 0, np.arange(100))
    assert (still.shift == 0).all()
    assert (still.scale == 1).all()
    assert (still.rotation_deg == 0).all()
    assert not still.flip.any()


def test_scaled_rotated_sample_worked_out() -> None:
    """Box (100,50,60,200), scale 1.1: width 206.25 px, zoom 192/206.25; a joint 20 right of the centre, turned by 90
    degrees counter-clockwise, is that far above the middle."""
    joints = np.zeros((1, 17, 2))
    joints[0, 0] = [150.0, 150.0]
    visibility = np.full((1, 17), 2, dtype=np.uint8)
    config = AugmentationConfig()
    affine = augmentation.input_affines(
        config, _draws(1.1, 90.0), COCO_17, _SIZE, np.array([[100.0, 50, 60, 200]]), joints, visibility
    )
    moved = geometry.apply_affine(affine, joints)[0, 0]
    np.testing.assert_allclose(moved, [96.0, 128.0 - 20 * 192 / 206.25], atol=1e-9)


def test_flip_worked_out() -> None:
    """A left wrist (joint 9), hidden, 20 px left of the centre 130: it lands 20.48 px right of the middle and is called
    right wrist (joint 10), still hidden. The right wrist was not annotated, so now the left one is not."""
    joints = np.zeros((1, 17, 2))
    joints[0, 9] = [110.0, 150.0]
    visibility = np.zeros((1, 17), dtype=np.uint8)
    visibility[0, 9] = 1
    draws = _draws(flip=True)
    boxes = np.array([[100.0, 50, 60, 200]])
    affine = augmentation.input_affines(AugmentationConfig(), draws, COCO_17, _SIZE, boxes, joints, visibility)
    moved, seen = augmentation.mirror_joints(geometry.apply_affine(affine, joints), visibility, draws.flip, COCO_17)
    np.testing.assert_allclose(moved[0, 10], [96.0 + 20.48, 128.0], atol=1e-9)
    assert seen[0].tolist() == [0] * 10 + [1] + [0] * 6


def test_half_body_worked_out() -> None:
    """Upper joints on the corners of x 10..50, y 20..60 but for one doubled: mean (26, 36), box 40x40 widened to
    40 x 53.33, padding 1.5: 60 x 80."""
    joints = np.zeros((1, 17, 2))
    joints[0, :5] = np.array([[10, 20], [50, 20], [10, 60], [50, 60], [10, 20]])
    joints[0, 11:15] = np.array([[0, 200], [30, 200], [0, 300], [30, 300]])
    visibility = np.zeros((1, 17), dtype=np.uint8)
    visibility[0, :5] = 2
    visibility[0, 11:15] = 1
    boxes = np.array([[0.0, 0, 60, 320]])
    centre, size = augmentation.regions(
        AugmentationConfig(), _draws(half=True), COCO_17, 0.75, boxes, joints, visibility
    )
    np.testing.assert_allclose(centre[0], [26, 36])
    np.testing.assert_allclose(size[0], [60, 80])
    lower, _ = augmentation.regions(
        AugmentationConfig(), _draws(half=True, upper=False), COCO_17, 0.75, boxes, joints, visibility
    )
    np.testing.assert_allclose(lower[0], [15, 250])


def test_half_body_needs_more_than_eight_joints() -> None:
    joints = np.random.default_rng(0).uniform(0, 100, (1, 17, 2))
    visibility = np.zeros((1, 17), dtype=np.uint8)
    visibility[0, :8] = 2
    boxes = np.array([[0.0, 0, 60, 120]])
    centre, _ = augmentation.regions(AugmentationConfig(), _draws(half=True), COCO_17, 0.75, boxes, joints, visibility)
    np.testing.assert_allclose(centre[0], [30, 60])


def test_half_body_falls_back_to_the_half_with_joints() -> None:
    """MPII's legs alone: 6 joints with pelvis; an upper sample is wanted but there is no upper joint."""
    visibility = np.zeros(16, dtype=np.uint8)
    visibility[:7] = 2
    assert list(augmentation.halves(visibility.tolist(), MPII_16, 7)) == ["lower"]
    assert augmentation.halves(visibility.tolist(), MPII_16, 8) == {}
