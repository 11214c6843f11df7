"""How long MLflow's own pages take over a search of many trials.

    python -m benchmarks.bench_mlflow_pages [--trials 500] [--points 200] [--compared 100] [--pictures DIR]

It fills a store as a search of so many trials would (each with its settings, tags and two curves), starts ``mlflow
server`` on it, and opens two pages in a Chromium without a window: the table of runs, where the search stands with its
trials folded below it, and the comparison of a hundred of them with its parallel coordinates. A page is timed from the
request until what it is for stands in it.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.record import Record, add_option, recorded
from efafnet.platform import console
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.tracking import prepare_tracking
from tests.chromium import Page, browsing

CURVES = ("val/ap", "train/loss")
PAGE_S = 180.0
"""Longest wait for a page, seconds."""
SERVER_S = 300.0
"""Longest wait for the server, seconds."""


def fill(uri: str, trials: int, points: int) -> tuple[str, list[str]]:
    """Write a search with its trials; returns the experiment's id and those of the trials."""
    from mlflow.entities import Metric, Param, RunTag

    prepare_tracking(uri)
    client = mlflow_client(uri)
    experiment = client.create_experiment("efafnet")
    parent, found, draw = client.create_run(experiment, run_name="search").info.run_id, [], random.Random(0)
    for number in range(trials):
        rate = 10 ** draw.uniform(-4, -2)
        tags = {"mlflow.parentRunId": parent, "efafnet.stage": "trial", "efafnet.trial": str(number)}
        run = client.create_run(experiment, run_name=f"#{number} lr={rate:.3g}", tags=tags).info.run_id
        curves = [
            Metric(name, draw.random(), 1_700_000_000_000 + step, step) for name in CURVES for step in range(points)
        ]
        params = [Param("optimizer.lr", f"{rate:.6g}"), Param("loss.hard_joints", str(draw.randrange(1, 18)))]
        for start in range(0, len(curves), 1000):
            client.log_batch(run, metrics=curves[start : start + 1000], params=params if start == 0 else [])
        client.log_batch(run, tags=[RunTag("efafnet.trial_state", "complete")])
        client.set_terminated(run)
        found.append(run)
    client.set_terminated(parent)
    return experiment, found


@contextmanager
def serving(uri: str) -> Iterator[str]:
    """The address of a server on the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SERVER_S
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, "mlflow server has ended"
            assert time.monotonic() < deadline, "mlflow server does not answer"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def pages(address: str, experiment: str, runs: list[str], compared: int) -> list[tuple[str, str, str]]:
    """Each page: what it is, its address, and a JavaScript expression that is true once it can be used."""
    listed = f"{address}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    some = quote(json.dumps(runs[:compared]))
    shown = "document.body.innerText"
    return [
        ("table of runs", listed, f"/[1-9]\\d* matching run/.test({shown}) && /search/.test({shown})"),
        (f"comparison of {compared}", f"{address}/#/compare-runs?runs={some}&experiments=[%22{experiment}%22]",
         f"/Comparing {compared} Runs/i.test({shown}) && document.querySelectorAll('.js-plotly-plot').length > 0"),
    ]  # fmt: skip


def opened(page: Page, address: str, ready: str) -> float | None:
    """Seconds until a page can be used; None where it never can."""
    page.call("Page.navigate", url="about:blank")
    began = time.monotonic()
    page.call("Page.navigate", url=address)
    try:
        page.wait(ready, PAGE_S)
    except AssertionError:
        return None
    return time.monotonic() - began


def measure(given: argparse.Namespace, record: Record) -> None:
    """Fill the store, open the pages, print the seconds."""
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        experiment, runs = fill(uri, given.trials, given.points)
        size = Path(folder, "mlflow.db").stat().st_size
        console.say(f"{given.trials} trials, {len(CURVES)} curves of {given.points} points: {size / 1e6:.0f} MB")
        with serving(uri) as address, browsing(Path(folder) / "profile") as page:
            page.show(1280, 900)
            for name, where, ready in pages(address, experiment, runs, given.compared):
                seconds = [opened(page, where, ready) for _ in range(given.looks)]
                if given.pictures is not None:
                    given.pictures.mkdir(parents=True, exist_ok=True)
                    page.picture(given.pictures / f"{name.replace(' ', '-')}.png")
                known: list[Any] = [value for value in seconds if value is not None]
                if known:
                    record.add(name, "s", known)
                rows.append([name, *("never" if value is None else f"{value:.1f}" for value in seconds)])
    looks = [f"s, look {number + 1}" for number in range(given.looks)]
    console.table(["page", *looks], rows, title=f"MLflow's pages over {given.trials} trials")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500, help="runs in the store")
    parser.add_argument("--points", type=int, default=200, help="points of each of their two curves")
    parser.add_argument("--compared", type=int, default=100, help="runs on the page that compares")
    parser.add_argument("--looks", type=int, default=3, help="times that each page is opened; the first fills caches")
    parser.add_argument("--pictures", type=Path, default=None, help="folder for pictures of the pages")
    add_option(parser)
    given = parser.parse_args()
    with recorded("bench_mlflow_pages", given) as record:
        measure(given, record)


if __name__ == "__main__":
    main()
