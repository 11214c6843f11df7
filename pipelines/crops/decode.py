"""From encoded crops to the network's input: decode, warp, lay out as planes. OpenCV releases the interpreter lock."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from efafnet.pipelines.crops.geometry import Float64
from efafnet.pipelines.crops.manifest import Encoding

UInt8 = npt.NDArray[np.uint8]

# Coordinates refer to the stored pixels, so an orientation tag must not turn the picture.
DECODE_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_WARP_FLAGS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


class UndecodableCropError(ValueError):
    """A crop whose bytes arrived and are no picture, or not the one that the store describes."""


@dataclass(frozen=True)
class CropDecoder:
    """Decodes the crops of one store."""

    encoding: Encoding
    """How they are stored."""

    @property
    def planes(self) -> tuple[int, int, int]:
        """Place of red, green and blue among the channels of what :meth:`decode` returns."""
        return (0, 1, 2) if self.encoding.format == "raw" else (2, 1, 0)

    def decode(self, data: UInt8, width: int, height: int) -> UInt8:
        """Crop (height, width, 3) uint8 from its bytes.

        Raises:
            UndecodableCropError: they are not such a crop.
        """
        if self.encoding.format == "raw":
            if data.size == height * width * 3:
                return data.reshape(height, width, 3)
            image = None
        else:
            image = cv2.imdecode(data, DECODE_FLAGS) if data.size else None
        if image is None or image.shape != (height, width, 3):
            found = "cannot be decoded" if image is None else f"decodes to {image.shape[1]}x{image.shape[0]}"
            raise UndecodableCropError(
                f"a crop of {width}x{height} pixels {found}: the store is damaged; prepare it again"
            )
        return image  # type: ignore[return-value]

    def warp_into(self, image: UInt8, input_to_crop: Float64, out: UInt8) -> None:
        """Sample ``image`` (h, w, 3) bilinearly at ``input_to_crop`` (2, 3) into ``out`` (3, H, W) RGB, outside 0."""
        height, width = out.shape[1:]
        image, affine = _needed(image, input_to_crop, width, height)
        # OpenCV warps four channels in half the time of three, to the same values.
        padded = _scratch("padded", (*image.shape[:2], 4))
        warped = _scratch("warped", (height, width, 4))
        cv2.cvtColor(image, cv2.COLOR_BGR2BGRA, dst=padded)
        cv2.warpAffine(padded, affine, (width, height), dst=warped, flags=_WARP_FLAGS)
        red, green, blue = self.planes
        planes = [_scratch("alpha", (height, width))] * 4
        planes[red], planes[green], planes[blue] = out[0], out[1], out[2]
        cv2.split(warped, planes)


def _needed(image: UInt8, input_to_crop: Float64, width: int, height: int) -> tuple[UInt8, Float64]:
    """The part of ``image`` (h, w, 3) that an input of ``width`` x ``height`` pixels shows, and the affine to it.

    On average half of a crop: the rest is there for other rotations and scales.
    """
    (a, b, x), (c, d, y) = input_to_crop.tolist()
    across, down = width - 1, height - 1
    # Interpolation reads the pixel after; one more on all sides against rounding.
    left = math.floor(x + min(0.0, a * across) + min(0.0, b * down)) - 1
    right = math.ceil(x + max(0.0, a * across) + max(0.0, b * down)) + 3
    top = math.floor(y + min(0.0, c * across) + min(0.0, d * down)) - 1
    bottom = math.ceil(y + max(0.0, c * across) + max(0.0, d * down)) + 3
    left, top = min(max(left, 0), image.shape[1] - 1), min(max(top, 0), image.shape[0] - 1)
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    return part, np.array([[a, b, x - left], [c, d, y - top]])


_THREAD = threading.local()


def _scratch(name: str, shape: tuple[int, ...]) -> UInt8:
    """This thread's buffer of that name: fresh memory costs more (in page faults) than the work done in it."""
    size = math.prod(shape)
    held: UInt8 | None = getattr(_THREAD, name, None)
    if held is None or held.size < size:
        held = np.empty(size, dtype=np.uint8)
        setattr(_THREAD, name, held)
    return held[:size].reshape(shape)
