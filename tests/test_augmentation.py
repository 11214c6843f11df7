"""Draws and regions of augmented samples."""

from __future__ import annotations

import numpy as np
import pytest

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17, MPII_16
from efafnet.pipelines.crops import augmentation, geometry
from efafnet.pipelines.crops.augmentation import AugmentationConfig, Draws

_SIZE = InputSize(height=256, width=192)


def _draws(
    scale: float = 1.0, rotation: float = 0.0, flip: bool = False, half: bool = False, upper: bool = True
) -> Draws:
    return Draws(np.array([scale]), np.array([rotation]), np.array([flip]), np.array([half]), np.array([upper]))


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
    still = augmentation.draw(AugmentationConfig().without_variation(), 0, 0, np.arange(100))
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
