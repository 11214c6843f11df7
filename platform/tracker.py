"""A run's metrics and files on their way to MLflow: queued, sent by a thread, kept on disk while the server is away.

Training calls a method that appends to a list; whatever the server does, training neither waits nor fails.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from efafnet.platform import console
from efafnet.platform.mlflow_answers import CurveSteps, confirm_files, is_refusal
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.storage import append_lines
from efafnet.platform.system_metrics import SystemMonitor

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_METRICS = 1000  # MLflow's own limit of one log_batch
_MAX_TAGS = 100
_LONGEST_WAIT_S = 30.0
_PATIENCE_S = 600.0  # a large file may take its time
_HURRIED_S = 4.0


@dataclass(frozen=True)
class Unlogged:
    """What MLflow never received."""

    count: int
    """Number of metrics, tags and files."""
    file: Path | None
    """JSON lines that hold them, or None when there was no place to write."""
    reason: str
    """The last thing MLflow (or the way to it) answered; empty when everything was logged."""


@dataclass(frozen=True)
class _Item:
    """One thing to log; ``kind`` is metric, tag, param, artifact or text; ``reason`` says why MLflow refused it."""

    kind: str
    key: str
    value: Any
    step: int = 0
    timestamp_ms: int = 0
    spilled: bool = False
    reason: str = ""


class Tracker:
    """Sends one run's metrics, tags and files to MLflow in the background.

    Args:
        uri: absolute tracking address, from ``prepare_tracking``.
        run_id: the run, created by the driver.
        spill: file for what cannot be sent (JSON lines). If it exists, an earlier process of the same run left it,
            and its content is sent first.
        system_metrics_every_s: seconds between two samples of CPU, memory, disk, network and GPU; None for none.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        *,
        spill: Path | None = None,
        system_metrics_every_s: float | None = None,
    ) -> None:
        self._uri = uri
        self._run_id = run_id
        self._spill = spill
        self._pending: deque[_Item] = deque()
        self._steps: CurveSteps | None = None
        self._refused: list[_Item] = []
        self._unread = False
        self._reason = ""
        self._failing = False
        self._give_up_at: float | None = None
        self._changed = threading.Condition()
        self._spilling = threading.RLock()
        self._measured = False
        self._monitor = SystemMonitor(uri, run_id, system_metrics_every_s) if system_metrics_every_s else None
        self._recover()
        self._thread = threading.Thread(target=self._run, name=f"tracker-{run_id[:8]}", daemon=True)
        self._thread.start()

    # ---- called by training: only append

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue ``metrics`` measured at ``step``. Never raises, never waits.

        A metric keeps its first point at a step: a second one is dropped.
        """
        self._measured = True
        now = int(time.time() * 1000)
        self._append([_Item("metric", key, value, step, now) for key, value in metrics.items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Queue tags of the run. Never raises, never waits."""
        self._append([_Item("tag", key, str(value)) for key, value in tags.items()])

    def log_param(self, name: str, value: str) -> None:
        """Queue a parameter of the run. MLflow keeps the first value for ever. Never raises, never waits."""
        self._append([_Item("param", name, value)])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file or a directory, which must stay where it is until ``close``. Never raises, never waits."""
        self._append([_Item("artifact", folder or "", str(Path(path).absolute()))])

    def log_text(self, text: str, artifact: str) -> None:
        """Queue a text as the artifact file ``artifact``. Never raises, never waits."""
        self._append([_Item("text", artifact, text)])

    def log_dict(self, value: Mapping[str, Any], artifact: str) -> None:
        """Queue a JSON-able value as the artifact file ``artifact`` (``.json``). Never raises, never waits."""
        self.log_text(json.dumps(value, indent=2, default=str), artifact)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until everything queued so far is sent; return whether it was.

        Args:
            timeout_s: longest wait while MLflow does not answer; while it does it is ``_PATIENCE_S``.
        """
        began = time.monotonic()
        with self._changed:
            while self._pending:
                limit_s = timeout_s if self._failing else _PATIENCE_S
                left_s = began + limit_s - time.monotonic()
                if left_s <= 0 or not self._thread.is_alive():
                    return False
                self._changed.wait(min(left_s, 0.5))
        return True

    def close(self, timeout_s: float = 20.0) -> Unlogged:
        """Send what is left; after ``timeout_s`` without an answer keep the rest in the spill file and say so."""
        with self._changed:
            self._give_up_at = time.monotonic() + timeout_s
            self._changed.notify_all()
        try:
            self.flush(timeout_s)
        finally:  # Ctrl-C must not lose it either
            with self._spilling, self._changed:
                lost = [*self._refused, *self._pending]
                kept = self._spill if self._write_spill(lost) and lost else None
                self._pending.clear()
                self._refused.clear()
                self._changed.notify_all()
        if lost:
            where = f"; they are in {kept}" if kept else "; not all of them could be kept" if self._spill else ""
            console.warn(f"{len(lost)} records did not reach MLflow at {self._uri} ({self._reason}){where}")
        return Unlogged(len(lost), kept, self._reason if lost else "")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            # The process may be ended in a few seconds, and MLflow be away.
            self._keep()
            self.close(_HURRIED_S)
        else:
            self.close()

    def _append(self, items: list[_Item]) -> None:
        with self._changed:
            self._pending.extend(items)
            self._changed.notify_all()

    # ---- the thread: items leave the queue only when they are logged or refused

    def _run(self) -> None:
        wait_s = 1.0
        while (batch := self._next()) is not None:
            if not batch or self._send(batch):
                wait_s = 1.0
                continue
            with self._changed:
                self._changed.wait(timeout=wait_s if self._give_up_at is None else min(wait_s, 2.0))
            wait_s = min(_LONGEST_WAIT_S, wait_s * 2)

    def _next(self) -> list[_Item] | None:
        """Return the next items of one kind (none after a while without any), or None when closed and done."""
        self._sample_system()
        with self._changed:
            if self._give_up_at is not None:
                late = time.monotonic() > self._give_up_at
                if not self._pending or (late and self._failing):
                    return None
            elif not self._pending:
                self._changed.wait(timeout=1.0)
            kind = self._pending[0].kind if self._pending else ""
            limit = {"metric": _MAX_METRICS, "tag": _MAX_TAGS}.get(kind, 1)
            return list(takewhile(lambda item: item.kind == kind, islice(self._pending, limit)))

    def _sample_system(self) -> None:
        # Not before the run has figures of its own: MLflow's comparisons begin with whatever was logged first.
        if self._monitor is None or self._give_up_at is not None or not self._measured:
            return
        for step, values in self._monitor.sample():
            self.log_metrics(values, step)

    def _send(self, batch: list[_Item]) -> bool:
        """Log ``batch`` and return True, or return False when MLflow is away. What it refuses is set aside."""
        try:
            self._log(batch)
        except Exception as error:
            self._reason = " ".join(str(error).split())[:300]
            if not is_refusal(error):
                with self._changed:
                    self._failing = True
                    self._changed.notify_all()
                self._keep()
                return False
            if len(batch) > 1 and getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                # One bad name spoils a whole batch: find it, and log the others.
                return all(self._send([item]) for item in batch)
            refused = [replace(item, reason=self._reason) for item in batch]
            with self._spilling:
                written = self._write_spill(refused)
                self._done([replace(item, spilled=written) for item in refused], refused=True)
            return True
        self._done(batch)
        return True

    def _done(self, batch: list[_Item], *, refused: bool = False) -> None:
        with self._spilling, self._changed:
            for _ in range(min(len(batch), len(self._pending))):
                self._pending.popleft()
            if refused:
                self._refused.extend(batch)
            self._failing = False
            if not self._pending and not self._refused and not self._unread and self._spill is not None:
                with suppress(OSError):  # if it stays it is compared with what MLflow has
                    self._spill.unlink(missing_ok=True)
            self._changed.notify_all()

    def _keep(self) -> None:
        """Write down what waits, so that not even a kill loses it while the server is away."""
        with self._spilling:
            with self._changed:
                waiting = list(self._pending)
            if not self._write_spill(waiting):
                return
            written = {id(item) for item in waiting}
            with self._changed:
                for index, item in enumerate(self._pending):
                    if id(item) in written:
                        self._pending[index] = replace(item, spilled=True)

    def _log(self, batch: list[_Item]) -> None:
        from mlflow.entities import RunTag

        client = mlflow_client(self._uri)
        first = batch[0]
        if first.kind == "metric":
            self._log_points(client, batch)
        elif first.kind == "tag":
            client.log_batch(self._run_id, tags=[RunTag(item.key, item.value) for item in batch])
        elif first.kind == "param":
            client.log_param(self._run_id, first.key, first.value)
        else:
            self._log_files(client, first)

    def _log_files(self, client: MlflowClient, item: _Item) -> None:
        """Log a text, a file or a directory, and see it there where a proxy may have answered in MLflow's place."""
        if item.kind == "text":
            sizes = {item.key: len(item.value.encode())}
            client.log_text(self._run_id, item.value, item.key)
        else:
            source = Path(item.value)
            place = "/".join(part for part in (item.key, source.name) if part)
            sizes = _sizes(source, place)
            if source.is_dir():
                # A directory keeps its name: log_artifacts would pour its files into the folder.
                client.log_artifacts(self._run_id, item.value, place)
            else:
                client.log_artifact(self._run_id, item.value, item.key or None)
        if self._uri.startswith("http"):
            confirm_files(client, self._run_id, sizes)

    def _log_points(self, client: MlflowClient, batch: list[_Item]) -> None:
        """Log the points that MLflow does not have yet.

        Steps that a resumed run trains again have their points already, or in the spill file of its earlier life: a
        second point at the same step would fork the curve.
        """
        from mlflow.entities import Metric

        steps, self._steps = self._steps or CurveSteps(client, self._run_id), None  # after an error asked for anew
        fresh: dict[tuple[str, int], Metric] = {}
        for item in batch:
            if not steps.has(item.key, item.step):
                point = Metric(item.key, float(item.value), item.timestamp_ms, item.step)
                fresh.setdefault((item.key, item.step), point)
        if fresh:
            client.log_batch(self._run_id, metrics=list(fresh.values()))
            if self._uri.startswith("http"):
                steps.confirm(fresh.values())
            steps.add(fresh.values())
        self._steps = steps

    # ---- the spill file: everything in it is not (known to be) logged

    def _write_spill(self, items: list[_Item]) -> bool:
        """Write down those that are not there yet, all or none; returns whether all are there now."""
        fresh = [item for item in items if not item.spilled]
        if not fresh:
            return True
        if self._spill is None:
            return False
        records = ({"run_id": self._run_id, **asdict(replace(item, spilled=True))} for item in fresh)
        lines = "".join(json.dumps(record, default=str) + "\n" for record in records)
        try:
            self._spill.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self._spill, lines.encode())
        except OSError as error:
            self._reason = f"{self._reason}; and {self._spill} cannot be written: {error.strerror}"
            return False
        return True

    def _recover(self) -> None:
        """Queue what an earlier process of this run could not send."""
        if self._spill is None:
            return
        try:
            lines = self._spill.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            console.warn(
                f"what waits for MLflow in {self._spill} cannot be read now ({error.strerror}): it stays there"
            )
            self._unread = True
            return
        for line in lines:
            with suppress(ValueError, TypeError, AttributeError):  # the line a killed process was writing
                record = json.loads(line)
                if record.pop("run_id", None) == self._run_id:
                    self._pending.append(_Item(**record))


def _sizes(source: Path, place: str) -> dict[str, int]:
    """Bytes of a file, or of each file in a directory, by its path among the artifacts, where it is ``place``."""
    if not source.is_dir():
        return {place: source.stat().st_size}
    inside = (path for path in source.rglob("*") if path.is_file())
    return {f"{place}/{path.relative_to(source).as_posix()}": path.stat().st_size for path in inside}
