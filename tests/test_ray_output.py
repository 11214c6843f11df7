"""What of Ray's own output people see: nothing of its machinery, everything else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from efafnet.platform import console, ray_output
from efafnet.platform.ray_output import NativeLines, WorkerLines, quiet_native
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]
STAMP = "[2026-11-26 11:26:04,294 {} 123 4567] "
ERROR = STAMP.format("E")
ARGUMENTS = f"{ERROR}core_worker.cc:2465: Actor with class name: 'W' has constructor arguments in the object store"
SIGNAL = "*** SIGTERM received at time=1764156000 on cpu 1 ***"
FRAMES = ["PC: @     0x7f2b3c0d  (unknown)  epoll_wait", "    @     0x7f2b3c0d  (unknown)  (unknown)"]


def left(lines: list[str]) -> list[str]:
    native = NativeLines()
    return [line for line in lines if not native.is_remark(line)]


def test_remarks_of_rays_cpp_parts_are_told_from_what_others_write() -> None:
    stays = [
        "warning: the disk is full",
        STAMP.format("C") + "gcs_rpc_client.h:151: Failed to connect to GCS. The program will terminate.",
        "[W1126 11:26:04.294 socket.cpp:464] [c10d] The server socket cannot be initialized",
        "*** SIGSEGV received at time=1764156000 on cpu 1 ***",
        *FRAMES,
    ]
    goes = [
        ARGUMENTS,
        STAMP.format("E") + "(raylet) file.cc:1: x",
        SIGNAL,
        *FRAMES,
        STAMP.format("E") + f"logging.cc:5: {SIGNAL}",
    ]
    assert left(goes) == []
    assert left(stays) == stays
    assert left([SIGNAL, *FRAMES, "then", *FRAMES]) == ["then", *FRAMES], "frames go with their signal only"


PROGRAM = """
import os, sys
from efafnet.platform import console, ray_output
with ray_output.quiet_native():
    os.write(2, b"[2026-11-26 11:26:04,294 E 1 2] a.cc:1: remark\\nlibrary says\\n")
    os.write(2, b"half a")
    os.system("echo from a child >&2")
    print("python", file=sys.stderr)
    os.write(console.error_descriptor(), b"direct\\n")
    os.write(2, b" line\\n[2026-11-26 ")
os.write(2, b"[2026-11-26 11:26:04,294 E 1 2] a.cc:1: after\\n")
"""


def test_what_is_written_past_python_passes_but_for_remarks() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stderr.replace("half a", "").replace(" line\n", "").splitlines()
    assert "half a" in done.stderr
    assert sorted(lines) == sorted(
        [
            "library says",
            "from a child",
            "python",
            "direct",
            "[2026-11-26 [2026-11-26 11:26:04,294 E 1 2] a.cc:1: after",
        ]
    )


def test_what_nobody_takes_holds_up_nobody() -> None:
    """The terminal was closed, or the log's disk is full: who writes more than a pipe holds must not wait for ever."""
    readable, writable = os.pipe()
    with Path("/dev/full").open("wb", buffering=0) as full, os.fdopen(writable, "wb") as pipe:
        passing = threading.Thread(target=ray_output._pass_on, args=(readable, full.fileno()), daemon=True)
        passing.start()
        writing = threading.Thread(target=pipe.write, args=(b"a line\n" * 30_000,), daemon=True)
        writing.start()
        writing.join(LIMIT_S)
        assert not writing.is_alive()
        pipe.close()
        passing.join(LIMIT_S)
        assert not passing.is_alive()
    os.close(readable)


def test_a_captured_stream_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with quiet_native():
        assert sys.stderr is stream
        assert console.error_descriptor() == 2
    monkeypatch.setattr(sys, "stderr", None)
    with quiet_native():
        pass


def test_of_workers_output_rays_own_actors_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose = WorkerLines()
    assert choose({"pid": 7, "actor_name": "RayTrainWorker", "lines": ["warning: slow", ARGUMENTS]}) == [
        "warning: slow"
    ]
    assert choose({"pid": 7, "task_name": "f", "lines": ["a", "b"]}) == ["a", "b"]
    assert choose({"pid": 7, "actor_name": "SynchronizationActor", "lines": ["Failed to query Ray Train"]}) == []
    # A node's word counts: without the place in the source.
    full = f"{ERROR}(raylet) file_system_monitor.cc:116: /tmp/ray is over 95% full"
    assert choose({"pid": "raylet", "lines": [full]}) == ["/tmp/ray is over 95% full"]
    fatal = STAMP.format("C") + "(raylet) node_manager.cc:3576: An unexpected system state has occurred."
    frame = "/x/raylet/raylet(+0xff770a) [0x561f02a3970a] ray::operator<<()"
    dump = "    [state-dump] NodeManager.GcsCheckAlive - 1 total (1 active)"
    assert choose({"pid": "raylet", "lines": [fatal, "*** StackTrace Information ***", frame, dump, ""]}) == [fatal]
    assert choose({"pid": "autoscaler", "lines": ["Adding 2 nodes"]}) == ["Adding 2 nodes"]
    late = (
        "WorkerGroupStartupTimeoutError: The worker group startup timed out after 60.0 seconds waiting for 2 workers."
    )
    now = [0.0]
    monkeypatch.setattr(ray_output, "monotonic", lambda: now[0])
    for now[0] in (100.0, 105.0, 161.0):
        assert choose({"pid": 9, "actor_name": "TrainController", "lines": ["Traceback …", late]}) == []
    assert capsys.readouterr().err.count("still waiting for room for 2 workers; where machines come") == 2
