from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from efafnet.platform import console

ROOT = Path(__file__).resolve().parents[1]


def test_results_go_to_stdout_and_remarks_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("result")
    console.note("remark")
    console.warn("careful")
    console.fail("broken\n  in two lines")
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err == "remark\nwarning: careful\nerror: broken in two lines\n"


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]x[/bold] :smile: " + "/very/long/path" * 30
    console.say(text)
    assert capsys.readouterr().out == text + "\n"


def test_table_shows_every_cell_and_aligns_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["name", "ap"], [["a[1]", 0.5], ["long name", None], ["b", "12.25"]], title="runs")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "runs"
    rows = [line for line in lines if line.startswith("│")]
    assert [cell.strip() for cell in rows[0].strip("│").split("│")] == ["a[1]", "0.5"]
    assert rows[0].endswith("  0.5 │")
    assert rows[2].endswith(" 12.25 │")


def test_progress_in_a_log_is_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("reading", 200, unit="images") as advance:
        for _ in range(200):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["reading: 200/200 images after 0 s"]


def test_progress_says_how_fast_and_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100, 40 are there from earlier; 20 more after 10 s are 2 a second, so the other 40 take 20 s."""
    now = 50.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with console.progress("reading", 100, unit="images", done=40) as advance:
        now = 60.0
        advance(20)
    assert capsys.readouterr().err == "reading: 60/100 images after 10 s, 2/s, 20 s left\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08c\x9b31m", "a\\rb\\x08c\\x9b31m"),
        ("evil\u202egpj.exe", "evil\\u202egpj.exe"),
        ("half \ud800", "half \\ud800"),
        ("a new\nline, ü and 骨", "a new\nline, ü and 骨"),
    ],
)
def test_names_cannot_steer_the_terminal(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.harmless(text) == shown
    console.say(text)
    console.note(text)
    console.table(["name"], [[text.split("\n")[0]]], title=text)
    out, err = capsys.readouterr()
    assert out.startswith(shown + "\n")
    assert err == shown + "\n"
    assert not set(out + err) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}


def test_a_full_disk_under_the_output_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return False

        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="standard output cannot be written: No space left on device"):
        console.say("a result")


def test_a_program_started_with_closed_streams(tmp_path: Path) -> None:
    """What it writes leads nowhere, and no file that it opens takes the place of its output."""
    code = (
        "import os, sys; from efafnet.pipelines.cli import main; code = main(['--version']); "
        "number = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY); os.write(number, f'{code} {number > 2}'.encode())"
    )
    command = f'exec \'{sys.executable}\' -c "$0" "$1" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command, code, str(tmp_path / "said")], cwd=ROOT, check=True, timeout=60)
    assert (tmp_path / "said").read_text() == "0 True"
