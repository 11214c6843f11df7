"""Copies of checkpoints on pyarrow's file systems: whole or absent, kept like those on disk, and taken back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.loop import run
from efafnet.pipelines.training.ray_run import train
from efafnet.platform.checkpoint import load_checkpoint, save_checkpoint
from efafnet.platform.checkpoint_copies import CheckpointCopies
from tests.test_resume import OVERRIDES, run_until, trace_of
from tests.training_cases import sbn_config_of

SHORT = (*OVERRIDES, "epochs=2", "validation.overlays=0")


def write(path: Path) -> Path:
    save_checkpoint(path, weights={"network": {"a": torch.arange(5.0)}}, state={"n": 1}, config={}, meta={"step": 3})
    return path


def test_a_checkpoint_comes_back_as_it_went(tmp_path: Path) -> None:
    copies = CheckpointCopies(f"file://{tmp_path}/there", "run")
    assert copies.names() == []
    copies.push(write(tmp_path / "step-00000003"))
    assert copies.names() == ["step-00000003"]
    copies.pull("step-00000003", tmp_path / "back")
    assert load_checkpoint(tmp_path / "back").weights["network"]["a"].tolist() == [0, 1, 2, 3, 4]
    copies.remove("step-00000003")
    assert copies.names() == []
    assert list((tmp_path / "there" / "run").iterdir()) == []


def test_half_a_copy_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efafnet.platform import checkpoint_copies

    copies = CheckpointCopies(f"file://{tmp_path}/there", "run")
    sent: list[str] = []
    honest = checkpoint_copies._send

    def dies(files: Any, path: Path, there: str) -> None:
        if len(sent) == 2:
            raise OSError("connection lost")
        sent.append(path.name)
        honest(files, path, there)

    monkeypatch.setattr(checkpoint_copies, "_send", dies)
    with pytest.raises(OSError, match="connection lost"):
        copies.push(write(tmp_path / "step-00000003"))
    assert len(list((tmp_path / "there" / "run" / "step-00000003").iterdir())) == 2
    assert copies.names() == []


def test_files_of_the_run_travel_too(tmp_path: Path) -> None:
    copies = CheckpointCopies(f"file://{tmp_path}/there", "run")
    assert not copies.pull_file(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{}")
    copies.push_file(tmp_path / "run.json")
    (tmp_path / "run.json").unlink()
    assert copies.pull_file(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text() == "{}"


def test_an_address_nobody_knows_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint.copy_to = ftp://x/y: ftp://x/y is no address pyarrow can open"):
        train(sbn_config_of(tmp_path, "checkpoint.copy_to=ftp://x/y"))


def copied(tmp_path: Path, name: str) -> TrainConfig:
    return sbn_config_of(tmp_path, "name=run", f"runs={tmp_path}/{name}", f"checkpoint.copy_to=file://{tmp_path}/there",
                     *SHORT)  # fmt: skip


@pytest.mark.slow
def test_a_run_that_lost_its_disk_goes_on_from_the_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sbn_config_of(tmp_path, *SHORT)
    run(whole, PlainContext(torch.device("cpu")))
    cut = copied(tmp_path, "lost")
    run_until(7, cut, monkeypatch)
    kept = sorted(path.name for path in (cut.run_dir / "checkpoints").glob("step-*"))
    assert CheckpointCopies(f"file://{tmp_path}/there", "run").names() == kept
    shutil.rmtree(cut.run_dir)
    again = copied(tmp_path, "other_disk")
    run(again, PlainContext(torch.device("cpu")))
    # Steps 1 to 5 were trained on the lost disk: the end of the first epoch is its newest checkpoint.
    assert trace_of(again) == trace_of(whole)[5:]
    assert load_checkpoint(again.run_dir / "best").meta["step"] == load_checkpoint(whole.run_dir / "best").meta["step"]


def test_a_store_that_is_away_costs_copies_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CheckpointCopies, "push", away)
    config = copied(tmp_path, "runs")
    run(config, PlainContext(torch.device("cpu")))
    assert load_checkpoint(config.run_dir / "latest").meta["step"] == 10
    assert "no route to host" in capsys.readouterr().err
