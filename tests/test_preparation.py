"""Before the first step: the arithmetic of a run is decided once, written down, and kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.preparation import resolve_precision
from efafnet.pipelines.training.rundir import RunConflictError, RunDirectory
from efafnet.platform import machine
from efafnet.platform.machine import Precision

CPU = PlainContext(torch.device("cpu"))


class Group(PlainContext):
    """Rank 0 among workers of which one has a device that suits ``other``."""

    def __init__(self, other: Precision) -> None:
        super().__init__(torch.device("cpu"))
        self._other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, value if value is None else self._other]


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before, benchmark = [backend.allow_tf32 for backend in backends], torch.backends.cudnn.benchmark
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value
    torch.backends.cudnn.benchmark = benchmark


def suits(monkeypatch: pytest.MonkeyPatch, precision: Precision, factor: float = 1.0) -> None:
    monkeypatch.setattr(machine, "suitable_precision", lambda _: precision)
    monkeypatch.setattr(machine, "slowdown", lambda *_: factor)


def begun(tmp_path: Path, precision: str) -> tuple[TrainConfig, RunDirectory]:
    config = TrainConfig.model_validate({"runs": tmp_path, "name": "run", "precision": precision})
    directory = RunDirectory(config.run_dir)
    config.run_dir.mkdir(exist_ok=True)
    directory.claim(config.identity("t", None))
    return config, directory


def test_what_auto_came_to_is_recorded_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suits(monkeypatch, "bf16")
    config, directory = begun(tmp_path, "auto")
    settled, drawbacks = resolve_precision(config, CPU)
    assert (settled.precision, drawbacks) == ("bf16", [])
    known = directory.known()
    assert known is not None
    assert known.identity["precision"] == "bf16"
    assert yaml.safe_load((config.run_dir / "config.yaml").read_text())["precision"] == "bf16"
    # Resumed where bf16 is emulated: it is kept, and what that costs is told.
    suits(monkeypatch, "fp32", factor=6.8)
    settled, drawbacks = resolve_precision(config, CPU)
    assert (settled.precision, drawbacks) == (
        "bf16",
        ["a small step in bf16 takes 6.8 times as long as in fp32 on this CPU"],
    )
    assert directory.claim(config.identity("t", None)).identity["precision"] == "bf16", "auto: as it began"
    assert directory.claim(begun(tmp_path, "bf16")[0].identity("t", None)).digest == known.digest
    with pytest.raises(RunConflictError, match=r"precision bf16 -> fp32; give the old settings"):
        directory.claim({**config.identity("t", None), "precision": "fp32"})


def test_a_run_begun_in_one_precision_stays_in_it_when_auto_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suits(monkeypatch, "bf16")
    begun(tmp_path, "fp32")
    config, _ = begun(tmp_path, "auto")
    assert resolve_precision(config, CPU)[0].precision == "fp32"


@pytest.mark.parametrize(("other", "together"), [("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "fp32")])
def test_workers_compute_as_the_least_able_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Precision, together: str
) -> None:
    suits(monkeypatch, "bf16")
    config = TrainConfig.model_validate({"runs": tmp_path, "name": "run"})
    assert resolve_precision(config, Group(other))[0].precision == together


def test_float32_is_tf32_only_where_that_is_said(tmp_path: Path) -> None:
    for precision, expected in (("fp32", False), ("tf32", True)):
        resolve_precision(TrainConfig.model_validate({"runs": tmp_path, "precision": precision}), CPU)
        assert torch.backends.cudnn.allow_tf32 is expected
        assert torch.backends.cuda.matmul.allow_tf32 is expected
        assert torch.backends.cudnn.benchmark
