"""``python -m tests.check_wheel DIRECTORY``: the one wheel there holds the code and its files, and runs alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("models", "platform", "tune_spaces", "pipelines")
NOT_SHIPPED = "platform/deploy/"
"""Cluster files are read in a checkout: ``ray up`` sends the checkout beside them."""


def files_of_tree(root: Path = ROOT) -> set[str]:
    """What a wheel of this tree holds, as paths in the wheel: every file of the four folders but the cluster files."""
    found = {"efafnet/__init__.py"}
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            name = path.relative_to(root).as_posix()
            if path.is_file() and path.suffix != ".pyc" and not name.startswith(NOT_SHIPPED):
                found.add(f"efafnet/{name}")
    return found


def files_of_wheel(wheel: Path) -> set[str]:
    """Paths in the wheel, without those of its metadata (``*.dist-info/``)."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def version_of_tree(root: Path = ROOT) -> str:
    """The version that pyproject.toml names."""
    version: str = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    return version


def newest_in_changelog(root: Path = ROOT) -> str:
    """The version of the first heading in CHANGELOG.md; ValueError where there is none."""
    if found := re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE):
        return found[1]
    raise ValueError("CHANGELOG.md has no heading '## VERSION'")


def problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel of this tree, a sentence each; it is installed alone, and its command run there."""
    expected, held = files_of_tree(), files_of_wheel(wheel)
    found = [f"{name} is missing; name it in package-data of pyproject.toml" for name in sorted(expected - held)]
    found += [f"{name} is not in the tree; remove build/ and build again" for name in sorted(held - expected)]
    version = version_of_tree()
    if (newest := newest_in_changelog()) != version:
        found.append(f"CHANGELOG.md begins with {newest}, pyproject.toml says {version}; make them agree")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        subprocess.run([*pip, "--no-deps", "--no-index", "--target", folder, str(wheel)], check=True)
        found += _failures(Path(folder), version)
    return found


def _failures(site: Path, version: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "efafnet.pipelines"]
    found = []
    for words, wanted in (
        (["--version"], f"efafnet {version}"),
        (["train", "nano_test", "data.train=store", "--print-config"], "kind: efafnet"),
    ):
        done = subprocess.run(
            [*command, *words], cwd=site, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode or wanted not in done.stdout:
            found.append(f"efafnet {' '.join(words)} does not say {wanted!r}: {(done.stdout + done.stderr)[-400:]!r}")
    return found


def main(words: list[str]) -> int:
    """Check the only wheel of a directory; the exit code is 0 where nothing is wrong."""
    wheels = sorted(Path(words[0]).glob("*.whl"))
    if len(wheels) != 1:
        sys.stderr.write(f"error: {words[0]} holds {len(wheels)} wheels, not one\n")
        return 1
    found = problems(wheels[0])
    sys.stderr.writelines(f"error: {wheels[0].name}: {problem}\n" for problem in found)
    if not found:
        sys.stdout.write(f"{wheels[0]}: {len(files_of_wheel(wheels[0]))} files, runs alone\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
