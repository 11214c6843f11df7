"""A run that was stopped anywhere and started again is the run that was not: step, samples, loss and weights."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from efafnet.pipelines.cli import main
from efafnet.pipelines.training import job as job_module
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.loop import run
from efafnet.platform.checkpoint import load_checkpoint
from efafnet.platform.configuration import to_yaml
from tests.holds import Holds
from tests.training_cases import ROOT, config_of, newest_step, sbn_config_of
from tests.waiting import wait_for

OVERRIDES = ("epochs=3", "trace=true", "checkpoint.every_steps=4", "optimizer.ema_decay=0.9", "tracking.enabled=false")


_HALVES = ("precision=bf16", "compute.micro_batch=5", "batch_size=9", "loss={kind: ohkm, hard_joints: 2}")
_CLIPPED = ("optimizer={kind: adamw, weight_decay: 0.01, clip_norm: 0.05}", "schedule={kind: cosine, warmup_steps: 6}")


class PowerCutError(Exception):
    """Stands for whatever ends a process."""


def trace_of(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run_dir / "trace-rank0.jsonl").read_text().splitlines()]


def run_until(step: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = job_module.Job.count

    def count(self: job_module.Job, *arguments: Any) -> None:
        honest(self, *arguments)
        if self.progress.step == step:
            raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(job_module.Job, "count", count)
        with pytest.raises(PowerCutError):
            run(config, PlainContext(torch.device("cpu")))


def assert_same_run(one: TrainConfig, other: TrainConfig) -> None:
    assert trace_of(one) == trace_of(other)
    a, b = (load_checkpoint(config.run_dir / "latest") for config in (one, other))
    assert a.weights.keys() == b.weights.keys()
    for name, weights in a.weights.items():
        assert all(torch.equal(value, b.weights[name][key]) for key, value in weights.items())
    for key in ("epoch_loss_sum", "epoch_steps", "step", "best_step", "stale_validations"):
        assert a.state["progress"][key] == b.state["progress"][key]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run that nothing stopped, with no settings but ``OVERRIDES``."""
    config = sbn_config_of(tmp_path_factory.mktemp("whole"), *OVERRIDES)
    run(config, PlainContext(torch.device("cpu")))
    return config


def stop_and_go_on(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (3, 7, 11, 14):  # before the first checkpoint; between; twice in one epoch; near the end
        run_until(step, config, monkeypatch)
    run(config, PlainContext(torch.device("cpu")))


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_stopped_run_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: TrainConfig
) -> None:
    cut = sbn_config_of(tmp_path, *OVERRIDES)
    stop_and_go_on(cut, monkeypatch)
    assert_same_run(whole, cut)


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.parametrize(("config_with", "settings"), [(sbn_config_of, _HALVES), (config_of, _CLIPPED)])
def test_a_stopped_run_of_other_settings_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_with: Callable[..., TrainConfig], settings: tuple[str, ...]
) -> None:
    unstopped, cut = (config_with(tmp_path, f"name={name}", *OVERRIDES, *settings) for name in ("unstopped", "cut"))
    run(unstopped, PlainContext(torch.device("cpu")))
    stop_and_go_on(cut, monkeypatch)
    assert_same_run(unstopped, cut)


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_fork_goes_on_under_its_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: TrainConfig
) -> None:
    """Forked with nothing changed it is the same run; with another rate it differs from the first step on."""
    first = sbn_config_of(tmp_path, "name=first", *OVERRIDES)
    run_until(9, first, monkeypatch)  # its newest checkpoint is that of step 8, after those of 4 and of the epoch at 5
    same = sbn_config_of(tmp_path, "name=same", f"fork={first.run_dir}", *OVERRIDES)
    run(same, PlainContext(torch.device("cpu")))
    assert trace_of(same) == trace_of(whole)[8:]
    other = sbn_config_of(tmp_path, "name=other", f"fork={first.run_dir}", "optimizer.lr=1e-4", *OVERRIDES)
    run_until(11, other, monkeypatch)
    assert trace_of(other)[0] == trace_of(whole)[8], "the loss of the first step is that of the weights taken over"
    assert trace_of(other)[1]["rows"] == trace_of(whole)[9]["rows"]
    assert trace_of(other)[1]["loss"] != trace_of(whole)[9]["loss"]
    # The run it came from stays as it was.
    assert sorted(p.name for p in (first.run_dir / "checkpoints").glob("step-*")) == ["step-00000005", "step-00000008"]


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_damaged_newest_checkpoint_costs_its_interval_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: TrainConfig
) -> None:
    cut = sbn_config_of(tmp_path, *OVERRIDES)
    run_until(14, cut, monkeypatch)
    (cut.run_dir / "checkpoints" / "step-00000012" / "network.safetensors").write_bytes(b"torn")
    run(cut, PlainContext(torch.device("cpu")))
    assert_same_run(whole, cut)


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real file system that fills up between two checkpoints, and has room again before the last."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"only root can mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        config = config_of(tmp_path, f"runs={disk}/runs", "validation.overlays=8", *OVERRIDES)
        filler = disk / "filler"
        honest = job_module.Job.count

        def count(self: job_module.Job, *arguments: Any) -> None:
            honest(self, *arguments)
            if self.progress.step == 6:
                self.checkpoints.wait()
                with contextlib.suppress(OSError), filler.open("wb") as file:
                    while True:
                        file.write(bytes(4096))
            if self.progress.step == 13:
                self.checkpoints.wait()
                newest = load_checkpoint(config.run_dir / "latest")  # whole, and from before the disk was full
                assert newest.meta["step"] == 5
                filler.unlink()

        with monkeypatch.context() as patched:
            patched.setattr(job_module.Job, "count", count)
            # The trace is for tests and may fail; everything else must not.
            result = run(config.model_copy(update={"trace": False}), PlainContext(torch.device("cpu")))
        told = " ".join(capsys.readouterr().err.split())
        assert "checkpoint" in told
        assert "No space left on device" in told or "is the disk full?" in told
        assert "pictures of the validation were not written" in told
        assert load_checkpoint(config.run_dir / "latest").meta["step"] == 15
        assert result.metrics["step"] == 15
        assert not list((config.run_dir / "checkpoints").glob(".*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_process_killed_again_and_again_ends_as_one_that_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: TrainConfig
) -> None:
    cut = sbn_config_of(tmp_path, *OVERRIDES)
    preset = tmp_path / "cut.yaml"
    preset.write_text(to_yaml(cut))
    command = [sys.executable, "-m", "efafnet.pipelines", "train", str(preset)]
    holds = Holds(tmp_path / "holds")
    for step in (9, 13):
        holds.at(step)
        process = subprocess.Popen(
            command, cwd=ROOT, env=holds.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _await_checkpoint(cut, step - 1, process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        holds.release(step)
    assert main(["train", str(preset)]) == 0
    assert "resuming at step" in capsys.readouterr().err
    assert_same_run(whole, cut)
    assert main(["train", str(preset)]) == 0
    assert "had ended before" in capsys.readouterr().out


def _await_checkpoint(config: TrainConfig, step: int, process: subprocess.Popen[bytes]) -> None:
    wait_for(f"checkpoint of step {step}", lambda: newest_step(config) >= step, lambda: process.poll() is not None)
