"""The report: what it reads from MLflow, what it says of it, and that the page needs nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import optuna
import pytest
from mlflow.entities import Metric

from efafnet.pipelines.report.config import ReportConfig
from efafnet.pipelines.report.curves import MOST_POINTS, by_settings, run_charts, thinned
from efafnet.pipelines.report.data import ReportError, RunData, axes_of, differing, load_runs
from efafnet.pipelines.report.forest import forest
from efafnet.pipelines.report.report import remarks, run_report
from efafnet.pipelines.report.tables import duration, grouped, origin_table, run_table, setting_text
from efafnet.pipelines.search.charts import study_charts
from efafnet.pipelines.search.study_file import STUDY_FILE, study_from_json, study_to_json
from efafnet.pipelines.study.sheet import SHEET_FILE, Sheet
from efafnet.pipelines.training.recording import log_cost, of_children
from efafnet.platform.consumption import Consumption
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.mlflow_pages import TRAINING_VIEW
from efafnet.platform.tracking import create_run, dataset_input, finish_run, prepare_tracking

BASE = {"name": "x", "optimizer": {"lr": 0.001}, "loss": {"kind": "mse"}, "seed": 0, "data": {"train": "a"}}


class Store:
    """An MLflow store to fill with runs."""

    def __init__(self, place: Path) -> None:
        self.uri = prepare_tracking(f"sqlite:///{place}/mlflow.db")
        self.client = mlflow_client(self.uri)
        self.place = place

    def run(
        self,
        name: str,
        curve: list[float],
        *,
        status: str = "FINISHED",
        data: str = "d1",
        tags: dict[str, str] | None = None,
        parent: str | None = None,
        **params: Any,
    ) -> str:
        """Add a run whose validation figures, one per 10 steps (1 epoch), are ``curve``."""
        run_id = create_run(
            self.uri, "test", name, parent_run_id=parent, params=BASE | {"name": name} | params,
            tags={"efafnet.stage": "train", **(tags or {})},
            datasets=[dataset_input("val", data, self.place, "validation", {})],
        )  # fmt: skip
        now = int(time.time() * 1000)
        points = [Metric("val/ap", value, now, 10 * (i + 1)) for i, value in enumerate(curve)]
        points += [Metric("train/epoch", i + 1.0, now, 10 * (i + 1)) for i in range(len(curve))]
        points += [Metric("train/samples", 640.0 * (i + 1), now, 10 * (i + 1)) for i in range(len(curve))]
        points += [Metric("train/loss", 1 / (i + 1), now, 10 * (i + 1)) for i in range(len(curve))]
        self.client.log_batch(run_id, metrics=points)
        finish_run(self.uri, run_id, status)
        return run_id

    def runs(self, **options: Any) -> list[RunData]:
        return load_runs(self.client, "test", **options)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def study_of(*trials: tuple[dict[str, Any], list[float], str]) -> optuna.Study:
    """A finished study over a rate and a conditional number; trials as (parameters, figures, state)."""
    study = optuna.create_study(direction="maximize")
    rate = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    kind = optuna.distributions.CategoricalDistribution(["mse", "ohkm"])
    joints = optuna.distributions.IntDistribution(1, 17)
    domains = {"optimizer.lr": rate, "loss.kind": kind, "loss.hard_joints": joints}
    for number, (params, figures, state) in enumerate(trials):
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                value=figures[-1] if figures and state != "FAIL" else None,
                params=params,
                distributions={name: domains[name] for name in params},
                intermediate_values={100 * (i + 1): value for i, value in enumerate(figures)},
                user_attrs={"settings": params, "number": number},
            )
        )
    return study


STUDY: tuple[tuple[dict[str, Any], list[float], str], ...] = (
    ({"optimizer.lr": 1e-3, "loss.kind": "mse"}, [0.2, 0.5], "COMPLETE"),
    ({"optimizer.lr": 1e-2, "loss.kind": "ohkm", "loss.hard_joints": 8}, [0.1], "PRUNED"),
    ({"optimizer.lr": 3e-3, "loss.kind": "ohkm", "loss.hard_joints": 4}, [0.2, 0.6], "COMPLETE"),
    ({"optimizer.lr": 5e-3, "loss.kind": "mse"}, [0.2, 0.4], "COMPLETE"),
    ({"optimizer.lr": 6e-3, "loss.kind": "mse"}, [0.2, 0.45], "COMPLETE"),
    ({"optimizer.lr": 9e-3, "loss.kind": "mse"}, [], "FAIL"),
)


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


# --------------------------------------------------------------------------------------------------------------- page


def unpacked(page: str, part: str) -> str:
    """What a page's script unpacks."""
    found = re.search(rf'<script type="text/plain" id="{part}">([^<]+)</script>', page)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1])).decode()


def whole(store: Store) -> Path:
    """A page of two runs (one evaluated, one with a hostile name) and a search."""
    run_id = store.run("first", [0.1, 0.5])
    store.run("<script>alert(1)</script>", [0.2], optimizer={"lr": 0.01})
    picture = cv2.imencode(".jpg", np.full((90, 2000, 3), 200, np.uint8))[1].tobytes()
    (store.place / "best.jpg").write_bytes(picture)
    store.client.log_artifact(run_id, str(store.place / "best.jpg"), "evaluation/val")
    store.client.log_metric(run_id, "evaluation.val.ap", 0.512)
    tags = {"efafnet.stage": "search", "efafnet.best_trial": "2", "efafnet.run_dir": "/runs/find"}
    parent = store.run("find", [], tags=tags)
    store.client.log_dict(parent, study_to_json(study_of(*STUDY).trials), STUDY_FILE)
    for number in range(3):
        store.run(f"#{number} lr", [0.1 * number], parent=parent,
                  tags={"efafnet.stage": "trial", "efafnet.trial": str(number)})  # fmt: skip
    out = store.place / "page.html"
    run_report(ReportConfig(out=out, experiment="test", uri=store.uri))
    return out


def test_a_studys_table_is_shown_with_its_intervals(store: Store) -> None:
    parent = store.run("table", [], tags={"efafnet.stage": "study"})
    store.run("a, seed 0", [0.4], parent=parent, tags={"efafnet.stage": "repeat"})
    out = store.place / "page.html"
    run_report(ReportConfig(out=out, experiment="test", uri=store.uri))
    assert "1 run so far. The study has not yet put its table into MLflow." in out.read_text()
    sheet = Sheet("mine: rows", (("row", "what"), ("diff.", "minus a")), (("a", "baseline"), ("b", "+1.5")), ("<so>",))
    store.client.log_dict(parent, {"sheet": asdict(sheet)}, SHEET_FILE)
    run_report(ReportConfig(out=out, experiment="test", uri=store.uri))
    body = re.sub(r"<script.*?</script>", "", out.read_text(), flags=re.DOTALL)
    assert "mine: rows" in body
    assert "&lt;so&gt;" in body
    assert '<th scope="col" class="number"><button type="button" title="minus a">diff.</button></th>' in body
    assert '<th scope="col"><button type="button" title="what">row</button></th>' in body
    assert '<td class="number" data-sort="1.5">+1.5</td>' in body


def test_the_page_holds_everything_and_needs_no_network(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    page = whole(store).read_text()
    body = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""src=["'](?!data:)""", body)
    assert not re.search(r"""<(?!a )[^>]*href=""", body)  # an anchor is followed when clicked, and only then
    assert "@import" not in body
    assert unpacked(page, "plotly").startswith("/**\n* plotly.js")
    charts = json.loads(unpacked(page, "content"))["charts"]
    assert sum(drawing is not None for section in charts for drawing in section) == body.count('class="plot"')
    assert len(page) < 2_500_000
    assert body.count("data:image/webp;base64,") == 1
    assert "&lt;script&gt;alert(1)" in body
    assert "0.512" in body
    assert "6 trials: 4 complete, 1 stopped early, 1 failed." in body
    assert "efafnet train /runs/find/best.yaml" in body
    for title in ("Validation AP", "Search history", "What mattered", "Settings together"):
        assert f"<h3>{title}</h3>" in body
    told = capsys.readouterr().out
    assert "search find" in told
    assert "0.500" in told


def test_every_run_says_where_it_comes_from(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/efafnet", "train", "name=my run"])
    parent = store.run("find", [], tags={"efafnet.stage": "search"})
    monkeypatch.setattr("sys.argv", ["/x/ray/_private/workers/default_worker.py", "--node=1"])
    store.run("#0", [0.2], parent=parent, tags={"efafnet.stage": "trial", "mlflow.source.git.commit": "0123456789",
                                                 "code.git_dirty": "true", "env.host": "n1"})  # fmt: skip
    runs = store.runs()
    rows = origin_table(runs, "http://here:1").rows
    assert [row.cells[1].link for row in rows] == [
        f"http://here:1/#/experiments/{run.experiment_id}/runs/{run.run_id}?{TRAINING_VIEW}" for run in runs
    ]
    assert [row.cells[5].text for row in rows] == ["efafnet train 'name=my run'"] * 2
    assert [cell.text for cell in rows[1].cells[3:5]] == ["n1", "01234567+"]
    out = store.place / "page.html"
    run_report(ReportConfig(out=out, experiment="test", uri=store.uri))
    page = f"http://127.0.0.1:5000/#/experiments/{runs[0].experiment_id}/runs/{runs[0].run_id}?{TRAINING_VIEW}"
    assert f'href="{page}"' in out.read_text()
    assert f"mlflow ui --backend-store-uri {store.uri} --port 5000" in out.read_text()


def test_two_runs_settings_can_be_compared_on_the_page(store: Store) -> None:
    store.run("one", [0.1])
    store.run("two", [0.2], optimizer={"lr": 0.5}, loss={"kind": "ohkm", "hard_joints": 8})
    out = store.place / "page.html"
    run_report(ReportConfig(out=out, experiment="test", uri=store.uri))
    (settings,) = json.loads(unpacked(out.read_text(), "content"))["settings"]
    assert settings["keys"] == ["optimizer.lr", "loss.kind", "loss.hard_joints"]
    assert settings["values"] == [["0.001", "mse", ""], ["0.5", "ohkm", "8"]]


def test_what_runs_took_is_told_per_run_and_added_up(store: Store) -> None:
    tags = {"efafnet.stage": "trial", "efafnet.trial_state": "complete"}
    parent = store.run("find", [], tags={"efafnet.stage": "search"})
    for number, ap in enumerate((0.40, 0.44)):
        run_id = store.run(f"#{number}", [ap], parent=parent, tags=tags | {"efafnet.trial": str(number)})
        taken = Consumption(3600.0 * (number + 1), 7200.0, 3600.0, 500.0, 2.0)
        log_cost(store.uri, run_id, taken)
    trials = grouped(store.runs()).searches[0][1]
    table = run_table(trials)
    names = [column.name for column in table.columns]
    assert [table.rows[0].cells[names.index(name)].text for name in ("GPU h", "core h", "CPU h", "kWh", "USD")] == [
        "2.000", "2.000", "1.000", "0.500", "2.00"
    ]  # fmt: skip
    out = store.place / "page.html"
    run_report(ReportConfig(out=out, experiment="test", uri=store.uri))
    told = "Cost: 3 GPU-hours, 4 core-hours (2 of processor time), 1 kWh of the GPUs, 4.00 USD, all runs added up. "
    assert told + "1 USD per point of AP gained over trial #0." in out.read_text()  # 4 USD for 4 points
    assert of_children(store.client, parent) == Consumption(10800, 14400, 7200, 1000, 4)


def test_a_search_whose_first_trial_finds_nothing_has_its_page(store: Store) -> None:
    parent = store.run("find", [], tags={"efafnet.stage": "search"})
    tags = {"efafnet.stage": "trial", "efafnet.trial_state": "complete", "efafnet.trial": "0"}
    log_cost(store.uri, store.run("#0", [0.0], parent=parent, tags=tags), Consumption(0.0, 7200.0, 3600.0))
    out = store.place / "page.html"
    run_report(ReportConfig(out=out, experiment="test", uri=store.uri))
    assert "Cost: 2 core-hours (1 of processor time), all runs added up." in out.read_text()
    assert "per point of AP gained" not in out.read_text()


def test_wide_pictures_are_reduced_in_the_page(store: Store) -> None:
    found = re.search(r"data:image/webp;base64,([^\"]+)", whole(store).read_text())
    assert found is not None
    image = cv2.imdecode(np.frombuffer(base64.b64decode(found[1]), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (54, 1200, 3)
