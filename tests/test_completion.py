"""What shells are offered, and what a shell makes of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efafnet.pipelines.cli import main
from efafnet.pipelines.commands import COMMANDS
from efafnet.pipelines.completion import SCRIPTS, _split_line, candidates, install
from efafnet.platform.configuration import describe, preset_names

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tra"], ["train"]),
        (["--v"], ["--version"]),
        (["help", "det"], ["detect"]),
        (["train", "coco_r1"], ["coco_r101_384x288", "coco_r152_384x288"]),
        (["train", "x", "optimizer.w"], ["optimizer.weight_decay="]),
        (["train", "x", "optim"], ["optimizer."]),
        (["train", "x", "weight_d"], ["optimizer.weight_decay="]),
        (["train", "x", "schedule.kind=co"], ["schedule.kind=cosine"]),
        (["train", "x", "hard_joints="], []),
        (["train", "x", "flip_test=t"], ["flip_test=true"]),
        (["train", "x", "network.kind="], ["network.kind=efafnet", "network.kind=hrnet", "network.kind=hourglass"]),
        (["train", "--help", "aug"], ["augmentation."]),
        (["train", "x", "--fo"], ["--fork"]),
        (["tune", "ohkm", "nano_"], ["nano_test"]),
        (["study", "table_xi"], ["table_xi", "table_xii"]),
        (["nothing", "x"], []),
    ],
)
def test_candidates(words: list[str], found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert candidates(words) == found


def test_paths_are_offered_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "stores/val", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("mine.yaml", "notes.txt", "stores/a.json"):
        (tmp_path / name).write_text("")
    assert candidates(["evaluate", "ru"]) == ["runs/"]
    assert candidates(["evaluate", "runs/a", "stores/"]) == ["stores/a.json", "stores/val/"]
    assert candidates(["train", "mine"]) == ["mine.yaml"], "a preset may be a YAML file, and no other file"
    assert "notes.txt" not in candidates(["train", ""])
    assert ".hidden/" not in candidates(["evaluate", ""])
    assert candidates(["train", "x", "data.train=sto"]) == ["data.train=stores/"]
    assert candidates(["predict", "runs/a", "stores", "mi"])[:1] == ["mine.yaml"], "the last argument comes many times"


def test_names_with_blanks_are_whole_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data" / "val x").mkdir(parents=True)
    for line, found in (
        ("efafnet evaluate my", ["my data/"]),
        (r"efafnet evaluate my\ data/", ["my data/val x/"]),
        (r"efafnet evaluate runs/a my\ data/v", ["my data/val x/"]),
        (r"efafnet train x data.train=my\ ", ["data.train=my data/"]),
        ("efafnet train nano_te", ["nano_test"]),
    ):
        assert candidates(_split_line(line)) == found


def test_every_command_and_preset_is_offered() -> None:
    assert set(candidates([""])) > {command.name for command in COMMANDS}
    assert set(candidates(["train", ""])) > set(preset_names())


def test_what_matters_first_exists() -> None:
    for command in COMMANDS:
        keys = {row.key for row in describe(command.settings())}
        assert set(command.first) <= keys, command.name
        assert not set(command.first) & set(command.positional), f"{command.name}: arguments stand in its usage"


def test_an_unfinished_line_never_becomes_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "x", "data.train=/nowhere/x"], ["train", "x", "=y"], ["train", "x", "optimizer.lr.x="], []):
        assert main(["--complete", "zsh", *words]) == 0
    for line in ("efafnet train x 'open", "efafnet train x =y", "efafnet", ""):
        assert main(["--complete", "bash", line]) == 0
    assert capsys.readouterr().err == ""


def test_installing_twice_leaves_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".bashrc").write_text("alias l=ls")
    for _ in range(2):
        install("bash", tmp_path)
    script = tmp_path / ".local/share/efafnet/completion.bash"
    assert script.read_text() == SCRIPTS["bash"]
    assert (tmp_path / ".bashrc").read_text() == f'alias l=ls\n[ -f "{script}" ] && . "{script}"\n'
    install("fish", tmp_path)
    assert (tmp_path / ".config/fish/completions/efafnet.fish").read_text() == SCRIPTS["fish"]
    assert f"this one after: . {script}" in capsys.readouterr().out


def test_an_unknown_shell_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--install-completion", "tcsh"]) == 2
    assert "the shell 'tcsh' is not known; give one: --install-completion bash | zsh | fish" in capsys.readouterr().err
    assert main(["--show-completion", "zsh"]) == 0
    assert "compdef _efafnet efafnet" in capsys.readouterr().out


def test_bash_completes_after_the_equals_sign_only(tmp_path: Path) -> None:
    """Bash takes ``=`` for the end of a word: what it is given must not hold the key again."""
    program = tmp_path / "efafnet"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m efafnet.pipelines "$@"\n')
    program.chmod(0o755)
    ask = (
        f"{SCRIPTS['bash']}\n"
        'ask() { COMP_LINE=$1; COMP_POINT=${#1}; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_efafnet 2>/dev/null; echo "${COMPREPLY[@]}"; }\n'
        "ask 'efafnet train x schedule.kind=co' efafnet train x schedule.kind = co\n"
        "ask 'efafnet train x optimizer.w' efafnet train x optimizer.w\n"
        "ask 'efafnet tu' efafnet tu\n"
    )
    shell = shutil.which("bash")
    assert shell is not None
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([shell, "-c", ask], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.splitlines() == ["cosine", "optimizer.weight_decay=", "tune"]
