"""What a study's rows take: per run, and for each point gained over the baseline."""

from __future__ import annotations

from pathlib import Path

import pytest

from efafnet.pipelines.study.prices import Prices, priced, prices_of
from efafnet.pipelines.study.sheet import Sheet
from efafnet.pipelines.study.statistics import Comparison, Measured, compare
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.costs import FOLDER
from efafnet.platform.configuration import load_preset, resolve
from efafnet.platform.storage import write_json

MEASURED = [
    Measured("base", {0: 50.0, 1: 50.2, 2: 49.8}),
    Measured("better", {0: 54.1, 1: 54.0, 2: 53.9}),
    Measured("maybe", {0: 50.1, 1: 50.1, 2: 50.1}),
    Measured("worse", {0: 40.0, 1: 40.1, 2: 39.9}),
]
NAMES = ["base", "better", "maybe", "worse", "not run"]


def found() -> Comparison:
    return compare(MEASURED, "base", scatter="equal")


def runs(place: Path, **taken: dict[str, float]) -> dict[tuple[str, int], TrainConfig]:
    """Runs of every row and seed; those of the rows in ``taken`` have written what they took, each the same."""
    base, made = resolve(TrainConfig, load_preset("nano_test")), {}
    for row in MEASURED:
        for seed in row.by_seed:
            config = base.model_copy(update={"runs": place, "name": f"{row.name}-s{seed}"})
            made[row.name, seed] = config
            if row.name in taken:
                folder = config.run_dir / FOLDER
                folder.mkdir(parents=True)
                write_json(folder / "host-1.json", taken[row.name])
    return made


def test_the_summary_of_a_sheet_fits_a_narrow_page() -> None:
    names = ("row", "measured", "±", "sd", "diff.", "95 % of diff.", "p", "told apart")
    rows = (
        ("R = K", "1.2", "1.3", "0.34", "baseline", "", "", ""),
        ("R|8", "1.7", "1.3", "0.5", "+0.6", "-5 to +6", "0.6", "no"),
    )
    sheet = Sheet("t", tuple((name, "") for name in names), rows, ("a text",))
    assert sheet.summary().splitlines() == [
        "| row | measured | ± | diff. | 95 % of diff. | told apart |",
        "| --- | --- | --- | --- | --- | --- |",
        "| R = K | 1.2 | 1.3 | baseline |  |  |",
        "| R/8 | 1.7 | 1.3 | +0.6 | -5 to +6 | no |",
    ]


def test_a_point_costs_what_a_run_takes_more_than_the_baselines(tmp_path: Path) -> None:
    made = runs(tmp_path, base={"core_s": 3600.0}, better={"core_s": 10800.0}, worse={"core_s": 360.0},
                maybe={"core_s": 1800.0})  # fmt: skip
    prices = prices_of(MEASURED, made, "USD")
    assert prices is not None
    assert prices.unit == "core-hours"
    assert prices.per_run == pytest.approx({"base": 1.0, "better": 3.0, "maybe": 0.5, "worse": 0.1})
    sheet = Sheet("t", (("row", ""),), tuple((name,) for name in NAMES), ())
    table = priced(sheet, NAMES, found(), prices)
    assert [name for name, _ in table.columns] == ["row", "core-hours a run", "a point more"]
    assert table.rows == (
        ("base", "1", ""),
        ("better", "3", "+0.5"),  # 2 core-hours more for 4 points
        ("maybe", "0.5", "(-5)"),  # half an hour less for a tenth of a point that may be luck
        ("worse", "0.1", ""),
        ("not run", "", ""),
    )
    told = prices.to_json(found())
    assert told["more_per_point"] == {"better": pytest.approx(0.5), "maybe": pytest.approx(-5)}


def test_money_counts_where_every_run_has_a_price_and_gpus_before_cores(tmp_path: Path) -> None:
    dear = {"gpu_s": 3600.0, "core_s": 9.0, "money": 2.0}
    (tmp_path / "a").mkdir()
    prices = prices_of(MEASURED, runs(tmp_path / "a", base=dear, better=dear), "EUR")
    assert prices == Prices("EUR", {"base": 2.0, "better": 2.0})
    prices = prices_of(MEASURED, runs(tmp_path / "b", base=dear, better={"gpu_s": 7200.0}), "EUR")
    assert prices == Prices("GPU-hours", {"base": 1.0, "better": 2.0})


def test_a_study_whose_runs_told_nothing_has_no_columns_of_costs(tmp_path: Path) -> None:
    assert prices_of(MEASURED, runs(tmp_path), "USD") is None
    sheet = Sheet("t", (("row", ""),), (("base",),), ())
    assert priced(sheet, ["base"], found(), None) is sheet
