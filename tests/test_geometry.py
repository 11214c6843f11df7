"""Boxes and affines: the protocol's pins, and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from efafnet.models.settings import InputSize
from efafnet.pipelines.crops import geometry

_SIZE = InputSize(height=256, width=192)
_BOX = [100.0, 50.0, 60.0, 200.0]


def _affine(rotation_deg: float, flip: bool = False, udp: bool = False) -> geometry.Float64:
    centre, size = geometry.box_to_centre_scale(_BOX, 192 / 256, 1.25)
    return geometry.input_affine(centre, size, rotation_deg, _SIZE, flip, udp=udp)


def test_upright_pin() -> None:
    np.testing.assert_allclose(_affine(0), [[1.024, 0, -37.12], [0, 1.024, -25.6]], atol=1e-12)


def test_rotated_pin() -> None:
    expected = [[0.88681002, 0.51200001, -96.08530438], [-0.51200001, 0.88681002, 61.53849849]]
    np.testing.assert_allclose(_affine(30), expected, atol=2e-6)


@pytest.mark.parametrize(("heatmap", "image"), [((24.25, 31.75), (130.9765625, 149.0234375)), ((0, 0), (36.25, 25))])
def test_heatmap_pin(heatmap: tuple[float, float], image: tuple[float, float]) -> None:
    """A 48x64 heatmap cell is four input pixels."""
    back = geometry.invert_affine(_affine(0))
    np.testing.assert_allclose(geometry.apply_affine(back, [[4 * heatmap[0], 4 * heatmap[1]]])[0], image, atol=1e-10)


def test_flip_is_the_sample_of_the_mirrored_image() -> None:
    """Simple baselines mirror the image (width 640 here), the centre and the joints, and then crop."""
    centre, size = geometry.box_to_centre_scale(_BOX, 0.75, 1.25)
    mirrored_centre = np.array([640 - 1 - centre[0], centre[1]])
    theirs = geometry.input_affine(mirrored_centre, size, 30, _SIZE)
    point = np.array([[117.0, 93.0]])
    expected = geometry.apply_affine(theirs, [[640 - 1 - 117.0, 93.0]])
    np.testing.assert_allclose(geometry.apply_affine(_affine(30, flip=True), point), expected, atol=1e-9)


def test_udp_maps_between_outermost_pixel_centres() -> None:
    """Zoom 191 / 187.5, and the padded box's edges land on pixels 0 and 191."""
    affine = _affine(0, udp=True)
    assert affine[0, 0] == pytest.approx(191 / 187.5)
    ends = geometry.apply_affine(affine, [[130 - 93.75, 150.0], [130 + 93.75, 150.0]])
    np.testing.assert_allclose(ends, [[0, 127.5], [191, 127.5]], atol=1e-9)


# get_udp_warp_matrix of mmpose (759b39c), run once on the aspect-fixed boxes. It turns the other way than its
# get_warp_matrix does: its 30 degrees are -30 here.
@pytest.mark.parametrize(
    ("box", "rotation_deg", "expected"),
    [
        ([100, 50, 60, 200], 0, [[1.0186666250, 0, -36.92666626], [0, 1.0199999809, -25.5]]),
        ([10, 20, 150, 90], 0, [[1.0186666250, 0, 8.91333294], [0, 1.0199999809, 61.20000076]]),
        (
            [100, 50, 60, 200],
            -30,
            [[0.8821912408, -0.5093333125, 57.21514130], [0.5099999905, 0.8833459020, -71.30188751]],
        ),
        (
            [10, 20, 150, 90],
            -30,
            [[0.8821912408, -0.5093333125, 53.62041473], [0.5099999905, 0.8833459020, 26.73251534]],
        ),
    ],
)
def test_udp_of_mmposes_own_code(box: list[float], rotation_deg: float, expected: list[list[float]]) -> None:
    centre, size = geometry.box_to_centre_scale(box, 192 / 256, 1.25)
    affine = geometry.input_affine(centre, size, rotation_deg, _SIZE, udp=True)
    corners = centre + size * [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    theirs = geometry.apply_affine(np.array(expected), corners)
    np.testing.assert_allclose(geometry.apply_affine(affine, corners), theirs, atol=1e-4)


def test_widening() -> None:
    """60x200 is too narrow for 3:4 and becomes 150x200; 200x60 is too flat and becomes 200x266.67."""
    _, narrow = geometry.box_to_centre_scale([0, 0, 60, 200], 0.75)
    _, flat = geometry.box_to_centre_scale([0, 0, 200, 60], 0.75)
    np.testing.assert_allclose(narrow, [150, 200])
    np.testing.assert_allclose(flat, [200, 200 / 0.75])


@pytest.mark.parametrize(
    ("rule", "box", "expected"),
    [
        ("sbn", [10, 20, 30, 40], [10, 20, 29, 39]),
        ("mmpose", [10, 20, 30, 40], [10, 20, 30, 40]),
        ("unclipped", [-10, 20, 300, 40], [-10, 20, 300, 40]),
        # The simple baselines keep the width when they clip the left edge: 0 + 29. mmpose clips both edges: -10 + 30.
        ("sbn", [-10, 20, 30, 40], [0, 20, 29, 39]),
        ("mmpose", [-10, 20, 30, 40], [0, 20, 20, 40]),
        ("sbn", [90, 70, 30, 40], [90, 70, 9, 9]),
    ],
)
def test_clip_box(rule: geometry.BoxRule, box: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(geometry.clip_box(box, 100, 80, rule), expected)


@pytest.mark.parametrize("box", [[200.0, 10, 30, 40], [-50.0, 10, 30, 40]])
def test_a_box_outside_the_image_has_no_size(box: list[float]) -> None:
    assert geometry.clip_box(box, 100, 80, "mmpose")[2] < 0


def test_inverse_and_composition() -> None:
    rng = np.random.default_rng(0)
    affines, points = rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 7, 2))
    back = geometry.apply_affine(geometry.invert_affine(affines), geometry.apply_affine(affines, points))
    np.testing.assert_allclose(back, points, atol=1e-9)
    identity = geometry.compose_affine(geometry.invert_affine(affines), affines)
    np.testing.assert_allclose(identity, np.broadcast_to(np.eye(2, 3), (5, 2, 3)), atol=1e-9)
