"""What a store promises: regions that contain every sample, and refusals of what lies beyond."""

from __future__ import annotations

import numpy as np
import pytest

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.crops import augmentation, geometry
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.envelope import Envelope

_SMALL = InputSize(height=256, width=192)
_NOBODY = np.zeros((17, 2)), np.zeros(17, dtype=np.uint8)


def test_bounds_worked_out() -> None:
    """Box 60x80 at (100, 100), padding 1.25, scale up to 1.3, rotation to 80 degrees: half sides 48.75 and 65, the
    diagonal 81.25 is reached along both axes (at 53.1 and 36.9 degrees); 2 px more for interpolation."""
    envelope = Envelope(inputs=(_SMALL,), half_body=False)
    bounds = envelope.demand(COCO_17, np.array([70.0, 60, 60, 80]), *_NOBODY).bounds
    np.testing.assert_allclose(bounds, [100 - 83.25, 100 - 83.25, 100 + 83.25, 100 + 83.25])


def test_bounds_of_small_rotations_worked_out() -> None:
    """To 20 degrees only: x reaches 48.75 cos 20 + 65 sin 20 = 68.04, y 65 cos 20 + 48.75 sin 20 = 77.75."""
    envelope = Envelope(inputs=(_SMALL,), half_body=False, rotation_deg=10)
    bounds = envelope.demand(COCO_17, np.array([70.0, 60, 60, 80]), *_NOBODY).bounds
    np.testing.assert_allclose(np.array(bounds) - 100, [-70.0412, -79.7534, 70.0412, 79.7534], atol=1e-3)


@pytest.mark.parametrize("size", ["256x192", "256x256", "192x128"])
def test_every_sample_lies_inside(size: str) -> None:
    """The corners of 1,000 sampled quads, half bodies and wide and narrow boxes included."""
    rng = np.random.default_rng(0)
    envelope, input_size = Envelope(), InputSize.model_validate(size)
    config = AugmentationConfig(half_body_probability=0.5)
    rows = np.arange(1000)
    draws = augmentation.draw(config, 0, 0, rows)
    boxes = np.concatenate([rng.uniform(0, 500, (1000, 2)), rng.uniform(5, 300, (1000, 2))], axis=1)
    joints = boxes[:, None, :2] + rng.uniform(0, 1, (1000, 17, 2)) * boxes[:, None, 2:]
    visibility = rng.integers(0, 3, (1000, 17)).astype(np.uint8)
    affines = augmentation.input_affines(config, draws, COCO_17, input_size, boxes, joints, visibility)
    width, height = input_size.width - 1, input_size.height - 1
    corners = geometry.apply_affine(
        geometry.invert_affine(affines), np.array([[0, 0], [width, 0], [0, height], [width, height]])
    )
    bounds = np.array(
        [envelope.demand(COCO_17, box, j, v).bounds for box, j, v in zip(boxes, joints, visibility, strict=True)]
    )
    # One pixel more, for the neighbour that interpolation reads.
    assert (corners.min(axis=1) - 1 >= bounds[:, :2]).all()
    assert (corners.max(axis=1) + 1 <= bounds[:, 2:]).all()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"padding": 1.3}, r"padding \* \(1 \+ scale_factor\) is 1.69, envelope 1.625"),
        ({"scale_factor": 0.35}, "is 1.6875, envelope 1.625"),
        ({"rotation_deg": 45}, "rotation_deg is 45, envelope.rotation_deg 40"),
        ({"half_body_probability": 0.3, "half_body_padding": 2}, "half_body_padding is 2"),
        ({"half_body_probability": 0.3, "half_body_min_joints": 3}, "half_body_min_joints is 3"),
    ],
)
def test_more_augmentation_than_promised_is_refused(wanted: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Envelope().check(AugmentationConfig.model_validate(wanted), _SMALL, any_reduced=False)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"half_body_probability": 0.3},
        {"padding": 1.3, "scale_factor": 0.25},
        {"rotation_deg": 90, "rotation_probability": 0},
    ],
)
def test_what_is_promised_is_served(wanted: dict[str, float]) -> None:
    Envelope().check(AugmentationConfig.model_validate(wanted), _SMALL, any_reduced=True)


def test_inputs() -> None:
    envelope, still = Envelope(inputs=(_SMALL,)), AugmentationConfig()
    larger, square = InputSize(height=512, width=384), InputSize(height=256, width=256)
    envelope.check(still, larger, any_reduced=False)
    with pytest.raises(ValueError, match=r"input 512x384 is larger than envelope.inputs \(256x192\)"):
        envelope.check(still, larger, any_reduced=True)
    with pytest.raises(ValueError, match=r"width / height 1, envelope.inputs 0.75 to 0.75"):
        envelope.check(still, square, any_reduced=False)


def test_half_bodies_must_be_declared() -> None:
    with pytest.raises(ValueError, match=r"envelope.half_body is false"):
        Envelope(half_body=False).check(AugmentationConfig(half_body_probability=0.1), _SMALL, any_reduced=False)


def test_density_worked_out() -> None:
    """A box of 600x800 px at scale .7 and padding 1 in a 256x192 input: 420 / 192 = 2.19 pixels per input pixel."""
    envelope = Envelope(inputs=(_SMALL,), half_body=False)
    density = envelope.demand(COCO_17, np.array([0.0, 0, 600, 800]), *_NOBODY).density
    assert density == pytest.approx(600 * 0.7 / 192)
