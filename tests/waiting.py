"""Waiting for what other threads and processes do. Limits end a test that hangs; nothing is measured by them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LIMIT_S = 300.0
"""Longest wait, seconds: many times what the slowest machine needs, and less than pytest's own limit."""


def wait_for(
    what: str,
    condition: Callable[[], object],
    ended: Callable[[], object] = lambda: False,
    *,
    limit_s: float = LIMIT_S,
) -> float:
    """Wait until a condition holds, and return the seconds it took.

    Args:
        what: is waited for, for the message.
        condition: asked fifty times a second.
        ended: whether what would bring it about is over, so that it cannot come any more.
        limit_s: longest wait, seconds.
    """
    began = time.monotonic()
    while not condition():
        assert not ended(), f"it ended before {what}"
        assert time.monotonic() < began + limit_s, f"no {what} within {limit_s:g} s"
        time.sleep(0.02)
    return time.monotonic() - began


def assert_threads_end(before: list[threading.Thread]) -> None:
    """Fail where a thread stays that did not run ``before``. Other tests' may end meanwhile, so none is counted."""
    wait_for("end of the threads", lambda: set(threading.enumerate()) <= set(before))
