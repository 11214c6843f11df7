"""What a rate is worth on a device, which worker is slow, and in which pieces gradients travel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efafnet.models.network import build_network
from efafnet.models.variants import variant
from efafnet.pipelines.training.context import PlainContext, bucket_mib
from efafnet.pipelines.training.speed import Rate, WorkerTime, computing_ms, slowest
from efafnet.platform.machine import Precision
from efafnet.platform.peaks import peak_tflops
from tests.training_cases import config_of


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA GH200 144G HBM3e", "bf16", 989.4),
        ("NVIDIA B200", "tf32", 1100),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A100 80GB PCIe", "bf16", 312),
        ("NVIDIA RTX 6000 Ada Generation", "bf16", 364.2),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-32GB", "fp16", 112),
        ("NVIDIA GeForce RTX 5090", "bf16", 209.5),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA A10", "fp32", 31.2),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA GeForce RTX 4090", "fp16", 165.2),
        ("NVIDIA T400", "fp16", None),
        # Each has a known device's name in its own, and another speed.
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", None),
        ("Quadro RTX 6000", "fp16", None),
        ("Somebody's Card", "bf16", None),
    ],
)
def test_peaks_by_name(name: str, precision: Precision, peak: float | None) -> None:
    assert peak_tflops(name, precision) == peak


def test_a_rate_in_tflops_and_as_a_share_of_the_peak() -> None:
    """GPU.md's figure: 6 x 5.16 GMAC is 31 GFLOP a crop; 3,300 crops/s are 102 TFLOP/s, 10.3 % of an H200's 989."""
    rate = Rate(tflop_per_crop=6 * 5.16e9 / 1e12, peak_tflops=989.4, workers=1)
    assert rate.metrics(3300) == {
        "speed/tflops_per_device": pytest.approx(102.2, abs=0.1),
        "speed/mfu": pytest.approx(0.1033, abs=1e-4),
    }
    four = Rate(tflop_per_crop=0.031, peak_tflops=None, workers=4)
    assert four.metrics(4000) == {"speed/tflops_per_device": pytest.approx(31)}


def test_the_rate_of_a_run_counts_the_networks_operations(tmp_path: Path) -> None:
    row = variant("efafnet_r50_256x192")
    config = config_of(tmp_path).model_copy(update={"network": row.network, "input": row.input})
    rate = Rate.of(config, 17, "fp32", PlainContext(torch.device("cpu")))
    assert rate.tflop_per_crop == pytest.approx(6 * 5.16e-3, rel=2e-3)
    assert rate.peak_tflops is None


class Workers(PlainContext):
    """Rank 0 of three, of which the last computes long and the second waits for data."""

    world_size = 3

    def gather(self, value: Any) -> list[Any]:
        return [value, WorkerTime(100, 0.3), WorkerTime(150, 0.01)]


def test_the_slowest_worker_is_named_beside_the_median() -> None:
    figures, told = slowest(Workers(torch.device("cpu")), WorkerTime(98, 0.02))
    assert figures == {
        "speed/compute_ms": 98,
        "speed/compute_ms_slowest": 150,
        "speed/slowest_rank": 2,
        "speed/data_wait_share_worst": 0.3,
    }
    assert told == "rank 2 computes 150 ms, the median is 100 ms; rank 1 waits 30.0% of the time for data"
    assert slowest(PlainContext(torch.device("cpu")), WorkerTime(98, 0.5)) == ({}, "")
    assert computing_ms(None) == 0


def test_gradients_travel_in_equal_pieces_near_25_mib() -> None:
    """EFAFNet R50 with its auxiliary heads: some 143 MiB of gradients, six pieces; a small network is one."""
    row = variant("efafnet_r50_256x192")
    with torch.device("meta"):
        network = build_network(row.network, 17)
        small = build_network(variant("sbn_nano").network, 17)
    whole = sum(p.numel() for p in network.parameters()) * 4 / 2**20
    assert whole == pytest.approx(143, abs=2)
    assert bucket_mib(network) == pytest.approx(whole / 6)
    assert bucket_mib(small) == pytest.approx(sum(p.numel() for p in small.parameters()) * 4 / 2**20)
