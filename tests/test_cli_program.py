"""The real table of commands and the real program; what the command line does with words: test_cli.py."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines.cli import main
from efafnet.pipelines.commands import COMMANDS, Command
from efafnet.platform.configuration import describe
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]


def command_modules() -> list[Command]:
    return [command for command in COMMANDS if importlib.util.find_spec(command.module) is not None]


@pytest.mark.parametrize("command", command_modules(), ids=lambda command: command.name)
def test_every_command_explains_every_setting_with_its_unit(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command.name, "--help"]) == 0
    text = capsys.readouterr().out
    assert command.usage() in text
    model = command.settings()
    rows = describe(model)
    silent = [row.key for row in rows if not row.text and not row.key.endswith("kind")]
    assert not silent, f"settings without an explanation: {silent}"
    fields: Any = model.model_fields
    assert {name for name in command.positional if name != "preset"} <= set(fields)


def test_all_commands_have_landed() -> None:
    assert [command.name for command in COMMANDS if command not in command_modules()] == []


def efafnet(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "efafnet.pipelines", *words]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_the_overview_is_quick_because_it_imports_nothing_heavy() -> None:
    program = (
        "import sys; from efafnet.pipelines.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'ray', 'mlflow', 'pydantic', 'yaml', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"\n  {command.name} " in done.stdout


def test_the_program_reports_mistakes_by_its_exit_code() -> None:
    done = efafnet("traim")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no command 'traim'; did you mean 'train'?")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    """``head -n 0`` is gone before anything is written: 141 is what the signal of a broken pipe would end it with."""
    line = f"{sys.executable} -m efafnet.pipelines | head -n 0; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


@pytest.mark.parametrize(
    ("sent", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_end_the_program_in_order(tmp_path: Path, sent: signal.Signals, code: int, said: str) -> None:
    (tmp_path / "slow_toy.py").write_text(
        "import time\n"
        "from efafnet.models.settings import Settings\n"
        "class C(Settings):\n    pass\n"
        "def run(config):\n    try:\n        print('ready', flush=True)\n        time.sleep(600)\n"
        "    finally:\n        print('closed', flush=True)\n"
    )
    program = (
        "import sys\nfrom efafnet.pipelines import cli, commands\n"
        "commands.BY_NAME['toy'] = commands.Command('toy', 'slow_toy', 'C', 'run', (), '')\n"
        "sys.exit(cli.main(['toy']))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    arguments = [sys.executable, "-c", program]
    with subprocess.Popen(
        arguments, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    assert out == "closed\n"
    assert err == f"warning: {said}\n"
