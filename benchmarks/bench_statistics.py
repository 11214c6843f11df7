"""How often a study's intervals hold and its claims are false, in simulated tables of many kinds.

    python -m benchmarks.bench_statistics                  # some minutes on one core
    python -m benchmarks.bench_statistics --tables 200     # coarse
    python -m benchmarks.bench_statistics --tables 4000 --kinds "one row 4x, 5 seeds" "4 rows, images small"

Every table is drawn, given to ``compare`` as a study gives it, and counted: the share of intervals (95 %) that hold the
true difference, for the row that is covered least and most often, the share of tables without any true difference that
claim one (family-wise error), and the intervals' mean width beside that of scatter=equal. A share of 1,000 tables is
known to within 1.4 points (95 %).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Record, add_option, recorded
from efafnet.pipelines.study.statistics import Judging, Measured, compare
from efafnet.platform import console

SEED_SPREAD = 1.0
"""Standard deviation of what a seed does to all rows."""


@dataclass(frozen=True)
class Case:
    """One kind of table, without any true difference between its rows."""

    name: str
    spreads: tuple[float, ...]
    """Standard deviation of the runs of each row; the first is the baseline."""
    seeds: int
    missing: float = 0.0
    """Share of runs that failed, at random; the baseline keeps two."""
    tails: bool = False
    """Whether runs are drawn from Student's t with 3 degrees of freedom (scaled) in place of a normal."""
    images: float = 0.0
    """Standard deviation that the draw of the images gives each row's figures, on its own, besides."""


CASES = (
    Case("4 rows, 3 seeds, equal", (1,) * 4, 3),
    Case("2 rows, 3 seeds", (1,) * 2, 3),
    Case("2 rows, 2 seeds", (1,) * 2, 2),
    Case("6 rows, 2 seeds", (1,) * 6, 2),
    Case("7 rows, 5 seeds", (1,) * 7, 5),
    Case("7 rows, 8 seeds", (1,) * 7, 8),
    Case("4 rows, images small", (1,) * 4, 3, images=0.3),
    Case("4 rows, images dominant", (1,) * 4, 3, images=2.0),
    Case("heavy tails (t3)", (1,) * 4, 3, tails=True),
    Case("one row 2x", (1, 1, 1, 2), 3),
    Case("one row 3x", (1, 1, 1, 3), 3),
    Case("one row 4x", (1, 1, 1, 4), 3),
    Case("one row 2x, 5 seeds", (1, 1, 1, 2), 5),
    Case("one row 4x, 5 seeds", (1, 1, 1, 4), 5),
    Case("one row 4x, 8 seeds", (1, 1, 1, 4), 8),
    Case("7 rows, baseline 2x, 5 seeds", (2, *(1,) * 6), 5),
    Case("7 rows .5, one 4", (*(0.5,) * 7, 4), 3),
    Case("7 rows .5, one 4, 5 seeds", (*(0.5,) * 7, 4), 5),
    Case("baseline 4, six rows .5", (4, *(0.5,) * 6), 3),
    Case("baseline 4, six rows .5, 5 seeds", (4, *(0.5,) * 6), 5),
    Case("sds .3 to 2", (1, 0.3, 0.5, 0.8, 1.2, 2), 3),
    Case("sds .3 to 2, 5 seeds", (1, 0.3, 0.5, 0.8, 1.2, 2), 5),
    Case("4 rows, 4 seeds, a fifth missing", (1,) * 4, 4, missing=0.2),
    Case("7 rows, 5 seeds, a third missing", (1,) * 7, 5, missing=1 / 3),
    Case("one row 4x, 5 seeds, a fifth missing", (1, 1, 1, 4), 5, missing=0.2),
)
IMAGE_DRAWS = 200
"""Bootstrap draws of the images."""
EFFECTIVE_IMAGES = 100.0


@dataclass(frozen=True)
class Rates:
    """What was counted."""

    held: tuple[float, ...]
    """Share of intervals that hold the truth, by row after the baseline; of those that there are."""
    false_claims: float
    """Share of tables with any claim."""
    width: float
    """Mean half width of the intervals."""


def rates(case: Case, tables: int, scatter: Judging = "auto", seed: int = 0) -> Rates:
    """Draw ``tables`` of a kind and count."""
    generator = np.random.default_rng(seed)
    held, known = np.zeros((2, len(case.spreads)))
    claims, widths = 0, []
    for table in _drawn(case, tables, generator):
        found = compare(table, "0", scatter=scatter)
        claims += bool(found.distinguishable)
        for row in found.rows:
            if row.difference is not None and row.difference.span is not None:
                known[int(row.name)] += 1
                held[int(row.name)] += row.difference.span.low <= 0 <= row.difference.span.high
                widths.append(row.difference.span.half)
    return Rates(tuple(held[1:] / np.maximum(known[1:], 1)), claims / tables, float(np.mean(widths)))


def _drawn(case: Case, tables: int, generator: np.random.Generator) -> Iterator[list[Measured]]:
    shape = (tables, len(case.spreads), case.seeds)
    single = generator.standard_t(3, shape) / np.sqrt(3) if case.tails else generator.standard_normal(shape)
    figures = single * np.array(case.spreads)[:, None] + SEED_SPREAD * generator.standard_normal(
        (tables, 1, case.seeds)
    )
    there = generator.random(shape) >= case.missing
    there[:, 0, :2] = True
    if not case.images:
        yield from (_rows(one, mask) for one, mask in zip(figures, there, strict=True))
        return
    for one, mask in zip(figures, there, strict=True):
        moved = case.images * generator.standard_normal(len(case.spreads))[:, None]
        draws = case.images * generator.standard_normal((len(case.spreads), IMAGE_DRAWS))
        yield _rows(one + moved, mask, draws * np.sqrt(1 - 1 / EFFECTIVE_IMAGES))


def _rows(
    figures: NDArray[np.float64], there: NDArray[np.bool_], draws: NDArray[np.float64] | None = None
) -> list[Measured]:
    """The figures (M, S) of a table as a study has them; ``draws`` (M, B) move all runs of a row alike."""
    rows = []
    for index, (row, mask) in enumerate(zip(figures, there, strict=True)):
        by_seed = {seed: float(row[seed]) for seed in np.flatnonzero(mask).tolist()}
        by_image = {} if draws is None else {seed: value + draws[index] for seed, value in by_seed.items()}
        rows.append(Measured(str(index), by_seed, by_image, EFFECTIVE_IMAGES))
    return rows


def power(tables: int, scatter: Judging, *, rows: int, seeds: int, difference: float) -> float:
    """Share of tables in which a row that truly differs by ``difference`` standard deviations of a run is told apart,
    among rows that scatter alike."""
    generator = np.random.default_rng(1)
    figures = generator.standard_normal((tables, rows, seeds))
    figures[:, -1] += difference
    mask = np.ones((rows, seeds), bool)
    names = [{row.name for row in compare(_rows(one, mask), "0", scatter=scatter).distinguishable} for one in figures]
    return sum(str(rows - 1) in found for found in names) / tables


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=1000, help="tables of each kind")
    parser.add_argument("--kinds", nargs="+", choices=[case.name for case in CASES], metavar="KIND",
                        help="names of the kinds to draw; all, and the power besides, unless given")  # fmt: skip
    add_option(parser)
    given = parser.parse_args(arguments)
    with recorded("bench_statistics", given) as record:
        report(given.tables, [case for case in CASES if given.kinds is None or case.name in given.kinds], record)
        if given.kinds is None:
            report_power(given.tables)


def report(tables: int, cases: Sequence[Case], record: Record) -> None:
    """Print how often intervals hold and claims are false."""
    ways: tuple[Judging, ...] = ("equal", "auto", "own")
    rows = []
    for case in cases:
        cells, equal = [], 0.0
        for scatter in ways:
            found = rates(case, tables, scatter)
            equal = equal or found.width
            record.add(f"{case.name}, {scatter}: false claims", "share", [found.false_claims], exact=True)
            width = [] if scatter == "equal" else [f"{found.width / equal:.2f}"]
            cells += [f"{min(found.held):.3f}-{max(found.held):.3f}", f"{found.false_claims:.3f}", *width]
        rows.append([case.name, *cells])
        console.note(" | ".join(rows[-1]))  # whoever cannot wait has what is done
    heads = ["equal: held", "false", "auto: held", "false", "width", "own: held", "false", "width"]
    console.table(["tables", *heads], rows, title=f"without any difference, {tables} tables of each kind")


def report_power(tables: int) -> None:
    """Print how often a row that differs is told apart."""
    ways: tuple[Judging, ...] = ("equal", "auto", "own")
    found_by = [
        [
            f"{seeds} seeds, {size:g} sd",
            *(f"{power(tables, way, rows=6, seeds=seeds, difference=size):.2f}" for way in ways),
        ]
        for seeds, size in ((3, 4), (5, 3), (8, 2))
    ]
    console.table(["a row that differs, of 6", *ways], found_by, title="told apart")


if __name__ == "__main__":
    main()
