"""What the runs of a study's rows take, and what a point gained over the baseline costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from efafnet.pipelines.study.sheet import Sheet
from efafnet.pipelines.study.statistics import Comparison, Measured, RowResult
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.costs import cost_of
from efafnet.platform.consumption import Consumption, total


@dataclass(frozen=True)
class Prices:
    """What one run of each row takes, in one unit for all."""

    unit: str
    """A currency where every run has a price, else GPU-hours, or core-hours where no run had a GPU."""
    per_run: Mapping[str, float]
    """Mean over the row's measured runs, by row name."""

    def per_point(self, row: RowResult, baseline: str) -> float | None:
        """What a run of the row takes more than one of the baseline, for each point it gains.

        None where no point is gained, or one of the two did not tell what it took.
        """
        gained = row.difference.value if row.difference is not None else 0.0
        if gained <= 0 or row.name not in self.per_run or baseline not in self.per_run:
            return None
        return (self.per_run[row.name] - self.per_run[baseline]) / gained

    def to_json(self, found: Comparison) -> dict[str, Any]:
        """The same for programs, at full precision."""
        points = {row.name: self.per_point(row, found.baseline) for row in found.rows}
        return {"unit": self.unit, "per_run": dict(self.per_run),
                "more_per_point": {name: value for name, value in points.items() if value is not None}}  # fmt: skip


def prices_of(
    measured: Sequence[Measured], runs: Mapping[tuple[str, int], TrainConfig], currency: str
) -> Prices | None:
    """What the runs took that were measured; None where none of them told.

    Args:
        measured: the rows' figures.
        runs: by row and seed.
        currency: of their prices.
    """
    taken = {row.name: [cost_of(runs[row.name, seed]) for seed in row.by_seed] for row in measured}
    told = {name: [each for each in costs if each != Consumption()] for name, costs in taken.items()}
    told = {name: costs for name, costs in told.items() if costs}
    if not told:
        return None
    whole = total(each for costs in told.values() for each in costs)
    unit = currency if whole.money is not None else "GPU-hours" if whole.gpu_s else "core-hours"
    return Prices(unit, {name: _amount(total(costs), whole) / len(costs) for name, costs in told.items()})


def _amount(taken: Consumption, whole: Consumption) -> float:
    """What was taken, in the unit that all runs of the study have."""
    if whole.money is not None:
        return taken.money or 0.0
    return (taken.gpu_s if whole.gpu_s else taken.core_s) / 3600


def priced(sheet: Sheet, names: Sequence[str], found: Comparison, prices: Prices | None) -> Sheet:
    """The sheet with two columns of costs; as it is where nothing is known of them.

    Args:
        sheet: one row for each of ``names``.
        names: of the rows, in order.
        found: what was measured.
        prices: what the runs took.
    """
    if prices is None:
        return sheet
    results = {row.name: row for row in found.rows}
    columns = (
        (f"{prices.unit} a run", "mean over the row's measured runs, restarts counted"),
        ("a point more", f"{prices.unit} that a run takes more than the baseline's, for each point it gains; (in "
         "brackets) where the difference itself is not told apart, empty where no point is gained"),
    )  # fmt: skip
    rows = tuple((*row, *_cells(results.get(name), name, found.baseline, prices))
                 for row, name in zip(sheet.rows, names, strict=True))  # fmt: skip
    return replace(sheet, columns=(*sheet.columns, *columns), rows=rows)


def _cells(row: RowResult | None, name: str, baseline: str, prices: Prices) -> tuple[str, str]:
    each = f"{prices.per_run[name]:.3g}" if name in prices.per_run else ""
    more = None if row is None else prices.per_point(row, baseline)
    if row is None or row.difference is None or more is None:
        return each, ""
    return each, f"{more:+.2g}" if row.difference.distinguishable else f"({more:+.2g})"
