"""What benchmarks remember and how they are compared, with figures made by hand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from benchmarks.compare import Change, Verdict, changes, main
from benchmarks.record import Figure, Record, file_name, kind_of_machine

ROOT = Path(__file__).resolve().parents[1]


def record(**figures: Figure) -> Record:
    return Record("bench_step", "Processor, 2 cores", {"batch": 4}, "0123", {"torch": "2.0"}, figures)


def ms(*values: float) -> Figure:
    return Figure("ms", values)


def exact(value: float) -> Figure:
    return Figure("kB", (value,), exact=True)


def rate(*values: float) -> Figure:
    return Figure("1/s", values, more_is_better=True)


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        # Medians 11 and 14 differ by 3: more than the ranges 2 and 2.
        (ms(10, 11, 12), ms(13, 15, 14), "worse"),
        (rate(10, 11, 12), rate(13, 15, 14), "better"),
        (ms(13, 15, 14), ms(10, 11, 12), "better"),
        (rate(13, 15, 14), rate(10, 11, 12), "worse"),
        # The same medians, one of them with a range of 3, then or now.
        (ms(10, 11, 12), ms(13, 16, 14), "as before"),
        (ms(9, 11, 12), ms(13, 15, 14), "as before"),
        # A single measurement is judged by the scatter of the other side, two by nothing.
        (ms(10), ms(13, 15, 14), "worse"),
        (ms(10, 11, 12), ms(13), "as before"),
        (ms(10), ms(30), "not judged"),
        # What is counted does not scatter: the smallest difference is a change.
        (exact(85), exact(86), "worse"),
        (exact(85), exact(84), "better"),
        (exact(85), exact(85), "as before"),
        (exact(0), exact(1), "worse"),
    ],
)
def test_a_figure_has_moved_if_by_more_than_it_scatters(before: Figure, now: Figure, verdict: Verdict) -> None:
    assert Change("step", before, now).verdict == verdict


def test_a_change_is_told_in_times_and_scatter() -> None:
    change = Change("step", ms(10, 11, 12), ms(20, 22, 28))
    assert (change.ratio, change.scatter, change.scatter_ratio) == (2.0, 8, 8 / 11)
    change = Change("false claims", exact(0), exact(2))
    assert (change.ratio, change.scatter, change.scatter_ratio) == (None, 0, None)


def test_only_the_same_measurement_is_compared() -> None:
    before = record(step=ms(1, 2), gone=ms(1))
    assert [change.name for change in changes(before, record(step=ms(1, 2), fresh=ms(3)))] == ["step"]
    other = Record("bench_step", "Processor, 4 cores", {"batch": 4}, "0123", {}, {})
    with pytest.raises(ValueError, match="machine was Processor, 2 cores and is Processor, 4 cores"):
        changes(before, other)
    other = Record("bench_step", "Processor, 2 cores", {"batch": 8}, "0123", {}, {})
    with pytest.raises(ValueError, match=r"settings was \{'batch': 4\} and is \{'batch': 8\}"):
        changes(before, other)


def test_two_files_are_compared_and_what_became_slower_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, now = tmp_path / "before.json", tmp_path / "folder" / "now.json"
    figures = {"step": ms(10.0, 11.0), "read": rate(100.0, 101.0), "size": exact(0.0), "gone": ms(1.0)}
    record(**figures).write(before)
    record(step=ms(20.0, 21.0), read=rate(100.5, 101.0), size=exact(2.0)).write(now)
    assert Record.read(before) == record(**figures)
    assert main(["--files", str(before), str(now)]) == 1
    shown = capsys.readouterr()
    told = " ".join(shown.err.split())
    assert "worse: step, 10.5 ms before, 20.5 now" in told
    assert "worse: size, 0 kB before, 2 now" in told
    assert "not measured any more: gone" in shown.err
    assert re.search(r"read +1/s +100\.5 +100\.8 +1\.00 +0\.01 +as before", shown.out.replace("│", ""))
    assert main(["--files", str(before), str(before)]) == 0


def test_a_damaged_file_is_told_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn.json").write_text('{"benchmark": "bench_step"')
    record().write(tmp_path / "whole.json")
    assert main(["--files", str(tmp_path / "torn.json"), str(tmp_path / "whole.json")]) == 2
    assert "torn.json: no record of a benchmark" in " ".join(capsys.readouterr().err.split())


def test_four_digits_are_kept() -> None:
    kept = record()
    kept.add("step", "ms", [123.456, 0.00123456])
    assert kept.figures["step"].values == (123.5, 0.001235)


def test_files_are_named_after_benchmark_and_machine() -> None:
    assert file_name("bench_step", "AMD EPYC 9R14, AVX512, 2 cores") == "bench_step.amd-epyc-9r14-avx512-2-cores.json"
    assert re.search(r", \d+ cores?$", kind_of_machine())


def test_what_is_kept_can_be_read_and_is_named_after_what_it_holds() -> None:
    for path in (ROOT / "benchmarks" / "figures").glob("*.json"):
        kept = Record.read(path)
        assert path.name == file_name(kept.benchmark, kept.machine)
        assert kept.figures


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_benchmark_has_the_option(path: Path) -> None:
    """It asks for ``--json`` by `add_option`, directly or as all data benchmarks, and writes with `recorded`."""
    called = {
        node.func.id for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }  # fmt: skip
    assert called & {"add_option", "arguments"}
    assert "recorded" in called
