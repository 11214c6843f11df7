"""Locks: held by one, dropped by the dead, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from efafnet.pipelines.training.rundir import RunConflictError, RunDirectory
from efafnet.platform import locks, mounts
from efafnet.platform.locks import LockHeldError, clock_of, hold
from tests.waiting import LIMIT_S, wait_for


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses locks, as NFSv3 without lockd."""

    def refuse(_handle: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_told", set())


def dead_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def leave_lease(path: Path, *, machine: str, pid: int, age_s: float) -> None:
    """The lease that a killed holder of ``path`` left."""
    lease = path.with_name(f"{path.name}.lease")
    lease.write_text(json.dumps({"host": "elsewhere", "pid": pid, "machine": machine}))
    os.utime(lease, (time.time() - age_s,) * 2)


def test_one_holder_at_a_time_and_the_other_learns_who(tmp_path: Path) -> None:
    with hold(tmp_path / "lock"), pytest.raises(LockHeldError, match=f"is held by process {os.getpid()} on "):
        hold(tmp_path / "lock").__enter__()
    with hold(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").stat().st_mode & 0o111 == 0, "a lock is no program"


def test_the_dead_hold_nothing(tmp_path: Path) -> None:
    code = (
        "import fcntl, os, sys; handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); "
        "fcntl.flock(handle, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LockHeldError, match="is held by another process"):
            hold(tmp_path / "lock").__enter__()
        holder.kill()
        with hold(tmp_path / "lock", wait_s=LIMIT_S):
            pass


@pytest.mark.usefixtures("no_flock")
def test_where_locks_are_refused_a_lease_stands_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lock"
    with hold(path):
        assert (tmp_path / "lock.lease").exists()
        with pytest.raises(LockHeldError, match=f"is held by process {os.getpid()} on "):
            hold(path).__enter__()
    assert not (tmp_path / "lock.lease").exists()
    with hold(path):
        pass
    assert capsys.readouterr().err.count("refuses locks (No locks available)") == 1, "said, and said once"


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize(
    ("machine", "pid", "age_s", "is_free"),
    [
        ("another", 1, 30.0, False),  # touched lately: its holder lives
        ("another", 1, 3 * locks.STALE_AFTER_S, True),
        ("this", os.getpid(), 30.0, False),
        ("this", None, 0.0, True),  # no need to wait: it is known to be dead
    ],
    ids=["touched lately", "stale", "this process", "a dead process"],
)
def test_leases_of_the_dead_are_taken_over(
    tmp_path: Path, machine: str, pid: int | None, age_s: float, is_free: bool
) -> None:
    path, pid = tmp_path / "lock", pid or dead_process()
    leave_lease(path, machine=locks._machine() if machine == "this" else machine, pid=pid, age_s=age_s)
    if is_free:
        with hold(path):
            assert json.loads((tmp_path / "lock.lease").read_text())["pid"] == os.getpid()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["lock"]
    else:
        with pytest.raises(LockHeldError, match=f"is held by process {pid} on elsewhere"):
            hold(path).__enter__()
        assert (tmp_path / "lock.lease").exists()


@pytest.mark.usefixtures("no_flock")
def test_who_stood_still_until_another_took_over_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a machine that was suspended for minutes. The other's lease is left alone."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    lease, other = tmp_path / "lock.lease", json.dumps({"host": "elsewhere", "pid": 7, "machine": "another"})
    with hold(tmp_path / "lock"):
        lease.unlink()
        wait_for("a lease that was removed to be there again", lease.exists)
        (tmp_path / "other").write_text(other)
        (tmp_path / "other").replace(lease)
        os.utime(lease, (0, 0))
        wait_for("the end of this process", lambda: sent)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert "taken over by process 7 on elsewhere" in " ".join(capsys.readouterr().err.split())
    assert (lease.read_text(), lease.stat().st_mtime) == (other, 0)


@pytest.mark.usefixtures("no_flock")
def test_a_holder_that_lives_keeps_its_lease_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    lease = tmp_path / "lock.lease"
    with hold(tmp_path / "lock"):
        before = clock_of(tmp_path)
        os.utime(lease, (0, 0))
        wait_for("touch of the lease", lambda: lease.stat().st_mtime > 0)
        assert lease.stat().st_mtime >= before


def test_on_a_share_the_lock_of_a_dead_machine_is_outlasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server of an NFSv4 share keeps the lock of a machine that died until its lease is over."""
    monkeypatch.setattr(locks, "is_on_network", lambda _path: True)
    monkeypatch.setattr(locks, "DEAD_MACHINE_S", 0.6)
    lock = tmp_path / "run" / ".lock"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": "gone", "pid": 1, "machine": "another"}))
    with lock.open("r+") as server:
        fcntl.flock(server, fcntl.LOCK_EX)
        with pytest.raises(RunConflictError, match=r"by another process \(process 1 on gone\); wait for it, or"):
            RunDirectory(lock.parent).locked().__enter__()
        assert capsys.readouterr().err.count("held by process 1 on gone; should that machine be dead") == 1
        monkeypatch.setattr(locks, "DEAD_MACHINE_S", 60.0)
        monkeypatch.setattr(time, "sleep", lambda _s: fcntl.flock(server, fcntl.LOCK_UN))  # the server's patience
        with RunDirectory(lock.parent).locked():
            pass


def test_no_waiting_for_the_living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "is_on_network", lambda _path: True)
    monkeypatch.setattr(time, "sleep", lambda _s: pytest.fail("waits for a process that is known to live"))
    with hold(tmp_path / "lock"), pytest.raises(LockHeldError):
        hold(tmp_path / "lock", outlast_dead_machine=True).__enter__()


TABLE = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
30 21 0:40 / /mnt/a\\040share rw,relatime shared:9 - nfs4 server:/export rw,vers=4.2
31 30 0:41 / /mnt/a\\040share/local rw - tmpfs tmpfs rw
32 21 0:42 / /mnt/fuse rw - fuse.sshfs user@host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "network"),
    [
        ("/home/x", "ext4", False),
        ("/mnt/a share/runs/deep", "nfs4", True),
        ("/mnt/a share/local/x", "tmpfs", False),
        ("/mnt/a shared", "ext4", False),
        ("/mnt/fuse/x", "fuse.sshfs", True),
    ],
)
def test_kinds_of_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, kind: str, network: bool
) -> None:
    (tmp_path / "mountinfo").write_text(TABLE)
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "mountinfo")
    assert mounts.kind_of(Path(path)) == kind
    assert mounts.is_on_network(Path(path)) is network


def test_the_real_table_is_read() -> None:
    assert mounts.kind_of(Path("/proc/self")) == "proc"
