"""How Ctrl-C, SIGTERM and a closed terminal end a command: in order where that is possible, and within seconds in any
case."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from efafnet.platform import console

GRACE_S = 8.0
"""Seconds that a command has for ending in order; Slurm and Kubernetes give 30, ``ray job stop`` 3."""

_REPORTED = "reported to the user"
_arrived: list[int] = []
# Which of the signals that raise ``Terminated`` came.


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, as at the end of a batch job, or SIGHUP, as when the connection to the terminal breaks: stopped
    like by Ctrl-C, so that runs are closed properly."""


def was_terminated(stop: KeyboardInterrupt) -> bool:
    """Whether it was such a signal: where that meets a call of Ray's, Ray raises KeyboardInterrupt in its place."""
    return isinstance(stop, Terminated) or bool(_arrived)


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the number of the signal that stopped the command."""
    if _arrived:
        return 128 + _arrived[0]
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def report_stop(stop: KeyboardInterrupt, status: str = "") -> None:
    """Say once that the command was stopped, and where its work stands; whoever knows that says it first."""
    if _REPORTED in getattr(stop, "__notes__", ()):
        return
    word = "terminated" if was_terminated(stop) else "interrupted"
    console.warn(f"{word}; {status}" if status else word)
    stop.add_note(_REPORTED)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise ``Terminated``, and see to it that all three signals end this process even where
    Python is stuck. A SIGHUP that is ignored stays so: ``nohup`` has asked for it.

    A thread in a read of a file server that does not answer can neither be interrupted nor left: whoever waits for it,
    be it an executor or the interpreter's own end, waits for ever. So a watcher hears of signals from the interpreter's
    own C code, and ends the process ``GRACE_S`` seconds after the first one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()
    _arrived.clear()

    def stop(number: int, _frame: object) -> None:
        if os.getpid() == owner:
            _arrived.append(number)
            if len(_arrived) > 1:
                return  # a closed terminal is told by the kernel and by the shell: what is being put in order goes on
            raise Terminated
        # Processes forked from this one keep dying of it at once.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    heard, told = socket.socketpair()
    told.setblocking(False)
    before_fd = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    taken = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else [])]
    before = {number: signal.signal(number, stop) for number in taken}
    threading.Thread(target=_watch, args=(heard,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        # A signal that came goes on counting: what blocks may be the interpreter's end.
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        told.close()


def _watch(heard: socket.socket) -> None:
    with heard:
        ends = _first_end(heard)
        if ends is None:
            return
        deadline, ended = time.monotonic() + GRACE_S, False
        while not ended and (left_s := deadline - time.monotonic()) > 0:
            heard.settimeout(left_s)
            with suppress(TimeoutError):
                ended = not heard.recv(64)
    time.sleep(max(0.0, deadline - time.monotonic()))
    if not ended:
        text = f"\nwarning: ended {GRACE_S:g} s after the signal: something does not answer, perhaps a file system\n"
        with suppress(OSError):  # the terminal may be gone
            os.write(console.error_descriptor(), text.encode())
    os._exit(128 + ends)


def _first_end(heard: socket.socket) -> int | None:
    """Wait for a signal that ends the command and return its number; None where the command ended without one."""
    while came := heard.recv(64):
        for number in came:
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                return number
    return None


# What a forked process hears is its own: a signal to it must not end this one.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class LastAct:
    """Ends this process once everything that is registered for its end (``atexit``) is done, without taking the
    interpreter apart; to be made before anything else is registered, for what is registered first is done last.

    A thread that waits in Ray meanwhile, as that of a training stopped by Ctrl-C does, would look for signals in an
    interpreter that is gone, and the process would die of SIGSEGV after its last word. What is taken apart is also
    gone through for garbage: 1.6 CPU seconds at the end of a training, in memory that the system takes back anyway.
    """

    def __init__(self) -> None:
        self.code = 1
        """The exit code; 1 as long as nothing else is known, as after a traceback."""
        self._owner = os.getpid()
        atexit.register(self._leave)

    def _leave(self) -> None:
        if os.getpid() != self._owner:  # a process forked from this one ends as it likes
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the terminal may be gone, or the stream closed
                stream.flush()
        os._exit(self.code)


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Put the handler of SIGTERM back afterwards: Ray replaces it, also below Python, by one that prints addresses."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
