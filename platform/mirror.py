"""A directory in object storage, read through a local copy: each file is brought here whole when it is first needed.

All processes of a machine, and later runs, share the copy. ``EFAFNET_CACHE`` names the directory that holds such
copies, by default ``~/.cache/efafnet``, and ``EFAFNET_CACHE_GB`` how many gigabytes (10^9 bytes) they may take
together, by default as many as the disk has. Where there is no room for another copy, those that no process uses are
removed, the one first whose last use is longest ago.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from efafnet.platform import console
from efafnet.platform.addresses import BareAddress
from efafnet.platform.credentials import full
from efafnet.platform.locks import hold
from efafnet.platform.storage import free_bytes, remove_leftovers, write_text

Location = Annotated[
    BareAddress, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)
]
"""A local path, or an address such as ``s3://bucket/folder`` or ``gs://bucket/folder``."""

_ORIGIN = ".origin"
_USE = ".use"
"""File in each copy, locked by whoever uses it (shared); its time is that of the last use."""
_PIECE = 8 * 2**20
_in_use: dict[Path, int] = {}
# Descriptors of the ``_USE`` files that this process holds until it ends.


def is_address(location: str) -> bool:
    """Whether ``location`` is an address in object storage, not a local path."""
    return "://" in location


def is_cache_chosen() -> bool:
    """Whether somebody named a place for local copies: what is only far away is copied where that is wanted."""
    return bool(os.environ.get("EFAFNET_CACHE"))


def cache_directory() -> Path:
    """Directory that holds local copies."""
    chosen = os.environ.get("EFAFNET_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "efafnet"


def _cache_limit_bytes() -> float:
    """What all copies may take together.

    Raises:
        OSError: what the environment says is no number of gigabytes.
    """
    given = os.environ.get("EFAFNET_CACHE_GB")
    try:
        limit = float(given) if given else math.inf
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise OSError(f"EFAFNET_CACHE_GB={given}: give a number of gigabytes above 0, or unset it")
    return limit * 1e9


def read_remote(location: str, name: str) -> bytes:
    """Content of the file ``name`` in ``location``; FileNotFoundError or OSError with the address in its message."""
    with _refused(location, name):
        from pyarrow import fs

        filesystem, root = fs.FileSystem.from_uri(full(location))
        with filesystem.open_input_file(f"{root}/{name}") as file:
            return bytes(file.read())


@contextmanager
def _refused(location: str, name: str) -> Iterator[None]:
    """Turn what Arrow says into one error that names the address."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{location}/{name} does not exist; check the address") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OSError(f"{location}/{name} cannot be read ({reason}); check the address and your rights") from error


class Mirror:
    """The local copy of one remote directory whose files never change."""

    def __init__(self, directory: Path, location: str) -> None:
        self.directory = directory
        self.location = location

    @classmethod
    def begin(cls, location: str, key: str) -> Mirror:
        """The copy of ``location``, made where it is not there yet; ``key`` tells apart what was there over time."""
        name = f"{location.rstrip('/').rpartition('/')[2]}-{key}"
        mirror = cls(cache_directory() / name, location.rstrip("/"))
        _use(mirror.directory)
        write_text(mirror.directory / _ORIGIN, mirror.location)
        return mirror

    @classmethod
    def at(cls, directory: Path) -> Mirror | None:
        """The mirror that lies in ``directory``; None where it is an ordinary directory."""
        try:
            origin = (directory / _ORIGIN).read_text(encoding="utf-8")
        except OSError:
            return None
        with suppress(OSError):  # may only be read: then nobody removes it
            _use(directory)
        return cls(directory, origin)

    def make_room(self, wanted_bytes: int) -> None:
        """See that ``wanted_bytes`` more fit: remove other copies that nobody uses, as few as will do.

        Raises:
            OSError: the disk, or EFAFNET_CACHE_GB, still has no room.
        """
        cache, limit = self.directory.parent, _cache_limit_bytes()
        if wanted_bytes == 0:
            return
        with hold(cache / ".lock", wait_s=math.inf):
            remove_leftovers(cache)
            others = sorted(set(_copies(cache)) - {self.directory}, key=_last_use)
            while lacking := self._lacking(wanted_bytes, limit):
                if not any(_remove(copy) for copy in _taken_from(others)):
                    raise OSError(f"{self.location} needs {wanted_bytes / 1e9:.1f} GB for its local copy in "
                                  f"{self.directory}, {lacking}")  # fmt: skip

    def _lacking(self, wanted_bytes: int, limit_bytes: float) -> str:
        """What there is too little of, and the remedy; empty where there is enough."""
        free = free_bytes(self.directory)
        if free < wanted_bytes:
            return f"{free / 1e9:.1f} GB are free; set EFAFNET_CACHE to a directory on a larger disk"
        taken = sum(_bytes_of(copy) for copy in _copies(self.directory.parent))
        if taken + wanted_bytes > limit_bytes:
            return (
                f"copies in use take {taken / 1e9:.1f} GB of EFAFNET_CACHE_GB={limit_bytes / 1e9:g}; raise it where "
                "the disk has more"
            )
        return ""

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """Local path of the file ``name`` of ``size`` bytes, brought here first where it is not.

        Raises:
            OSError: it cannot be read there or written here.
            ValueError: what arrived is not what ``sha256`` says.
        """
        target = self.directory / name
        if self._is_here(target, size):
            return target
        with self._alone(name):
            # Another process may have brought it meanwhile.
            if not self._is_here(target, size):
                self._bring(target, sha256)
        return target

    @staticmethod
    def _is_here(target: Path, size: int) -> bool:
        return target.is_file() and target.stat().st_size == size

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Let one process at a time bring ``name``; the lock goes with the process."""
        with hold(self.directory / f".{name}.lock", wait_s=math.inf):
            yield

    def _bring(self, target: Path, sha256: str) -> None:
        partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
        try:
            found = self._copy(target.name, partial)
            if found != sha256:
                raise ValueError(
                    f"{self.location}/{target.name} has sha256 {found[:12]} instead of {sha256[:12]}: it was damaged "
                    "or replaced; upload the whole directory again"
                )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _copy(self, name: str, target: Path) -> str:
        digest: Any = hashlib.sha256()
        with _refused(self.location, name):
            from pyarrow import fs

            filesystem, root = fs.FileSystem.from_uri(full(self.location))
            source = filesystem.open_input_stream(f"{root}/{name}")
        with source, target.open("wb") as file:
            while True:
                with _refused(self.location, name):
                    piece = source.read(_PIECE)
                if not piece:
                    break
                digest.update(piece)
                file.write(piece)
        return str(digest.hexdigest())


# ---- the copies of a cache directory


def _use(copy: Path) -> None:
    """Mark a copy as used by this process until it ends, and now; make it where it is not there.

    Raises:
        OSError: it cannot be made.
    """
    held = _in_use.get(copy)
    if held is not None and os.fstat(held).st_nlink == 0:  # somebody removed it by hand
        os.close(_in_use.pop(copy))
    while copy not in _in_use:
        copy.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(copy / _USE, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # removed in this moment
        with suppress(OSError):  # a file system without locks: then nobody removes it either
            fcntl.flock(handle, fcntl.LOCK_SH)
        if os.fstat(handle).st_nlink:
            _in_use[copy] = handle
        else:
            os.close(handle)
    with suppress(OSError):
        os.utime(copy / _USE)


def _copies(cache: Path) -> list[Path]:
    """The copies in a cache directory; whatever else lies there is nobody's to remove."""
    return [file.parent for file in cache.glob(f"*/{_ORIGIN}")]


def _last_use(copy: Path) -> float:
    """When a copy was last opened, seconds; those of earlier versions, which did not note it, come first."""
    try:
        return (copy / _USE).stat().st_mtime
    except OSError:
        return 0.0


def _bytes_of(copy: Path) -> int:
    sizes = 0
    for path in copy.iterdir():
        with suppress(OSError):  # brought or removed in this moment
            sizes += path.stat().st_size
    return sizes


def _taken_from(copies: list[Path]) -> Iterator[Path]:
    """Take one after the other out of a list."""
    while copies:
        yield copies.pop(0)


def _remove(copy: Path) -> bool:
    """Remove a copy unless a process uses it; returns whether it was removed."""
    if copy in _in_use:
        return False
    try:
        handle = os.open(copy / _USE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        console.note(f"{copy} is removed to make room ({_bytes_of(copy) / 1e9:.1f} GB)")
        # By another name first: what a kill leaves is no copy any more, and goes with the leftovers.
        gone = copy.rename(copy.with_name(f".{copy.name}.removed"))
        shutil.rmtree(gone)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
