from __future__ import annotations

import pytest

from efafnet.platform import console


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
