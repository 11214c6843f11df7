"""What all deployments must agree on: versions, what the project consists of, and commands that are shell."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "platform" / "deploy"
INSTALLED_FROM = ("efafnet/__init__.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
"""What the installation needs beside the project's folders."""
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
MEANT = "SC2016,SC2155"
"""What of shellcheck's remarks is meant so in one-line commands: text that only an inner shell expands, and the status
of a substitution within an export, which no line without ``set -e`` would look at."""


def pins() -> dict[str, str]:
    """The tested versions."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def folders() -> set[str]:
    """The project's folders at the root."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    return {name.split(".")[1] for name in packages if "." in name}


def oldest_python() -> tuple[int, int]:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    major, minor = wanted.removeprefix(">=").split(".")
    return int(major), int(minor)


def cluster_file(path: Path) -> dict[str, Any]:
    """A cluster file as Ray uses it: its own defaults filled in, then checked against its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    return config


def commands(config: dict[str, Any]) -> dict[str, list[str]]:
    return {key: value for key, value in config.items() if key.endswith("_commands")}


def the(word: str, lines: list[str]) -> str:
    """The only command that has ``word`` in it."""
    [line] = [line for line in lines if word in line]
    return line


def check_shell(line: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    remarks = [str(SHELLCHECK), "--shell=bash", f"--exclude={MEANT}", "--format=gcc", "-"]
    done = subprocess.run(remarks, input=line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stdout}"


def check_mounts(config: dict[str, Any]) -> None:
    """The token and all that is installed from travel to every node."""
    mounts: dict[str, str] = config["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    sources = {Path(source).as_posix() for target, source in mounts.items() if target.startswith("~/efafnet/")}
    assert sources == folders() | set(INSTALLED_FROM)
    for target, source in mounts.items():
        assert source.startswith("~") or target == f"~/efafnet/{source}"
        assert source.startswith("~") or (ROOT / source).exists(), source
