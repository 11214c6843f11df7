"""Local copies of remote directories: whole files, brought once, known by their digest."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efafnet.platform import mirror as mirror_module
from efafnet.platform.mirror import Mirror, read_remote
from efafnet.platform.storage import sha256_bytes
from tests import crop_data
from tests.waiting import LIMIT_S

_CONTENT = bytes(range(256)) * 100_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFAFNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """Arrow reads file:// as it reads s3:// and gs://."""
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "a.bin").write_bytes(_CONTENT)
    return tmp_path / "remote"


def _fetch(mirror: Mirror) -> Path:
    return mirror.fetch("a.bin", len(_CONTENT), sha256_bytes(_CONTENT))


def test_a_file_is_brought_once(cache: Path, remote: Path) -> None:
    mirror = Mirror.begin(remote.as_uri() + "/", "k")
    path = _fetch(mirror)
    assert path == cache / "remote-k" / "a.bin"
    assert path.read_bytes() == _CONTENT
    shutil.rmtree(remote)
    assert _fetch(Mirror.begin(remote.as_uri(), "k")) == path


def test_a_directory_knows_that_it_is_a_copy(cache: Path, remote: Path) -> None:
    Mirror.begin(remote.as_uri(), "k")
    found = Mirror.at(cache / "remote-k")
    assert found is not None
    assert found.location == remote.as_uri()
    assert Mirror.at(remote) is None


def test_what_a_killed_process_left_is_brought_again(cache: Path, remote: Path) -> None:
    mirror = Mirror.begin(remote.as_uri(), "k")
    (cache / "remote-k" / "a.bin").write_bytes(_CONTENT[:1000])
    assert _fetch(mirror).read_bytes() == _CONTENT


def test_damage_on_the_way_is_an_error_and_leaves_nothing(cache: Path, remote: Path) -> None:
    (remote / "a.bin").write_bytes(_CONTENT[:-1] + b"x")
    with pytest.raises(ValueError, match=r"remote/a.bin has sha256 \w{12} instead of \w{12}: it was damaged"):
        _fetch(Mirror.begin(remote.as_uri(), "k"))
    assert sorted(path.name for path in (cache / "remote-k").iterdir()) == [".a.bin.lock", ".origin", ".use"]


def test_what_is_not_there_is_named(remote: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"remote/b.bin does not exist"):
        Mirror.begin(remote.as_uri(), "k").fetch("b.bin", 1, "")
    with pytest.raises(OSError, match=r"nosuchscheme://x/a cannot be read \(.+\); check the address"):
        read_remote("nosuchscheme://x", "a")


def test_a_full_disk_is_found_before_anything_is_brought(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "free_bytes", lambda _: 10**9)
    mirror = Mirror.begin(remote.as_uri(), "k")
    mirror.make_room(10**9)
    with pytest.raises(OSError, match=r"needs 2.0 GB for its local copy in .*remote-k, 1.0 GB are free; set EFAFNET_"):
        mirror.make_room(2 * 10**9)


def _old_copy(cache: Path, name: str, size: int, used_s: int) -> Path:
    """What an earlier process left: a copy of ``size`` bytes, last opened at ``used_s``."""
    (cache / name).mkdir(parents=True)
    (cache / name / ".origin").write_text("s3://b/" + name)
    (cache / name / "a.bin").write_bytes(bytes(size))
    (cache / name / ".use").touch()
    os.utime(cache / name / ".use", (used_s, used_s))
    return cache / name


def test_copies_that_nobody_uses_make_room_the_longest_unused_first(
    cache: Path, remote: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 MB may be taken: three copies of 3 MB are there, one in use by another process; 6 MB more are wanted."""
    monkeypatch.setenv("EFAFNET_CACHE_GB", "0.01")
    newer, oldest, used = (_old_copy(cache, name, 3 * 10**6, at) for name, at in (("n", 300), ("o", 100), ("u", 50)))
    (cache / "notes").mkdir()  # no copy: nobody's to remove
    (cache / ".x.removed").mkdir()  # what a kill left
    with (used / ".use").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        mirror = Mirror.begin(remote.as_uri(), "k")
        mirror.make_room(10**6 // 2)
        assert newer.exists()
        assert oldest.exists()
        assert not (cache / ".x.removed").exists()
        mirror.make_room(4 * 10**6 - 1000)
        assert (newer.exists(), oldest.exists(), used.exists()) == (True, False, True)
        with pytest.raises(OSError, match=r"needs 0.0 GB .* copies in use take 0.0 GB of EFAFNET_CACHE_GB=0.01; raise"):
            mirror.make_room(8 * 10**6)
        assert (newer.exists(), used.exists(), mirror.directory.exists()) == (False, True, True)
    mirror.make_room(8 * 10**6)
    assert not used.exists(), "its process has ended"
    assert (cache / "notes").exists()
    assert f"{oldest} is removed to make room (0.0 GB)" in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_is_emptied_of_old_copies(cache: Path, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, newer = _old_copy(cache, "o", 10, 100), _old_copy(cache, "n", 10, 200)
    monkeypatch.setattr(mirror_module, "free_bytes", lambda _: 5 if oldest.exists() else 15)
    Mirror.begin(remote.as_uri(), "k").make_room(12)
    assert (oldest.exists(), newer.exists()) == (False, True)


@pytest.mark.parametrize("given", ["much", "-1", "0", "nan"])
def test_a_bound_that_is_none_is_named(remote: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("EFAFNET_CACHE_GB", given)
    with pytest.raises(OSError, match=rf"EFAFNET_CACHE_GB={given}: give a number of gigabytes above 0, or unset it"):
        Mirror.begin(remote.as_uri(), "k").make_room(1)


def test_processes_share_a_copy(remote: Path) -> None:
    """Four at once, one of which brings the file: the others find it, and nobody reads half of it."""
    code = (
        "import sys\n"
        "from efafnet.platform.mirror import Mirror\n"
        "mirror = Mirror.begin(sys.argv[1], 'k')\n"
        "path = mirror.fetch('a.bin', int(sys.argv[2]), sys.argv[3])\n"
        "print(path.stat().st_ino, path.stat().st_size)"
    )
    command = [sys.executable, "-c", code, remote.as_uri(), str(len(_CONTENT)), sha256_bytes(_CONTENT)]
    running = [subprocess.Popen(command, cwd=crop_data.ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate(timeout=LIMIT_S)[0] for process in running}
    assert len(said) == 1
    assert said.pop().split()[1] == str(len(_CONTENT))
