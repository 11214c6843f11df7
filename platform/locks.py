"""Locks between processes, on local and on shared file systems.

A lock is a file that its holder keeps locked (flock, which NFS passes to its server) and that says who the holder is.
The kernel drops the lock when the holder dies. Where a file system refuses locks (NFSv3 without lockd, Lustre mounted
without ``flock``, some FUSE file systems), a file beside it, ``NAME.lease``, stands for the lock: its holder touches it
every few seconds, and one that was not touched for long is taken over. A holder that stood still for so long (a
suspended machine) ends when it finds that out.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from efafnet.platform import console
from efafnet.platform.mounts import is_on_network

HEARTBEAT_S = 5.0
"""Seconds between two touches of a lease."""
STALE_AFTER_S = 90.0
"""Seconds without a touch after which a lease belongs to nobody; a busy NFS client may keep attributes for 60."""
DEAD_MACHINE_S = 120.0
"""Seconds that a server may keep the lock of a machine that died (NFSv4's lease is 90 on Linux)."""
_POLL_S = 0.25
_REFUSED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_told: set[int] = set()
# Devices that were said to have no locks: once is enough.


class LockHeldError(BlockingIOError):
    """Another process holds the lock; ``holder`` says which, as far as it is known."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(errno.EAGAIN, f"is held by {holder}", str(path))
        self.holder = holder


@contextmanager
def hold(path: Path, *, wait_s: float = 0.0, outlast_dead_machine: bool = False) -> Iterator[None]:
    """Hold the lock ``path`` for the length of the block. The file is made where it is not there, and stays.

    Args:
        path: the lock's file, in a directory that exists.
        wait_s: how long to wait for another holder.
        outlast_dead_machine: on a network file system, also wait as long as its server may keep the lock of a machine
            that died, unless the holder lives on this very machine. Says so.

    Raises:
        LockHeldError: another process holds it.
        OSError: the file cannot be made or locked.
    """
    began, patience_s = time.monotonic(), wait_s
    while True:
        try:
            release = _take(path)
            break
        except LockHeldError as held:
            if outlast_dead_machine and not _lives_here(_record(path)) and is_on_network(path):
                if patience_s < DEAD_MACHINE_S:
                    console.note(
                        f"{path} is held by {held.holder}; should that machine be dead, the file server keeps its lock "
                        f"for up to {DEAD_MACHINE_S:.0f} s: waiting so long"
                    )
                patience_s = max(patience_s, DEAD_MACHINE_S)
            if time.monotonic() - began >= patience_s:
                raise
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        release()


def clock_of(directory: Path) -> float:
    """Return the time, in seconds, by the clock that stamps files in ``directory``: on a share, its server's."""
    probe = directory / f".clock-{secrets.token_hex(4)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _take(path: Path) -> Callable[[], None]:
    """Take the lock now, and return what gives it back."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise LockHeldError(path, _described(_record(path))) from None
    except OSError as error:
        os.close(handle)
        if error.errno not in _REFUSED:
            raise
        _tell(path, error)
        return _Lease(path.with_name(f"{path.name}.lease")).end
    if os.fstat(handle).st_nlink == 0:
        os.close(handle)
        return _take(path)  # its directory was removed, or made anew, by the holder we waited for
    with suppress(OSError):  # only for those who wait: a full disk is no reason not to hold it
        if os.pread(handle, 1000, 0) != (me := _me()):
            os.ftruncate(handle, 0)
            os.write(handle, me)
    return lambda: os.close(handle)


def _tell(path: Path, error: OSError) -> None:
    device = path.parent.stat().st_dev
    if device not in _told:
        _told.add(device)
        console.note(
            f"{path.parent}: its file system refuses locks ({error.strerror}); a file with a heartbeat is used"
        )


class _Lease:
    """A lease that this process holds."""

    def __init__(self, path: Path) -> None:
        self._path, self._content = path, _me(secrets.token_hex(8))
        self._ended = threading.Event()
        self._create()
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    def _create(self) -> None:
        for _ in range(3):
            try:
                self._write()
            except FileExistsError:
                _retire_if_stale(self._path)
                continue
            return
        raise LockHeldError(self._path, _described(_record(self._path)))

    def _write(self) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(self._content)

    def _beat(self) -> None:
        foreign = 0
        while not self._ended.wait(HEARTBEAT_S):
            with suppress(OSError):
                foreign = 0 if self._touched() else foreign + 1
            if foreign > 1:  # once may be somebody who looks at it and puts it back
                console.warn(
                    f"{self._path} was taken over by {_described(_record(self._path))} while this process stood still: "
                    "it ends, for two would write the same"
                )
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _touched(self) -> bool:
        """Keep the lease fresh; false where it is another's now. One that somebody removed is written again."""
        try:
            if self._path.read_bytes() != self._content:
                return False
            os.utime(self._path)
        except FileNotFoundError:
            self._write()
        return True

    def end(self) -> None:
        """Give the lease back."""
        self._ended.set()
        with suppress(OSError):
            if self._path.read_bytes() == self._content:
                self._path.unlink()


def _retire_if_stale(lease: Path) -> None:
    """Remove a lease whose holder is dead; raise LockHeldError where it lives."""
    try:
        content, record = lease.read_bytes(), _record(lease)
        age_s = clock_of(lease.parent) - lease.stat().st_mtime
    except FileNotFoundError:
        return
    is_dead_here = bool(record) and record.get("machine") == _machine() and not _lives_here(record)
    if age_s < STALE_AFTER_S and not is_dead_here:
        raise LockHeldError(lease, _described(record))
    # Of several that see it stale one may take it, and make its own, before another renames: that one is put back.
    aside = lease.with_name(f"{lease.name}.{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        lease.rename(aside)
        if aside.read_bytes() != content:
            with suppress(FileExistsError):
                os.link(aside, lease)
        aside.unlink()


def _me(nonce: str = "") -> bytes:
    me = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "nonce": nonce}
    return json.dumps(me).encode()


def _machine() -> str:
    """Name this start of this kernel, and the process numbers it counts in: containers count their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (it is no path)
    except OSError:
        return socket.gethostname()


def _record(path: Path) -> dict[str, object]:
    """What the holder wrote about itself; empty where that cannot be told."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives_here(record: dict[str, object]) -> bool:
    """Tell whether the holder is a living process of this machine."""
    pid = record.get("pid")
    if record.get("machine") != _machine() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # of another user
    return True


def _described(record: dict[str, object]) -> str:
    return f"process {record['pid']} on {record['host']}" if {"pid", "host"} <= record.keys() else "another process"
