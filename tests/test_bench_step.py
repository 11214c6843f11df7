"""What `bench_step` does on a GPU, all of it, on one that is not there: nothing of it runs anywhere else."""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks import bench_step, step_parts
from benchmarks.record import Record
from benchmarks.step_parts import Part
from efafnet.models.variants import variant
from efafnet.platform import machine
from tests.step_transfers import stand_in_gpu

CARD = "NVIDIA H100 PCIe"
EVENTS = [(DeviceType.CUDA, 700.0, False), (DeviceType.CUDA, 300.0, False), (DeviceType.CUDA, 900.0, True),
          (DeviceType.CPU, 5000.0, False)]  # fmt: skip
"""Device, microseconds, and whether it is the name of a span: two kernels that took a millisecond."""


class Profile:
    """What torch's profiler would have seen."""

    def __init__(self, **given: Any) -> None:
        assert torch.profiler.ProfilerActivity.CUDA in given["activities"]

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None: ...

    def events(self) -> list[Any]:
        return [SimpleNamespace(device_type=d, device_time=t, is_user_annotation=a) for d, t, a in EVENTS]


class Graphed:
    """In place of steps by a graph, which tensors without values cannot be held against."""

    def __init__(self, trainee: object) -> None:
        del trainee

    def __call__(self, *arguments: object) -> None: ...


def test_what_would_not_end_in_time_is_left_out_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling first of all; asked for alone it is measured whatever the time, beside the same as written."""
    measured: list[tuple[str, int]] = []

    def measure(rows: list[Any], mode: bench_step.Mode, *_: object) -> list[list[object]]:
        measured.append((mode.name, len(rows)))
        return []

    monkeypatch.setattr(bench_step, "measure", measure)
    monkeypatch.setattr(bench_step, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    networks, gpu, record = [variant("sbn_nano")] * 3, torch.device("cuda", 0), mock.Mock()

    def modes(left_s: float, *only: bench_step.Table) -> tuple[list[tuple[str, int]], list[Any]]:
        measured.clear()
        told = bench_step.modes_table(networks, 2, 1, gpu, left_s, record, only or bench_step.TABLES)
        return measured[:], [row[1] for row in told if row[2] == "not run"]

    names = [mode.name for mode in bench_step.GPU_MODES]
    plain, compiled = [(name, 3) for name in names[:-1]], (names[-1], 2)
    assert modes(1e6) == ([*plain, compiled], [])
    assert modes(bench_step.COMPILING_S - 1) == (plain, [names[-1]] * 2)
    assert modes(0) == ([], [name for name in names[:-1] for _ in networks] + [names[-1]] * 2)
    assert modes(0, "compiled") == ([("bf16, channels_last", 2), compiled], [])
    assert modes(1e6, "modes") == (plain, [])
    parts = [Part(variant("sbn_nano"), 2), Part(variant("efafnet_nano"), 2)]
    monkeypatch.setattr(step_parts, "parts", lambda _: parts)
    told = bench_step.parts_table(2, gpu, 0.0, record)
    assert [row[:3] for row in told] == [["sbn_nano", 2, "not run"], ["efafnet_nano", 2, "not run"]]


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.filterwarnings("ignore:CUDA is not available")  # the GPU is pretended
def test_the_tables_of_a_gpu_are_made_to_their_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = variant("efafnet_nano")
    broken = mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory\nand more"))
    cuda = {"synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None,
            "max_memory_allocated": 2**30, "get_device_name": CARD}  # fmt: skip
    for name, answer in cuda.items():
        # With the real one's arguments: what it would not take is an error.
        stub = mock.create_autospec(getattr(torch.cuda, name), return_value=answer)
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(step_parts, "profile", Profile)
    monkeypatch.setattr(step_parts, "GraphedStep", Graphed)
    # Each of these steps takes a third of a second here.
    monkeypatch.setattr(step_parts, "_clock", lambda *_, **__: 0.002)
    parts = [Part(small, 2, ("fam", "fsm")), Part(small, 4)]
    monkeypatch.setattr(step_parts, "parts", lambda count: parts if count == 2 else [])
    monkeypatch.setattr(bench_step, "NETWORKS", ("sbn_nano", "efafnet_nano"))
    monkeypatch.setattr(bench_step, "GPU_MODES", bench_step.GPU_MODES[-2:])
    monkeypatch.setattr(bench_step, "ceiling", lambda *_: 1.0)
    # What the trainer sets for the whole process, and a test must not.
    settings = mock.Mock()
    for name in ("expect_constant_shapes", "set_float32"):
        monkeypatch.setattr(machine, name, getattr(settings, name))
    real = step_parts.measured
    monkeypatch.setattr(step_parts, "measured", lambda part, *rest: (broken if part.count == 4 else real)(part, *rest))
    given = argparse.Namespace(batch=2, steps=1)
    record = Record.begun("bench_step", given)
    # Compiling would not fit any more, and is said to be left out; the rest fits however slow this machine is.
    monkeypatch.setattr(bench_step, "MEASURING_S", float("-inf"))
    until = time.perf_counter() + bench_step.COMPILING_S - 1
    with stand_in_gpu() as gpu:
        bench_step.tables(given, gpu.device, until, record)
    told = capsys.readouterr().out
    assert record.figures["efafnet_nano, 2 crops, kernels"].values == (1.0,)
    assert record.figures["efafnet_nano, 2 crops, as a CUDA graph"].values == (2.0,)
    assert "efafnet_nano, bf16, channels_last, 2 crops" in record.figures
    assert "failed:" in told
    assert "not run" in told
    assert settings.mock_calls == [mock.call.expect_constant_shapes(), *[mock.call.set_float32("bf16")] * 2]
    assert CARD in told
