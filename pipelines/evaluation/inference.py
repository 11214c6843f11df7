"""From a batch of crops to joints in the original image: the network, the flip test, decoding, the way back.

Legend: N crops, K joints, H W input pixels, h w heatmap pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
from efafnet.pipelines.crops.geometry import apply_affine
from efafnet.platform import machine
from efafnet.platform.machine import WantedPrecision


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device, in NHWC order: what convolutions in half precision want on a GPU, and on a CPU too."""
    return network.to(device).to(memory_format=torch.channels_last)


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

    # Before gradients are off: what suits a device may be found by a small step.
    found = machine.precision_for(precision, images.device)
    with _testing(network), machine.arithmetic(found, images.device):
        pixels = normalise(images)
        if not flip_test:
            return forward(pixels)
        # In one pass: half as many launches, each twice as large.
        heatmaps, mirrored = forward(torch.cat((pixels, pixels.flip(3)))).chunk(2)
        return flip_average(heatmaps, mirrored, skeleton.flip_permutation, shift=heatmap.flip_shift)


@dataclass(frozen=True)
class PendingPrediction:
    """Joints and scores of a batch that the device may still be computing."""

    batch: Batch
    found: Tensor
    """float32 (N, K, 3) on the host: x, y in input pixels and the score; whole once ``copied`` has happened."""
    copied: torch.cuda.Event | None

    def result(self) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Wait for the device; returns and raises as ``predict_batch``."""
        if self.copied is not None:
            self.copied.synchronize()
        found = self.found.numpy()
        joints_px = apply_affine(self.batch.input_to_image.cpu().numpy(), found[..., :2])
        scores = found[..., 2].copy()
        if not (np.isfinite(scores).all() and np.isfinite(joints_px).all()):
            raise ValueError(
                "the network's heatmaps hold NaN or infinity: training diverged or the weights are damaged; "
                "use an earlier checkpoint"
            )
        return joints_px, scores


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
    how: dict[str, Any] = {"skeleton": skeleton, "heatmap": heatmap, "flip_test": flip_test, "precision": precision}
    return _launch(network, batch, input_size, **how).result()


def predict_batches(
    network: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    skeleton: Skeleton,
    input_size: InputSize,
    heatmap: HeatmapConfig,
    flip_test: bool,
    precision: WantedPrecision = "auto",
) -> Iterator[tuple[Batch, NDArray[np.float64], NDArray[np.float32]]]:
    """Each batch with its joints and scores, as ``predict_batch``, in order; the next is under way meanwhile.

    ``batches`` may lie on the host; a GPU computes one while the results of the one before are brought home and used.
    """
    how: dict[str, Any] = {"skeleton": skeleton, "heatmap": heatmap, "flip_test": flip_test, "precision": precision}
    before: PendingPrediction | None = None
    for batch in batches:
        underway = _launch(network, batch.to(device), input_size, **how)
        if before is not None:
            yield (before.batch, *before.result())
        before = underway
    if before is not None:
        yield (before.batch, *before.result())


def _launch(
    network: nn.Module, batch: Batch, input_size: InputSize, *, heatmap: HeatmapConfig, **how: Any
) -> PendingPrediction:
    heatmaps = predict_heatmaps(network, batch.images, heatmap=heatmap, **how)
    decoded = decode(heatmaps, input_size, heatmap)
    found = torch.cat((decoded.joints_px.float(), decoded.scores.float()[..., None]), dim=-1)
    if found.device.type != "cuda":
        return PendingPrediction(batch, found.cpu(), None)
    # One copy, for which nobody waits until the figures are wanted.
    host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
    host.copy_(found, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(found.device))
    return PendingPrediction(batch, host, copied)
