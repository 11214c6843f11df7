from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from efafnet.models.config import HeatmapConfig
from efafnet.models.network import PoseOutput
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.geometry import apply_affine
from efafnet.pipelines.evaluation.inference import predict_batch, predict_batches, predict_heatmaps

INPUT = InputSize(height=64, width=64)
LEFT_EYE, RIGHT_EYE = 1, 2


class ColourNetwork(nn.Module):
    """Finds red and blue: the left eye is where the crop is reddest, the right eye where it is bluest.

    Swaps its answers in a mirrored crop, as a real network would: left and right are told by the green column, which
    marks the left edge of the picture as it was taken.
    """

    def forward(self, images: Tensor) -> PoseOutput:
        small = nn.functional.avg_pool2d(images.float(), 4)
        red, green, blue = small.unbind(1)
        heatmaps = torch.zeros(len(images), 17, *red.shape[1:])
        mirrored = green[:, :, -1].mean(1) > green[:, :, 0].mean(1)
        first = torch.where(mirrored[:, None, None], blue, red)
        second = torch.where(mirrored[:, None, None], red, blue)
        heatmaps[:, LEFT_EYE] = (first - first.amin((1, 2), keepdim=True)) / 10
        heatmaps[:, RIGHT_EYE] = (second - second.amin((1, 2), keepdim=True)) / 10
        return PoseOutput(heatmaps, {})


def _batch(num: int = 2) -> Batch:
    """Red at heatmap cell (3, 5), blue at (11, 9), green at the left edge; crop 1 is magnified 2x and moved."""
    images = torch.zeros(num, 3, 64, 64, dtype=torch.uint8)
    images[:, 0, 20:24, 12:16] = 255
    images[:, 2, 36:40, 44:48] = 255
    images[:, 1, :, :4] = 255
    affine = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]], [[0.5, 0, 100.0], [0, 0.5, 200.0]]], dtype=torch.float64)
    return Batch(
        images=images,
        joints_px=torch.zeros(num, 17, 2),
        visibility=torch.zeros(num, 17, dtype=torch.uint8),
        rows=torch.arange(num),
        input_to_image=affine[:num],
    )


def _predict(network: nn.Module, batch: Batch, flip_test: bool) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    heatmap = HeatmapConfig(decoding="argmax")
    return predict_batch(
        network, batch, skeleton=COCO_17, input_size=INPUT, heatmap=heatmap, flip_test=flip_test
    )  # fmt: skip


def test_joints_come_back_in_pixels_of_the_original_image() -> None:
    joints, scores = _predict(ColourNetwork(), _batch(), flip_test=False)
    # Heatmap cell (3, 5) of stride 4 is input pixel (12, 20): the codec's convention.
    assert joints[0, LEFT_EYE].tolist() == [12.0, 20.0]
    assert joints[0, RIGHT_EYE].tolist() == [44.0, 36.0]
    assert joints[1, LEFT_EYE].tolist() == [106.0, 210.0]
    assert joints.dtype == np.float64
    assert scores.shape == (2, 17)
    assert scores[0, LEFT_EYE] > 0.1


def test_flip_test_averages_with_the_mirror_image_pairs_swapped_and_shifted_by_a_column() -> None:
    plain = predict_heatmaps(
        ColourNetwork(), _batch().images, skeleton=COCO_17, heatmap=HeatmapConfig(), flip_test=False
    )
    flipped = predict_heatmaps(
        ColourNetwork(), _batch().images, skeleton=COCO_17, heatmap=HeatmapConfig(), flip_test=True
    )
    # Mirrored back, both passes agree, except for the shift of one column: half the peak stays, half moves right.
    peak = plain[0, LEFT_EYE, 5, 3]
    assert peak > 0.1
    assert flipped[0, LEFT_EYE, 5, 3] == pytest.approx(peak / 2)
    assert flipped[0, LEFT_EYE, 5, 4] == pytest.approx(peak / 2)
    exact = predict_heatmaps(
        ColourNetwork(), _batch().images, skeleton=COCO_17, heatmap=HeatmapConfig(encoding="udp"), flip_test=True
    )
    assert torch.equal(exact, plain)


def test_the_network_is_in_evaluation_mode_for_the_call_only() -> None:
    class Watcher(ColourNetwork):
        seen: list[bool] = []  # noqa: RUF012 - written by the instance under test

        def forward(self, images: Tensor) -> PoseOutput:
            self.seen.append(self.training or torch.is_grad_enabled())
            return super().forward(images)

    network = Watcher().train()
    _predict(network, _batch(), flip_test=True)
    assert network.seen == [False]
    assert network.training


def test_bf16_runs_under_autocast_and_returns_float32() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 17, 4, stride=4)
            self.dtypes: list[torch.dtype] = []

        def forward(self, images: Tensor) -> PoseOutput:
            heatmaps = self.head(images)
            self.dtypes.append(heatmaps.dtype)
            return PoseOutput(heatmaps, {})

    network = Convolution()
    arguments: dict[str, Any] = {"skeleton": COCO_17, "heatmap": HeatmapConfig(), "flip_test": False}
    exact = predict_heatmaps(network, _batch().images, **arguments, precision="fp32")
    rounded = predict_heatmaps(network, _batch().images, **arguments, precision="bf16")
    assert network.dtypes == [torch.float32, torch.bfloat16]
    assert rounded.dtype == torch.float32
    assert torch.allclose(exact, rounded, atol=0.05)
    assert not torch.equal(exact, rounded)


def test_a_network_that_says_nan_is_an_error() -> None:
    class Broken(ColourNetwork):
        def forward(self, images: Tensor) -> PoseOutput:
            return PoseOutput(super().forward(images).heatmaps * math.nan, {})

    with pytest.raises(ValueError, match="NaN or infinity: training diverged"):
        _predict(Broken(), _batch(), flip_test=False)


def test_affine_with_rotation() -> None:
    quarter_turn = np.array([[[0.0, -2.0, 5.0], [2.0, 0.0, 7.0]]])
    assert apply_affine(quarter_turn, [[[3.0, 4.0]]])[0, 0].tolist() == [-3.0, 13.0]


def test_batches_come_in_order_while_the_next_is_under_way() -> None:
    """What a batch by itself gives, and each handed over only once the one after it has been started."""
    network, started = ColourNetwork(), list[int]()

    def batches() -> Iterator[Batch]:
        for count in (2, 1, 2):
            started.append(count)
            yield _batch(count)

    heatmap = HeatmapConfig(decoding="argmax")
    how: dict[str, Any] = {"skeleton": COCO_17, "input_size": INPUT, "heatmap": heatmap, "flip_test": True}
    seen = []
    for batch, joints, scores in predict_batches(network, batches(), torch.device("cpu"), **how):
        alone = predict_batch(network, batch, **how)
        np.testing.assert_array_equal(joints, alone[0])
        np.testing.assert_array_equal(scores, alone[1])
        seen.append((len(batch), len(started)))
    assert seen == [(2, 2), (1, 3), (2, 3)]


def test_the_flip_test_is_one_pass() -> None:
    sizes: list[int] = []
    network = ColourNetwork()
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    _predict(network, _batch(), flip_test=True)
    assert sizes == [4]
