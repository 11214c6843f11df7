"""The wheel, the pins, the Makefile, and what travels to a cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.check_wheel import FOLDERS, ROOT, files_of_tree, files_of_wheel, main, newest_in_changelog, version_of_tree


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ---- pins


def test_every_pin_is_exact_and_names_no_place() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*", line), line
    names = [canonical(name) for name in constraints()]
    assert len(names) == len(set(names))
    assert "pip" not in names, "pip cannot replace itself while it installs"


def test_every_dependency_is_pinned() -> None:
    table = project()["project"]
    wanted = [*table["dependencies"], *table["optional-dependencies"]["dev"]]
    names = {canonical(re.split(r"[\[<>=!~; ]", entry)[0]) for entry in wanted}
    assert names <= {canonical(name) for name in constraints()}


def test_the_tested_environment_is_the_pinned_one() -> None:
    different = {}
    for name, pinned in constraints().items():
        try:
            if version(name) != pinned:
                different[name] = (pinned, version(name))
        except PackageNotFoundError:
            continue  # a package of another operating system or processor
    assert not different, f"pinned, installed: {different}"


# ---- the wheel


def test_every_folder_with_code_is_in_the_wheel() -> None:
    found = {"efafnet"}
    for folder in FOLDERS:
        for path in [ROOT / folder, *(ROOT / folder).rglob("*")]:
            if path.is_dir() and any(path.glob("*.py")):
                found.add("efafnet." + ".".join(path.relative_to(ROOT).parts))
    assert set(project()["tool"]["setuptools"]["packages"]) == found


def copy_of_tree(target: Path) -> Path:
    """Copy what a clone holds, so that building leaves nothing in the checkout."""
    hidden = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build")

    def left_out(folder: str, names: list[str]) -> set[str]:
        return hidden(folder, names) | ({"runs", "demo"} & {*names} if Path(folder) == ROOT else set())

    return Path(shutil.copytree(ROOT, target, symlinks=True, ignore=left_out))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the project's wheel installed and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    tree = copy_of_tree(folder / "tree")
    quiet = {"cwd": folder, "check": True, "capture_output": True}
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, tree], **quiet)  # type: ignore[call-overload]
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], **quiet)  # type: ignore[call-overload]
    return folder / "site"


def elsewhere(site: Path, program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *program.split(maxsplit=1)] if program.startswith("-m ") else [sys.executable, "-c", program],
        cwd=cwd, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.no_ray
def test_the_wheel_holds_the_code_and_its_files_only(installed: Path) -> None:
    top = sorted(path.name for path in installed.iterdir() if path.name not in ("bin", "__pycache__"))
    assert [name for name in top if not name.endswith(".dist-info")] == ["efafnet"]
    [wheel] = installed.parent.glob("*.whl")
    assert files_of_wheel(wheel) == files_of_tree()
    assert {"efafnet/models/costs.json", "efafnet/pipelines/report/page.html"} <= files_of_wheel(wheel)
    assert not (installed / "efafnet" / "platform" / "__init__.py").exists()


@pytest.mark.slow
@pytest.mark.no_ray
def test_the_wheel_runs_elsewhere(installed: Path, tmp_path: Path) -> None:
    program = (
        "import platform, efafnet, importlib.resources as r; platform.system()\n"
        f"assert list(efafnet.__path__) == [{str(installed / 'efafnet')!r}], efafnet.__path__\n"
        "from efafnet.platform.configuration import load_preset, preset_names, resolve\n"
        "from efafnet.pipelines.training.config import TrainConfig\n"
        "assert preset_names()\n"
        "for name in preset_names(): resolve(TrainConfig, load_preset(name), name)\n"
        "assert list(r.files('efafnet.tune_spaces').glob('*.yaml'))\n"
        "from efafnet.platform.provenance import is_checkout, code_version\n"
        f"assert not is_checkout() and code_version()['version'] == {version_of_tree()!r}, code_version()\n"
    )
    done = elsewhere(installed, program, tmp_path)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "efafnet.pipelines", "train", "--help", "optimizer"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "optimizer.lr" in shown.stdout
    script = (installed / "bin" / "efafnet").read_text()
    assert "from efafnet.pipelines.cli import main" in script


# ---- what travels to a cluster


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The archive Ray makes of this directory when a job is submitted from it."""
    from ray._private.runtime_env.packaging import create_package

    target = tmp_path_factory.mktemp("job") / "package.zip"
    create_package(str(ROOT), target, include_gitignore=True, excludes=[])
    return zipfile.ZipFile(target)


def test_a_submitted_directory_is_small(package: zipfile.ZipFile) -> None:
    assert package.filename is not None
    assert Path(package.filename).stat().st_size < 5e6


def test_a_submitted_directory_holds_the_code_once(package: zipfile.ZipFile) -> None:
    names = {name for name in package.namelist() if not name.endswith("/")}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".html", ".css"):
                assert path.relative_to(ROOT).as_posix() in names
    assert {"efafnet/__init__.py", "pyproject.toml"} <= names
    unwanted = [name for name in names if name.startswith((".git/", ".venv/", "tests/", "efafnet/models"))]
    assert not unwanted


def test_the_submitted_code_runs_without_the_links(package: zipfile.ZipFile, tmp_path: Path) -> None:
    package.extractall(tmp_path / "job")
    program = (
        "import platform, efafnet.models.settings as s, efafnet.platform.console as c; platform.system(); "
        "print(s.__file__); print(c.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "job", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    job = tmp_path / "job"
    assert done.stdout.split() == [str(job / "models" / "settings.py"), str(job / "platform" / "console.py")]


@pytest.mark.slow
def test_ray_workers_run_the_submitted_code_and_not_an_installed_one(
    package: zipfile.ZipFile, installed: Path, tmp_path: Path
) -> None:
    """A copy of the tree with a mark is submitted while a wheel without it is installed for driver and workers."""
    job = tmp_path / "job"
    package.extractall(job)
    (job / "models" / "mark.py").write_text("MARK = 'submitted'\n")
    program = (
        "import sys, ray\n"
        "given = {'working_dir': sys.argv[1]}\n"
        "ray.init('local', num_cpus=1, include_dashboard=False, logging_level='ERROR', runtime_env=given)\n"
        "@ray.remote\n"
        "def look():\n"
        "    import platform, os, efafnet\n"
        "    from efafnet.models.mark import MARK\n"
        "    assert platform.system()\n"
        "    return MARK, list(efafnet.__path__), os.getcwd()\n"
        "mark, path, here = ray.get(look.remote())\n"
        "assert mark == 'submitted'\n"
        "assert path == [here], (path, here)\n"
        "assert 'working_dir' in here, here\n"
    )
    env = {**os.environ, "PYTHONPATH": str(installed), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(job)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- make

LINT = [
    *("python -m ruff check", "python -m ruff format --check"),
    *("shellcheck .ci/run platform/deploy/aws_prepare.sh tests/machines.sh", "python -m mypy"),
]


def fake_tree(folder: Path) -> tuple[Path, dict[str, str]]:
    """A tree whose Python is a script that writes down how it was called."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    fake = folder / "fake-python"
    fake.write_text(
        f'#!/bin/sh\necho "$(basename $0) $*" >> {folder}/calls\n'
        'if [ "$2" = venv ]; then mkdir -p .venv/bin\n'
        f"for n in python pip shellcheck; do cp {fake} .venv/bin/$n; done; fi\n"
    )
    fake.chmod(0o755)
    return folder / "calls", {**os.environ, "PYTHON": str(fake)}


def make(target: str, folder: Path, env: dict[str, str]) -> list[str]:
    calls = folder / "calls"
    calls.write_text("")
    done = subprocess.run(["make", target], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_installs_when_needed_and_only_then(tmp_path: Path) -> None:
    _, env = fake_tree(tmp_path)
    first = make("lint", tmp_path, env)
    assert first[0] == "fake-python -m venv --clear .venv"
    assert first[1].startswith("pip install ")
    assert "-c constraints.txt -e .[dev]" in first[1]
    assert first[2:] == LINT
    assert make("lint", tmp_path, env) == LINT
    newer = (tmp_path / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (newer, newer))
    again = make("lint", tmp_path, env)
    assert again[0].startswith("pip install "), "new pins are installed into the environment that is there"
    assert again[1:] == LINT


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_test_runs_lint_then_every_test_once_the_fast_ones_first(tmp_path: Path) -> None:
    _, env = fake_tree(tmp_path)
    make("lint", tmp_path, env)
    calls = make("test", tmp_path, env)
    tests = [call for call in calls if call.startswith("python -m pytest ")]
    assert "-m not slow -n" in tests[0]
    assert "-m slow -n" in tests[1]
    *style, types = LINT
    assert calls[:4] == [*style, tests[0]]
    assert sorted(calls[4:]) == sorted([types, tests[1]]), "beside each other, when all else has passed"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_demo_runs_the_demo(tmp_path: Path) -> None:
    _, env = fake_tree(tmp_path)
    assert make("demo", tmp_path, env)[-1] == "python -m efafnet.pipelines demo demo"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_release_builds_one_wheel_and_checks_it(tmp_path: Path) -> None:
    _, env = fake_tree(tmp_path)
    for folder in ("build", "dist"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "older.whl").touch()
    calls = make("release", tmp_path, env)[-2:]
    assert calls[0].startswith("python -m pip wheel ")
    assert calls[0].endswith(" --no-deps --no-build-isolation --wheel-dir dist .")
    assert calls[1] == "python -m tests.check_wheel dist"
    assert not (tmp_path / "build").exists(), "a file that was removed from the tree would come back from there"
    assert not (tmp_path / "dist").exists()


def test_a_wheel_that_lacks_or_adds_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.check_wheel.subprocess.run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    with zipfile.ZipFile(tmp_path / "efafnet-0-py3-none-any.whl", "w") as wheel:
        for name in files_of_tree() - {"efafnet/models/costs.json"} | {"efafnet/models/gone.py"}:
            wheel.writestr(name, "")
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "efafnet/models/costs.json is missing" in said
    assert "efafnet/models/gone.py is not in the tree" in said
    assert "efafnet --version does not say" in said
    assert main([str(tmp_path / "nothing")]) == 1


def test_the_changelog_begins_with_the_version() -> None:
    assert newest_in_changelog() == version_of_tree()


def test_the_hosted_check_runs_the_two_commands_of_the_readme() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert [command for command in commands if command.startswith("make")] == ["make test", "make demo"]
    first_screen = (ROOT / "README.md").read_text().split("```")[1]
    assert re.findall(r"^make \w+", first_screen, re.MULTILINE) == ["make demo", "make test"]


def test_the_hooks_are_the_lines_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    entries = [hook["entry"].removeprefix(".venv/bin/python -m ") for hook in hooks[0]["hooks"]]
    parts = re.search(r"^lint: (.*)$", makefile := (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert parts is not None
    recipes = [makefile.partition(f"\n{part}:")[2].partition("\n\n")[0].split("\n\t")[1:] for part in parts[1].split()]
    lines = [line.removeprefix("nice -n 19 ").removeprefix("$(RUN) ") for recipe in recipes for line in recipe]
    assert entries == lines
    assert len(lines) == 4


def test_the_gate_is_make_test() -> None:
    gate = ROOT / ".ci" / "run"
    assert os.access(gate, os.X_OK)
    assert gate.read_text().splitlines()[-1] == "make test"
