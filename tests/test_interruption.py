"""Signals end a command: in order where that is possible, within seconds where something blocks for ever."""

from __future__ import annotations

import atexit
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efafnet.pipelines import cli
from efafnet.platform import interruption
from efafnet.platform.interruption import (
    Terminated,
    ending_on_signals,
    exit_code,
    keeping_sigterm,
    report_stop,
    was_terminated,
)
from tests.processes import end_session
from tests.waiting import LIMIT_S, assert_threads_end

ROOT = Path(__file__).resolve().parents[1]

BLOCKED = """
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from efafnet.platform import interruption
from efafnet.pipelines import cli

interruption.GRACE_S = 0.5
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started with nohup

def command(words):
    with ThreadPoolExecutor(1) as pool:  # leaving it waits for the read, and so does the interpreter's end
        read = pool.submit(open, words[0])
        print("ready", flush=True)
        return read.result()

cli._dispatch = command
sys.exit(cli.main([sys.argv[1]]))
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_read_that_never_ends_does_not_keep_a_command(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    """An image that is a FIFO stands for a file server that does not answer."""
    os.mkfifo(tmp_path / "image.jpg")
    arguments = [sys.executable, "-c", BLOCKED, str(tmp_path / "image.jpg")]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    assert "something does not answer, perhaps a file system" in err


DEMO = """
import subprocess, sys
from efafnet.platform import interruption
from efafnet.pipelines import cli, demo

interruption.GRACE_S = 200.0
STAGE = '''
import signal, sys, time
def stop(number, frame):
    print("the stage's own words", flush=True)
    if sys.argv[1] == "ends":
        sys.exit(130)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
while True:
    time.sleep(1)
'''
class Started(subprocess.Popen):
    def wait(self, timeout=None):
        assert timeout is None or timeout < interruption.GRACE_S, "the demo would be ended before it has spoken"
        return super().wait(timeout and float(sys.argv[3]))
demo.subprocess.Popen = lambda words, **how: Started([sys.executable, "-c", STAGE, sys.argv[2]], **how)
sys.exit(cli.main(["demo", sys.argv[1]]))
"""


@pytest.mark.parametrize(("stage", "patience_s"), [("ends", 100), ("is stuck", 1)])
def test_a_demo_says_how_to_go_on_whatever_its_stage_does(tmp_path: Path, stage: str, patience_s: int) -> None:
    """Ctrl-C in a terminal goes to the demo's process group; the stage hears of it once, and speaks first."""
    arguments = [sys.executable, "-c", DEMO, str(tmp_path / "out"), stage, str(patience_s)]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            assert "ready\n" in iter(process.stdout.readline, "")
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(LIMIT_S) == 130
        finally:
            end_session(process.pid)  # a stage that is stuck outlives what started it
        said = process.stdout.read()
    assert said.count("the stage's own words") == 1
    told = " ".join(said.partition("the stage's own words")[2].split())
    assert f"interrupted; to go on with stage 1 of 6, synth: efafnet demo {tmp_path}/out" in told


def test_a_command_that_ends_by_itself_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_arrived", [])
    handler, threads = signal.getsignal(signal.SIGTERM), threading.enumerate()
    with ending_on_signals(), pytest.raises(Terminated):
        # Not a real signal here: its watcher would end the tests.
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)  # type: ignore[misc,operator]
    assert was_terminated(KeyboardInterrupt()), "Ray raises it in the place of what was raised"
    assert exit_code(KeyboardInterrupt()) == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    assert_threads_end(threads)


def test_a_signal_to_a_forked_process_is_not_this_ones(tmp_path: Path) -> None:
    """Its C handler would write to the same watcher."""
    program = f"""
import os, signal, time
from efafnet.platform import interruption
interruption.GRACE_S = 0.2
with interruption.ending_on_signals():
    child = os.fork()
    if child == 0:
        time.sleep(30)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    time.sleep(0.6)
    open({str(tmp_path / "alive")!r}, "w").close()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "-15\n"
    assert (tmp_path / "alive").exists()


def test_a_closed_terminal_is_told_twice_and_stops_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel and by the shell; the second must not break off what is put in order after the first."""
    monkeypatch.setattr(interruption, "_arrived", [])
    monkeypatch.setattr(signal, "getsignal", {signal.SIGHUP: signal.SIG_DFL}.__getitem__)
    taken: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: taken.setdefault(number, handler))
    with ending_on_signals():
        with pytest.raises(Terminated) as stop:
            taken[signal.SIGHUP](signal.SIGHUP, None)
        taken[signal.SIGHUP](signal.SIGHUP, None)
        taken[signal.SIGTERM](signal.SIGTERM, None)
    assert exit_code(stop.value) == 129


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_really_closed(tmp_path: Path, nohup: bool) -> None:
    """The kernel sends SIGHUP, and writing is an error from then on; with nohup the work goes on to its end."""
    program = f"""
import signal, sys, time
from pathlib import Path
from efafnet.pipelines import cli
from efafnet.platform import console

def command(words):
    console.note("ready")
    while not Path(words[0]).exists():
        time.sleep(0.01)
    console.note("written into a terminal that is gone")
    return 0

signal.signal(signal.SIGHUP, signal.{"SIG_IGN" if nohup else "SIG_DFL"})
cli._dispatch = command
sys.exit(cli.main([{str(tmp_path / "closed")!r}]))
"""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", program])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1000)
    os.close(terminal)
    (tmp_path / "closed").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if nohup else 129)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back_after_others_took_them() -> None:
    mine = signal.getsignal(signal.SIGTERM)
    with keeping_sigterm():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == mine


def test_who_knows_where_the_work_stands_says_it_and_nobody_says_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    stop = Terminated()
    report_stop(stop, "step 40 saved; the same command goes on from there")
    report_stop(stop)
    report_stop(KeyboardInterrupt())
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["warning: terminated; step 40 saved; the same command goes on from there", "warning: interrupted"]
    assert interruption.GRACE_S < 10


ENDING = """
import atexit
from efafnet.platform.interruption import LastAct

class Kept:
    def __del__(self):
        print("taken apart")

kept = Kept()
if {at_once}:
    last = LastAct()
    last.code = {code}
atexit.register(print, "registered")
print("said")
{end}
"""


@pytest.mark.parametrize(
    ("at_once", "code", "end", "said", "ended"),
    [
        (True, 130, "raise SystemExit(130)", "said\nregistered\n", 130),
        (True, 1, "raise KeyError", "said\nregistered\n", 1),
        (False, 130, "raise SystemExit(130)", "said\nregistered\ntaken apart\n", 130),
    ],
)
def test_the_last_act_ends_a_process_that_is_not_taken_apart(
    at_once: bool, code: int, end: str, said: str, ended: int
) -> None:
    """What was said and what is registered reaches the other end of a pipe first; the third case is Python's own."""
    command = [sys.executable, "-c", ENDING.format(at_once=at_once, code=code, end=end)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode, "KeyError" in done.stderr) == (said, ended, "KeyError" in end)


def test_a_process_forked_from_one_with_a_last_act_ends_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Any] = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(os, "_exit", registered.append)
    last = interruption.LastAct()
    last.code = 2
    [leave] = registered
    monkeypatch.setattr(last, "_owner", os.getpid() + 1)
    leave()
    assert registered == [leave]
    monkeypatch.setattr(last, "_owner", os.getpid())
    leave()
    assert registered == [leave, 2]


def test_the_program_ends_with_the_code_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller in Python gets the code and goes on."""
    made: list[SimpleNamespace] = []

    def last_act() -> SimpleNamespace:
        made.append(SimpleNamespace(code=1))
        return made[-1]

    monkeypatch.setattr(cli, "LastAct", last_act)
    assert (cli.main(["--version"]), made) == (0, [])
    for words, code in ((["--version"], 0), (["nonsense"], 2)):
        monkeypatch.setattr(sys, "argv", ["efafnet", *words])
        assert cli.main() == made[-1].code == code
