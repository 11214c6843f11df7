"""Which Ray a process of the tests is connected to: the one that tests share, one of their own, or none.

Tests run in any order and in several processes, so none may count on what the one before it has left: who needs a Ray
asks for it here, and who needs none in this process says so.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.holds import Holds

CPUS = 4
"""CPU slots of the shared Ray."""
_place = Path()
_shared = ""


def apart() -> None:
    """Let this process, and those it starts, find no Ray but their own on this machine.

    ``ray start``, and Ray's pretended clusters, announce themselves in Ray's directory to whoever starts a program
    without an address: it would join the cluster of whoever runs the tests, or that of another process of theirs.
    """
    global _place
    _place = Path(tempfile.mkdtemp(prefix="rays-", dir="/tmp"))  # a short name: sockets with long ones lie in it
    (_place / "ray").mkdir()  # where clusters announce themselves
    os.environ["RAY_TMPDIR"] = str(_place)


def remove() -> None:
    """Remove what the Rays of this process have left on disk."""
    shutil.rmtree(_place, ignore_errors=True)


def connected() -> str:
    """Address of the Ray that this process is connected to; empty without one."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().gcs_address) if ray is not None and ray.is_initialized() else ""


def shared() -> str:
    """Address of the shared Ray; empty where none has been started."""
    return _shared


def holds() -> Holds:
    """Where trainings on the shared Ray wait."""
    return Holds(_place / "holds")


def share() -> None:
    """Be connected to the local Ray that tests share: starting one takes seconds."""
    from efafnet.platform.cluster import ClusterConfig, connect

    global _shared
    if not connected():
        with holds().for_children():
            _shared = connect(ClusterConfig(address="local", num_cpus=CPUS)).address
    assert connected() == _shared, "another Ray than the shared one is still connected"


def leave() -> None:
    """Be connected to no Ray, and end the shared one."""
    if connected():
        sys.modules["ray"].shutdown()


def refuse(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *, running: bool = False) -> None:
    """Let no Ray be there but one that runs on this machine where it says so, and let ``module`` connect to none: who
    wants to gets the error ``Ray was wanted``."""
    import ray

    from efafnet.platform import ray_data

    def connect(_: object) -> None:
        raise OSError("Ray was wanted")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_data, "is_running", lambda _: running)
    monkeypatch.setattr(module, "connect", connect)
