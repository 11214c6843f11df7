"""A store of MLflow in a sqlite file, made once and under a lock: several processes that make one break it."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from efafnet.platform.locks import hold
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.presence import is_there
from efafnet.platform.storage import UnwritableError, write_bytes

_MEMORY = Path("/dev/shm")
"""Where Linux has a file system in memory."""


class TrackingError(OSError):
    """The tracking store cannot be used; the message names it, the reason and the remedy."""


def create_sqlite(file: Path) -> None:
    """Make sure that a store of MLflow is in ``file``; several processes may ask for it at a time.

    Raises:
        TrackingError: it cannot be written, or something else is there.
    """
    with contextlib.ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(file.with_name(f".{file.name}.lock"), wait_s=math.inf))
        except OSError as error:
            raise TrackingError(
                f"MLflow's store {file} cannot be written: {error.strerror}; choose another place with tracking.uri=…"
            ) from error
        try:
            with _quiet_alembic():
                if not is_there(file):
                    _make_in_memory(file)
                mlflow_client(f"sqlite:///{file}", create=True).search_experiments(max_results=1)
        except UnwritableError as error:
            raise TrackingError(f"MLflow's store: {error}, with tracking.uri=…") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise TrackingError(
                f"MLflow's store {file} cannot be opened: {reason}; move the file away, run `mlflow db upgrade "
                f"sqlite:///{file}` if an older MLflow wrote it, or choose another with tracking.uri=…"
            ) from error


def _make_in_memory(file: Path) -> None:
    """Make a fresh store in memory and write it down whole: sixty migrations, each flushed to the disk, take ten times
    as long. Nothing where the system has no file system in memory: then MLflow makes it in its place."""
    if not os.access(_MEMORY, os.W_OK):
        return
    with tempfile.TemporaryDirectory(dir=_MEMORY, prefix="efafnet-") as place:
        fresh = Path(place) / "mlflow.db"
        mlflow_client(f"sqlite:///{fresh}", create=True).search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(fresh)) as made:
            # The one path in it: that of the experiment which MLflow makes by itself.
            place_of_default = f"{(file.parent / 'mlartifacts').as_uri()}/0"
            made.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", (place_of_default,))
            made.commit()
            write_bytes(file, made.serialize())


@contextlib.contextmanager
def _quiet_alembic() -> Iterator[None]:
    """Keep the sixty migrations of a fresh store from the terminal."""
    import logging

    names = ("alembic", "alembic.runtime.migration", "mlflow.store.db.utils")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
