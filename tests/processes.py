"""Programs that tests start: a port for them, and the end of all that they have started themselves."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

PATIENT = (
    "import sys\n"
    "from efafnet.platform import interruption\n"
    "interruption.GRACE_S = 250.0\n"
    "from efafnet.pipelines.cli import main\n"
    "sys.exit(main())\n"
)
"""The command line, with time to end in order on the slowest machine."""


def program(*words: str) -> list[str]:
    """The command that gives ``words`` to this program, in a process of its own that a signal may end."""
    return [sys.executable, "-c", PATIENT, *words]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port of this machine that refuses every connection, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def end_session(leader: int) -> None:
    """Kill all of the session that a process leads, itself included: some outlive what started them."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)
