"""From a stored crop to the network's input."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from efafnet.pipelines.crops.decode import CropDecoder
from efafnet.pipelines.crops.manifest import Encoding
from tests import crop_data


@pytest.mark.parametrize("seed", range(6))
def test_warping_reads_only_what_it_needs_and_misses_nothing(seed: int) -> None:
    """The same as OpenCV's warp of the whole crop, for views inside it, across its borders and beside it.

    Within one grey level, and equal nearly everywhere: OpenCV interpolates in single precision, and coordinates within
    a part are smaller numbers.
    """
    rng = np.random.default_rng(seed)
    crop = crop_data.picture(150, 120, seed)
    for _ in range(40):
        angle, zoom = rng.uniform(-np.pi, np.pi), rng.uniform(0.2, 4)
        linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if rng.random() < 0.5:
            linear[:, 0] *= -1
        affine = np.column_stack([linear, rng.uniform(-200, 250, 2)])
        out = np.full((3, 64, 48), 77, dtype=np.uint8)
        CropDecoder(Encoding()).warp_into(crop, affine, out)
        expected = cv2.warpAffine(crop, affine, (48, 64), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        difference = np.abs(expected[:, :, ::-1].transpose(2, 0, 1).astype(int) - out)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
