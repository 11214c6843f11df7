"""The heatmap codec: against the peers' procedures written as loops, and there and back over the whole map."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from efafnet.models.config import HeatmapConfig
from efafnet.models.heatmaps import decode, encode, flip_average
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17, SKELETONS, Skeleton

SIZE = InputSize(height=128, width=96)
H, W = 32, 24


def _visible(joints: Tensor) -> Tensor:
    return torch.full(joints.shape[:2], 2, dtype=torch.uint8)


def _config(**settings: Any) -> HeatmapConfig:
    return HeatmapConfig.model_validate(settings)


def _sbn_target(x: float, y: float, sigma: int) -> tuple[NDArray[np.float64], int, bool]:
    """One joint's target as the simple baselines draw it, a patch pasted into zeros; its weight; whether the patch ends
    just before the first column or row, where theirs is 1 over an empty target."""
    target = np.zeros((H, W))
    reach = 3 * sigma
    cx, cy = int(x / 4 + 0.5), int(y / 4 + 0.5)
    left, top, right, bottom = cx - reach, cy - reach, cx + reach + 1, cy + reach + 1
    if left >= W or top >= H or right < 0 or bottom < 0:
        return target, 0, False
    span = np.arange(-reach, reach + 1)
    patch = np.exp(-(span[None, :] ** 2 + span[:, None] ** 2) / (2 * sigma**2))
    rows, columns = slice(max(0, top), min(H, bottom)), slice(max(0, left), min(W, right))
    target[rows, columns] = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return target, 1, 0 in (right, bottom)


@pytest.mark.parametrize("sigma", [1, 2, 3])
def test_quantised_targets_are_sbns_but_for_weights_over_empty_targets(sigma: int) -> None:
    rng = np.random.default_rng(sigma)
    # Well beyond the crop on every side: partly visible and wholly outside patches are among them.
    joints = rng.uniform(-60, 180, (4, 50, 2)).astype(np.float32)
    target = encode(torch.from_numpy(joints), torch.ones(4, 50), SIZE, _config(sigma_px=sigma))
    assert 0.2 < target.weights.mean().item() < 0.9
    empty = 0
    for n in range(4):
        for k in range(50):
            expected, weight, on_the_edge = _sbn_target(float(joints[n, k, 0]), float(joints[n, k, 1]), sigma)
            assert target.weights[n, k].item() == (0 if on_the_edge else weight)
            np.testing.assert_allclose(target.heatmaps[n, k].numpy(), expected, atol=1e-6)
            empty += on_the_edge
    assert empty > 0


def test_targets_of_hrnets_own_code() -> None:
    """`JointsDataset.generate_target` (leoxiaobin/deep-high-resolution-net.pytorch 6f69e46) and mmpose's `MSRAHeatmap`
    (759b39c), run once on these joints: sums of the maps and weights, the same from both. Theirs weigh the fifth and
    the sixth joint 1 over an empty map."""
    joints = [[41, 54], [-5, 40], [-22, 40], [-26, 40], [-30, 40], [40, -30], [115, 40], [119, 40]]
    sums = [25.081289, 15.044705, 0.2756768, 0.0556352, 0, 0, 0.0556352, 0]
    weights = [1, 1, 1, 1, 1, 1, 1, 0]
    target = encode(torch.tensor([joints]).float(), torch.ones(1, 8), SIZE, _config())
    np.testing.assert_allclose(target.heatmaps[0].sum((1, 2)).numpy(), sums, rtol=2e-6)
    assert target.weights[0].tolist() == [w if s else 0 for w, s in zip(weights, sums, strict=True)]


def test_udp_decoding_of_mmposes_own_code() -> None:
    """`UDPHeatmap` of mmpose (759b39c, kernel 11) run once on these maps, back from its frame (/ size * (size - 1))."""
    joints = torch.tensor([[[41.0, 54.0], [7.3, 60.2], [1.0, 1.0], [95.0, 127.0], [60.4, 3.9], [30.7, 119.6]]])
    config = _config(encoding="udp", decoding="udp")
    maps = encode(joints, _visible(joints), SIZE, config).heatmaps
    y, x = np.mgrid[:H, :W]
    ripple = 0.02 * np.sin(1.7 * x + 0.9 * y)[None] * np.arange(6)[:, None, None]
    decoded = decode(0.9 * maps + torch.from_numpy(ripple).float(), SIZE, config)
    # Near the border the published smoothing pulls inwards or, where the map rises towards it, throws outwards.
    expected = [
        [40.99994286, 54.00012272], [8.44491368, 60.19773532], [-2.06163861, -2.04488423],
        [97.07792489, 129.06052220], [60.40720691, 6.29135005], [30.71024128, 118.50495714],
    ]  # fmt: skip
    np.testing.assert_allclose(decoded.joints_px[0].numpy(), expected, atol=1e-4)
    scores = [0.89570963, 0.86498082, 0.88680059, 0.84866875, 0.96025264, 0.95135206]
    np.testing.assert_allclose(decoded.scores[0].numpy(), scores, atol=1e-6)


def test_rounding_is_towards_zero_left_of_the_image() -> None:
    # int(-5/4 + 0.5) is 0 in the peers' code; the floor would be -1.
    target = encode(torch.tensor([[[-5.0, 40.0]]]), torch.ones(1, 1), SIZE, _config())
    assert target.heatmaps[0, 0, 10, 0].item() == 1.0


def test_unlabelled_joints_weigh_nothing_whatever_their_coordinates() -> None:
    joints = torch.tensor([[[math.nan, math.nan], [40.0, 40.0], [40.0, 40.0], [40.0, 40.0]]])
    for encoding in ("quantised", "unquantised", "udp"):
        target = encode(joints, torch.tensor([[0, 0, 1, 2]], dtype=torch.uint8), SIZE, _config(encoding=encoding))
        assert target.weights.tolist() == [[0.0, 0.0, 1.0, 1.0]]
        assert target.heatmaps.isfinite().all()
        assert target.heatmaps[0, :2].abs().max().item() == 0
        assert target.heatmaps[0, 2:].amax((1, 2)).min().item() > 0.9


def test_unquantised_gaussian_is_exact_and_not_cut() -> None:
    target = encode(torch.tensor([[[41.0, 54.0]]]), torch.ones(1, 1), SIZE, _config(encoding="unquantised"))
    y, x = np.mgrid[:H, :W]
    expected = np.exp(-((x - 41 / 4) ** 2 + (y - 54 / 4) ** 2) / (2 * 2**2))
    np.testing.assert_allclose(target.heatmaps[0, 0].numpy(), expected, atol=1e-6)


def test_udp_maps_the_last_pixel_to_the_last_pixel() -> None:
    corners = torch.tensor([[[0.0, 0.0], [95.0, 127.0]]])
    target = encode(corners, torch.ones(1, 2), SIZE, _config(encoding="udp"))
    assert target.heatmaps[0, 0, 0, 0].item() == 1.0
    assert target.heatmaps[0, 1, 31, 23].item() == 1.0


def test_udp_gaussian_stands_exactly_within_a_patch_around_the_nearest_pixel() -> None:
    x = 41.0 * 23 / 95  # 9.926 heatmap pixels
    target = encode(torch.tensor([[[41.0, 0.0]]]), torch.ones(1, 1), SIZE, _config(encoding="udp", sigma_px=1))
    row = target.heatmaps[0, 0, 0]
    expected = [math.exp(-((i - x) ** 2) / 2) if abs(i - 10) <= 3 else 0.0 for i in range(W)]
    np.testing.assert_allclose(row.numpy(), expected, atol=1e-6)


def test_full_resolution_targets() -> None:
    target = encode(torch.tensor([[[41.3, 54.0]]]), torch.ones(1, 1), SIZE, _config(stride=1))
    assert target.heatmaps.shape == (1, 1, 128, 96)
    assert target.heatmaps[0, 0, 54, 41].item() == 1.0


def test_quarter_shift_by_hand() -> None:
    maps = torch.zeros(1, 4, H, W)
    maps[0, 0, 10, 8], maps[0, 0, 10, 9], maps[0, 0, 9, 8] = 1.0, 0.5, 0.3  # right and up
    maps[0, 1, 10, 8] = 1.0  # no neighbour is higher: stays
    maps[0, 2, 10, 1], maps[0, 2, 10, 2] = 1.0, 0.5  # column 1 is too near the border for the peers: stays
    maps[0, 3, 10, 23], maps[0, 3, 10, 22] = 0.7, 0.5
    decoded = decode(maps, SIZE, _config())
    assert decoded.joints_px.tolist() == [[[33.0, 39.0], [32.0, 40.0], [4.0, 40.0], [92.0, 40.0]]]
    assert decoded.scores.tolist() == [[1.0, 1.0, 1.0, pytest.approx(0.7)]]


@pytest.mark.parametrize("decoding", ["argmax", "quarter", "dark"])
def test_a_map_without_positive_values_is_the_origin(decoding: str) -> None:
    maps = torch.full((1, 2, H, W), -1.0)
    maps[0, 0, 5, 5] = 0.0
    decoded = decode(maps, SIZE, _config(decoding=decoding))
    assert decoded.joints_px.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
    assert decoded.scores.tolist() == [[0.0, -1.0]]


def _published_dark(heatmap: NDArray[np.float32], kernel: int) -> tuple[float, float]:
    """DARK as published, for one joint: OpenCV's blur with zeros outside, logarithm, one Newton step inside."""
    h, w = heatmap.shape
    y, x = np.unravel_index(np.argmax(heatmap), heatmap.shape)
    blurred = cv2.GaussianBlur(heatmap, (kernel, kernel), 0, borderType=cv2.BORDER_CONSTANT)
    log = np.log(np.maximum(blurred * heatmap.max() / blurred.max(), 1e-10))
    if not (1 < x < w - 2 and 1 < y < h - 2):
        return float(x), float(y)
    gradient = np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]]) / 2
    xx = 0.25 * (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2])
    yy = 0.25 * (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x])
    xy = 0.25 * (log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1])
    step = -np.linalg.solve(np.array([[xx, xy], [xy, yy]]), gradient)
    return float(x + step[0]), float(y + step[1])


@pytest.mark.parametrize(("sigma", "kernel"), [(2, 11), (3, 17)])
def test_dark_is_the_published_one(sigma: int, kernel: int) -> None:
    torch.manual_seed(sigma)
    joints = torch.rand(6, 20, 2) * torch.tensor([95.0, 127.0])
    maps = encode(joints, _visible(joints), SIZE, _config(encoding="unquantised", sigma_px=sigma)).heatmaps
    maps = 0.8 * maps + 0.02 * torch.rand_like(maps)
    ours = decode(maps, SIZE, _config(encoding="unquantised", decoding="dark", sigma_px=sigma)).joints_px / 4
    theirs = torch.tensor([[_published_dark(m.numpy(), kernel) for m in person] for person in maps])
    steps = (theirs - decode(maps, SIZE, _config(decoding="argmax")).joints_px / 4).abs()
    sane = steps.amax(-1) < 1  # beyond a pixel ours is held back
    assert sane.float().mean() > 0.9
    torch.testing.assert_close(ours[sane], theirs[sane], atol=2e-4, rtol=0)


def test_refinement_stays_put_where_there_is_no_maximum() -> None:
    flat = torch.full((1, 1, H, W), 0.5)
    flat[0, 0, 12, 12] = 0.5001
    for encoding, decoding in (("unquantised", "dark"), ("udp", "udp")):
        config = _config(encoding=encoding, decoding=decoding)
        position = decode(flat, SIZE, config).joints_px
        # At most a pixel of the heatmap from the highest one, never NaN.
        assert (position - torch.tensor([12.0 * SIZE.width / W, 12.0 * SIZE.height / H])).abs().max().item() < 4.5


def _round_trip_errors(config: HeatmapConfig) -> tuple[Tensor, Tensor]:
    """Error in input px (worse axis) and distance to the border of joints all over the crop, corners included."""
    xs, ys = torch.linspace(0, 95, 97), torch.linspace(0, 127, 113)
    joints = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).reshape(1, -1, 2)
    target = encode(joints, _visible(joints), SIZE, config)
    assert target.weights.min().item() == 1
    error = (decode(target.heatmaps, SIZE, config).joints_px - joints).abs().amax(-1)[0]
    border = torch.minimum(joints, torch.tensor([95.0, 127.0]) - joints).amin(-1)[0]
    return error, border


# Tolerances in input px: from the given distance to the border, and over the whole crop.
@pytest.mark.parametrize(
    ("encoding", "decoding", "sigma", "distance", "inside", "anywhere"),
    [
        ("quantised", "argmax", 2.0, 4, 2.001, 3.0),
        ("quantised", "quarter", 2.0, 4, 2.001, 3.0),
        ("quantised", "quarter", 0.75, 4, 2.001, 3.0),
        ("quantised", "dark", 2.0, 20, 2.001, 3.0),
        ("unquantised", "quarter", 2.0, 8, 1.001, 3.0),
        ("unquantised", "dark", 2.0, 24, 0.003, 3.0),
        ("unquantised", "dark", 2.0, 10, 1.1, 3.0),
        ("unquantised", "dark", 0.75, 10, 0.1, 3.0),
        ("unquantised", "dark", 3.0, 30, 0.02, 4.0),
        ("udp", "quarter", 2.0, 8, 1.04, 2.08),
        ("udp", "dark", 2.0, 24, 0.003, 2.08),
        ("udp", "udp", 2.0, 24, 0.001, 4.1),
        ("udp", "udp", 2.0, 10, 0.5, 4.1),
        ("udp", "udp", 3.0, 30, 0.01, 6.1),
    ],
)
def test_round_trip(
    encoding: str, decoding: str, sigma: float, distance: float, inside: float, anywhere: float
) -> None:
    error, border = _round_trip_errors(_config(encoding=encoding, decoding=decoding, sigma_px=sigma))
    assert error[border >= distance].max().item() <= inside
    assert error.max().item() <= anywhere


@pytest.mark.parametrize(("encoding", "decoding"), [("unquantised", "dark"), ("udp", "udp")])
def test_full_resolution_round_trip(encoding: str, decoding: str) -> None:
    config = _config(encoding=encoding, decoding=decoding, stride=1)
    joints = torch.rand(1, 40, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([60.0, 90.0]) + 15
    decoded = decode(encode(joints, _visible(joints), SIZE, config).heatmaps, SIZE, config)
    torch.testing.assert_close(decoded.joints_px, joints, atol=0.01, rtol=0)


def test_decode_takes_half_precision_and_gives_float32() -> None:
    maps = encode(torch.tensor([[[40.0, 60.0]]]), torch.ones(1, 1), SIZE, _config()).heatmaps
    decoded = decode(maps.bfloat16(), SIZE, _config())
    assert decoded.joints_px.dtype == decoded.scores.dtype == torch.float32
    assert decoded.joints_px.tolist() == [[[40.0, 60.0]]]


def test_flip_average_by_hand() -> None:
    # Two joints that swap, 1 x 4 maps. Mirrored back and swapped: [8, 7, 6, 5] and [4, 3, 2, 1].
    flipped = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0, 7.0, 8.0]]]])
    zeros = torch.zeros_like(flipped)
    plain = flip_average(zeros, flipped, (1, 0), shift=False)
    assert plain.tolist() == [[[[4.0, 3.5, 3.0, 2.5]], [[2.0, 1.5, 1.0, 0.5]]]]
    # Shifted right by one; the first column keeps its value.
    shifted = flip_average(zeros, flipped, (1, 0), shift=True)
    assert shifted.tolist() == [[[[4.0, 4.0, 3.5, 3.0]], [[2.0, 2.0, 1.5, 1.0]]]]


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=lambda s: s.name)
def test_flip_test_of_a_perfect_network_agrees_with_itself(skeleton: Skeleton) -> None:
    """Heatmaps of mirrored joints, mirrored back, are the heatmaps of the joints: exactly with UDP's scale."""
    k = skeleton.num_joints
    config = _config(encoding="udp", decoding="udp")
    joints = torch.rand(2, k, 2, generator=torch.Generator().manual_seed(1)) * 60 + 16
    mirrored = joints[:, list(skeleton.flip_permutation)].clone()
    mirrored[..., 0] = SIZE.width - 1 - mirrored[..., 0]
    maps = encode(joints, _visible(joints), SIZE, config).heatmaps
    mirrored_maps = encode(mirrored, _visible(joints), SIZE, config).heatmaps
    averaged = flip_average(maps, mirrored_maps, skeleton.flip_permutation, shift=config.flip_shift)
    torch.testing.assert_close(averaged, maps, atol=1e-5, rtol=0)


def test_the_shift_makes_up_for_mirroring_at_stride_4() -> None:
    config = _config(encoding="unquantised", decoding="dark")
    joints = torch.tensor([[[41.0, 60.0]]])
    mirrored = torch.tensor([[[95.0 - 41.0, 60.0]]])
    maps, mirrored_maps = (encode(j, torch.ones(1, 1), SIZE, config).heatmaps for j in (joints, mirrored))

    def error_px(*, shift: bool) -> float:
        averaged = flip_average(maps, mirrored_maps, (0,), shift=shift)
        return float((decode(averaged, SIZE, config).joints_px[0, 0, 0] - 41.0).item())

    # (W-1-x)/4 mirrored in w columns is x/4 - 3/4: unshifted, the average is 3/8 of a heatmap pixel, 1.5 px, off.
    assert config.flip_shift
    assert error_px(shift=False) == pytest.approx(-1.5, abs=0.02)
    assert error_px(shift=True) == pytest.approx(0.5, abs=0.02)


def test_flip_average_refuses_another_skeletons_permutation() -> None:
    with pytest.raises(ValueError, match="17 entries for 16 heatmaps; use the skeleton"):
        flip_average(torch.zeros(1, 16, 4, 4), torch.zeros(1, 16, 4, 4), COCO_17.flip_permutation, shift=True)


def test_udp_decoding_without_udp_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="decoding=udp belongs to encoding=udp; got encoding=quantised"):
        _config(decoding="udp")
