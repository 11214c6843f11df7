"""What a search costs beyond its training, and what a learning search saves.

    python -m benchmarks.bench_search trials [--trials 100]       # overhead per trial, and what grows over many trials
    python -m benchmarks.bench_search scale [--trials 1000]       # ask and tell at the end of a long search
    python -m benchmarks.bench_search searchers --curves CSV      # each way to search to the same figure
    python -m benchmarks.bench_search table --out DIR             # train such a table: 120 runs, hours of a core

``trials`` runs a real search of tiny trials on a Ray of its own. ``searchers`` lets the project's own ledger and rules
search a table of real runs many times: all figures are those of real runs, only the waiting is left out. The table is
a CSV of curves (``search_table.read_table``). ``table`` makes one; killed, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import Record, add_option, recorded
from benchmarks.search_replay import ARMS, searchers
from benchmarks.search_table import read_table, train_table
from efafnet.pipelines.search.config import TuneConfig
from efafnet.pipelines.search.earlier import open_study
from efafnet.pipelines.search.ledger import Ledger, Shared
from efafnet.pipelines.search.tune import tune
from efafnet.pipelines.study.people import synthetic_people
from efafnet.pipelines.synth.dataset import SplitCounts
from efafnet.pipelines.training.config import DataConfig, TrainConfig
from efafnet.platform import console
from efafnet.platform.configuration import apply_overrides, load_preset, resolve
from efafnet.platform.storage import read_json
from efafnet.tune_spaces.reading import parse_space

# ---- what a trial costs beyond its training

TINY = """\
about: a tiny trial
search:
  optimizer.lr: {float: [1e-3, 1e-2], log: true}
"""
SCALE = """\
about: six settings, one of them with settings of its own
search:
  optimizer.lr: {float: [1e-4, 1e-2], log: true}
  heatmap.sigma_px: {float: [0.5, 3]}
  augmentation.rotation_deg: {float: [0, 60]}
  optimizer.weight_decay: {float: [1e-5, 1e-1], log: true}
  loss.kind: {choice: {mse: {}, ohkm: {loss.hard_joints: {int: [1, 17]}}}}
"""
WATCH_EVERY_S = 5.0


@dataclass(frozen=True)
class Look:
    """What the search holds at one moment."""

    trials: int
    """Trials that have ended."""
    driver_mib: float
    """Memory of the driver that nobody else has."""
    driver_files: int
    """Files and sockets that the driver has open."""
    workers_mib: float
    """Memory of the trials' processes."""
    workers: int
    """Processes of trials."""
    groups: int
    """Placement groups that are not removed."""


def look(study: Path) -> Look | None:
    """Count now; None before the first trial."""
    from ray.util.placement_group import placement_group_table

    if not study.exists():
        return None
    driver = psutil.Process()
    children = []
    for child in driver.children(recursive=True):
        try:
            if "TrialActor" in child.name() or "ResourceTrainable" in " ".join(child.cmdline()):
                children.append(child.memory_info().rss)
        except psutil.Error:
            continue
    ended = sum(trial.state.is_finished() for trial in open_study(study).get_trials(deepcopy=False))
    groups = sum(group["state"] != "REMOVED" for group in placement_group_table().values())
    return Look(ended, driver.memory_full_info().uss / 2**20, driver.num_fds() + len(driver.net_connections()),
                sum(children) / 2**20, len(children), groups)  # fmt: skip


def watched(study: Path, action: Callable[[], object]) -> list[Look]:
    """Run ``action`` and look at it meanwhile."""
    import ray

    looks: list[Look] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_EVERY_S):
            if ray.is_initialized() and (found := look(study)) is not None:
                looks.append(found)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return looks


def tiny_search(place: Path, trials: int) -> TuneConfig:
    """A search of trials of a second each, on a few synthetic people."""
    base = resolve(TrainConfig, apply_overrides(load_preset("nano_test"), [f"runs={place}", "cluster.address=local"]))
    data = synthetic_people(base, SplitCounts(train=40, val=10))
    (place / "tiny.yaml").write_text(TINY)
    changes = [
        f"runs={place}", f"space={place}/tiny.yaml", "name=tiny", f"data.train={data.train}", f"data.val={data.val}",
        f"search.trials={trials}", "search.sampler=random", "search.stop=none", "max_samples=160", "workers=0",
        "cluster.address=local", "tracking.enabled=true", f"tracking.uri=sqlite:///{place}/mlflow.db",
        "tracking.system_metrics_every_s=null",
    ]  # fmt: skip
    return resolve(TuneConfig, apply_overrides(load_preset("nano_test"), changes))


def trials(count: int, record: Record) -> None:
    """Run a search of ``count`` tiny trials and print where its seconds went and what it held."""
    with tempfile.TemporaryDirectory() as folder:
        config = tiny_search(Path(folder), count)
        looks = watched(config.run_dir / "study.db", lambda: tune(config))
        ended = open_study(config.run_dir / "study.db").trials
        loops = [
            read_json(config.run_dir / "trials" / f"{trial.number:04d}" / "result.json")["metrics"]["elapsed_s"]
            for trial in ended
        ]
    lasting = [trial.duration.total_seconds() for trial in ended if trial.duration is not None]
    beyond = [whole - loop for whole, loop in zip(lasting, loops, strict=True)]
    began = min(trial.datetime_start for trial in ended if trial.datetime_start)
    over = max(trial.datetime_complete for trial in ended if trial.datetime_complete)
    wall = (over - began).total_seconds()
    record.add("a trial beyond its loop", "s", beyond)
    slots = max(1, round(sum(lasting) / wall))
    console.table(
        ["what", "seconds"],
        [
            ["a trial, from the hand-out to its entry as ended (median)", f"{statistics.median(lasting):.2f}"],
            ["of that its training loop, validations included (median)", f"{statistics.median(loops):.2f}"],
            ["the rest: processes, Ray, MLflow, Optuna (median)", f"{statistics.median(beyond):.2f}"],
            [f"the rest in the first {slots}, which start processes (mean)", f"{statistics.mean(beyond[:slots]):.2f}"],
            ["a slot's wall time per trial beyond the loop, gaps included (mean)",
             f"{(wall * slots - sum(loops)) / len(ended):.2f}"],
        ],
        title=f"{len(ended)} trials, {slots} at a time",
    )  # fmt: skip
    told = [
        [look.trials, f"{look.driver_mib:.0f}", look.driver_files, f"{look.workers_mib:.0f}", look.workers, look.groups]
        for look in _spread(looks)
    ]
    console.table(["trials over", "driver MiB", "its files", "trials' MiB", "processes", "groups"], told)


def _spread(looks: list[Look], rows: int = 11) -> list[Look]:
    step = max(1, (len(looks) - 1) // (rows - 1))
    return [*looks[:-1:step], looks[-1]]


# ---- what a long search's study costs


def scale(count: int, record: Record, looks: int = 10) -> None:
    """Print what handing out a trial and closing one take at the end of a search of ``count`` trials, and what each
    writes at the beginning and at the end."""
    space = parse_space(SCALE, "bench_search")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shared in (("sqlite", None), ("journal", Shared("journal", "bench", "bench"))):
            place = Path(folder) / name
            place.mkdir()

            def ledger(sampler: str, place: Path = place, shared: Shared | None = shared, **more: Any) -> Ledger:
                return Ledger(
                    place / "study.db", "long", space, trials=count + 100, sampler=sampler, seed=0, startup=10,
                    shared=shared, **more,
                )  # fmt: skip

            long = ledger("random")
            written = [_trial(long)[2] for _ in range(count)]
            first, last = statistics.mean(written[:100]), statistics.mean(written[-100:])
            size = sum(file.stat().st_size for file in place.iterdir())
            record.add(f"{name}, written per trial, last 100", "bytes", [last])
            console.say(f"{name}: {size / count / 1024:.1f} KiB a trial on disk after {count}; written per trial "
                        f"{first / 1024:.1f} KiB (first 100), {last / 1024:.1f} KiB (last 100)")  # fmt: skip
            for way, late in (
                (f"tpe, {name}", ledger("tpe")),
                *([("tpe, sqlite, trials may wait", ledger("tpe", waits=True))] if shared is None else []),
            ):
                asks, tells, _ = zip(*(_trial(late) for _ in range(looks)), strict=True)
                record.add(f"ask, {way}", "CPU s", list(asks))
                record.add(f"tell, {way}", "CPU s", list(tells))
                rows.append([way, f"{statistics.median(asks):.3f}", f"{statistics.median(tells):.3f}"])
    console.table(["search", "ask, CPU s", "tell, CPU s"], rows, title=f"after {count} trials (medians of {looks})")


def _trial(ledger: Ledger) -> tuple[float, float, int]:
    """A trial of no time with four figures: processor seconds to ask and to tell, and bytes written."""
    before = _written()
    began = time.process_time()
    assignment = ledger.next()
    asked = time.process_time() - began
    assert assignment is not None
    for step in range(1, 5):
        ledger.report(assignment.number, 100 * step, random.random())
    began = time.process_time()
    ledger.finish(assignment.number, "complete")
    return asked, time.process_time() - began, _written() - before


def _written() -> int:
    """Bytes that this process has handed to the system to write."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["wchar"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["trials", "scale", "searchers", "table"], nargs="?", default="trials")
    parser.add_argument("--trials", type=int, default=None, help="trials of the search; 20, or 1000 for scale")
    parser.add_argument("--curves", type=Path, default=None, help="CSV of searchers: settings, samples, figure")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="ways to search")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_search"), help="where table leaves its figures")
    parser.add_argument("--samples", type=int, default=10240, help="training samples of each run of a table")
    parser.add_argument("--seeds", type=int, default=50, help="searches of the table per searcher")
    parser.add_argument("--data", type=Path, default=None, help="folder of table's stores, train and val; else drawn")
    parser.add_argument("--at-once", type=int, default=1, help="processes of table and searchers")
    add_option(parser)
    given = parser.parse_args()
    if given.what == "searchers" and given.curves is None:
        parser.error("searchers needs --curves CSV, as `bench_search table` writes it")
    with recorded("bench_search", given) as record:
        measure(given, record)


def measure(given: argparse.Namespace, record: Record) -> None:
    """Measure what was asked for, and print it."""
    began = time.monotonic()
    if given.what == "trials":
        trials(given.trials or 20, record)
    elif given.what == "scale":
        scale(given.trials or 1000, record)
    elif given.what == "table":
        data = None if given.data is None else DataConfig(train=given.data / "train", val=given.data / "val")
        given.out.mkdir(parents=True, exist_ok=True)
        console.say(f"{train_table(given.out, given.samples, data, given.at_once)} holds the curves")
    else:
        searchers(read_table(given.curves), given.seeds, given.arms, record, given.at_once)
    console.say(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
