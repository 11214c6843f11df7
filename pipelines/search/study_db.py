"""The sqlite file of a search's study: opened where it can be used, refused with one sentence where it cannot."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import optuna

from efafnet.platform import console

SQLITE_TIMEOUT_S = 60
"""Seconds a writer waits for another; sqlite's own default of 5 is too short on a busy machine."""
PATIENCE_S = 20.0
"""Seconds to wait at the start for another program that holds the whole file."""
_TABLES = {"studies", "trials", "trial_params", "trial_values", "version_info"}
_AT_PRESENT = ("locked", "disk I/O error", "unable to open", "readonly", "disk is full")
"""What sqlite says where the file itself is not at fault."""
_REMEDY = "put back a copy of it, or remove the search's directory to begin anew"


class StudyFileError(ValueError):
    """A study.db that is damaged, or another program's, or empty where there were trials."""


class StudyUnavailableError(OSError):
    """A study.db that cannot be used at present: another program holds it, or the file system refuses."""


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """Open or create the sqlite file of a study.

    Raises:
        StudyFileError: it is damaged, no study, or without the trials that lie beside it.
        StudyUnavailableError: another program holds it.
    """
    _check(path)
    with readable(path):
        return optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": SQLITE_TIMEOUT_S}}
        )


def _check(path: Path) -> None:
    tables = _tables(path) if path.exists() and path.stat().st_size else set()
    if not tables:
        trials = sum(1 for _ in path.parent.glob("trials/*/"))
        if trials:
            what = "is empty" if path.exists() else "is missing"
            raise StudyFileError(f"{path} {what}, but {path.parent / 'trials'} holds {trials} trials; {_REMEDY}")
    elif not tables >= _TABLES:
        raise StudyFileError(f"{path} is a database of something else, without {min(_TABLES - tables)}; {_REMEDY}")


def _tables(path: Path) -> set[str]:
    """Names of the tables; the whole file is checked for damage that sqlite can see."""
    deadline, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=0.5)) as database:
                (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
                return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise _told(path, error) from error
            if not told:
                console.note(f"{path} is locked by another program; waiting up to {PATIENCE_S:.0f} s")
            told = True
            if time.monotonic() > deadline:
                raise StudyUnavailableError(
                    f"{path} is locked by another program, say optuna-dashboard or a backup; end that, and give the "
                    "same command again"
                ) from error
        except sqlite3.DatabaseError as error:
            raise _told(path, error) from error


def _told(path: Path, error: Exception) -> StudyFileError | StudyUnavailableError:
    reason = _brief(error)
    if any(words in reason for words in _AT_PRESENT):
        return StudyUnavailableError(f"{path} cannot be used at present ({reason}); give the same command again")
    return StudyFileError(f"{path} is damaged, or no search's study ({reason}); {_REMEDY}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Make of anything that goes wrong while a study is read one error that names the file.

    Anything, because a strange value in a row ends in whatever exception.
    """
    try:
        yield
    except (StudyFileError, StudyUnavailableError):
        raise
    except Exception as error:
        raise _told(path, error) from error


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split())[:200] if lines else type(error).__name__
