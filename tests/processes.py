"""Programs that tests start: a port for them, and the end of all that they have started themselves."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress

import psutil


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_session(leader: int) -> None:
    """Kill all of the session that a process leads, itself included: some outlive what started them."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)
