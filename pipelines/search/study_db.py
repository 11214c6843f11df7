"""Where a search's study is kept: opened where it can be used, refused with one sentence where it cannot.

That is an sqlite file in the search's directory unless ``search.storage`` names another place: Optuna's journal, a
file that may lie on a network file system, or a database that Optuna can use.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.exceptions import StorageInternalError

from efafnet.platform import console
from efafnet.platform.credentials import full, hidden
from efafnet.platform.presence import entries, is_directory, is_there
from efafnet.platform.ray_errors import made_by

JOURNAL = ".journal"
"""How a journal's file ends."""
SQLITE_TIMEOUT_S = 60
"""Seconds a writer waits for another; sqlite's own default of 5 is too short on a busy machine."""
PATIENCE_S = 20.0
"""Seconds to wait at the start for another program that holds the whole file."""
_DRIVERS = {"postgresql": "postgresql+psycopg"}
"""By the scheme of an address that names no driver: the one that the extra ``postgres`` installs."""
_TABLES = {"studies", "trials", "trial_params", "trial_values", "version_info"}
_own_tables: list[str] = []
"""The version of the installed Optuna's tables, once it is known."""
_AT_PRESENT = ("locked", "disk I/O error", "unable to open", "readonly", "disk is full")
"""What sqlite says where the file itself is not at fault."""
_REMEDY = "put back a copy of it, or remove the search's directory to begin anew"


class StudyFileError(ValueError):
    """A study.db that is damaged, or another program's, or empty where there were trials."""


class StudyUnavailableError(OSError):
    """A study.db that cannot be used at present: another program holds it, or the file system refuses."""


def open_storage(path: Path, address: str | None = None) -> optuna.storages.BaseStorage:
    """Open or create what keeps a study.

    Args:
        path: the sqlite file in the search's directory.
        address: as ``search.storage`` names another place; None for ``path``.

    Raises:
        StudyFileError: it is damaged, no study, or without the trials that lie beside it.
        StudyUnavailableError: another program holds it, or the database does not answer.
    """
    if address is None:
        _check(path)
        with readable(path):
            return _database(f"sqlite:///{path}", {"connect_args": {"timeout": SQLITE_TIMEOUT_S}})
    if _is_journal(address):
        return _open_journal(path, _journal(path, address))
    with _answering(address):
        scheme, _, rest = full(address).partition("://")
        # Named, since SQLAlchemy's own choice of a driver has changed between its versions.
        url = f"{_DRIVERS.get(scheme, scheme)}://{rest}"
        return _database(url, {"pool_pre_ping": True})


def _database(url: str, engine: dict[str, Any]) -> optuna.storages.RDBStorage:
    """A database whose tables are those of the installed Optuna; ``RuntimeError`` for another's.

    Optuna checks that itself, and loads all its migrations each time to know what its tables are: 25 ms.
    """
    storage = optuna.storages.RDBStorage(url, engine_kwargs=engine, skip_compatibility_check=True)
    if not _own_tables:
        _own_tables.append(storage.get_head_version())
    if storage.get_current_version() not in _own_tables:
        optuna.storages.RDBStorage(url, engine_kwargs=engine)  # says what is to be done
    return storage


def _is_journal(address: str) -> bool:
    return address == "journal" or address.startswith("journal:")


def _journal(path: Path, address: str) -> Path:
    return Path(address.removeprefix("journal").removeprefix(":") or path.with_suffix(JOURNAL))


def reading(path: Path, address: str | None = None) -> AbstractContextManager[None]:
    """Make of anything that goes wrong while a study is read one error that names where it is kept; the arguments are
    those of ``open_storage``."""
    if address is None or _is_journal(address):
        return readable(path if address is None else _journal(path, address))
    return _answering(address)


def _open_journal(path: Path, file: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if not is_there(file) or not file.stat().st_size:
        check_beside(path, f"{file} {'is empty' if is_there(file) else 'is missing'}")
    with readable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        # A lock by a file that must not exist, which network file systems keep to, where they do not keep to locks.
        return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))


@contextmanager
def _answering(address: str) -> Iterator[None]:
    """Make of anything that goes wrong with a database one error that names the setting."""
    try:
        yield
    except (StudyFileError, StudyUnavailableError):
        raise
    except ImportError as error:
        raise StudyUnavailableError(
            f"search.storage={address}: Python cannot talk to it ({_brief(error)}); install its driver, for PostgreSQL "
            "pip install -c constraints.txt -e '.[postgres]'"
        ) from error
    except Exception as error:
        raise StudyUnavailableError(
            f"search.storage={address} does not answer ({hidden(_brief(error))}); check the address, name and password"
        ) from error


@contextmanager
def lasting(address: str | None) -> Iterator[None]:
    """Make of a store that fails in the middle of a search one error that says how to go on.

    Args:
        address: as ``search.storage`` names it; None for the file in the search's directory.
    """
    try:
        yield
    except Exception as error:
        cause = _of_storage(error, set())
        if cause is None:
            raise
        place = "the search's study.db" if address is None else f"search.storage={address}"
        raise StudyUnavailableError(
            f"{place} stopped answering ({hidden(_brief(cause))}); once it answers the same command goes on with the "
            "search"
        ) from error


def _of_storage(error: BaseException | None, seen: set[int]) -> BaseException | None:
    """What the store itself said, at the end of a chain of causes; None where the chain has nothing of a store."""
    if error is None or id(error) in seen or made_by(error, "mlflow"):
        return None
    seen.add(id(error))
    inner = _of_storage(error.__cause__ or error.__context__, seen)
    return inner or (error if made_by(error, "sqlalchemy") or isinstance(error, StorageInternalError) else None)


def check_beside(path: Path, what: str) -> None:
    """Refuse to begin anew beside trials of which the study knows nothing.

    Raises:
        StudyFileError: ``what`` is wrong with the study, and there are trials in the directory of ``path``.
    """
    trials = sum(is_directory(entry) for entry in entries(path.parent / "trials"))
    if trials:
        raise StudyFileError(f"{what}, but {path.parent / 'trials'} holds {trials} trials; {_REMEDY}")


def _check(path: Path) -> None:
    tables = _tables(path) if is_there(path) and path.stat().st_size else set()
    if not tables:
        check_beside(path, f"{path} {'is empty' if is_there(path) else 'is missing'}")
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


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split())[:200] if lines else type(error).__name__
