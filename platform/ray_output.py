"""What Ray writes to a terminal, and what of it people see.

The C++ parts of Ray write to the process's standard error, past Python; what workers write travels through the cluster
to the driver, together with the remarks of Ray's own actors. What of that says nothing about a user's work is left to
Ray's logs, where it stands in any case: ``/tmp/ray/session_latest/logs`` on each node.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from efafnet.platform import console, ray_private

RAYS_OWN = frozenset({"TrainController", "SynchronizationActor", "_AutoscalingCoordinatorActor"})
"""Actors of Ray's libraries. What they fail at reaches the driver as an error, and is told there in one line."""
WAITING_EVERY_S = 60.0
"""Least seconds between two remarks that workers are waited for."""

_NATIVE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] (?:\(\S+\) )?\S+\.(?:cc|h):\d+: ?")
"""How Ray's C++ parts begin a line that is not their last: date, level, process, thread, place in the source."""
_TERMINATED = re.compile(r"\*\*\* SIG(TERM|INT) received at time=")
_DEATH = re.compile(r"\[state-dump\]|\*\*\* StackTrace Information|\S+\(\+0x[0-9a-f]+\) \[0x[0-9a-f]+\]")
"""Lines by which a dying process of Ray describes itself, beside the one that says what it died of."""
_FRAME = re.compile(r"(PC: )? *@ +0x")
_BEGINNINGS = ("[2", "*** SIG", "PC: @", "    @")
"""With these begin the lines that may be held back; others pass as they come, also without an end."""
_NO_ROOM = re.compile(r"startup timed out after [\d.]+ seconds waiting for (\d+) workers")


class NativeLines:
    """Tells which lines of a process's standard error are remarks of Ray's C++ parts. A fatal one is not."""

    def __init__(self) -> None:
        self._in_frames = False

    def is_remark(self, line: str) -> bool:
        """Whether a line is one; lines are given in order, for the frames after a signal belong to it."""
        if _FRAME.match(line):
            return self._in_frames
        native = _NATIVE.match(line)
        self._in_frames = bool(_TERMINATED.match(line[native.end() :] if native else line))
        return native is not None or self._in_frames


@contextmanager
def quiet_native() -> Iterator[None]:
    """Hold back, meanwhile, the remarks that Ray's C++ parts write to this process's standard error.

    Python's own ``sys.stderr`` leads past that. Where it is not the process's own (in tests, in Ray's workers), nothing
    is held back.
    """
    before = sys.__stderr__
    if before is None or sys.stderr is not before or before.fileno() != 2:
        yield
        return
    direct = os.dup(2)
    readable, writable = os.pipe()
    os.dup2(writable, 2)
    os.close(writable)
    sys.stderr = open(  # noqa: SIM115
        direct, "w", buffering=1, encoding=before.encoding, errors=before.errors, closefd=False
    )
    console.set_error_descriptor(direct)
    thread = threading.Thread(target=_pass_on, args=(readable, direct), name="stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):  # of a terminal that was closed
            sys.stderr.flush()
        sys.stderr = before
        console.set_error_descriptor(2)
        os.dup2(direct, 2)
        # Whoever was started meanwhile and lives on writes there still: the thread is not waited for any longer.
        thread.join(timeout=0.5)


def _pass_on(readable: int, direct: int) -> None:
    """Copy what comes, but for remarks, from one descriptor to another, until nobody can write to the first."""
    lines, pending = NativeLines(), b""
    while piece := os.read(readable, 65536):
        *whole, pending = (pending + piece).split(b"\n")
        for line in whole:
            if not lines.is_remark(line.decode(errors="replace")):
                _write(direct, line + b"\n")
        if pending and not any(pending.startswith(b.encode()) or b.encode().startswith(pending) for b in _BEGINNINGS):
            _write(direct, pending)  # a question or a line drawn anew has no end
            pending = b""
    _write(direct, pending)


def _write(descriptor: int, content: bytes) -> None:
    """Write, or lose what a closed terminal or a full disk does not take: whoever wrote it would wait for a reader."""
    with suppress(OSError):
        while content:
            content = content[os.write(descriptor, content) :]


class WorkerLines:
    """Chooses what of the workers' output people see."""

    def __init__(self) -> None:
        self._told_s = float("-inf")

    def __call__(self, data: Mapping[str, Any]) -> list[str]:
        """The lines to show of a piece of output, as Ray hands it to a driver."""
        lines = [str(line) for line in data.get("lines", [])]
        if data.get("actor_name") in RAYS_OWN:
            self._tell_waiting(lines)
            return []
        if data.get("pid") == "raylet":  # of a node: a full disk, memory that ran out
            return [_NATIVE.sub("", line) for line in lines if line.strip() and not _DEATH.search(line)]
        native = NativeLines()
        return [line for line in lines if not native.is_remark(line)]

    def _tell_waiting(self, lines: list[str]) -> None:
        waiting = next((found for line in lines if (found := _NO_ROOM.search(line))), None)
        if waiting is not None and monotonic() - self._told_s >= WAITING_EVERY_S:
            self._told_s = monotonic()
            console.note(
                f"still waiting for room for {waiting[1]} workers; where machines come with the work they may be on "
                "their way: ray status"
            )


def choose_worker_lines() -> None:
    """Let the connected driver show what ``WorkerLines`` chooses."""
    ray_private.choose_worker_lines(WorkerLines())
