from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efafnet.platform import storage
from efafnet.platform.locks import hold
from efafnet.platform.storage import (
    OutputExistsError,
    UnwritableError,
    atomic_directory,
    check_output,
    remove_leftovers,
)

ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_directory_appears_whole_and_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "store"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("1")
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_text("2")
        assert not target.exists()
        assert folder.parent.parent == target.parent, "a rename is atomic only within one file system"
    assert (target / "a").read_text() == "1"
    assert (target / "sub" / "b").read_text() == "2"
    assert names(target.parent) == ["store"]


def test_directory_gets_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with atomic_directory(tmp_path / "store"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o755


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_directory(tmp_path / "store") as folder:
            (folder / "a").write_text("1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == []


def test_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "precious").write_text("1")
    with pytest.raises(OutputExistsError, match=r"output .*/store exists and is not empty; name another"):
        atomic_directory(tmp_path / "store").__enter__()
    (tmp_path / "file").write_text("1")
    with pytest.raises(OutputExistsError, match="is a file or a link"):
        atomic_directory(tmp_path / "file").__enter__()
    assert (tmp_path / "store" / "precious").read_text() == "1"


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with atomic_directory(tmp_path / "store") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path / "store") == ["a"]


def test_output_that_appears_meanwhile_survives(tmp_path: Path) -> None:
    def collide() -> None:
        with atomic_directory(tmp_path / "store") as folder:
            (folder / "mine").write_text("1")
            (tmp_path / "store").mkdir()
            (tmp_path / "store" / "theirs").write_text("2")

    with pytest.raises(OutputExistsError, match="appeared while it was being written"):
        collide()
    assert names(tmp_path) == ["store"]
    assert names(tmp_path / "store") == ["theirs"]


def test_a_file_system_that_fails_at_the_end_is_not_taken_for_another_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if Path(target).name == "out":
            raise OSError(errno.EIO, "Input/output error")
        return honest(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="Input/output error"), atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == []


def test_overwrite_replaces_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "old").write_text("1")
    with atomic_directory(tmp_path / "store", overwrite=True) as folder:
        (folder / "new").write_text("2")
        assert names(tmp_path / "store") == ["old"]
    assert names(tmp_path / "store") == ["new"]
    assert names(tmp_path) == ["store"]


def test_a_place_that_lets_even_root_write_nothing_is_refused_before_the_work() -> None:
    with pytest.raises(UnwritableError, match=r"cannot write output /proc/store: .*; name a writable place"):
        check_output(Path("/proc/store"))


@pytest.mark.parametrize("place", ["/proc/none/store", "{tmp}/file/store"])
def test_unwritable_output_is_one_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    path = Path(place.format(tmp=tmp_path))
    with pytest.raises(UnwritableError, match=f"cannot write output {path}: .*; name a writable place"):
        atomic_directory(path).__enter__()


def test_a_killed_writer_leaves_no_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from efafnet.platform.storage import atomic_directory\n"
        "with atomic_directory(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "store")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        [leftover] = tmp_path.iterdir()
        old = time.time() - 120
        os.utime(leftover, (old, old))
        with atomic_directory(tmp_path / "store"):
            assert leftover.exists(), "a living writer keeps its directory however old it is"
        (tmp_path / "store").rmdir()
        writer.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [leftover.name]
    with atomic_directory(tmp_path / "store"):
        assert not leftover.exists()
    assert names(tmp_path) == ["store"]


def test_a_kill_between_the_two_renames_of_an_overwrite_is_undone(tmp_path: Path) -> None:
    retired = tmp_path / ".store.old-12345678"
    retired.mkdir()
    (retired / "old").write_text("1")
    with pytest.raises(OutputExistsError):
        atomic_directory(tmp_path / "store", overwrite=False).__enter__()
    assert names(tmp_path / "store") == ["old"]


def test_who_holds_the_lock_removes_what_killed_writers_left(tmp_path: Path) -> None:
    """At once, however young it is: a supervisor gives the same command again a second later."""
    kept = ["step-00000001", "damaged-step-00000002", ".lock", ".hidden.txt", "file.partial-0123abcd"]
    gone = [".step-00000003.partial-5abb33ff", ".step-00000001.removed", ".run.json.partial-00ff00ff", ".latest.new"]
    gone += [".step-00000001.old-12345678", ".run.probe-a_b1c2d3"]
    for name in (*kept, *gone):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text("x")
    (tmp_path / ".step-00000009.old-12345678").mkdir()  # between the two renames of an overwrite
    living = tmp_path / ".step-00000004.partial-01234567"
    living.mkdir()
    with hold(living / "lock"):
        remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, living.name, "step-00000009"])
    remove_leftovers(tmp_path / "absent")


def test_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    storage.write_json(path, {"b": 1.5, "a": float("nan"), "c": [float("inf"), None, "ü"]})
    assert json.loads(path.read_text()) == {"b": 1.5, "a": None, "c": [None, None, "ü"]}
    assert storage.read_json(path) == {"b": 1.5, "a": None, "c": [None, None, "ü"]}

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnwritableError, match="No space left on device"):
        storage.write_text(path, "other")
    assert storage.read_json(path)["b"] == 1.5
    assert names(tmp_path) == ["a.json"]


def test_a_full_disk_is_named_with_what_was_being_written(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_directory(tmp_path / "store"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UnwritableError, match=rf"cannot write {tmp_path}/store: No space left on device \(\d+ MB are"):
        fill()
    assert names(tmp_path) == []


def test_file_systems_that_cannot_flush_a_directory_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    code = errno.EINVAL
    storage.flush_directory(tmp_path)
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        storage.flush_directory(tmp_path)


def test_lines_are_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    """A file that may not grow by more than ten bytes stands for a disk that fills up in the middle of a line."""
    path = tmp_path / "lines"
    storage.append_lines(path, b"first\n")
    with path.open("ab") as file:
        file.write(b"begun by a killed proc")
    storage.append_lines(path, b"second\nthird\n")
    whole = b"first\nbegun by a killed proc\nsecond\nthird\n"
    assert path.read_bytes() == whole
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            storage.append_lines(path, b"longer than ten bytes\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(path)
    assert path.read_bytes() == whole


def test_truncated_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON .*may be truncated"):
        storage.read_json(tmp_path / "a.json")


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert storage.sha256_file(tmp_path / "a") == storage.sha256_bytes(b"abc") == known
    assert storage.sha256_json({"b": 1, "a": [2]}) == hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()
    assert storage.sha256_json({"a": [2], "b": 1}) == storage.sha256_json({"b": 1, "a": [2]})


def test_free_space_of_a_place_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert storage.free_bytes(tmp_path / "a" / "b") > 0
