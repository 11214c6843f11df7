"""Nothing in the models or the codec reads from the host or waits for the device; shown on a stand-in for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from efafnet.models.config import HeatmapConfig, LossConfig
from efafnet.models.heatmaps import decode, encode, flip_average
from efafnet.models.losses import pose_loss
from efafnet.models.network import normalise
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17
from efafnet.models.variants import variant
from tests.step_transfers import StandInGpu, Transfer, host_batch, network_on, stand_in_gpu

SIZE = InputSize(height=64, width=32)
_DECODINGS = ("argmax", "quarter", "dark", "udp")


@pytest.fixture
def gpu() -> Iterator[StandInGpu]:
    with stand_in_gpu() as made:
        yield made


def _second(gpu: StandInGpu, call: Callable[[], object]) -> list[Transfer]:
    """What the second call copies to the device: the first may make constants."""
    call()
    gpu.transfers.clear()
    call()
    return gpu.transfers


@pytest.mark.parametrize(("name", "kernels"), [("efafnet_nano", True), ("efafnet_nano", False), ("sbn_nano", False)])
def test_a_network_and_its_loss_copy_nothing(name: str, kernels: bool) -> None:
    with stand_in_gpu(kernels=kernels) as gpu:
        row = variant(name)
        network = network_on(gpu.device, row)
        batch = host_batch(row, 2).to(gpu.device)

        def step() -> None:
            target = encode(batch.joints_px, batch.visibility, row.input, row.heatmap)
            inputs = normalise(batch.images).contiguous(memory_format=torch.channels_last)
            pose_loss(network(inputs), target, LossConfig(kind="ohkm")).per_sample.sum().backward()

        assert _second(gpu, step) == []
        assert all(p.grad is not None and p.grad.is_cuda for p in network.parameters())


@pytest.mark.parametrize(
    ("encoding", "decoding"),
    [pair for pair in product(("quantised", "unquantised", "udp"), _DECODINGS) if pair[1] != "udp" or pair[0] == "udp"],
)
def test_the_codec_copies_nothing(gpu: StandInGpu, encoding: str, decoding: str) -> None:
    config = HeatmapConfig.model_validate({"encoding": encoding, "decoding": decoding})
    joints, visibility = torch.empty(2, 17, 2, device="cuda"), torch.ones(2, 17, device="cuda", dtype=torch.uint8)

    def both_ways() -> None:
        heatmaps = encode(joints, visibility, SIZE, config).heatmaps
        both = flip_average(heatmaps, heatmaps, COCO_17.flip_permutation, shift=config.flip_shift)
        decode(both, SIZE, config)

    assert _second(gpu, both_ways) == []


class Careless(torch.autograd.Function):
    """Makes a constant at each backward pass."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        del ctx
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        del ctx
        return grad * torch.tensor([1.0] * 8, device=grad.device)[0]


def test_the_stand_in_sees_every_copy(gpu: StandInGpu) -> None:
    x = torch.empty(4, 3, device="cuda")
    small = torch.tensor(2.0)

    def wrong() -> None:
        torch.tensor([1.0, 2.0], device="cuda")
        x.new_tensor([1.0] * 6)
        x[:, [2, 1, 0, 0]]
        x.new_zeros(3).copy_(torch.zeros(3))
        torch.zeros(5).to("cuda", non_blocking=True)
        x.index_select(0, torch.zeros(7, dtype=torch.int64))
        x * small  # a number, which travels with the kernel
        x.new_full((2,), 3.0)
        Careless.apply(x.detach().requires_grad_()).sum().backward()

    seen = [(*t.shape, t.asynchronous) for t in _second(gpu, wrong)]
    assert seen == [(2, False), (6, False), (4, False), (3, False), (5, True), (7, False), (8, False)]
    assert gpu.transfers[0].where.startswith("test_transfers.py")


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: torch.equal(x, x),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: float(x[0, 0]),
    ],
)
def test_the_stand_in_stops_at_what_waits(gpu: StandInGpu, wait: Callable[[Tensor], object]) -> None:
    x = torch.empty(4, 3, device=gpu.device)
    with pytest.raises(AssertionError, match=r"the host waits for the GPU: test_transfers\.py"):
        wait(x)
