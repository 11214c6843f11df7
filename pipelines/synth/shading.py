"""From depth to colour: cloth by place, patterns, light and the shade of near things. Legend: N samples, S solids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.synth.figure import Surface
from efafnet.pipelines.synth.outfit import Fabric, Pattern
from efafnet.pipelines.synth.raster import Depth
from efafnet.pipelines.synth.solids import Array, Camera, Float32, Frames, Screen
from efafnet.pipelines.synth.textures import Bank, look_up

Painter = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Float32], NDArray[np.int64]]
"""(surface, cloth, frame) (N,) and place (3, N) in metres to cloth (N,); surface is ascending."""


@dataclass(frozen=True)
class Light:
    """One distant lamp and the sky."""

    direction: tuple[float, float, float]
    """Unit vector to the lamp in camera axes (x right, y up, z to the viewer)."""
    ambient: float
    """Share of the light that comes from everywhere, 0 to 1."""
    tint: tuple[float, float, float]
    """Factors on red, green and blue."""


@dataclass(frozen=True)
class Layer:
    """A drawn thing, ready to be laid on a picture; legend: P the pixels it touches."""

    pixels: NDArray[np.intp]
    """(P,): indices into the flattened picture."""
    colour: Float32
    """(P, 3) 0 to 255, multiplied by coverage."""
    coverage: Float32 | None
    """(P,) 0 to 1; None for 1 everywhere."""
    own: NDArray[np.bool_]
    """(P,): whether most of what covers the pixel is no THING."""


def shade(
    depth: Depth, screen: Screen, camera: Camera, frames: Frames, painter: Painter, fabrics: Sequence[Fabric],
    light: Light, noise: Bank, picture_width: int,
) -> Layer:  # fmt: skip
    """Colour what was drawn, for a picture of ``picture_width`` columns."""
    covered = depth.solid >= 0
    flat = np.flatnonzero(covered)
    # Samples in the order of their surfaces, so that each painting rule works on one slice.
    kinds = screen.tags[:, 0].astype(np.uint8)
    flat = flat[np.argsort(kinds[depth.solid.ravel()[flat]], kind="stable")]
    solid = depth.solid.ravel()[flat].astype(np.intp)
    point = _points(depth, flat)
    place = _places(screen, camera, frames, solid, point)
    surface, cloth, frame = screen.tags.T.take(solid, axis=1)
    cloth = painter(surface, cloth, frame, place)
    brightness = _brightness(_normals(screen, solid, point), light)
    brightness *= _occlusion(depth, covered, flat, screen.scale)
    colour = _albedo(cloth, place, fabrics, noise)
    colour *= brightness
    colour *= np.asarray(light.tint, dtype=np.float32)[:, None] * 255
    np.minimum(colour, 255, out=colour)
    return _layer(depth, flat, colour.T, surface != Surface.THING, picture_width)


def _layer(depth: Depth, flat: NDArray[np.intp], colour: Float32, own: NDArray[np.bool_], picture_width: int) -> Layer:
    """Gather samples (N, 3) into pixels."""
    n, (height, width) = depth.oversampling, depth.solid.shape
    start = depth.top * picture_width + depth.left
    if n == 1:
        row = flat // width
        return Layer(flat + row * (picture_width - width) + start, colour, None, own)
    samples = np.zeros((height * width, 5), dtype=np.float32)
    samples[flat, :3] = colour
    samples[flat, 3] = 1
    samples[flat, 4] = own
    # Pixels are n x n blocks; summing strided views is faster than a resize of five channels.
    grid = samples.reshape(height // n, n, width // n, n, 5)
    mean = (grid[:, 0, :, 0] + grid[:, 0, :, 1] + grid[:, 1, :, 0] + grid[:, 1, :, 1]).reshape(-1, 5) * np.float32(0.25)
    touched = np.flatnonzero(mean[:, 3])
    mean = mean[touched]
    pixels = touched + touched // (width // n) * (picture_width - width // n) + start
    return Layer(pixels, mean[:, :3], mean[:, 3], mean[:, 4] >= 0.5 * mean[:, 3])


def _points(depth: Depth, flat: NDArray[np.intp]) -> Float32:
    """Screen points (3, N) of samples."""
    n, width = depth.oversampling, depth.solid.shape[1]
    row, column = np.divmod(flat.astype(np.int32), np.int32(width))
    half = 0.5 / n - 0.5
    return np.stack((
        column * np.float32(1 / n) + np.float32(depth.left + half),
        row * np.float32(1 / n) + np.float32(depth.top + half),
        depth.z.ravel()[flat],
    ))  # fmt: skip


def _affine(table: Array, solid: NDArray[np.intp], point: Float32) -> Float32:
    """Apply each sample's own affine map, of table (S, 3, 4), to points (3, N)."""
    coefficients = table.reshape(len(table), 12).T.astype(np.float32)
    out = np.empty_like(point)
    x, y, z = point
    for k in range(3):
        a, b, c, d = coefficients[4 * k : 4 * k + 4].take(solid, axis=1)
        a *= x
        b *= y
        c *= z
        a += b
        c += d
        np.add(a, c, out=out[k])
    return out


def _normals(screen: Screen, solid: NDArray[np.intp], point: Float32) -> Float32:
    """Unit normals (3, N) in camera axes: the gradient of each quadric, taken back through the lens."""
    shift = (screen.quadratic @ screen.centres[:, :, None]) - screen.linear[:, :, None]
    table = screen.forth.transpose(0, 2, 1) @ np.concatenate((screen.quadratic, -shift), axis=2)
    normal = _affine(table * screen.scale, solid, point)
    length: Float32 = np.sqrt(np.einsum("kn,kn->n", normal, normal)) + np.float32(1e-9)
    return normal / length


def _places(screen: Screen, camera: Camera, frames: Frames, solid: NDArray[np.intp], point: Float32) -> Float32:
    """Where each sample lies in its frame, (3, N) metres."""
    origins, scale = camera.project(frames.origins)
    _, back = camera.lens(origins, scale)
    axes = (frames.rotations.transpose(0, 2, 1) @ camera.rotation.T) @ back
    table = np.concatenate((axes, -(axes @ origins[:, :, None])), axis=2)
    return _affine(table[screen.tags[:, 2]], solid, point)


def _albedo(cloth: NDArray[np.int64], place: Float32, fabrics: Sequence[Fabric], noise: Bank) -> Float32:
    """Reflected share of red, green and blue, (3, N)."""
    first = np.array([fabric.first for fabric in fabrics], dtype=np.float32).T
    albedo = first.take(cloth, axis=1)
    patterned = [index for index, fabric in enumerate(fabrics) if fabric.pattern != Pattern.PLAIN]
    worn = np.bincount(cloth, minlength=len(fabrics))
    for index in patterned:
        if worn[index]:
            chosen = np.flatnonzero(cloth == index)
            mix = _mix(fabrics[index], place.take(chosen, axis=1), noise)
            second = np.asarray(fabrics[index].second, dtype=np.float32)
            albedo[:, chosen] = first[:, index, None] + mix * (second - first[:, index])[:, None]
    grain = np.array([fabric.grain for fabric in fabrics], dtype=np.float32).take(cloth)
    grain *= look_up(noise.cloth, (place[0] + place[2]) * 360, place[1] * 360)
    grain += 1
    albedo *= grain
    return albedo


def _mix(fabric: Fabric, place: Float32, noise: Bank) -> Float32:
    """Share of a fabric's second colour at each place, (N,) 0 to 1."""
    x, y, z = place / np.float32(fabric.period)
    share: NDArray[np.bool_]
    if fabric.pattern == Pattern.BANDS:
        share = np.mod(y, 1) < 0.4
    elif fabric.pattern == Pattern.STRIPES:
        share = np.mod(x + np.float32(0.5), 1) < 0.35
    elif fabric.pattern == Pattern.CHECK:
        twice: Float32 = 0.5 * (np.mod(x, 1) < 0.5).astype(np.float32) + 0.5 * (np.mod(y, 1) < 0.5).astype(np.float32)
        return twice
    elif fabric.pattern == Pattern.DOTS:
        share = (np.mod(x, 1) - 0.5) ** 2 + (np.mod(y + 0.4 * z, 1) - 0.5) ** 2 < 0.08
    elif fabric.pattern == Pattern.MOTTLED:
        share = look_up(noise.clouds[3], (x + z) * 24, y * 24) > 0.2
    else:
        share = y > -0.6
    return share.astype(np.float32)


def _brightness(normal: Float32, light: Light) -> Float32:
    """Light that reaches each sample from the lamp and from the sky, (N,)."""
    # Not a matrix product: its rounding could depend on the number of threads that the library starts.
    x, y, z = (np.float32(v) for v in light.direction)
    lambert: Float32 = x * normal[0] + y * normal[1] + z * normal[2]
    sky: Float32 = np.float32(light.ambient) * (np.float32(0.85) + np.float32(0.25) * normal[1])
    sky += np.float32(1.25 * (1 - light.ambient)) * np.maximum(lambert, 0)
    lit: Float32 = np.minimum(sky, np.float32(1.35))
    return lit


def _occlusion(depth: Depth, covered: NDArray[np.bool_], flat: NDArray[np.intp], scale: float) -> Float32:
    """Darken samples whose surroundings are nearer to the viewer: the contact shade of an arm before the trunk."""
    reach = max(0.03 * scale, 1.0)
    size = max(3, round(0.05 * scale * depth.oversampling)) | 1
    z = np.where(covered, depth.z, np.float32(0))
    weight = cv2.blur(covered.astype(np.float32), (size, size), borderType=cv2.BORDER_REPLICATE)
    mean = cv2.blur(z, (size, size), borderType=cv2.BORDER_REPLICATE)
    higher = mean.ravel()[flat] / weight.ravel()[flat] - z.ravel()[flat]
    shaded: Float32 = 1 - np.float32(0.55) * np.clip(higher / np.float32(reach), 0, 1)
    return shaded
