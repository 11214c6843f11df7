"""Local copies of remote directories: whole files, brought once, known by their digest."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efafnet.platform import mirror as mirror_module
from efafnet.platform.mirror import Mirror, read_remote
from efafnet.platform.storage import sha256_bytes
from tests import crop_data

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
    assert sorted(path.name for path in (cache / "remote-k").iterdir()) == [".a.bin.lock", ".origin"]


def test_what_is_not_there_is_named(remote: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"remote/b.bin does not exist"):
        Mirror.begin(remote.as_uri(), "k").fetch("b.bin", 1, "")
    with pytest.raises(OSError, match=r"nosuchscheme://x/a cannot be read \(.+\); check the address"):
        read_remote("nosuchscheme://x", "a")


def test_a_full_disk_is_found_before_anything_is_brought(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "free_bytes", lambda _: 10**9)
    mirror = Mirror.begin(remote.as_uri(), "k")
    mirror.check_space(10**9)
    with pytest.raises(OSError, match=r"needs 2.0 GB for its local copy in .*remote-k, 1.0 GB are free; set EFAFNET_"):
        mirror.check_space(2 * 10**9)


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
    said = {process.communicate(timeout=120)[0] for process in running}
    assert len(said) == 1
    assert said.pop().split()[1] == str(len(_CONTENT))
