"""What became worse: benchmarks as they run now, held against what they were on this kind of machine.

    python -m benchmarks.compare                        # `make bench-compare`: runs QUICK and compares
    python -m benchmarks.compare bench_step bench_serve # others
    python -m benchmarks.compare --keep                 # runs, and keeps the figures as those to compare with
    python -m benchmarks.compare --files BEFORE.json NOW.json

A figure became worse (slower, larger) if its median moved that way by more than the figure scatters: by more than the
larger range of its repetitions, then and now. Counts and sizes scatter by nothing: any change of them is told. A time
that was measured once, then and now, cannot be judged. What is kept lies in `benchmarks/figures/`, a file per benchmark
and kind of machine. Ends with 1 if anything became worse.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.record import Figure, Record, file_name
from efafnet.platform import console

KEPT = Path(__file__).resolve().parent / "figures"
"""Where the figures to compare with lie."""
QUICK: dict[str, tuple[str, ...]] = {
    "bench_step": ("--steps", "5"),
    "bench_evaluation": (),
    "bench_encodings": ("--pictures", "60"),
    "bench_reader": ("--pictures", "400"),
    "bench_prepare": ("--pictures", "800"),
}
"""Benchmarks of minutes, and their options. Others run with their own defaults."""

Verdict = Literal["worse", "better", "as before", "not judged"]


@dataclass(frozen=True)
class Change:
    """A figure then and now."""

    name: str
    before: Figure
    now: Figure

    @property
    def ratio(self) -> float | None:
        """How many times as much it is now; None if it was 0."""
        return self._times(self.now.median)

    @property
    def scatter(self) -> float | None:
        """The larger range of the repetitions, then or now; None if both were measured once."""
        known = [figure.scatter for figure in (self.before, self.now) if figure.scatter is not None]
        return max(known, default=None)

    @property
    def scatter_ratio(self) -> float | None:
        """The scatter as a multiple of the former figure; None if either is unknown or that was 0."""
        return self._times(self.scatter)

    def _times(self, value: float | None) -> float | None:
        return None if value is None or self.before.median == 0 else value / self.before.median

    @property
    def verdict(self) -> Verdict:
        """Whether it moved by more than it scatters, and to which side."""
        if self.scatter is None:
            return "not judged"
        moved = self.now.median - self.before.median
        if abs(moved) <= self.scatter:
            return "as before"
        return "better" if (moved > 0) == self.now.more_is_better else "worse"


def changes(before: Record, now: Record) -> list[Change]:
    """The figures that both records hold.

    Raises:
        ValueError: they are not of the same benchmark, kind of machine and options.
    """
    for what in ("benchmark", "machine", "settings"):
        then, here = getattr(before, what), getattr(now, what)
        if then != here:
            raise ValueError(f"{now.benchmark}: {what} was {then} and is {here}; such figures cannot be compared")
    return [
        Change(name, before.figures[name], figure) for name, figure in now.figures.items() if name in before.figures
    ]


def show(before: Record, now: Record) -> list[Change]:
    """Print every figure beside its former value; return those that became worse."""
    found = changes(before, now)
    rows = [
        [c.name, c.now.unit, f"{c.before.median:.4g}", f"{c.now.median:.4g}",
         *("" if times is None else f"{times:.2f}" for times in (c.ratio, c.scatter_ratio)), c.verdict]
        for c in found
    ]  # fmt: skip
    columns = ["figure", "unit", "before", "now", "times", "scatter, times", ""]
    console.table(columns, rows, title=f"{now.benchmark}, {now.machine}: {before.commit[:12]} and {now.commit[:12]}")
    moved = {name: (before.versions.get(name), version) for name, version in now.versions.items()}
    if told := ", ".join(f"{name} {then} -> {here}" for name, (then, here) in moved.items() if then != here):
        console.say(f"other versions: {told}")
    gone = sorted(before.figures.keys() - now.figures.keys())
    if gone:
        console.warn(f"{now.benchmark}: not measured any more: {', '.join(gone)}")
    return [change for change in found if change.verdict == "worse"]


def measured(benchmark: str, folder: Path) -> Record:
    """Run a benchmark and return its record."""
    file = folder / f"{benchmark}.json"
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *QUICK.get(benchmark, ()), "--json", str(file)]
    subprocess.run(command, check=True, cwd=KEPT.parents[1])
    return Record.read(file)


def run(benchmarks: Sequence[str], *, keep: bool) -> list[Change]:
    """Run benchmarks one after the other, compare each or keep its figures; return what became worse."""
    worse = []
    with tempfile.TemporaryDirectory() as folder:
        for benchmark in benchmarks:
            now = measured(benchmark, Path(folder))
            kept = KEPT / file_name(benchmark, now.machine)
            if keep:
                now.write(kept)
                console.note(f"kept {kept}")
            elif kept.exists():
                worse += show(Record.read(kept), now)
            else:
                console.warn(f"{benchmark}: nothing is kept of {now.machine}; keep these figures with --keep")
    return worse


def main(words: Sequence[str] | None = None) -> int:
    """Compare and print; 1 if anything became worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", default=[*QUICK], help="names of benchmarks")
    parser.add_argument("--keep", action="store_true", help="keep the figures as those to compare with")
    parser.add_argument("--files", type=Path, nargs=2, metavar=("BEFORE", "NOW"), help="compare two files of --json")
    given = parser.parse_args(words)
    try:
        worse = show(*map(Record.read, given.files)) if given.files else run(given.benchmarks, keep=given.keep)
    except (OSError, ValueError) as error:
        console.fail(str(error))
        return 2
    for change in worse:
        told = f"{change.before.median:.4g} {change.now.unit} before, {change.now.median:.4g} now"
        console.warn(f"worse: {change.name}, {told}")
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
