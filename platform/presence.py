"""What is there and what it holds, asked so that "it cannot be said now" is an error and never a no.

``Path.exists``, ``is_dir`` and ``glob`` take some refusals of a file system for absence, in later versions of Python
all of them: whoever would begin anew, remove or write over something because of the answer asks here.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_there(path: Path) -> bool:
    """Whether there is a file or directory; unlike ``Path.exists``, what cannot be asked is an error and not a no.

    Raises:
        OSError: the file system does not answer, or does not let it be seen.
    """
    return _mode(path) is not None


def is_directory(path: Path) -> bool:
    """Whether there is a directory; unlike ``Path.is_dir``, what cannot be asked is an error and not a no.

    Raises:
        OSError: the file system does not answer, or does not let it be seen.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def entries(directory: Path) -> list[Path]:
    """What a directory holds, sorted; nothing where there is none. ``Path.glob`` takes a refusal for emptiness.

    Raises:
        OSError: the file system does not answer, or does not let it be seen.
    """
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def read_bytes(path: Path) -> bytes:
    """Read a file. Of an error in the middle of reading the system tells the reason only: here it names the file."""
    with reading(path):
        return Path(path).read_bytes()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let an error of the system name the file that was being read or written, where it names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
