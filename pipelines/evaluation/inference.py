"""From a batch of crops to joints in the original image: the network, the flip test, decoding, the way back.

Legend: N crops, K joints, H W input pixels, h w heatmap pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from efafnet.models.config import HeatmapConfig
from efafnet.models.heatmaps import decode, flip_average
from efafnet.models.network import normalise
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.batch import Batch
from efafnet.platform import machine
from efafnet.platform.machine import WantedPrecision


@contextmanager
def _testing(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def predict_heatmaps(
    network: nn.Module,
    images: Tensor,
    *,
    skeleton: Skeleton,
    heatmap: HeatmapConfig,
    flip_test: bool,
    precision: WantedPrecision = "auto",
) -> Tensor:
    """Heatmaps float32 (N, K, h, w) of uint8 crops (N, 3, H, W) on the network's device, flip test included.

    The mirrored heatmaps are shifted by one column before averaging, unless the targets are UDP's, whose mirror
    image is exact.
    """

    def forward(pixels: Tensor) -> Tensor:
        heatmaps: Tensor = network(pixels).heatmaps
        return heatmaps.float()

    with _testing(network), machine.arithmetic(machine.precision_for(precision, images.device), images.device):
        pixels = normalise(images)
        heatmaps = forward(pixels)
        if flip_test:
            mirrored = forward(pixels.flip(3))
            heatmaps = flip_average(heatmaps, mirrored, skeleton.flip_permutation, shift=heatmap.flip_shift)
    return heatmaps


def predict_batch(
    network: nn.Module,
    batch: Batch,
    *,
    skeleton: Skeleton,
    input_size: InputSize,
    heatmap: HeatmapConfig,
    flip_test: bool,
    precision: WantedPrecision = "auto",
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Joints float64 (N, K, 2) in pixels of the ORIGINAL image and joint scores float32 (N, K) of a batch.

    ``batch.images`` must lie on the network's device. The network is put into evaluation mode for the call only.
    Raises ValueError where the network returns something that is not a number.
    """
    heatmaps = predict_heatmaps(
        network, batch.images, skeleton=skeleton, heatmap=heatmap, flip_test=flip_test, precision=precision
    )
    decoded = decode(heatmaps, input_size, heatmap)
    joints_px = to_image(decoded.joints_px.cpu().numpy(), batch.input_to_image.cpu().numpy())
    scores = decoded.scores.float().cpu().numpy()
    if not (np.isfinite(scores).all() and np.isfinite(joints_px).all()):
        raise ValueError(
            "the network's heatmaps hold NaN or infinity: training diverged or the weights are damaged; "
            "use an earlier checkpoint"
        )
    return joints_px, scores


def to_image(joints_px: NDArray[np.floating], input_to_image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map joints (N, K, 2) in input pixels through affines (N, 2, 3) to pixels of the original image, in float64."""
    linear, shift = input_to_image[:, :, :2], input_to_image[:, :, 2]
    mapped: NDArray[np.float64] = np.einsum("nij,nkj->nki", linear, joints_px.astype(np.float64)) + shift[:, None]
    return mapped
