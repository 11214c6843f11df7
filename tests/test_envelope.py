"""What a store promises: regions that contain every sample, and refusals of what lies beyond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.crops import augmentation, geometry
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.platform.configuration import apply_overrides

_SMALL = InputSize(height=256, width=192)
_SBN: dict[str, Any] = {"padding": 1.25, "scale_factor": 0.3, "rotation_deg": 40}
_NOBODY = np.zeros((17, 2)), np.zeros(17, dtype=np.uint8)


def test_bounds_worked_out() -> None:
    """Box 60x80 at (100, 100), padding 1.25, scale up to 1.3, rotation to 80 degrees: half sides 48.75 and 65, the
    diagonal 81.25 is reached along both axes (at 53.1 and 36.9 degrees); 2 px more for interpolation."""
    envelope = Envelope(inputs=(_SMALL,), half_body=False, **_SBN)
    bounds = envelope.demand(COCO_17, np.array([70.0, 60, 60, 80]), *_NOBODY).bounds
    np.testing.assert_allclose(bounds, [100 - 83.25, 100 - 83.25, 100 + 83.25, 100 + 83.25])


def test_bounds_of_small_rotations_worked_out() -> None:
    """To 20 degrees only: x reaches 48.75 cos 20 + 65 sin 20 = 68.04, y 65 cos 20 + 48.75 sin 20 = 77.75."""
    envelope = Envelope(inputs=(_SMALL,), half_body=False, **_SBN | {"rotation_deg": 10})
    bounds = envelope.demand(COCO_17, np.array([70.0, 60, 60, 80]), *_NOBODY).bounds
    np.testing.assert_allclose(np.array(bounds) - 100, [-70.0412, -79.7534, 70.0412, 79.7534], atol=1e-3)


_MMPOSE = AugmentationConfig(
    scale_factor=0.5,
    shift_factor=0.16,
    shift_probability=0.9,
    distribution="truncated_normal",
    half_body_probability=0.5,
)


@pytest.mark.parametrize("size", ["256x192", "256x256", "192x128"])
@pytest.mark.parametrize(
    ("envelope", "config"),
    [
        (Envelope(), AugmentationConfig(half_body_probability=0.5)),
        (Envelope(padding=1.25, scale_factor=0.5, shift_factor=0.16), _MMPOSE),
    ],
    ids=["default", "mmpose"],
)
def test_every_sample_lies_inside(size: str, envelope: Envelope, config: AugmentationConfig) -> None:
    """The corners of 1,000 sampled quads, half bodies and wide and narrow boxes included."""
    rng = np.random.default_rng(0)
    input_size = InputSize.model_validate(size)
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
        ({"half_body_probability": 0.3, "half_body_padding": 2}, r"half_body_padding \* \(1 \+ scale_factor\) is 2.6"),
        ({"shift_factor": 0.16, "shift_probability": 0.3}, r"shift_factor \* padding is 0.2, envelope 0[.]"),
        ({"half_body_probability": 0.3, "half_body_min_joints": 3}, "half_body_min_joints is 3"),
    ],
)
def test_more_augmentation_than_promised_is_refused(wanted: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Envelope(**_SBN).check(AugmentationConfig.model_validate(wanted), _SMALL, any_reduced=False)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"half_body_probability": 0.3},
        {"padding": 1.3, "scale_factor": 0.25},
        {"rotation_deg": 90, "rotation_probability": 0},
        {"shift_factor": 0.16, "shift_probability": 0},
    ],
)
def test_what_is_promised_is_served(wanted: dict[str, float]) -> None:
    Envelope().check(AugmentationConfig.model_validate(wanted), _SMALL, any_reduced=True)


def test_a_shift_widens_the_bounds_by_a_share_of_the_padded_box() -> None:
    """Box 60x80, padding 1.25: .16 of 75 and of 100 px on either side."""
    boxes = np.array([70.0, 60, 60, 80])
    plain, shifted = (
        Envelope(inputs=(_SMALL,), half_body=False, shift_factor=factor, **_SBN).demand(COCO_17, boxes, *_NOBODY).bounds
        for factor in (0.0, 0.16)
    )
    np.testing.assert_allclose(np.array(shifted) - plain, [-12, -16, 12, 16])


@pytest.mark.parametrize(
    ("envelope", "wanted", "size", "command"),
    [
        (
            Envelope(),
            AugmentationConfig(scale_factor=0.5, shift_factor=0.16, shift_probability=0.3),
            "256x192",
            "efafnet prepare a.json img out envelope.scale_factor=0.5 envelope.shift_factor=0.16",
        ),
        (
            Envelope(inputs=(_SMALL,), half_body=False),
            AugmentationConfig(half_body_probability=0.3, half_body_padding=1.75),
            "256x256",
            "efafnet prepare a.json img out envelope.half_body_padding=1.75 envelope.inputs=[256x192,256x256]",
        ),
        (
            Envelope(half_body=False),
            AugmentationConfig(rotation_deg=50),
            "256x192",
            "efafnet prepare a.json img out envelope.rotation_deg=50.0 envelope.half_body=false",
        ),
    ],
)
def test_the_refusal_prints_the_command_whose_store_serves_both(
    envelope: Envelope, wanted: AugmentationConfig, size: str, command: str
) -> None:
    input_size = InputSize.model_validate(size)
    with pytest.raises(ValueError, match="not prepared") as refusal:
        envelope.check(wanted, input_size, any_reduced=True, source="a.json img out")
    assert str(refusal.value).endswith(f"or prepare a store that serves them: {command}")
    typed = apply_overrides({}, [word for word in command.split() if word.startswith("envelope.")])["envelope"]
    Envelope.model_validate(typed).check(wanted, input_size, any_reduced=True)
    Envelope.model_validate(typed).check(AugmentationConfig(), envelope.inputs[0], any_reduced=True)


def test_an_envelope_without_shifts_is_written_as_before_there_were_any() -> None:
    assert "shift_factor" not in Envelope().model_dump(mode="json")
    assert Envelope(shift_factor=0.16).model_dump(mode="json")["shift_factor"] == 0.16
    assert Envelope.model_validate(Envelope().model_dump()) == Envelope()


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
    envelope = Envelope(inputs=(_SMALL,), half_body=False, **_SBN)
    density = envelope.demand(COCO_17, np.array([0.0, 0, 600, 800]), *_NOBODY).density
    assert density == pytest.approx(600 * 0.7 / 192)
