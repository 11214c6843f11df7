"""The directory of a run: which settings it may be gone on with, what is told, and when it is free."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from efafnet.pipelines.training.rundir import RunConflictError, RunDirectory
from efafnet.platform.storage import UnwritableError, read_json, write_json

IDENTITY = {"optimizer.lr": 0.1, "fork": None}


def begun(tmp_path: Path, *files: str) -> RunDirectory:
    """A run that was started with ``IDENTITY`` and left ``files``."""
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.record(directory.claim(IDENTITY, {"test.batch_size": 64}), "")
    for name in files:
        path = directory.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return directory


def test_what_may_change_is_told_once_and_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = begun(tmp_path, "checkpoints/step-00000005/meta.json")
    for told in ("test.batch_size 64 -> 32", ""):
        directory.record(directory.claim(IDENTITY, {"test.batch_size": 32, "compute.new": 1}), "")
        shown = " ".join(capsys.readouterr().err.split())
        assert ("goes on with other settings than before: " + told in shown) if told else not shown


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its record names settings that are in no identity any more, and lacks one that is null."""
    directory = begun(tmp_path, "checkpoints/step-00000005/meta.json")
    old = asdict(directory.claim(IDENTITY)) | {"identity": {"optimizer.lr": 0.1, "optimizer.accumulation": 2}}
    del old["changeable"]
    write_json(directory.path / "run.json", old)
    assert directory.claim(IDENTITY, {"test.batch_size": 32}).changeable == {"test.batch_size": 32}
    with pytest.raises(RunConflictError, match=r"other settings: fork None -> runs/a, optimizer.lr 0.1 -> 0.2; give"):
        directory.claim({"optimizer.lr": 0.2, "fork": "runs/a"})


def test_a_directory_without_a_checkpoint_is_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = begun(
        tmp_path, "train.log", "unlogged.jsonl", "checkpoints/.step-00000005.partial-a/x", "ray/x", ".lock"
    )
    directory.clear_unstarted(IDENTITY)
    assert (directory.path / "train.log").exists(), "the same run goes on"
    other = {**IDENTITY, "optimizer.lr": 0.2}
    directory.clear_unstarted(other)
    assert [path.name for path in directory.path.iterdir()] == [".lock"]
    assert "no checkpoint yet: begun anew" in " ".join(capsys.readouterr().err.split())
    directory.claim(other)
    assert read_json(directory.path / "run.json")["identity"] == other


def test_what_cannot_be_seen_now_is_not_held_for_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that the file server keeps to itself for a moment: nothing is begun anew, nothing removed."""
    directory = begun(tmp_path, "checkpoints/step-00000005/meta.json")

    honest = os.listdir

    def refuse(path: str) -> list[str]:
        if str(path).endswith("checkpoints"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return honest(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(PermissionError):
            directory.clear_unstarted({**IDENTITY, "optimizer.lr": 0.2})
    assert (directory.path / "checkpoints/step-00000005/meta.json").exists()


def test_a_file_system_without_links_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at that moment is not: that is told where something is lost by it."""
    directory, code = RunDirectory(tmp_path / "run"), errno.EPERM

    def refuse(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(UnwritableError, match=r"has no symbolic links \(Operation not permitted\), .*runs="):
        directory.locked().__enter__()
    code = errno.ENOSPC
    with directory.locked():
        pass
    monkeypatch.undo()
    with directory.locked():
        assert [path.name for path in directory.path.iterdir()] == [".lock"]


def test_checkpoints_of_which_no_record_says_the_settings_are_not_gone_on_from(tmp_path: Path) -> None:
    directory = begun(tmp_path, "checkpoints/step-00000005/meta.json")
    (directory.path / "run.json").unlink()
    with pytest.raises(RunConflictError, match=r"holds checkpoints or a result, and no run\.json"):
        directory.claim(IDENTITY)
    assert not (directory.path / "run.json").exists()


@pytest.mark.parametrize("left", ["checkpoints/step-00000005/meta.json", "result.json", "study.db", "notes.txt"])
def test_a_directory_with_anything_of_worth_is_not_free(tmp_path: Path, left: str) -> None:
    directory = begun(tmp_path, left)
    directory.clear_unstarted({**IDENTITY, "optimizer.lr": 0.2})
    assert (directory.path / left).exists()
    with pytest.raises(RunConflictError, match=r"optimizer.lr 0.1 -> 0.2"):
        directory.claim({**IDENTITY, "optimizer.lr": 0.2})
