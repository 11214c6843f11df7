"""The directory of a run: what it is, whether it may be continued, and that only one process does so.

``run.json``      what the run is: its identity (all settings and data that change its figures) and its MLflow run
``config.yaml``   the settings it was last started with
``checkpoints/``  with the links ``latest`` and ``best`` beside it
``train.log``     the progress lines
``result.json``   written when the run has ended
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from efafnet.pipelines.training.identity import ADDED
from efafnet.platform import console
from efafnet.platform.configuration_errors import rule_of
from efafnet.platform.locks import LockHeldError, hold
from efafnet.platform.presence import entries, is_there
from efafnet.platform.storage import (
    UnwritableError,
    make_directory,
    read_sealed,
    remove_leftovers,
    sha256_json,
    write_sealed,
    write_text,
)

_LEFT_OPEN = ("precision", "test.precision")
"""Settings that may say ``auto``, which claims nothing: it then means what the run began with, or what suits."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
LOCK = ".lock"
"""The file that the process which trains a run keeps locked, in the run's directory."""
_UNSTARTED = (
    "run.json", "config.yaml", "train.log", "unlogged*.jsonl", "trace-rank*.jsonl", "checkpoints",
    "validation", "ray", "memory.json",
)  # fmt: skip
"""What a training run leaves before its first checkpoint."""


class RunConflictError(ValueError):
    """A run directory that belongs to another run, or is in use."""


@dataclass(frozen=True)
class RunRecord:
    """What ``run.json`` says."""

    name: str
    digest: str
    """16 hexadecimal digits of the identity."""
    identity: dict[str, Any]
    """Everything that changes the run's figures, as dotted keys."""
    created: str
    """Time of creation, UTC, ISO 8601."""
    mlflow_run_id: str | None = None
    tracking_uri: str | None = None
    changeable: dict[str, Any] = field(default_factory=dict)
    """Settings that may change when the run is resumed, as it was last started."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run_dir: Path
    checkpoint: Path
    """The checkpoint to use: the best validated one, or the last where nothing was validated."""
    metrics: dict[str, float]
    """As in ``loop.LoopResult``."""
    mlflow_run_id: str | None
    resumed: bool = False
    """Whether the run had ended before and nothing was trained now."""


@dataclass(frozen=True)
class _Stored:
    """What ``result.json`` says."""

    checkpoint: str
    """Relative to the run's directory."""
    metrics: dict[str, Any]
    mlflow_run_id: str | None


@contextmanager
def _named(file: Path, remedy: str) -> Iterator[None]:
    """Turn whatever is wrong with a file of a run into one error that names the file and the remedy."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{file} is damaged: {place}: {rule_of(first)}; {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from error


class RunDirectory:
    """One run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def result_file(self) -> Path:
        """Present once the run has ended."""
        return self.path / "result.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against a second process that would train the same run; clean up after dead ones.

        Raises:
            RunConflictError: another process holds it, also after the time for which a file server may keep the lock
                of a machine that died.
            UnwritableError: it cannot be created, or nothing can be linked in it.
        """
        make_directory(self.path)
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(self.path / LOCK, outlast_dead_machine=True))
            except LockHeldError as error:
                raise RunConflictError(
                    f"run {self.path} is being trained by another process ({error.holder}); wait for it, or choose "
                    "another name=…"
                ) from error
            for directory in (self.path, self.path / "checkpoints"):
                remove_leftovers(directory)
            self._check_links()
            yield

    def _check_links(self) -> None:
        """Refuse, before hours of training, a file system without symbolic links (SMB, exFAT)."""
        probe = self.path / f".links.probe-{secrets.token_hex(4)}"
        try:
            probe.symlink_to("checkpoints")
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise UnwritableError(
                    f"run {self.path}: its file system has no symbolic links ({error.strerror}), by which a run names "
                    "its latest and best checkpoints; choose another place with runs=…"
                ) from error
        else:
            probe.unlink()

    def claim(self, identity: Mapping[str, Any], changeable: Mapping[str, Any] | None = None) -> RunRecord:
        """Return the record of this run, new or from before.

        Args:
            identity: what makes the run the run it is, as dotted keys.
            changeable: settings that may differ from those it was last started with; the differences are printed.

        Raises:
            RunConflictError: the directory holds a run with other settings or data, all differences are listed; or one
                that does not say which.
        """
        own = RunRecord(
            self.path.name, identity_digest(identity), dict(identity), _now(), changeable=dict(changeable or {})
        )
        known = self.known()
        if known is None:
            if self.started:
                raise RunConflictError(
                    f"run {self.path} holds checkpoints or a result, and no run.json that says of which settings; put "
                    "a copy of it back, move the directory away, or choose another name=…"
                )
            self.note(own)
            return own
        if changed := _changed(known, identity):
            raise RunConflictError(
                f"run {self.path} exists with other settings: {changed}; "
                f"give the old settings to resume it, choose another name=… (with --fork {self.path} it goes on from "
                "there), or remove the directory"
            )
        last = {key: value for key, value in known.changeable.items() if key in own.changeable}
        if last and (changed := difference(last, {key: own.changeable[key] for key in last})):
            console.note(f"run {self.path} goes on with other settings than before: {changed}")
        return replace(known, changeable=own.changeable)

    @property
    def started(self) -> bool:
        """Whether the run has got as far as a checkpoint or a result; OSError where that cannot be seen now."""
        saved = any(path.name.startswith("step-") for path in entries(self.path / "checkpoints"))
        return saved or is_there(self.result_file)

    def clear_unstarted(self, identity: Mapping[str, Any]) -> None:
        """Make the directory new where it holds another run than ``identity`` that never came to a checkpoint.

        Only where nothing else lies in it: a search or a study of this name keeps its directory.
        """
        known, found = self.known(), [path for path in self.path.iterdir() if not path.name.startswith(LOCK)]
        if known is None or self.started or not _changed(known, identity):
            return
        if any(not any(path.match(pattern) for pattern in _UNSTARTED) for path in found):
            return
        for path in found:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        console.note(f"run {self.path} had other settings and no checkpoint yet: begun anew")

    def known(self) -> RunRecord | None:
        """Return what the directory holds, or None if it is new; ValueError where its record is damaged."""
        file = self.path / "run.json"
        if not is_there(file):
            return None
        with _named(file, "put back a copy of it, or choose another name=…"):
            return TypeAdapter(RunRecord).validate_python(read_sealed(file))

    def resolve(self, key: str, value: Any, config_yaml: str) -> None:
        """Write down what a setting of the identity that was left open (``auto``) came to."""
        record = self.known()
        assert record is not None, "only a run that was claimed has settings to resolve"
        identity = {**record.identity, key: value}
        self.record(replace(record, identity=identity, digest=identity_digest(identity)), config_yaml)

    def note(self, record: RunRecord) -> None:
        """Write what the run is."""
        write_sealed(self.path / "run.json", asdict(record))

    def record(self, record: RunRecord, config_yaml: str) -> None:
        """Write what the run is and the settings it starts with now."""
        self.note(record)
        write_text(self.path / "config.yaml", config_yaml)

    def result(self) -> TrainResult | None:
        """Return how the run ended, or None if it has not; ValueError where its result is damaged."""
        if not is_there(self.result_file):
            return None
        with _named(self.result_file, "remove it, and the same command writes it again from the last checkpoint"):
            stored = TypeAdapter(_Stored).validate_python(read_sealed(self.result_file))
        return TrainResult(
            run_dir=self.path,
            checkpoint=self.path / stored.checkpoint,
            metrics=stored.metrics,
            mlflow_run_id=stored.mlflow_run_id,
            resumed=True,
        )

    def finish(self, result: TrainResult) -> None:
        """Write how the run ended; the checkpoint is stored relative to the directory, which may be moved."""
        write_sealed(
            self.result_file,
            {
                "checkpoint": os.path.relpath(result.checkpoint.resolve(), self.path.resolve()),
                "metrics": result.metrics,
                "mlflow_run_id": result.mlflow_run_id,
                "finished": _now(),
            },
        )


def identity_digest(identity: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name a run's identity."""
    return sha256_json(dict(identity))[:16]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """List what differs between two identities: ``optimizer.lr 0.001 -> 0.0005, …``."""
    shown = [(key, _value(old, key), _value(new, key)) for key in sorted(old.keys() | new.keys())]
    return ", ".join(f"{key} {before} -> {after}" for key, before, after in shown if before != after)


def _value(identity: Mapping[str, Any], key: str) -> str:
    return str(identity[key]) if key in identity else "(absent)"


def _changed(known: RunRecord, identity: Mapping[str, Any]) -> str:
    """What of ``identity`` differs from a run's.

    A run of an earlier version may name settings that are in no identity any more, and lack one that came later.
    """
    identity = {key: value for key, value in identity.items() if not (key in _LEFT_OPEN and value == "auto")}
    return difference({key: known.identity.get(key, ADDED.get(key)) for key in identity}, identity)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
