from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from efafnet.pipelines.runs.set_line import set_line
from efafnet.platform import console
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]


def test_results_go_to_stdout_and_remarks_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("result")
    console.note("remark")
    console.warn("careful")
    console.fail("broken\n  in two lines")
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err == "remark\nwarning: careful\nerror: broken in two lines\n"


def test_one_is_not_several() -> None:
    assert [console.counted(n, "person") for n in (0, 1, 2)] == ["0 persons", "1 person", "2 persons"]
    assert [console.counted(n, "box") for n in (1, 2)] == ["1 box", "2 boxes"]


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


def test_a_table_too_wide_for_the_terminal_becomes_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first column takes 8 with its border, the others 13 each, and one border is left: 35 hold two of three."""
    columns, rows = ["row", "a" * 10, "b" * 10, "c" * 10], [["R = 8", None, 0.5, "x"]]
    for width, tables in (
        (60, [columns]),
        (35, [columns[:3], ["row", columns[3]]]),
        (34, [["row", name] for name in columns[1:]]),
    ):
        monkeypatch.setenv("COLUMNS", str(width))
        console.table(columns, rows, title="t")
        lines = capsys.readouterr().out.splitlines()
        heads = [[cell.strip() for cell in line.strip("┃").split("┃")] for line in lines if line.startswith("┃")]
        assert heads == tables
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("│ R = 8") for line in lines) == len(tables)
        assert sum(line.strip() == "t" for line in lines) == 1


def test_a_table_with_sentences_stays_one_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside "fail" and "shared memory", with borders 7 + 16 columns and 1, there are 36 of 60 left for a sentence."""
    monkeypatch.setenv("COLUMNS", "60")
    found = "no Ray at 127.0.0.1:6379 (RAY_ADDRESS): Connection refused; start the cluster"
    console.table(["", "what", "found"], [["ok", "Python", "3.11.7"], ["fail", "shared memory", found]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 60
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows[0] == ["ok", "Python", "3.11.7"]
    assert rows[1][:2] == ["fail", "shared memory"]
    assert [row[:2] for row in rows[2:]] == [["", ""]] * (len(rows) - 2)
    assert " ".join(row[2] for row in rows[1:]) == found, "broken between words only"
    monkeypatch.setenv("COLUMNS", "50")
    console.table(["", "what", "found"], [["fail", "shared memory", found]])
    assert capsys.readouterr().out.count("┏") == 2, "too narrow for a sentence: two tables"


def test_progress_in_a_log_is_few_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: 5.0))
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


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What a terminal shows of it: of a line that was drawn anew the last state, without colours."""
        text = re.sub(r"\x1b\[(?:[\d;]*m|\?25[hl])", "", self.getvalue())
        text = re.sub(r"\n\r?\x1b\[1A\r?\x1b\[2K", "\r\x1b[2K", text)  # up again, and erased
        return [re.split(r"\r\x1b\[2K", line)[-1].rstrip() for line in text.split("\n")]

    def comes_to(self, line: str) -> str:
        """Its last line, as soon as that is ``line``; it is drawn by a thread of its own."""
        for _ in range(30_000):  # five minutes, by a clock that tests do not stop
            if self.lines()[-1] == line:
                break
            time.sleep(0.01)
        return self.lines()[-1]


def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 60) -> Terminal:
    """Make standard error a terminal, whose lines are drawn often."""
    screen = Terminal()
    monkeypatch.setattr(console, "DRAWN_PER_S", 50.0)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    return screen


FIGURES = ("ETA 0:30", "loss 0.5", "AP 0.500 (best 0.600)", "80 samples/s")


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        # The bar takes what is left, at most 20 columns: half of 108 steps is half of it.
        (100, f"run {'━' * 10}{'╌' * 10} 54/108  ETA 0:30  loss 0.5  AP 0.500 (best 0.600)  80 samples/s"),
        # 11 + 10 + 10 + 23 characters and ^C leave 5 columns; figures that do not fit are left out from the end.
        (61, "run ━━╌╌╌ 54/108  ETA 0:30  loss 0.5  AP 0.500 (best 0.600)"),
        (40, "run ━━━━╌╌╌ 54/108  ETA 0:30  loss 0.5"),
        (14, "run  54/108"),
    ],
)
def test_a_line_drawn_anew_fits_the_terminal(columns: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch, columns)
    with console.live_line("run") as draw:
        assert draw is not None
        draw(54, 108, FIGURES)
        assert screen.comes_to(line) == line
    assert len(line) <= columns - len("^C")


def test_what_is_printed_beside_a_line_drawn_anew_leaves_no_copy_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with console.live_line("run") as draw:
        assert draw is not None
        for step in range(1, 4):
            draw(step, 10, FIGURES[:1])
            console.note(f"remark {step}")
            with console.progress("predicting", 5) as advance:  # has no line of its own here
                advance(5)
        console.warn("careful")
    console.note("after")
    assert screen.lines() == ["remark 1", "remark 2", "remark 3", "warning: careful", "after", ""]


def test_a_bar_of_a_stage_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setattr("rich.console.monotonic", lambda: 5.0)
    with console.progress("reading", 200, unit="images", done=50) as advance:
        advance(50)
        line = f"reading {'━' * 10}{'╌' * 10} 100/200 images  0:00 passed"
        assert screen.comes_to(line) == line


def test_the_line_of_a_set_says_when_its_runs_will_be_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten, four were over before; two more in 60 s leave four, which take 120 s."""
    screen, now_s = terminal(monkeypatch), 50.0
    monkeypatch.setattr("efafnet.pipelines.runs.set_line.time", SimpleNamespace(monotonic=lambda: now_s))
    with set_line("night", "trials", 10, 4) as show:
        show(4, ["2 running"])
        before = f"night {'━' * 8}{'╌' * 12} 4/10 trials  2 running"
        assert screen.comes_to(before) == before
        now_s = 110.0
        show(6, ["best ap 0.500 (trial 3)"])
        after = "night ━━━╌╌ 6/10 trials  ETA 2:00  best ap 0.500 (trial 3)"
        assert screen.comes_to(after) == after


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7325, "2:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert console.clock(seconds) == text


def test_a_file_gets_no_line_drawn_anew(capsys: pytest.CaptureFixture[str]) -> None:
    with console.live_line("run") as draw:
        assert draw is None
    assert capsys.readouterr().err == ""


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


def test_remarks_that_cannot_be_written_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that was closed answers with EIO, a log on a full disk with ENOSPC; head ends the program as ever."""

    class Gone:
        encoding = "utf-8"
        reason = errno.EIO

        def isatty(self) -> bool:
            return False

        def write(self, _text: str) -> int:
            raise OSError(self.reason, os.strerror(self.reason))

        def flush(self) -> None:
            raise OSError(self.reason, os.strerror(self.reason))

    monkeypatch.setattr(sys, "stderr", Gone())
    for Gone.reason in (errno.EIO, errno.ENOSPC):
        for tell in (console.note, console.warn, console.fail):
            tell("a remark")
        with console.progress("stage", 1) as advance:
            advance(1)
    Gone.reason = errno.EPIPE
    with pytest.raises(BrokenPipeError):
        console.note("a remark")


def test_a_program_started_with_closed_streams(tmp_path: Path) -> None:
    """What it writes leads nowhere, and no file that it opens takes the place of its output."""
    code = (
        "import os, sys; from efafnet.pipelines.cli import main; code = main(['--version']); "
        "number = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY); os.write(number, f'{code} {number > 2}'.encode())"
    )
    command = f'exec \'{sys.executable}\' -c "$0" "$1" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command, code, str(tmp_path / "said")], cwd=ROOT, check=True, timeout=LIMIT_S)
    assert (tmp_path / "said").read_text() == "0 True"


def test_signs_that_a_terminal_has_not_do_not_end_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    console.open_streams()
    console.say("Größe: …")
    stream.flush()
    assert written.getvalue() == "Größe: ?\n".encode("latin-1")
