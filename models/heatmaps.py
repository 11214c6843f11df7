"""The heatmap codec: joints to target heatmaps and back, in three published conventions.

Shapes: N crops, K joints, H W the input's side lengths in pixels, h w the heatmap's. Coordinates are x, y with 0 at
the centre of the first pixel; "px" alone means input pixels. Everything runs on the tensors' device, without loops.

===========  ======================  ==============================  =======================
encoding     heatmap px of x         centre of the Gaussian          source
===========  ======================  ==============================  =======================
quantised    x / stride              rounded to a heatmap pixel      SBN, HRNet
unquantised  x / stride              exact                           DARK (CVPR 2020)
udp          x (w-1)/(W-1)           exact                           UDP (CVPR 2020)
===========  ======================  ==============================  =======================

Round trip of a perfect heatmap at stride 4, in input pixels along either axis. `quantised`: 2 (half a heatmap pixel),
3 beyond the centre of the last column and row. `unquantised` with `quarter`: 1, at borders as above. DARK and UDP at
sigma 2: 0.003 from 24 px off the border, 1.1 from 10 px; nearer, the published smoothing (zero outside the map)
pulls joints inwards by up to 3.4, with UDP's mixed derivative 4.1. The tests hold these figures.

One rule of the targets is not the peers': a joint whose Gaussian lies wholly left of or above the map by less than a
heatmap pixel has weight 1 and an all-zero target in SBN, HRNet and mmpose (they ask ``br < 0``
of the first column and row that the patch does not cover); here its weight is 0, as on the other two sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from efafnet.models.config import HeatmapConfig
from efafnet.models.constants import constant
from efafnet.models.settings import InputSize

_EPSILON = torch.finfo(torch.float32).eps
"""What UDP's code adds to the diagonal of the Hessian."""


@dataclass
class HeatmapTarget:
    """What the network should say about a batch of crops."""

    heatmaps: Tensor
    """(N, K, h, w) float32, Gaussians of peak 1, cut off at 3 sigma (`unquantised`: not cut); 0 where the weight is."""
    weights: Tensor
    """(N, K) float32: 1 for a joint that counts, 0 for one unlabelled or with its Gaussian wholly outside."""


@dataclass
class Decoded:
    """What a batch of heatmaps says."""

    joints_px: Tensor
    """(N, K, 2) float32, x and y in input pixels."""
    scores: Tensor
    """(N, K) float32, the height of each heatmap's maximum."""


def stride_px(input_size: InputSize, size: tuple[int, int], encoding: str) -> tuple[float, float]:
    """Input pixels per heatmap pixel along x and y, for a heatmap of `size` (h, w)."""
    h, w = size
    if encoding == "udp":
        return (input_size.width - 1) / (w - 1), (input_size.height - 1) / (h - 1)
    return input_size.width / w, input_size.height / h


def encode(joints_px: Tensor, visibility: Tensor, input_size: InputSize, config: HeatmapConfig) -> HeatmapTarget:
    """Target heatmaps of joints.

    Args:
        joints_px: (N, K, 2) x and y in input pixels; of joints with visibility 0 any value, also NaN.
        visibility: (N, K), 0 unlabelled, 1 occluded, 2 visible; occluded joints count like visible ones.
        input_size: of the crops.
        config: how the Gaussians are drawn.
    """
    h, w = input_size.height // config.stride, input_size.width // config.stride
    stride = constant(stride_px(input_size, (h, w), config.encoding), torch.float32, joints_px.device)
    labelled = visibility > 0
    exact = torch.where(labelled[..., None], joints_px.float() / stride, torch.zeros_like(stride))
    # Rounding as the peers do, int(x + 0.5): towards zero, which differs from floor just outside the left edge.
    nearest = (exact + 0.5).trunc()
    centre = nearest if config.encoding == "quantised" else exact
    patch = exact if config.encoding == "unquantised" else nearest
    radius = 3 * config.sigma_px
    limit = constant((w - 1, h - 1), torch.float32, joints_px.device)
    inside = ((patch + radius >= 0) & (patch - radius <= limit)).all(-1)
    weights = (labelled & inside).float()
    cut = math.inf if config.encoding == "unquantised" else radius
    along_x = _profile(w, centre[..., 0], patch[..., 0], config.sigma_px, cut)
    along_y = _profile(h, centre[..., 1], patch[..., 1], config.sigma_px, cut) * weights[..., None]
    return HeatmapTarget(along_y[..., :, None] * along_x[..., None, :], weights)


def _profile(length: int, centre: Tensor, patch: Tensor, sigma: float, cut: float) -> Tensor:
    """(N, K) centres -> (N, K, length): a Gaussian along one axis, 0 further than `cut` from `patch`.

    The two-dimensional Gaussian on a square patch is the product of two of these.
    """
    positions = torch.arange(length, device=centre.device, dtype=torch.float32)
    profile = torch.exp((positions - centre[..., None]).square() / (-2 * sigma**2))
    if math.isinf(cut):
        return profile
    return profile * ((positions - patch[..., None]).abs() <= cut)


def decode(heatmaps: Tensor, input_size: InputSize, config: HeatmapConfig) -> Decoded:
    """Joints of heatmaps (N, K, h, w): position of the maximum, refined as configured, in input pixels.

    A heatmap whose maximum is not positive says nothing: its joint is (0, 0), as in SBN.
    """
    h, w = heatmaps.shape[-2:]
    heatmaps = heatmaps.detach().float()
    scores, index = heatmaps.flatten(2).max(-1)
    peak = torch.stack((index % w, index // w), dim=-1)
    if config.decoding == "quarter":
        position = _quarter(heatmaps, peak)
    elif config.decoding == "dark":
        position = _dark(heatmaps, scores, peak, config.sigma_px)
    elif config.decoding == "udp":
        position = _dark_udp(heatmaps, scores, peak, config.sigma_px)
    else:
        position = peak.float()
    position = torch.where((scores > 0)[..., None], position, torch.zeros_like(position))
    stride = constant(stride_px(input_size, (h, w), config.encoding), torch.float32, heatmaps.device)
    return Decoded(position * stride, scores)


def _at(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values of (N, K, h, w) at integer positions (N, K, M), the nearest one where a position is outside."""
    h, w = maps.shape[-2:]
    index = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    return maps.flatten(2).gather(-1, index)


def _neighbours(maps: Tensor, peak: Tensor, reach: int) -> dict[tuple[int, int], Tensor]:
    """(dx, dy) -> values (N, K) around each peak (N, K, 2): the 3x3 square, and the cross out to `reach`."""
    offsets = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    offsets += [(s * r, 0) for r in range(2, reach + 1) for s in (-1, 1)]
    offsets += [(0, s * r) for r in range(2, reach + 1) for s in (-1, 1)]
    step = constant(tuple(offsets), torch.int64, peak.device)
    values = _at(maps, peak[..., 0, None] + step[:, 0], peak[..., 1, None] + step[:, 1])
    return dict(zip(offsets, values.unbind(-1), strict=True))


def _quarter(heatmaps: Tensor, peak: Tensor) -> Tensor:
    """SBN: a quarter pixel towards the higher neighbour, for peaks at least two pixels from the left and upper edge
    and one from the others (``1 < x < w - 1``).
    """
    h, w = heatmaps.shape[-2:]
    v = _neighbours(heatmaps, peak, 1)
    slope = torch.stack((v[1, 0] - v[-1, 0], v[0, 1] - v[0, -1]), dim=-1)
    limit = constant((w - 1, h - 1), torch.int64, peak.device)
    interior = ((peak > 1) & (peak < limit)).all(-1, keepdim=True)
    return peak + 0.25 * slope.sign() * interior


def _smoothed(heatmaps: Tensor, scores: Tensor, sigma: float) -> Tensor:
    """Heatmaps smoothed by a Gaussian and brought back to their maximum; zero outside, as DARK does.

    DARK's kernels are 11 wide for sigma 2 and 17 for sigma 3, that is out to 2.5 sigma; the kernel's own standard
    deviation follows from its width by OpenCV's rule (2.0 and 2.9).
    """
    radius = math.ceil(2.5 * sigma)
    spread = 0.3 * (radius - 1) + 0.8
    h, w = heatmaps.shape[-2:]
    along_x = _band(w, radius, spread, heatmaps.device)
    along_y = along_x if h == w else _band(h, radius, spread, heatmaps.device)
    # Two matrix products: many times faster than a convolution of thousands of one-channel maps. In float32 even
    # inside a caller's autocast: the logarithm's second differences have no digits to spare.
    with torch.autocast(heatmaps.device.type, enabled=False):
        maps = along_y @ heatmaps @ along_x
    return maps * (scores / maps.amax((2, 3)).clamp_min(1e-10))[..., None, None]


def _band(length: int, radius: int, spread: float, device: torch.device) -> Tensor:
    """(length, length) symmetric matrix whose product smooths along one axis, with zeros beyond both ends."""
    positions = torch.arange(length, device=device, dtype=torch.float32)
    distance = (positions[:, None] - positions).abs()
    taps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    whole = torch.exp(taps.square() / (-2 * spread**2)).sum()
    return torch.exp(distance.square() / (-2 * spread**2)) * (distance <= radius) / whole


def _newton(gradient: tuple[Tensor, Tensor], hessian: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The step -H^-1 g to the maximum of a quadratic, (N, K, 2) heatmap px, at most a pixel along each axis.

    DARK's published code differs where the map has no clean maximum: it steps towards saddles and minima, however far.
    Here such a joint stays at its highest pixel.
    """
    (gx, gy), (xx, xy, yy) = gradient, hessian
    determinant = xx * yy - xy * xy
    # A maximum has a negative definite Hessian; elsewhere (flat or noisy maps) the step would point anywhere.
    sound = (determinant > 1e-12) & (xx < 0)
    safe = torch.where(sound, determinant, torch.ones_like(determinant))
    step = torch.stack((xy * gy - yy * gx, xy * gx - xx * gy), dim=-1) / safe[..., None]
    return torch.where(sound[..., None], step, torch.zeros_like(step)).clamp(-1, 1)


def _dark(heatmaps: Tensor, scores: Tensor, peak: Tensor, sigma: float) -> Tensor:
    """DARK: one Newton step on the logarithm of the smoothed heatmap, for peaks two pixels or more from every edge."""
    h, w = heatmaps.shape[-2:]
    logs = _smoothed(heatmaps, scores, sigma).clamp_min(1e-10).log()
    v = _neighbours(logs, peak, 2)
    gradient = (0.5 * (v[1, 0] - v[-1, 0]), 0.5 * (v[0, 1] - v[0, -1]))
    hessian = (
        0.25 * (v[2, 0] - 2 * v[0, 0] + v[-2, 0]),
        0.25 * (v[1, 1] - v[-1, 1] - v[1, -1] + v[-1, -1]),
        0.25 * (v[0, 2] - 2 * v[0, 0] + v[0, -2]),
    )
    limit = constant((w - 2, h - 2), torch.int64, peak.device)
    interior = ((peak > 1) & (peak < limit)).all(-1, keepdim=True)
    return peak + _newton(gradient, hessian) * interior


def _dark_udp(heatmaps: Tensor, scores: Tensor, peak: Tensor, sigma: float) -> Tensor:
    """UDP's form of DARK, as published: differences of one pixel, edges continued outwards so that border peaks are
    refined, and the step however far and towards whatever it leads (`decoding=dark` holds it back).

    Source: mmpose's ``refine_keypoints_dark_udp``, which is UDP's own; the mixed derivative is theirs too.
    """
    logs = _smoothed(heatmaps, scores, sigma).clamp(1e-3, 50.0).log()
    v = {offset: value.double() for offset, value in _neighbours(logs, peak, 1).items()}
    gx, gy = 0.5 * (v[1, 0] - v[-1, 0]), 0.5 * (v[0, 1] - v[0, -1])
    xx = v[1, 0] - 2 * v[0, 0] + v[-1, 0] + _EPSILON
    yy = v[0, 1] - 2 * v[0, 0] + v[0, -1] + _EPSILON
    xy = 0.5 * (v[1, 1] - v[1, 0] - v[0, 1] + 2 * v[0, 0] - v[-1, 0] - v[0, -1] + v[-1, -1])
    step = torch.stack((xy * gy - yy * gx, xy * gx - xx * gy), dim=-1) / (xx * yy - xy * xy)[..., None]
    return peak + torch.where(step.isfinite(), step, torch.zeros_like(step)).float()


def flip_average(
    heatmaps: Tensor, flipped_heatmaps: Tensor, flip_permutation: tuple[int, ...], *, shift: bool
) -> Tensor:
    """The flip test: the mean of the heatmaps of a crop and those of its mirror image, mirrored back.

    Args:
        heatmaps: (N, K, h, w) of the crops.
        flipped_heatmaps: (N, K, h, w) as the network gave them for the mirrored crops.
        flip_permutation: the skeleton's; joint j of the mirror image is joint ``flip_permutation[j]``.
        shift: move the mirrored maps one column to the right, since mirroring W pixels moves a heatmap of stride s by
            (s-1)/s of its pixel; must be off for UDP (`HeatmapConfig.flip_shift`).
    """
    if len(flip_permutation) != heatmaps.shape[1]:
        raise ValueError(
            f"the flip permutation must name every joint: {len(flip_permutation)} entries for "
            f"{heatmaps.shape[1]} heatmaps; use the skeleton the network was built for"
        )
    back = flipped_heatmaps.flip(-1).index_select(1, constant(flip_permutation, torch.int64, heatmaps.device))
    if shift:
        back = torch.cat((back[..., :1], back[..., :-1]), dim=-1)
    return 0.5 * (heatmaps + back)
