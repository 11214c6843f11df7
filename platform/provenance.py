"""Which code and which machine a run came from."""

from __future__ import annotations

import functools
import hashlib
import os
import platform as machine
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import efafnet

PACKAGES = ("torch", "torchvision", "ray", "mlflow", "optuna", "pyarrow", "numpy", "opencv-python-headless", "pydantic")
COMMAND_TAG = "efafnet.command"
"""MLflow tag of a run: the command that began it."""
_FOLDERS = ("models", "platform", "tune_spaces", "pipelines")
_MAX_COMMAND_CHARS = 2000
_SECRET = re.compile(r"://[^/\s]*@")  # name and password of an address
_SUFFIXES = (".py", ".yaml", ".html", ".css")


def package_root() -> Path:
    """Return the directory that holds ``models``, ``platform``, …: the checkout, or the installed package."""
    return Path(efafnet.__path__[0]).resolve()


def is_checkout() -> bool:
    """Tell whether the running code is a checkout (or a copy submitted to Ray) rather than an installed wheel."""
    return (package_root() / "pyproject.toml").is_file()


def is_job_copy(path: Path) -> bool:
    """Tell whether ``path`` lies in the copy of a working directory that Ray made for a job, and deletes after it."""
    return {"runtime_resources", "working_dir_files"} <= set(path.parts)


@functools.cache
def code_version() -> dict[str, Any]:
    """Return what identifies the running code.

    Keys: ``version`` of the package, ``source_digest`` of its files (equal on every node that runs the same code, with
    or without git), ``git_commit`` and ``git_dirty`` (None where there is no git history, as in a submitted copy,
    unless the submitter passed EFAFNET_GIT_COMMIT).
    """
    root = package_root()
    commit = _git(root, "rev-parse", "HEAD")
    dirty = None if commit is None else bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    try:
        release = version("efafnet")
    except PackageNotFoundError:
        release = "checkout"
    return {
        "version": release,
        "source_digest": source_digest(root),
        "git_commit": commit or os.environ.get("EFAFNET_GIT_COMMIT"),
        "git_dirty": dirty,
    }


def command_line(words: Sequence[str]) -> str | None:
    """Return the command that ``words`` (``sys.argv``) are, to be typed again, without passwords in addresses; None in
    a process of Ray, which nobody typed, and for a command that has no words."""
    if not words or not words[0] or Path(words[0]).name == "default_worker.py":
        return None
    program = Path(words[0])
    module = program.name == "__main__.py" and program.parent.name == "pipelines"
    told = [_SECRET.sub("://", word) for word in words[1:]]
    return shlex.join(["efafnet" if module else program.name, *told])[:_MAX_COMMAND_CHARS]


def source_digest(root: Path) -> str:
    """Return 16 hexadecimal digits over the names and contents of the project's source files below ``root``."""
    total = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                total.update(f"{path.relative_to(root).as_posix()}\0".encode())
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def _git(root: Path, *arguments: str) -> str | None:
    """Return git's answer, or None where ``root`` is not the top of a working tree (a wheel inside someone's repository
    must not be taken for that repository's commit)."""
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the installed versions of ``names``; absent packages are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Return the machine and the software under this process: system, Python, processors, GPUs, packages."""
    import psutil

    return {
        "system": machine.platform(),
        "python": sys.version.split()[0],
        "host": machine.node(),
        "processor": processor(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpu_names(),
        "packages": package_versions(),
    }


def environment_tags() -> dict[str, str]:
    """Return the few facts about this process's machine and software that runs are compared by."""
    gpus = gpu_names()
    return {
        "env.host": machine.node(),
        "env.python": sys.version.split()[0],
        "env.processor": processor(),
        "env.gpus": ", ".join(gpus) or "none",
        **{f"env.{name}": release for name, release in package_versions(("torch", "ray", "mlflow")).items()},
    }


def processor() -> str:
    """Return the processor's name; the standard library knows only its architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return machine.processor() or machine.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else machine.machine()


def gpu_names() -> list[str]:
    """Return the names of the GPUs torch sees in this process."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
