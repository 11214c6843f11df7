"""Files and directories that are either whole or absent: written beside their target, flushed, renamed at the end."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from efafnet.platform.locks import LockHeldError, clock_of, hold
from efafnet.platform.presence import entries, is_there, read_bytes, reading

_STALE_AFTER_S = 60.0
_FULL = {errno.ENOSPC, errno.EDQUOT}
# File systems that cannot flush a directory say so in one of these ways (SMB shares, some FUSE ones).
_CANNOT_FLUSH = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}
_LOCK = "lock"
_SEAL = "sha256"
_LEFTOVER = re.compile(r"(partial|old)-[0-9a-f]{8}|probe-\w+|removed|new")
"""How the names of unfinished things end: ``.NAME.partial-…`` of every writer here, ``.NAME.old-…`` of an overwrite,
``.NAME.probe-…`` of a place being tried, ``.NAME.removed`` and ``.NAME.new`` of a run's checkpoints and links."""


class OutputExistsError(ValueError):
    """An output is already there and nobody allowed to replace it."""


class UnwritableError(OSError):
    """An output cannot be written where it was asked for."""


class UnreadableFileError(OSError):
    """Something is there and cannot be read at present."""


@contextmanager
def atomic_directory(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside ``path`` that becomes ``path`` when the block ends without an exception.

    Everything in it is flushed to the disk before the rename, so neither a kill nor a power cut leaves half an output.
    After an exception the temporary directory is removed; what a killed process left is removed by the next writer of
    the same path.

    Raises:
        OutputExistsError: ``path`` is a file or a directory with something in it, and ``overwrite`` is false.
        UnwritableError: the parent cannot be created or written.
    """
    path = Path(path).absolute()
    _sweep(path)
    check_output(path, overwrite=overwrite)
    temporary = path.parent / f".{path.name}.partial-{secrets.token_hex(4)}"
    with _unwritable(path):
        temporary.mkdir()
    try:
        # The lock goes when this process dies: that is how the next writer knows a leftover. It is a file, because
        # file servers pass on locks of files only.
        with full_disk_named(path), hold(temporary / _LOCK):
            content = temporary / path.name
            content.mkdir()
            yield content
            _flush_tree(content)
            _replace(content, path, overwrite=overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Let an error of a full disk, or of a used-up quota, name what was being written and what is left there.

    Raises:
        UnwritableError: the block ended with such an error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, UnwritableError):
            raise
        raise UnwritableError(
            f"cannot write {path}: {os.strerror(error.errno)} ({free_bytes(path) / 1e6:.0f} MB are free); make room, "
            "or name a place with more of it"
        ) from error


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Refuse an output directory that could not be written later, and create its parents.

    Raises:
        OutputExistsError: something is there already and ``overwrite`` is false.
        UnwritableError: the parent cannot be created or written.
    """
    path = Path(path).absolute()
    if path.is_symlink() or path.is_file():
        raise OutputExistsError(f"output {path} is a file or a link; name a directory that does not exist yet")
    if path.is_dir() and not overwrite and any(path.iterdir()):
        raise OutputExistsError(
            f"output {path} exists and is not empty; name another one, for example {_numbered(path).name}, or replace "
            "it with overwrite=true"
        )
    _make_parent(path)


def _numbered(path: Path) -> Path:
    """The first of ``NAME-2``, ``NAME-3``, … that does not exist."""
    return next(free for number in count(2) if not (free := path.with_name(f"{path.name}-{number}")).exists())


def check_output_file(path: Path, *, overwrite: bool = False) -> None:
    """Refuse an output file that could not be written later, and create its parents; raises as ``check_output``."""
    path = Path(path).absolute()
    if path.is_dir():
        raise OutputExistsError(f"output {path} is a directory; name a file in it")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"output {path} exists; name another file, or replace it with overwrite=true")
    _make_parent(path)


def make_directory(path: Path) -> None:
    """Create a directory that work goes on in, parents included; one that is there is kept.

    Raises:
        UnwritableError: it cannot be created.
    """
    with _unwritable(path):
        path.mkdir(parents=True, exist_ok=True)


def _make_parent(path: Path) -> None:
    with _unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Tried and not asked: to root, access() grants what /proc, or a share mounted read-only, then refuses.
        Path(tempfile.mkdtemp(prefix=f".{path.name}.probe-", dir=path.parent)).rmdir()


@contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal into one error that names the output and the reason."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UnwritableError):
            raise
        raise UnwritableError(
            f"cannot write output {path}: {error.strerror or error}; name a writable place"
        ) from error


def _replace(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename ``temporary`` to ``path``; what was there before disappears only after the new one is in place."""
    retired: Path | None = None
    if overwrite and path.is_dir():
        retired = path.parent / f".{path.name}.old-{secrets.token_hex(4)}"
        path.rename(retired)
    try:
        temporary.rename(path)
    except OSError as error:
        if retired is not None:
            retired.rename(path)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        raise OutputExistsError(f"output {path} appeared while it was being written ({error.strerror})") from error
    flush_directory(path.parent)
    if retired is not None:
        shutil.rmtree(retired, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what killed writers of ``path`` left, and put back an old output that was caught between two renames."""
    if not path.parent.is_dir():
        return
    for old in sorted(path.parent.glob(f".{glob.escape(path.name)}.old-*")):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with suppress(OSError):
            if _abandoned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)


def _abandoned(directory: Path) -> bool:
    """Tell whether no living process holds ``directory``; a very young one may not have taken its lock yet."""
    if clock_of(directory.parent) - directory.stat().st_mtime < _STALE_AFTER_S:
        return False
    return not _held(directory)


def _held(directory: Path) -> bool:
    """Whether a living process is writing ``directory``."""
    try:
        with hold(directory / _LOCK):
            return False
    except LockHeldError:
        return True


def _flush_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        flush_directory(Path(folder))


def flush_directory(directory: Path) -> None:
    """Flush the names in ``directory`` to the disk (a rename is durable only after this), where that can be done."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is either whole or absent.

    Raises:
        UnwritableError: the place cannot be written.
    """
    path = Path(path).absolute()
    temporary = path.parent / f".{path.name}.partial-{secrets.token_hex(4)}"
    with _unwritable(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_directory(path.parent)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file that is either whole or absent."""
    write_bytes(path, content.encode())


def append_lines(path: Path, lines: bytes) -> None:
    """Append whole lines to a file: all of them or, where the system refuses, none.

    A line that a killed process had only begun gets its end first, so that it spoils no other.
    """
    with reading(path), path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines
        try:
            left = memoryview(lines)
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON that any reader accepts: keys in the given order, NaN and infinities as null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it is not there or cannot be read; names the file.
        ValueError: it is not JSON.
    """
    content = read_bytes(path)
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON (nested too deep)") from error
    except ValueError as error:  # also numbers of thousands of digits
        reason = str(error).partition(";")[0]
        raise ValueError(f"{path} is not valid JSON ({reason}); it may be truncated") from error


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object that carries the digest of its other values as ``sha256``."""
    finite = _finite(content)
    write_json(path, {**finite, _SEAL: sha256_json(finite)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what ``write_sealed`` wrote; what an earlier version wrote, without a digest, is taken as it is.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is no JSON object, or not what was written.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    seal = content.pop(_SEAL, None)
    if seal is not None and sha256_json(content) != seal:
        raise ValueError(
            f"{path} is damaged: it is not what was written, says its sha256 (drop that line if you edited the file)"
        )
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def remove_leftovers(directory: Path) -> None:
    """Remove what killed writers left in ``directory``, and put back what an overwrite had taken away.

    Only for who holds the lock on what is written there: unlike the next writer of one path, it asks for no age.
    """
    for path in entries(directory):
        name, dot, mark = path.name.rpartition(".")
        if not (path.name.startswith(".") and name and dot and _LEFTOVER.fullmatch(mark)):
            continue
        with suppress(OSError):
            target = directory / name[1:]
            if mark.startswith("old-") and not is_there(target):
                path.rename(target)
            elif path.is_dir() and not path.is_symlink():
                if not _held(path):
                    shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal, read in pieces."""
    with reading(path), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, independent of the order of keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_bytes(canonical.encode())


def free_bytes(path: Path) -> int:
    """Return the free space in bytes of the file system that holds ``path`` (or will hold it)."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
