"""The report's page: what it shows, and that it needs nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from efafnet.pipelines.report.config import ReportConfig
from efafnet.pipelines.report.report import run_report
from efafnet.pipelines.report.tables import grouped, origin_table, run_table
from efafnet.pipelines.search.study_file import STUDY_FILE, study_to_json
from efafnet.pipelines.study.sheet import SHEET_FILE, Sheet
from efafnet.pipelines.training.recording import log_cost, of_children
from efafnet.platform.consumption import Consumption
from efafnet.platform.mlflow_pages import TRAINING_VIEW
from tests.report_cases import STUDY, Store, study_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


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
    assert re.search(r'<h2 id="study-\w{8}">Study “table”</h2>', body)
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
    assert re.search(r'<h2 id="search-\w{8}">Search “find”</h2>', body)
    for title in ("Validation AP", "Search history", "What mattered", "Settings together"):
        assert f"<h3>{title}</h3>" in body
    told = capsys.readouterr().out
    assert "search “find”" in told
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
