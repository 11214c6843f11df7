"""A directory in object storage, read through a local copy: each file is brought here whole when it is first needed.

All processes of a machine, and later runs, share the copy. ``EFAFNET_CACHE`` names the directory that holds such
copies; by default ``~/.cache/efafnet``.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from efafnet.platform.addresses import BareAddress
from efafnet.platform.credentials import full
from efafnet.platform.locks import hold
from efafnet.platform.storage import free_bytes, write_text

Location = Annotated[
    BareAddress, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)
]
"""A local path, or an address such as ``s3://bucket/folder`` or ``gs://bucket/folder``."""

_ORIGIN = ".origin"
_PIECE = 8 * 2**20


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
        raise FileNotFoundError(f"{location}/{name} does not exist") from error
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
        mirror.directory.mkdir(parents=True, exist_ok=True)
        write_text(mirror.directory / _ORIGIN, mirror.location)
        return mirror

    @classmethod
    def at(cls, directory: Path) -> Mirror | None:
        """The mirror that lies in ``directory``; None where it is an ordinary directory."""
        try:
            return cls(directory, (directory / _ORIGIN).read_text())
        except OSError:
            return None

    def check_space(self, wanted_bytes: int) -> None:
        """Raise OSError where the disk cannot hold ``wanted_bytes`` more."""
        free = free_bytes(self.directory)
        if free < wanted_bytes:
            raise OSError(
                f"{self.location} needs {wanted_bytes / 1e9:.1f} GB for its local copy in {self.directory}, "
                f"{free / 1e9:.1f} GB are free; set EFAFNET_CACHE to a directory on a larger disk"
            )

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
