"""What a run remembers: checkpoints kept, links, damaged and failed writes, foreign networks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from efafnet.pipelines.training import state
from efafnet.pipelines.training.config_groups import CheckpointConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.errors import LostRunError
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.preparation import build_trainee
from efafnet.pipelines.training.state import Checkpoints, Progress, restore
from efafnet.pipelines.training.step import Trainee
from efafnet.platform.checkpoint import Checkpoint, load_checkpoint
from efafnet.platform.storage import UnreadableFileError
from tests.training_cases import sbn_config_of


@pytest.fixture
def trainee(tmp_path: Path) -> Trainee:
    config = sbn_config_of(tmp_path, "optimizer.ema_decay=0.9")
    return build_trainee(config, open_inputs(config), PlainContext(torch.device("cpu")))


def saved(checkpoints: Checkpoints, trainee: Trainee, progress: Progress, ap: float | None = None) -> None:
    if ap is not None:
        progress.note_validation(progress.step, {"ap": ap}, "ap")
    checkpoints.save(trainee, progress, {}, {}, final=False)


def steps_of(checkpoints: Checkpoints) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints.all()]


def test_the_first_of_equal_validations_is_the_best_and_the_others_are_stale() -> None:
    progress = Progress()
    for step, ap in ((10, 0.3), (20, 0.5), (30, 0.5), (40, 0.4)):
        progress.step = step
        progress.note_validation(step, {"ap": ap, "ar": 1 - ap}, "ap")
    assert (progress.best_step, progress.best, progress.stale_validations) == (20, {"ap": 0.5, "ar": 0.5}, 2)
    assert (progress.last_validation, progress.validation["ap"]) == (40, 0.4)
    with pytest.raises(ValueError, match=r"validation.metric = 'pck': validation gives ap, ar; choose one"):
        progress.note_validation(40, {"ap": 1, "ar": 1}, "pck")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path, trainee: Trainee, asynchronous: bool) -> None:
    config = CheckpointConfig(keep_last=2, keep_best=2, asynchronous=asynchronous)
    checkpoints = Checkpoints(tmp_path / "run", config)
    progress = Progress()
    for step, ap in enumerate((0.2, 0.9, 0.1, 0.8, 0.3, None, None), start=1):
        progress.step = step
        saved(checkpoints, trainee, progress, ap)
    checkpoints.close()
    assert steps_of(checkpoints) == [2, 4, 6, 7]
    assert (tmp_path / "run" / "best").resolve().name == "step-00000002"
    assert (tmp_path / "run" / "latest").resolve().name == "step-00000007"
    assert checkpoints.to_use().name == "step-00000002"
    assert [load_checkpoint(path).meta["validated"] for path in checkpoints.all()] == [0.9, 0.8, None, None]


def test_links_are_relative_so_that_a_run_can_be_moved(tmp_path: Path, trainee: Trainee) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig())
    saved(checkpoints, trainee, Progress(step=3), 0.5)
    checkpoints.close()
    (tmp_path / "run").rename(tmp_path / "moved")
    assert load_checkpoint(tmp_path / "moved" / "best").meta["step"] == 3


def newest_of(checkpoints: Checkpoints) -> Path:
    found = checkpoints.newest()
    assert found is not None
    return found[0]


def tear(checkpoint: Path) -> None:
    state = checkpoint / "state.pt"
    state.write_bytes(state.read_bytes()[:-7])


def test_a_damaged_checkpoint_is_passed_over_and_can_be_written_again(
    tmp_path: Path, trainee: Trainee, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    for step in (5, 9):
        saved(checkpoints, trainee, Progress(step=step))
    tear(checkpoints.path(9))
    assert newest_of(checkpoints) == checkpoints.path(5)
    told = " ".join(capsys.readouterr().err.split())
    assert "step-00000009 is torn: state.pt is not what was written" in told
    assert "it is damaged-step-00000009 now" in told
    assert (checkpoints.directory / "damaged-step-00000009" / "meta.json").exists()
    # What is written now is never the one to go, whatever numbers lie around.
    for step in (6, 7, 8, 9):
        saved(checkpoints, trainee, Progress(step=step))
        assert steps_of(checkpoints) == [step - 1, step]
        assert (tmp_path / "run" / "latest").resolve() == checkpoints.path(step)
    assert newest_of(checkpoints) == checkpoints.path(9)


def test_newer_checkpoints_of_others_do_not_drive_out_what_is_written(tmp_path: Path, trainee: Trainee) -> None:
    """As when a file system shows late what an earlier life wrote."""
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    for step in (50, 60):
        saved(checkpoints, trainee, Progress(step=step))
    for step in (7, 8, 9):
        saved(checkpoints, trainee, Progress(step=step))
    assert steps_of(checkpoints) == [8, 9, 50, 60]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(tmp_path: Path, trainee: Trainee) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    for step in (5, 9):
        saved(checkpoints, trainee, Progress(step=step))
        tear(checkpoints.path(step))
    with pytest.raises(LostRunError, match=r"no checkpoint that is whole: .*step-00000009 is torn.*step-00000005 is"):
        checkpoints.newest()
    assert steps_of(checkpoints) == [5, 9], "nothing was changed"
    with pytest.raises(LostRunError, match=r"or move .*checkpoints away to begin at step 0"):
        checkpoints.newest()


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("asked", ["read_bytes", "stat", "iterdir"])
def test_what_cannot_be_read_is_not_taken_for_damaged_or_absent(
    tmp_path: Path, trainee: Trainee, monkeypatch: pytest.MonkeyPatch, code: int, asked: str
) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    for step in (5, 9):
        saved(checkpoints, trainee, Progress(step=step))

    def fails(self: Path, *_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, asked, fails)
        with pytest.raises(OSError, match=os.strerror(code)):
            checkpoints.newest()
    assert newest_of(checkpoints) == checkpoints.path(9)
    assert steps_of(checkpoints) == [5, 9]


def test_the_error_of_an_unreadable_checkpoint_says_that_nothing_was_changed(
    tmp_path: Path, trainee: Trainee, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    saved(checkpoints, trainee, Progress(step=9))

    def fails(self: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(self))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(UnreadableFileError, match=r"step-00000009 is there and cannot be read \(Input/output error\)"):
        checkpoints.newest()


def test_a_failed_write_is_told_and_survived_unless_it_is_the_last(
    tmp_path: Path, trainee: Trainee, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig())
    saved(checkpoints, trainee, Progress(step=1))
    checkpoints.wait()

    def full(path: Path, **_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(state, "save_checkpoint", full)
        saved(checkpoints, trainee, Progress(step=2))
        checkpoints.wait()
        assert "No space left on device" in capsys.readouterr().err
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(trainee, Progress(step=3), {}, {}, final=True)
    assert newest_of(checkpoints) == checkpoints.path(1)
    assert (tmp_path / "run" / "latest").resolve() == checkpoints.path(1)


def test_a_snapshot_does_not_follow_the_training(tmp_path: Path, trainee: Trainee) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig())
    before = {name: value.clone() for name, value in trainee.module.state_dict().items()}
    saved(checkpoints, trainee, Progress(step=1))
    with torch.no_grad():
        for parameter in trainee.module.parameters():
            parameter.zero_()
    checkpoints.close()
    stored = load_checkpoint(checkpoints.path(1)).weights["network"]
    assert all(torch.equal(stored[name], value) for name, value in before.items())


def saved_at(checkpoints: Checkpoints, step: int) -> tuple[Path, Checkpoint]:
    return checkpoints.path(step), load_checkpoint(checkpoints.path(step))


def test_restoring_brings_everything_back(tmp_path: Path, trainee: Trainee) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    for parameter in trainee.module.parameters():
        parameter.grad = torch.randn_like(parameter)
    trainee.optimizer.step()
    progress = Progress(step=7, planned_steps=9, elapsed_s=1.5, epoch_loss_sum=0.25, epoch_steps=3)
    saved(checkpoints, trainee, progress, 0.4)
    config = sbn_config_of(tmp_path, "optimizer.ema_decay=0.9", "seed=5")
    other = build_trainee(config, open_inputs(config), PlainContext(torch.device("cpu")))
    assert restore(*saved_at(checkpoints, 7), other) == progress
    for mine, theirs in zip(trainee.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            a, b = trainee.optimizer.state[mine][name], other.optimizer.state[theirs][name]
            assert torch.equal(a, b)
            # The fused optimizer walks moments and weights in memory order.
            assert a.stride() == b.stride()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, trainee: Trainee) -> None:
    checkpoints = Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    saved(checkpoints, trainee, Progress(step=1))
    wider = sbn_config_of(tmp_path, "network.base_width=12", "optimizer.ema_decay=0.9")
    other = build_trainee(wider, open_inputs(wider), PlainContext(torch.device("cpu")))
    with pytest.raises(ValueError, match="step-00000001 holds the weights of another network"):
        restore(*saved_at(checkpoints, 1), other)


def test_a_run_without_checkpoints_is_refused() -> None:
    with pytest.raises(ValidationError, match="a run without checkpoints is lost"):
        CheckpointConfig(every_epochs=None)
