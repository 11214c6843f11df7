from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from efafnet.platform import provenance

ROOT = Path(__file__).resolve().parents[1]


def test_the_running_code_is_this_checkout() -> None:
    assert provenance.package_root() == ROOT
    assert provenance.is_checkout()
    code = provenance.code_version()
    assert code["source_digest"] == provenance.source_digest(ROOT)
    if (ROOT / ".git").exists():
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert code["git_commit"] == commit.stdout.strip()


def test_the_digest_names_the_code_and_nothing_else(tmp_path: Path) -> None:
    for name in ("models", "pipelines"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "a.py").write_text("x = 1\n")
    before = provenance.source_digest(tmp_path)
    assert len(before) == 16
    (tmp_path / "models" / "__pycache__").mkdir()
    (tmp_path / "models" / "__pycache__" / "a.pyc").write_text("compiled")
    (tmp_path / "notes.py").write_text("elsewhere")
    assert provenance.source_digest(tmp_path) == before
    (tmp_path / "models" / "a.py").rename(tmp_path / "pipelines" / "a.py")
    moved = provenance.source_digest(tmp_path)
    assert moved != before
    (tmp_path / "pipelines" / "a.py").write_text("x = 2\n")
    assert provenance.source_digest(tmp_path) not in (before, moved)


def test_a_folder_inside_somebodys_repository_has_no_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site-packages").mkdir()
    assert provenance._git(tmp_path / "site-packages", "rev-parse", "HEAD") is None


def test_a_submitted_copy_knows_the_commit_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    monkeypatch.setenv("EFAFNET_GIT_COMMIT", "abc")
    code = provenance.code_version.__wrapped__()
    assert (code["git_commit"], code["git_dirty"]) == ("abc", None)


def test_a_machine_without_git_still_names_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shutil.which("git") is None or provenance._git(ROOT, "no-such-command") is None
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance._git(tmp_path, "rev-parse", "HEAD") is None


def test_the_environment_is_described() -> None:
    found = provenance.environment()
    assert found["packages"]["torch"]
    assert found["cpu_cores"] >= 1
    assert found["memory_gib"] > 0
    assert found["processor"]
    assert "no-such-package" not in provenance.package_versions(("torch", "no-such-package"))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/venv/bin/efafnet", "train", "name=a b"], "efafnet train 'name=a b'"),
        (["/src/pipelines/__main__.py", "demo"], "efafnet demo"),
        (["my_script.py", "--x"], "my_script.py --x"),
        (["efafnet", "train", "tracking.uri=https://me:s3cr@t@host/x"], "efafnet train tracking.uri=https://host/x"),
        (["/ray/_private/workers/default_worker.py", "--node-ip=1"], None),
        ([""], None),
        ([], None),
    ],
)
def test_a_command_is_told_as_it_can_be_typed_again(words: list[str], command: str | None) -> None:
    assert provenance.command_line(words) == command
