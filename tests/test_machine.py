"""What suits a machine: decided from what its hardware answers, measured where the answer is doubtful."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from efafnet.platform import machine
from efafnet.platform.machine import Precision, WantedPrecision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("onednn", "factor", "expected"),
    [
        (True, 0.55, "bf16"),  # AVX-512 with bf16, or AMX
        (True, 2.1, "fp32"),  # AVX-512 without: oneDNN takes bf16 and emulates it
        (True, 1.0, "fp32"),  # no gain: the wider range of float32's digits is free
        (False, 0.1, "fp32"),  # AVX2: not even asked
    ],
)
def test_a_cpu_computes_in_bf16_only_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, onednn: bool, factor: float, expected: Precision
) -> None:
    monkeypatch.setattr(machine, "_onednn_takes_bf16", lambda: onednn)
    monkeypatch.setattr(machine, "slowdown", lambda *_: factor)
    assert machine.suitable_precision(CPU) == expected
    assert machine.precision_for("auto", CPU) == expected
    assert machine.precision_for("fp32", CPU) == "fp32", "what is asked for is what one gets"


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_computes_in_half_precision(monkeypatch: pytest.MonkeyPatch, has_bf16: bool, expected: Precision) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    # With emulation every GPU says yes, and computes bf16 at the pace of a Volta in float32.

    def answer(including_emulation: bool = True) -> bool:
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    assert machine.suitable_precision(torch.device("cuda", 0)) == expected


def test_this_machines_choice_is_the_faster_one() -> None:
    """The measured factor and oneDNN's answer agree on any CPU: emulation is never chosen, hardware always."""
    factor = machine.slowdown("bf16", CPU)
    assert factor > 0
    chosen = machine.suitable_precision(CPU)
    assert chosen == ("bf16" if machine._onednn_takes_bf16() and factor <= 0.9 else "fp32")
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text() and "amx_bf16" not in Path("/proc/cpuinfo").read_text():
        assert chosen == "fp32"


@pytest.mark.parametrize(
    ("each", "together"),
    [
        (["bf16", "bf16"], "bf16"),
        (["bf16", "fp16", "bf16"], "fp16"),
        (["fp32", "bf16"], "fp32"),
        (["fp16", "fp32"], "fp32"),
    ],
)
def test_workers_on_unlike_devices_compute_alike(each: list[Precision], together: Precision) -> None:
    assert machine.common_precision(each) == together


@pytest.mark.parametrize(
    ("precision", "factor", "told"),
    [
        ("bf16", 6.84, "a small step in bf16 takes 6.8 times as long as in fp32 on this CPU"),
        ("bf16", 1.05, None),
        ("fp32", 9.0, None),
        ("tf32", 9.0, "tf32 is plain fp32 on a CPU"),
    ],
)
def test_what_speaks_against_a_precision_is_measured(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, factor: float, told: str | None
) -> None:
    monkeypatch.setattr(machine, "_onednn_takes_bf16", lambda: False)
    monkeypatch.setattr(machine, "slowdown", lambda *_: factor)
    assert machine.drawback(precision, CPU) == told


@pytest.mark.parametrize(("wanted", "warned"), [("bf16", True), ("auto", False), ("fp32", False)])
def test_who_asks_for_a_slow_precision_is_warned_and_gets_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: WantedPrecision, warned: bool
) -> None:
    monkeypatch.setattr(machine, "_onednn_takes_bf16", lambda: False)
    monkeypatch.setattr(machine, "slowdown", lambda *_: 5.0)
    assert machine.checked_precision(wanted, CPU) == {"bf16": "bf16"}.get(wanted, "fp32")
    assert ("warning: precision = bf16: a small step" in capsys.readouterr().err) == warned


@pytest.fixture
def _float32_as_before() -> Iterator[None]:
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.mark.usefixtures("_float32_as_before")
def test_a_forward_pass_leaves_the_processs_settings_as_they_were() -> None:
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    machine.set_float32("fp32")
    assert (convolutions.allow_tf32, products.allow_tf32) == (False, False), "fp32 is float32, not TF32"
    with machine.arithmetic("tf32", CPU):
        assert (convolutions.allow_tf32, products.allow_tf32) == (True, True)
        assert not torch.is_autocast_enabled("cpu")
    assert (convolutions.allow_tf32, products.allow_tf32) == (False, False)
    with machine.arithmetic("bf16", CPU):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8), (None, 8)]
)
def test_cores_are_those_a_container_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str | None, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert machine.cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("device", "cores", "threads", "expected"),
    [
        ("cpu", 2, 2, False),  # torch's default without hyperthreads: its threads fill the cores
        ("cpu", 16, 16, False),
        ("cpu", 16, 8, True),  # its default with them
        ("cpu", 4, 3, True),  # fewer were given
        ("cpu", 1, 1, False),
        ("cpu", 2, 4, False),  # more than a container's quota
        ("cuda", 1, 1, True),  # the cores have nothing else to do
    ],
)
def test_work_beside_the_networks_needs_a_core_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, cores: int, threads: int, expected: bool
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert machine.has_core_beside(torch.device(device)) is expected
