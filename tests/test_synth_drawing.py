"""The renderer: outlines and depths of solids against closed forms, and what hides what."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from efafnet.pipelines.synth.backdrop import leaf_radii, paint_backdrop
from efafnet.pipelines.synth.outfit import Fabric
from efafnet.pipelines.synth.picture import Picture
from efafnet.pipelines.synth.raster import Depth, draw
from efafnet.pipelines.synth.shading import Light, shade
from efafnet.pipelines.synth.solids import Camera, Frames, Model, see
from efafnet.pipelines.synth.stage import View
from efafnet.pipelines.synth.textures import TILE, bank

FAR = 1e6
"""A camera so far away, in metres, that its picture is a parallel projection."""
TAG = (0, 0, 0)
ONE = Frames(np.zeros((1, 3)), np.eye(3)[None])


def _camera(scale: float = 50.0, distance: float = FAR, rotation: NDArray[np.float64] | None = None) -> Camera:
    return Camera(np.eye(3) if rotation is None else rotation, np.zeros(3), distance, scale, (80.0, 60.0))


def _draw(model: Model, camera: Camera | None = None, oversampling: int = 2, frames: Frames = ONE) -> Depth:
    depth = draw(see(model, frames, _camera() if camera is None else camera), 160, 120, oversampling)
    assert depth is not None
    return depth


def _area(depth: Depth) -> float:
    return float((depth.solid >= 0).sum()) / depth.oversampling**2


def _at(depth: Depth, x: float, y: float) -> tuple[int, float]:
    """Solid and nearness at the sample nearest to picture point (x, y)."""
    column, row = (int((v - o + 0.5) * depth.oversampling) for v, o in ((x, depth.left), (y, depth.top)))
    if not (0 <= row < depth.z.shape[0] and 0 <= column < depth.z.shape[1]):
        return -1, -np.inf
    return int(depth.solid[row, column]), float(depth.z[row, column])


def _plain(
    surface: NDArray[np.int64], cloth: NDArray[np.int64], frame: NDArray[np.int64], place: NDArray[np.float32]
) -> NDArray[np.int64]:
    assert len(surface) == len(frame) == place.shape[1]
    return cloth


def test_a_sphere_is_a_disc_that_bulges_to_the_viewer() -> None:
    model = Model()
    model.ellipsoid((0, 0.2, 0.1, 0.0), (0.6, 0.6, 0.6), TAG)
    depth = _draw(model)
    # Radius 30 px around (80 + 10, 60 - 5): y of the picture points down.
    assert _area(depth) == pytest.approx(np.pi * 30**2, rel=0.01)
    assert _at(depth, 90, 55)[1] == pytest.approx(30, abs=0.1)
    assert _at(depth, 90 + 18, 55)[1] == pytest.approx(24, abs=0.2)
    assert _at(depth, 90 + 31, 55)[0] == -1


def test_an_ellipsoid_turns_with_its_frame() -> None:
    angle = np.deg2rad(30)
    c, s = np.cos(angle), np.sin(angle)
    frames = Frames(np.zeros((1, 3)), np.array([[[c, -s, 0], [s, c, 0], [0, 0, 1.0]]]))
    model = Model()
    model.ellipsoid((0, 0, 0, 0), (0.8, 0.2, 0.4), TAG)
    depth = _draw(model, frames=frames)
    assert _area(depth) == pytest.approx(np.pi * 40 * 10, rel=0.02)
    # Its long axis rises to the right by 30°: up in the picture is less y.
    assert _at(depth, 80 + 36 * c, 60 - 36 * s)[0] == 0
    assert _at(depth, 80 + 36 * c, 60 + 36 * s)[0] == -1


def test_a_cone_is_a_trapezium_with_open_ends() -> None:
    model = Model()
    model.cone((0, 0, 0.5, 0), (0, 0, -0.5, 0), (0.4, 0.2), TAG)
    depth = _draw(model)
    assert _area(depth) == pytest.approx(0.5 * (40 + 20) * 50, rel=0.02)
    assert _at(depth, 80, 60)[1] == pytest.approx(15, abs=0.15)
    assert _at(depth, 80, 60 - 24)[1] == pytest.approx(20, abs=0.3)
    assert _at(depth, 80, 60 + 27)[0] == -1


def test_a_flat_cone_is_thinner_across_its_width() -> None:
    model = Model()
    model.cone((0, 0, 0.5, 0), (0, 0, -0.5, 0), (0.4, 0.4), TAG, flatness=0.5)
    front = _draw(model)
    quarter = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    side = _draw(model, _camera(rotation=quarter))
    assert _area(front) == pytest.approx(40 * 50, rel=0.02)
    assert _area(side) == pytest.approx(20 * 50, rel=0.03)


def test_a_cone_seen_end_on_draws_nothing_outside_its_ends() -> None:
    model = Model()
    model.cone((0, 0, 0, -0.5), (0, 0, 0, 0.5), (0.1, 0.4), TAG)
    columns, rows = np.nonzero(_draw(model).solid.T >= 0)
    assert columns.size == 0 or max(np.ptp(columns), np.ptp(rows)) / 2 <= 2 * 20 + 2


def test_a_box_shows_the_faces_that_face_the_viewer() -> None:
    model = Model()
    model.box((0, 0, 0, 0), (0.4, 0.3, 0.2), TAG)
    depth = _draw(model)
    assert _area(depth) == pytest.approx(40 * 30, rel=0.03)
    assert _at(depth, 80, 60)[1] == pytest.approx(10, abs=1e-3)
    # Turned by 45° about the vertical it is as wide as the diagonal of its base.
    c = np.sqrt(0.5)
    turned = _draw(model, _camera(rotation=np.array([[c, 0, c], [0, 1, 0], [-c, 0, c]])))
    assert _area(turned) == pytest.approx((0.8 + 0.4) * c * 50 * 30, rel=0.03)
    # Nothing, and the two sides that face the viewer.
    assert len(np.unique(turned.solid)) == 3


def test_the_nearer_solid_hides_the_farther_one_whatever_the_order() -> None:
    for nearer_first in (True, False):
        model = Model()
        for z in (0.5, -0.5) if nearer_first else (-0.5, 0.5):
            model.ellipsoid((0, 0, 0, z), (0.3, 0.3, 0.3), TAG)
        index, z = _at(_draw(model), 80, 60)
        assert index == (0 if nearer_first else 1)
        assert z == pytest.approx(25 + 15, abs=0.1)


def test_perspective_enlarges_what_is_near() -> None:
    camera = _camera(distance=4.0)
    points, scale = camera.project(np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 1.0], [0.5, 0.5, -4.0]]))
    # px/m is 50 · 4 / (4 - z).
    np.testing.assert_allclose(scale, [50, 50 * 4 / 3, 25])
    np.testing.assert_allclose(points[:, 0] - 80, 0.5 * scale)
    np.testing.assert_allclose(60 - points[:, 1], 0.5 * scale)


def test_what_is_outside_the_picture_is_not_drawn() -> None:
    model = Model()
    model.ellipsoid((0, 5.0, 0, 0), (0.3, 0.3, 0.3), TAG)
    assert draw(see(model, ONE, _camera()), 160, 120, 1) is None


def test_one_and_four_samples_per_pixel_agree() -> None:
    model = Model()
    model.ellipsoid((0, 0, 0, 0), (0.7, 0.4, 0.4), TAG)
    model.cone((0, 0, 0, 0), (0, 0.9, 0.6, 0.2), (0.1, 0.05), TAG)
    coarse, fine = _draw(model, oversampling=1), _draw(model, oversampling=2)
    assert _area(coarse) == pytest.approx(_area(fine), rel=0.02)
    layers = [
        shade(depth, see(model, ONE, _camera()), _camera(), ONE, _plain, [Fabric((1, 0, 0), (1, 0, 0))],
              Light((0, 0, 1), 0.6, (1, 1, 1)), bank(0), 160)
        for depth in (coarse, fine)
    ]  # fmt: skip
    assert layers[0].coverage is None
    assert layers[1].coverage is not None
    assert float(layers[1].coverage.sum()) == pytest.approx(_area(fine))
    assert set(layers[0].pixels) <= set(layers[1].pixels)
    assert layers[0].own.all()
    for layer in layers:
        red, green, blue = layer.colour.T
        assert red.mean() > 60
        assert green.max() == blue.max() == 0


def test_light_from_the_left_brightens_the_left() -> None:
    model = Model()
    model.ellipsoid((0, 0, 0, 0), (0.8, 0.8, 0.8), TAG)
    screen, camera = see(model, ONE, _camera()), _camera()
    layer = shade(
        _draw(model, oversampling=1), screen, camera, ONE, _plain,
        [Fabric((0.5, 0.5, 0.5), (0, 0, 0), grain=0.0)], Light((-0.8, 0, 0.6), 0.5, (1, 1, 1)), bank(0), 160,
    )  # fmt: skip
    x = layer.pixels % 160
    assert layer.colour[x < 60].mean() > 1.5 * layer.colour[x > 100].mean()


def test_a_view_puts_feet_on_its_ground_and_heads_above_the_horizon_of_a_low_camera() -> None:
    view = View(320, 240, horizon=100.0, eye=1.5, focal=400.0)
    assert view.ground(50.0) == 175.0
    camera = view.aim(160.0, 50.0, 0.9)
    (feet, eyes, head), _ = camera.project(np.array([[0.0, 0, 0], [0, 1.5, 0], [0, 1.8, 0]]))
    assert feet[1] == pytest.approx(175.0, abs=1.5)
    # What is as high as the camera appears on the horizon.
    assert eyes[1] == pytest.approx(100.0, abs=1.0)
    assert head[1] < eyes[1]
    assert feet[0] == pytest.approx(160.0)


def test_noise_tiles_repeat_without_a_seam_and_follow_the_seed() -> None:
    tiles = bank(1)
    for tile in (tiles.cloth, *tiles.clouds):
        assert tile.shape == (TILE, TILE)
        assert float(tile.mean()) == pytest.approx(0, abs=1e-3)
        assert float(tile.std()) == pytest.approx(1, abs=1e-3)
    cloud = tiles.clouds[-1]
    seam, inside = np.abs(cloud[:, 0] - cloud[:, -1]).mean(), np.abs(np.diff(cloud, axis=1)).mean()
    assert seam < 2 * inside
    assert not np.array_equal(bank(2).cloth, tiles.cloth)


def test_leaves_are_as_small_as_the_model_of_natural_images_wants_them() -> None:
    # Density r^-3 between 3 and 96: the distribution function is (1 - (3/r)^2) / (1 - (3/96)^2).
    radii = leaf_radii(np.random.default_rng(0), 20_000, 96.0)
    assert radii.min() >= 3
    assert radii.max() <= 96
    for radius, share in ((3 * 2**0.5, 0.5005), (6.0, 0.7507), (12.0, 0.9384)):
        assert np.mean(radii < radius) == pytest.approx(share, abs=0.012)


def test_a_busy_backdrop_has_the_edges_of_photographs() -> None:
    def steps(*, busy: bool) -> float:
        found = []
        for seed in range(12):
            image = paint_backdrop(np.random.default_rng(seed), 320, 240, 120.0, bank(0), busy=busy).astype(np.float64)
            found.append(np.abs(np.diff(image.mean(axis=2), axis=1)).mean())
        return float(np.mean(found))

    assert steps(busy=True) > 1.5 * steps(busy=False)


def test_developing_widens_the_range_from_dark_to_bright() -> None:
    # A grey ramp: as it is developed, other pictures become dark or bright, and the ends of the range are reached.
    ramp = np.repeat(np.linspace(40, 200, 64, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(32, axis=0)
    light = Light((0.0, 0.3, 0.95), 0.7, (1.0, 1.0, 1.0))

    def photographs(*, developed: bool) -> NDArray[np.float64]:
        picture = Picture(ramp, light, bank(0))
        taken = [picture.photograph(np.random.default_rng(seed), developed=developed) for seed in range(40)]
        return np.array(taken, dtype=np.float64)

    plain, developed = photographs(developed=False), photographs(developed=True)
    assert developed.mean(axis=(1, 2, 3)).std() > 1.3 * plain.mean(axis=(1, 2, 3)).std()
    assert developed.std(axis=(1, 2, 3)).mean() > 1.1 * plain.std(axis=(1, 2, 3)).mean()


@pytest.mark.parametrize("horizon", [-50.0, 0.0, 40.0, 96.0, 300.0])
def test_backdrops_fill_the_picture_wherever_the_horizon_lies(horizon: float) -> None:
    for seed in range(6):
        image = paint_backdrop(np.random.default_rng(seed), 128, 96, horizon, bank(0), busy=seed % 2 == 1)
        assert image.shape == (96, 128, 3)
        assert image.dtype == np.uint8
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 2
