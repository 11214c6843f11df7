"""What doctor measures: arithmetic, reading, and presets against the machine."""

from __future__ import annotations

import pytest
import torch

from efafnet.pipelines import fitness
from efafnet.platform import machine
from efafnet.platform.machine import Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_choice_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_onednn_takes_bf16", lambda: True)
    monkeypatch.setattr(machine, "slowdown", lambda *_: 2.1)
    found = fitness.arithmetic(CPU).found
    assert found.startswith("bf16 takes 2.10 times fp32's time on ")
    assert found.endswith("precision=auto is fp32")


def test_cores_that_cannot_feed_a_gpu_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """31 GFLOP a crop: 155 TFLOP/s take 5,000 crops/s. Three cores at 1,000 prepare 3,000, seven prepare 7,000."""
    monkeypatch.setattr(fitness, "crops_per_s", lambda: 1000.0)
    monkeypatch.setattr(machine, "suitable_precision", lambda _: "bf16")
    monkeypatch.setattr(machine, "gflops", lambda *_: 155_000.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    for cores, state in ((4, "warn"), (8, "ok")):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        finding = fitness.feeding(GPU)
        assert finding.state == state
        assert f"{cores - 1} of {cores} read; this GPU takes 5000 at most" in finding.found
    # On CPUs: 62 GFLOP/s a core are 2 crops/s; 149,813 persons on 8 cores take 2.6 hours.
    monkeypatch.setattr(machine, "gflops", lambda *_: 62.0)
    found = fitness.feeding(CPU)
    assert found.state == "ok"
    assert (
        "trains a ResNet-50 on 2.0: on 8 cores reader.threads=auto is 2, and an epoch of COCO takes 3 hours"
        in found.found
    )


def test_reading_is_measured() -> None:
    assert 50 < fitness.crops_per_s() < 50_000


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_arithmetic_is_measured(precision: Precision) -> None:
    """Between an old core that emulates and the peak of any core; the factor told is that of the two rates."""
    rate = machine.gflops(precision, CPU)
    assert 0.1 < rate < 2_000
    assert machine.gflops("fp32", CPU) / rate == pytest.approx(machine.slowdown(precision, CPU))


def test_presets_that_want_more_cores_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert [finding.what for finding in fitness.misfits(0)] == []
    monkeypatch.setattr(machine, "cores", lambda: 1)
    [finding] = fitness.misfits(0)
    assert (finding.state, finding.what) == ("warn", "preset synth_nano")
    assert finding.found.startswith("workers = 2: this machine has room for 1")
