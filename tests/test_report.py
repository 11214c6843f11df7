"""The report: what it reads from MLflow, and what it says and draws of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from efafnet.pipelines.report.config import ReportConfig
from efafnet.pipelines.report.curves import MOST_POINTS, by_settings, run_charts, thinned
from efafnet.pipelines.report.data import ReportError, axes_of, differing, load_runs
from efafnet.pipelines.report.forest import forest
from efafnet.pipelines.report.report import remarks, run_report
from efafnet.pipelines.report.tables import duration, grouped, run_table, setting_text
from efafnet.pipelines.search.charts import study_charts
from efafnet.pipelines.search.study_file import study_from_json, study_to_json
from efafnet.platform.tracking import create_run
from tests.report_cases import STUDY, Store, study_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- data


def test_runs_are_read_with_their_curves_over_epochs(store: Store) -> None:
    store.run("one", [0.1, 0.4, 0.3])
    (run,) = store.runs()
    assert (run.name, run.status, run.stage, run.datasets) == ("one", "FINISHED", "train", {"validation": "d1"})
    assert (run.figure, run.best_figure) == (0.3, 0.4)
    assert run.against("val/ap", "epochs") == [(1.0, 0.1), (2.0, 0.4), (3.0, 0.3)]
    assert run.against("val/ap", "steps") == [(10.0, 0.1), (20.0, 0.4), (30.0, 0.3)]
    assert run.against("val/ap", "samples") == [(640.0, 0.1), (1280.0, 0.4), (1920.0, 0.3)]
    assert run.against("val/ap", "minutes") is None
    assert axes_of([run], "val/ap") == ["epochs", "steps", "samples"]
    run.curves["speed/elapsed_s"] = [(10.0, 30.0), (20.0, 90.0), (30.0, 120.0)]
    assert run.against("val/ap", "minutes") == [(0.5, 0.1), (1.5, 0.4), (2.0, 0.3)]
    assert run.duration_s is not None


def test_only_settings_that_differ_and_matter_are_told(store: Store) -> None:
    store.run("one", [0.1], runs="a", worker={"cpus": 1})
    store.run("two", [0.2], runs="b", worker={"cpus": 2}, optimizer={"lr": 0.002})
    store.run("three", [0.2], loss={"kind": "ohkm", "hard_joints": 8})
    assert differing(store.runs()) == ["optimizer.lr", "loss.kind", "loss.hard_joints"]
    other = create_run(store.uri, "test", "of another program", params={"lr": 0.1})
    assert differing(store.runs()) == ["optimizer.lr", "loss.kind", "loss.hard_joints"]
    assert differing(store.runs(names=[other])) == []


def test_a_trial_tells_only_what_was_searched_in_it(store: Store) -> None:
    tags = {"efafnet.stage": "trial", "efafnet.trial_settings": '{"loss.kind": "mse"}'}
    store.run("#0 kind=mse", [0.1], tags=tags, loss={"kind": "mse", "hard_joints": 8})
    tags |= {"efafnet.trial_settings": '{"loss.kind": "ohkm", "loss.hard_joints": 5}'}
    store.run("#1 kind=ohkm", [0.1], tags=tags, loss={"kind": "ohkm", "hard_joints": 5})
    first, second = store.runs()
    assert (first.setting("loss.hard_joints"), second.setting("loss.hard_joints")) == (None, "5")
    assert first.short_name == "#0"


def test_what_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(ReportError, match=r"no experiment 'none' in MLflow; there are: Default"):
        load_runs(store.client, "none")
    store.client.create_experiment("empty")
    with pytest.raises(ReportError, match="'empty' holds no runs yet"):
        load_runs(store.client, "empty")
    store.run("one", [0.1])
    with pytest.raises(ReportError, match="has no run 'two'; there are one"):
        store.runs(names=["two"])
    store.run("three", [0.1])
    with pytest.raises(ReportError, match=r"has no run 'one' among its newest 1 \(limit=\); there are three"):
        store.runs(names=["one"], limit=1)


def test_a_search_brings_its_trials(store: Store) -> None:
    store.run("alone", [0.1])
    parent = store.run("find", [], tags={"efafnet.stage": "search"})
    store.run("#0", [0.2], parent=parent, tags={"efafnet.stage": "trial"})
    store.run("#1", [0.3], parent=parent, tags={"efafnet.stage": "trial"})
    assert [run.name for run in store.runs(names=["find"])] == ["find", "#0", "#1"]
    groups = grouped(store.runs())
    plain, searches = groups.plain, groups.searches
    assert [run.name for run in plain] == ["alone"]
    assert [(search.name, [run.name for run in trials]) for search, trials in searches] == [("find", ["#0", "#1"])]


def test_a_searchs_finals_are_a_study_of_their_own(store: Store) -> None:
    search = store.run("find", [], tags={"efafnet.stage": "search"})
    store.run("#0", [0.2], parent=search, tags={"efafnet.stage": "trial"})
    store.run("longer: #0", [0.3], parent=search, tags={"efafnet.stage": "longer"})
    finals = store.run("find finals", [], parent=search, tags={"efafnet.stage": "study"})
    store.run("as given, seed 1", [0.3], parent=finals, tags={"efafnet.stage": "repeat"})
    groups = grouped(store.runs(names=["find"]))
    assert groups.plain == []
    assert [[run.name for run in trials] for _, trials in groups.searches] == [["#0"]]
    assert [(study.name, [run.name for run in runs]) for study, runs in groups.studies] == [
        ("find finals", ["as given, seed 1"])
    ]


def test_a_study_survives_its_journey_as_json() -> None:
    study = study_of(*STUDY)
    back = study_from_json(study_to_json(study.trials))
    for ours, theirs in zip(study.trials, back.trials, strict=True):
        assert (ours.state, ours.params, ours.distributions) == (theirs.state, theirs.params, theirs.distributions)
        assert ours.intermediate_values == theirs.intermediate_values
        assert ours.values == theirs.values


# -------------------------------------------------------------------------------------------------- tables and remarks


@pytest.mark.parametrize(
    ("text", "shown"),
    [(None, ""), ("0.0031234", "0.00312"), ("1e-05", "1e-05"), ("8", "8"), ("8.0", "8"), ("2000", "2000"),
     ("one_cycle", "one_cycle"), ("[90.0, 120.0]", "[90.0, 120.0]"), ("x" * 40, "x" * 27 + "…"),
     ("inf", "inf"), ("-inf", "-inf"), ("nan", "nan")],
)  # fmt: skip
def test_settings_read_short(text: str | None, shown: str) -> None:
    assert setting_text(text) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, ""), (3.2, "3 s"), (187.4, "3:07 min"), (7500.0, "2:05 h")]
)  # fmt: skip
def test_durations_read_short(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_the_table_is_ranked_and_marks_the_best_complete_run(store: Store) -> None:
    store.run("good", [0.5])
    store.run("stopped", [0.9], status="KILLED", optimizer={"lr": 0.01})
    store.run("bad", [0.2], optimizer={"lr": 0.1})
    store.run("failed", [], status="FAILED")
    table = run_table(store.runs())
    assert [(row.cells[0].text, row.best) for row in table.rows] == [
        ("stopped", False),
        ("good", True),
        ("bad", False),
        ("failed", False),
    ]
    assert [column.name for column in table.columns][-1] == "lr"
    assert table.rows[0].cells[-1].text == "0.01"
    assert table.rows[3].cells[2].text == ""


def test_remarks_say_what_does_not_compare(store: Store) -> None:
    store.run("one", [0.50])
    store.run("two", [0.52], seed=1)
    # One pair .02 apart: its standard deviation is .02 / sqrt 2, and t is 12.706 at one degree of freedom.
    assert any("deviation of 0.0141 (1 df, pooled). Two single runs less than 0.254 apart" in text
               for text in remarks(store.runs()))  # fmt: skip
    store.run("other", [0.7], data="d2", optimizer={"lr": 0.5})
    store.run("broken", [], status="FAILED")
    told = remarks(store.runs())
    assert any("2 different data sets" in text for text in told)
    assert any(re.match(r"Failed: broken \([0-9a-f]{8}\)\.", text) for text in told)


def test_runs_of_one_seed_each_are_said_to_prove_nothing(store: Store) -> None:
    store.run("one", [0.50])
    store.run("two", [0.52], optimizer={"lr": 0.5})
    assert any("run once" in text for text in remarks(store.runs()))


def test_a_comparison_across_protocols_says_so_on_the_page_and_under_the_table(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.run("one", [0.1], tags={"efafnet.protocol": "sbn"})
    store.run("two", [0.2], tags={"efafnet.protocol": "sbn"})
    assert not any("protocol" in text for text in remarks(store.runs()))
    store.run("three", [0.3], tags={"efafnet.protocol": "modern, with differences: epochs=9 (210)"})
    sentence = "Runs of different protocols are compared: modern (1 of the runs), sbn (2 of the runs), and 1 depart"
    assert any(text.startswith(sentence) for text in remarks(store.runs()))
    run_report(ReportConfig(out=tmp_path / "page.html", experiment="test", uri=store.uri))
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.index("three") < printed.index(sentence)
    assert sentence in (tmp_path / "page.html").read_text()


# ------------------------------------------------------------------------------------------------------------- charts


def test_charts_of_a_search_cover_all_trials_also_those_without_some_setting() -> None:
    charts = {chart.title: chart for chart in study_charts(study_of(*STUDY), {2: "lr=0.003"})}
    assert [title for title, chart in charts.items() if chart.figure is None] == ["What mattered"]  # four complete
    lines = charts["Trials over their budget"].figure.data  # type: ignore[union-attr]
    assert [line.name for line in lines] == ["#2", "#0", "#4", "#3", "#1"]
    assert list(lines[-1].marker.symbol) == ["x"]
    assert [line.showlegend for line in lines] == [True, True, True, True, False]
    axes = charts["Settings together"].figure.data[0].dimensions  # type: ignore[union-attr]
    assert [axis.label for axis in axes] == ["lr", "loss", "R", "AP"]
    assert list(axes[0]["values"]) == pytest.approx([-3, -2, np.log10(3e-3), np.log10(5e-3), np.log10(6e-3)])
    assert axes[0].ticktext[0] == "0.0001"
    missing = 1 - 0.18 * 16  # below the axis of 1 to 17
    assert list(axes[2]["values"]) == pytest.approx([missing, 8, 4, missing, missing])
    assert axes[2].ticktext[0] == "none"


def test_runs_that_differ_in_their_seed_alone_are_one_line_in_a_band(store: Store) -> None:
    store.run("small-s0", [0.1, 0.2, 0.4])
    store.run("small-s1", [0.2, 0.4, 0.5], seed=1)
    store.run("other", [0.3], optimizer={"lr": 0.5})
    store.run("small-s2", [0.9], seed=2, status="FAILED")
    assert [[run.name for run in group.runs] for group in by_settings(store.runs())] == [
        ["small-s0", "small-s1"], ["other"], ["small-s2"]
    ]  # fmt: skip
    chart = run_charts(store.runs())[0]
    drawing = chart.drawing()
    assert drawing is not None
    lines = {trace.get("name", "band"): place for place, trace in enumerate(drawing["data"])}
    assert set(lines) == {"small (2 seeds)", "other", "small-s2", "band"}
    mean, band = drawing["data"][lines["small (2 seeds)"]], drawing["data"][lines["band"]]
    assert mean["y"] == pytest.approx([0.15, 0.3, 0.45])
    assert band["y"] == pytest.approx([0.2, 0.4, 0.5, 0.4, 0.2, 0.1])  # the highest onward, the lowest back
    assert list(drawing["axes"]) == ["epoch", "optimizer step", "training samples seen"]
    assert drawing["axes"]["optimizer step"][lines["band"]] == [10, 20, 30, 30, 20, 10]
    assert drawing["axes"]["training samples seen"][lines["other"]] == [640]


def test_the_same_seed_twice_is_no_repetition(store: Store) -> None:
    store.run("one", [0.1])
    store.run("again", [0.2])
    assert [len(group.runs) for group in by_settings(store.runs())] == [1, 1]


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    steps = [float(step) for step in range(1, 1001)]
    assert len(thinned(steps)) <= MOST_POINTS
    assert thinned(steps)[-1] == 1000
    assert thinned(steps[:MOST_POINTS]) == steps[:MOST_POINTS]
    assert thinned([]) == []


def test_a_study_is_drawn_with_intervals_and_a_dot_for_each_seed() -> None:
    span = {"low": 0.5, "high": 2.5}
    rows = [
        {"name": "a", "figures": {"0": 50.0, "1": 51.0}, "difference": None},
        {"name": "b <i>", "figures": {"0": 51.0, "1": 53.0, "2": 60.0},
         "difference": {"value": 1.5, "span": span, "distinguishable": True}},
        {"name": "c", "figures": {"0": 49.0}, "difference": {"value": -1.0, "span": None, "distinguishable": False}},
    ]  # fmt: skip
    content = {"rows": rows, "baseline": "a", "confidence": 0.9, "metric": "ap"}
    drawing = forest(content).drawing()
    assert drawing is not None
    first, second, told, not_told = drawing["data"]
    assert (first["x"], first["customdata"], first["y"]) == ([1.0, 2.0], ["0", "1"], ["b &lt;i>"] * 2)
    assert second["x"] == [-1.0]
    assert (told["name"], told["x"], told["error_x"]["array"], told["error_x"]["arrayminus"]) == (
        "told apart", [1.5], [1.0], [1.0]
    )  # fmt: skip
    assert (not_told["x"], not_told["error_x"]["array"]) == ([-1.0], [0.0])
    assert "90 % interval" in forest(content).note
    assert drawing["layout"]["xaxis"]["title"]["text"] == "difference in AP, points"
    assert forest(content | {"rows": rows[:1]}).drawing() is None


def test_too_few_trials_give_a_sentence_instead_of_a_chart() -> None:
    charts = {chart.title: chart for chart in study_charts(study_of(*STUDY[:1]), {})}
    assert charts["What mattered"].figure is None
    assert "Too few" in charts["What mattered"].note
    assert charts["Settings together"].figure is None
    assert charts["What mattered"].drawing() is None


def test_equal_figures_give_no_importance_and_no_crash() -> None:
    same = [(STUDY[0][0], [0.5, 0.5], "COMPLETE")] * 5
    charts = {chart.title: chart for chart in study_charts(study_of(*same), {})}
    assert charts["Search history"].figure is not None


def test_more_runs_than_colours_are_grey_and_leave_the_legend(store: Store) -> None:
    for number in range(12):
        store.run(f"run{number}", [number / 20])
    (chart, *_) = run_charts(store.runs())
    legend = {line.name: line.showlegend for line in chart.figure.data}  # type: ignore[union-attr]
    assert legend["run11"] is True
    assert (legend["run0"], legend["run1"]) == (False, False)
