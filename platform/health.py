"""What a machine has and lacks, as findings with remedies: software, processors, memory, tracking, storage."""

from __future__ import annotations

import importlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from efafnet.platform import machine
from efafnet.platform.credentials import bare
from efafnet.platform.provenance import code_version, is_job_copy, package_root
from efafnet.platform.storage import free_bytes

State = Literal["ok", "warn", "fail"]
GIB = 2**30
_LOW_DISK_GIB = 10.0
_NO_DISK_GIB = 1.0
_LOW_SHARED_GIB = 1.0
_LOW_FILES = 4096
_ESSENTIAL = ("torch", "torchvision", "ray", "mlflow", "optuna", "pyarrow", "cv2", "safetensors")


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis."""

    state: State
    what: str
    found: str
    remedy: str = ""
    """What to do; empty when nothing needs doing."""


def software() -> Iterator[Finding]:
    """Check the interpreter, the code and the packages."""
    yield Finding("ok", "Python", sys.version.split()[0])
    code = code_version()
    commit = (
        f", commit {code['git_commit'][:10]}{' with changes' if code['git_dirty'] else ''}"
        if code["git_commit"]
        else ""
    )
    yield Finding("ok", "efafnet", f"{code['version']}, source {code['source_digest']}{commit}, in {package_root()}")
    yield imports()
    yield pins(package_root() / "constraints.txt")


def imports() -> Finding:
    """Import what everything rests on; a torchvision of another build than torch fails only then."""
    broken = {}
    for name in _ESSENTIAL:
        try:
            importlib.import_module(name)
        except Exception as error:
            broken[name] = " ".join(str(error).split())[:120]
    if not broken:
        return Finding("ok", "packages", f"{len(_ESSENTIAL)} essential ones import")
    remedy = "install the project: pip install -c constraints.txt -e ."
    if "torchvision" in broken and "torch" not in broken:
        remedy = "take torch and torchvision from one source (both CPU builds, or both CUDA builds), " + remedy
    return Finding("fail", "packages", "; ".join(f"{name}: {why}" for name, why in broken.items()), remedy)


def pins(constraints: Path) -> Finding:
    """Compare the installed versions of the direct dependencies with the tested ones."""
    if not constraints.is_file():
        return Finding("ok", "versions", "no constraints.txt beside the code to compare with")
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    direct = {_canonical(name) for name in _direct_dependencies()} or {_canonical(name) for name in pinned}
    different = []
    for name, tested in pinned.items():
        if _canonical(name) not in direct:
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if found.partition("+")[0] != tested:
            different.append(f"{name} {found} instead of {tested}")
    if different:
        remedy = "nothing, if it works; the tested versions: pip install -c constraints.txt -e ."
        return Finding("warn", "versions", "; ".join(different), remedy)
    return Finding("ok", "versions", "those of constraints.txt")


def _direct_dependencies() -> list[str]:
    try:
        entries = requires("efafnet") or []
    except PackageNotFoundError:
        return []
    return [re.split(r"[\[<>=!~; ]", entry)[0] for entry in entries]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def hardware() -> Iterator[Finding]:
    """Check processors, memory, shared memory, open files and GPUs."""
    import psutil

    cores = machine.cores()
    memory_gib = psutil.virtual_memory().total / GIB
    yield Finding("ok", "processors", f"{cores} of {os.cpu_count()} cores usable")
    low = memory_gib < 4
    remedy = "use a machine with at least 4 GiB, or fewer workers and smaller batches" if low else ""
    yield Finding("warn" if low else "ok", "memory", f"{memory_gib:.1f} GiB", remedy)
    yield shared_memory()
    yield open_files()
    yield gpus()


def shared_memory(place: Path = Path("/dev/shm")) -> Finding:
    """Ray keeps objects in shared memory; containers often have 64 MB of it."""
    if not place.is_dir():
        return Finding("ok", "shared memory", f"no {place}; Ray uses files instead")
    usage = shutil.disk_usage(place)
    size_gib, free_gib = usage.total / GIB, usage.free / GIB
    if size_gib >= _LOW_SHARED_GIB and free_gib < _LOW_SHARED_GIB:
        remedy = f"end what fills it; files of programs that were killed stay behind: ls -l {place}"
        return Finding("warn", "shared memory", f"{free_gib:.2f} GiB of {size_gib:.1f} free", remedy)
    if size_gib >= _LOW_SHARED_GIB:
        return Finding("ok", "shared memory", f"{free_gib:.1f} GiB of {size_gib:.1f} free")
    remedy = "start the container with --shm-size=4g or more (Kubernetes: an emptyDir of medium Memory on /dev/shm)"
    return Finding("warn", "shared memory", f"{size_gib:.2f} GiB: Ray falls back to slow files on disk", remedy)


def open_files() -> Finding:
    """Ray opens many sockets and files for each worker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _LOW_FILES:
        return Finding("ok", "open files", f"limit {soft}")
    return Finding("warn", "open files", f"limit {soft}", f"ulimit -n {min(hard, 65536)} before starting Ray")


def gpus() -> Finding:
    """Compare the GPUs the driver shows with those torch can use."""
    try:
        import torch
    except Exception as error:
        return Finding("fail", "GPU", f"torch does not import: {error}", "install the project")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = [f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices]
        return Finding("ok", "GPU", f"{', '.join(names)}; CUDA {torch.version.cuda}")
    shown = driver_gpus()
    if not shown:
        return Finding("ok", "GPU", "none; training runs on the processors")
    remedy = "update the NVIDIA driver, or install the torch build for its CUDA version; see `nvidia-smi`"
    return Finding(
        "fail", "GPU", f"the driver shows {', '.join(shown)}, but torch {torch.__version__} sees none", remedy
    )


def driver_gpus() -> list[str]:
    """Return the GPUs the NVIDIA driver shows, none without a driver."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.partition(" (UUID")[0] for line in answer.stdout.splitlines() if line.strip()]


def storage(place: Path) -> Finding:
    """Check that ``place`` can be written and has room."""
    place = place.absolute()
    existing = place
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding("fail", "storage", f"{place} cannot be written", "name a writable place: storage=…")
    if is_job_copy(place):
        remedy = "name a place on storage that all nodes share: storage=/…"
        return Finding("warn", "storage", f"{place} is deleted with the job", remedy)
    free_gib = free_bytes(existing) / GIB
    found = f"{place}: {free_gib:.0f} GiB free"
    if free_gib < _LOW_DISK_GIB:
        state: State = "fail" if free_gib < _NO_DISK_GIB else "warn"
        return Finding(state, "storage", found, "make room, or name another place: storage=…")
    return Finding("ok", "storage", found)


def tracking(uri: str | None, *, nodes: int = 1) -> Finding:
    """Check that MLflow's store answers, without creating one."""
    from efafnet.platform.mlflow_client import mlflow_client, sqlite_file
    from efafnet.platform.tracking import TrackingError, prepare_tracking

    address = bare(uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    file = sqlite_file(address)
    if file is not None and not file.exists():
        home = file.absolute().parent
        if not os.access(home, os.W_OK | os.X_OK):
            return Finding("fail", "MLflow", f"{file} cannot be created", "choose another store: tracking_uri=…")
        if is_job_copy(file.absolute()):
            remedy = "start `mlflow server` and set MLFLOW_TRACKING_URI"
            return Finding("warn", "MLflow", f"{file.absolute()} is deleted with the job", remedy)
        return _on_nodes(Finding("ok", "MLflow", f"{file.absolute()} will be created"), nodes, local=True)
    try:
        known = len(mlflow_client(prepare_tracking(address)).search_experiments())
    except TrackingError as error:
        return Finding("fail", "MLflow", str(error).partition(";")[0], str(error).partition(";")[2].strip())
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return Finding("fail", "MLflow", f"{address}: {reason}", "check the address and the server's log")
    found = Finding("ok", "MLflow", f"{address}: {known} experiment{'s'[: known != 1]}")
    return _on_nodes(found, nodes, local=file is not None)


def _on_nodes(finding: Finding, nodes: int, *, local: bool) -> Finding:
    """A sqlite file serves one machine only."""
    if not local or nodes == 1:
        return finding
    remedy = "start `mlflow server` on the head and set MLFLOW_TRACKING_URI=http://HEAD:5000"
    return Finding("fail", "MLflow", f"{finding.found}, which {nodes - 1} other nodes cannot reach", remedy)


def host_name() -> Finding:
    """A host name without an address misleads servers and logs; one that means loopback does no harm to training."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return Finding("warn", "host name", f"{name} has no address", "add it to /etc/hosts")
    return Finding("ok", "host name", f"{name} is {address}")


def node_report() -> dict[str, Any]:
    """Describe the machine this runs on, for comparing the nodes of a cluster."""
    versions = {}
    for name in ("ray", "torch", "mlflow", "pyarrow"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "host": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:2])),
        "versions": versions,
        "source": code_version()["source_digest"],
        "gpus": driver_gpus(),
        "shared_memory": shared_memory(),
    }
