"""What is there: a file system that cannot say so now has not said no."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efafnet.platform.presence import entries, is_directory, is_there, read_bytes


def failing(code: int) -> Callable[..., Any]:
    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "dangling").symlink_to("nothing")
    places = [tmp_path, tmp_path / "file", tmp_path / "file" / "below", tmp_path / "absent", tmp_path / "dangling"]
    assert [is_there(place) for place in places] == [True, True, False, False, False]
    assert [is_directory(place) for place in places] == [True, False, False, False, False]
    assert entries(tmp_path) == [tmp_path / "dangling", tmp_path / "file"]
    assert entries(tmp_path / "absent") == []
    assert read_bytes(tmp_path / "file") == b"content"


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ETIMEDOUT])
def test_no_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    for ask, asked in ((is_there, "stat"), (is_directory, "stat"), (entries, "listdir")):
        with monkeypatch.context() as patch:
            patch.setattr(os, asked, failing(code))
            with pytest.raises(OSError, match=os.strerror(code)):
                ask(tmp_path)


def test_an_error_in_the_middle_of_reading_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error") as error:
        read_bytes(tmp_path / "run.json")
    assert (error.value.errno, error.value.filename) == (errno.EIO, str(tmp_path / "run.json"))
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "absent")
