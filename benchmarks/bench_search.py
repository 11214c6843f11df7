"""What a search costs beyond its training, and what a learning search saves.

    python -m benchmarks.bench_search trials [--trials 100]       # overhead per trial, and what grows over many trials
    python -m benchmarks.bench_search scale [--trials 1000]       # ask and tell at the end of a long search
    python -m benchmarks.bench_search searchers --curves CSV      # each way to search to the same figure
    python -m benchmarks.bench_search table --out DIR             # train such a table: 120 runs, hours of a core

``trials`` runs a real search of tiny trials on a Ray of its own. ``searchers`` lets the project's own ledger and rules
search a table of real runs many times: all figures are those of real runs, only the waiting is left out. The table is
a CSV of curves (``read_table``). ``table`` makes one; killed, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import math
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import product, repeat
from pathlib import Path
from typing import Any

import psutil
from scipy import stats

from benchmarks.record import Record, add_option, recorded
from efafnet.pipelines.search.config import SearchConfig, TuneConfig, paced, trial_config
from efafnet.pipelines.search.controller import Controller
from efafnet.pipelines.search.earlier import open_study
from efafnet.pipelines.search.ledger import Assignment, Ledger, Shared, State
from efafnet.pipelines.search.stopping import rungs
from efafnet.pipelines.search.trial import Watch
from efafnet.pipelines.search.tune import rule_of, tune
from efafnet.pipelines.study.people import synthetic_people
from efafnet.pipelines.study.statistics import rank_correlation
from efafnet.pipelines.synth.dataset import SplitCounts
from efafnet.pipelines.training.config import DataConfig, TrainConfig
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.monitor import DivergedError
from efafnet.pipelines.training.schedule import due
from efafnet.platform import console
from efafnet.platform.configuration import apply_overrides, load_preset, resolve
from efafnet.platform.storage import read_json, write_json
from efafnet.tune_spaces.reading import parse_space
from efafnet.tune_spaces.space import Settings, Space

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


# ---- what a learning search saves

RATES = (1e-3, 2.5e-3, 6.3e-3, 1.6e-2, 4e-2)
SIGMAS = (0.75, 1.25, 2.0)
SCHEDULES = ("one_cycle", "cosine")
HARD_JOINTS = (17, 8, 4, 12)
"""R of OHKM; all 17 are the plain mean. The outermost: what is finished of the table is whole for the first of them."""
VALIDATIONS = 16
BATCH = 20
"""Trials of a search; where all must wait for the last, that many more are given to it whenever it is over."""
SHARES = (0.1, 0.05)
"""A search's aims: figures that so many of the settings reach."""
MOST = 200
"""Trials after which a search is given up as not having reached its target."""
SOON = {"grace": 1 / 16}
"""Trials are looked at after a sixteenth of their budget in place of a quarter."""
ARMS: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random", "stop": "none"},
    "TPE": {"sampler": "tpe", "stop": "none"},
    "GP": {"sampler": "gp", "stop": "none"},
    "TPE, ASHA stopping": {"sampler": "tpe", "stop": "asha"},
    "TPE, ASHA stopping, 1/16": {"sampler": "tpe", "stop": "asha", **SOON},
    "TPE, ASHA stopping, 1/16 by 4": {"sampler": "tpe", "stop": "asha", "reduction": 4, **SOON},
    "TPE, ASHA promoting, 1/16": {"sampler": "tpe", "stop": "asha", "promotes": True, **SOON},
    "TPE, ASHA promoting, 1/16 by 4": {"sampler": "tpe", "stop": "asha", "promotes": True, "reduction": 4, **SOON},
    "random, constant, 1/16": {"sampler": "random", "stop": "constant", **SOON},
    "TPE, constant, 1/4": {"sampler": "tpe", "stop": "constant"},
    "TPE, constant, 1/16": {"sampler": "tpe", "stop": "constant", **SOON},
    "GP, constant, 1/16": {"sampler": "gp", "stop": "constant", **SOON},
}
"""Settings of ``search`` by the name of the way to search."""


@dataclass(frozen=True)
class Table:
    """Real runs, one for every combination of their settings, that a search can be replayed on."""

    curves: Mapping[tuple[str, ...], Mapping[int, float]]
    """Validation figure by samples seen, by the settings' values in the order of ``columns``."""
    columns: Mapping[str, tuple[str, ...]]
    """The values of each setting; numbers ascending."""

    @property
    def budget(self) -> int:
        """Samples of a full run."""
        return max(max(curve) for curve in self.curves.values())

    def finals(self) -> list[float]:
        """Figures of the full runs, best first."""
        return sorted((curve[max(curve)] for curve in self.curves.values()), reverse=True)

    def space(self) -> Space:
        """A space that draws from the lattice itself: places among ordered numbers, and choices of the rest."""
        lines = []
        for name, values in self.columns.items():
            places = f"{{int: [0, {len(values) - 1}]}}"
            lines.append(f"  {name}: {places if _are_numbers(values) else '{choice: [' + ', '.join(values) + ']}'}")
        return parse_space("search:\n" + "\n".join(lines) + "\n", "the table's columns")

    def curve(self, settings: Mapping[str, Any]) -> Mapping[int, float]:
        """The run with the settings that ``space`` drew."""
        return self.curves[
            tuple(
                values[settings[name]] if _are_numbers(values) else str(settings[name])
                for name, values in self.columns.items()
            )
        ]


def _are_numbers(values: tuple[str, ...]) -> bool:
    try:
        return len(values) > 1 and all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def read_table(file: Path) -> Table:
    """Read curves: a header, a column for each setting, then ``samples`` and ``figure``; a row for each validation.

    Lines with # in front tell what they are.

    Raises:
        ValueError: other columns, or a combination of values that has no run.
    """
    with file.open(newline="", encoding="utf-8") as text:
        header, *rows = csv.reader(line for line in text if not line.startswith("#"))
    if header[-2:] != ["samples", "figure"]:
        raise ValueError(f"{file}: the last two columns are {header[-2:]}; they must be samples and figure")
    curves: dict[tuple[str, ...], dict[int, float]] = {}
    for row in rows:
        curves.setdefault(tuple(row[:-2]), {})[int(row[-2])] = float(row[-1])
    columns = {}
    for place, name in enumerate(header[:-2]):
        values = tuple(dict.fromkeys(settings[place] for settings in curves))
        columns[name] = tuple(sorted(values, key=float)) if _are_numbers(values) else values
    if missing := set(product(*columns.values())) - set(curves):
        raise ValueError(f"{file}: {len(missing)} combinations have no run, among them {min(missing)}; the table must "
                         "hold every one, so make one column of settings that hang together")  # fmt: skip
    return Table(curves, columns)


def write_table(
    file: Path, names: list[str], curves: Mapping[tuple[str, ...], Mapping[int, float]], about: str
) -> None:
    """Write curves as ``read_table`` reads them; ``about`` is the first line."""
    with file.open("w", newline="", encoding="utf-8") as text:
        text.write(f"# {about}\n")
        out = csv.writer(text, lineterminator="\n")
        out.writerow([*names, "samples", "figure"])
        for settings, curve in curves.items():
            out.writerows([*settings, samples, f"{value:.5f}"] for samples, value in sorted(curve.items()))


def train_table(place: Path, samples: int, data: DataConfig | None, at_once: int = 1) -> Path:
    """Train what is missing of a table, ``at_once`` runs at a time, each in a process of one thread; returns its file.

    The file is written anew whenever all runs of an R are there, so a table that was interrupted can be searched too.
    """
    changes = [f"runs={place}", "workers=0", "network.base_width=8", "input=64x64", "space=ohkm", "epochs=20",
               "batch_size=16", f"max_samples={samples}", "test.flip_test=false", "tracking.enabled=false",
               "cluster.address=local"]  # fmt: skip
    base = apply_overrides(load_preset("synth_nano"), changes)
    data = data or synthetic_people(resolve(TrainConfig, {k: v for k, v in base.items() if k != "space"}))
    config = resolve(TuneConfig, base | {"data": data.model_dump(mode="json")})
    persons = open_inputs(config).train.num_persons
    about = (f"validation AP of real runs: bench_search table --samples {samples}; {persons} clear people to train on, "
             "nano network of width 8, 64x64, one seed")  # fmt: skip
    rest = list(product(SCHEDULES, SIGMAS, RATES))
    curves: dict[tuple[str, ...], dict[int, float]] = {}
    # Fresh processes: what a fork inherits of torch's threads hangs.
    with ProcessPoolExecutor(
        at_once, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        for block, hard in enumerate(HARD_JOINTS):
            loss = {"loss.kind": "mse"} if hard == max(HARD_JOINTS) else {"loss.kind": "ohkm", "loss.hard_joints": hard}
            drawn: list[Settings] = [
                {"optimizer.lr": rate, "heatmap.sigma_px": sigma, "schedule.kind": schedule, **loss}
                for schedule, sigma, rate in rest
            ]
            numbers = range(block * len(rest), (block + 1) * len(rest))
            trained = pool.map(_trained, repeat(config), drawn, numbers)
            for (schedule, sigma, rate), curve in zip(rest, trained, strict=True):
                curves[f"{rate:g}", f"{sigma:g}", str(hard), schedule] = curve
            names = ["optimizer.lr", "heatmap.sigma_px", "loss.hard_joints", "schedule.kind"]
            write_table(place / "curves.csv", names, curves, about)
    return place / "curves.csv"


def _end_with_parent() -> None:
    """End when the parent is gone, which cannot tell its processes to stop when it is killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _trained(config: TuneConfig, settings: Settings, number: int) -> dict[int, float]:
    """The curve of one run; trained unless its figures lie there already."""
    from efafnet.pipelines.training.ray_run import train

    file = config.runs / f"{number:04d}.json"
    if not file.exists():
        inputs = open_inputs(config)
        run = paced(trial_config(config, settings, number, config.runs), inputs, VALIDATIONS)
        steps = config.plan(inputs).steps
        curve = {step * run.batch_size: 0.0 for step in range(1, steps + 1) if due(step, steps / VALIDATIONS)}
        with suppress(DivergedError):  # a search would close it as failed: in a table it has found nobody from there on
            train(run)
        curve |= {figure.samples: figure.value for figure in Watch(run.run_dir).new()}
        write_json(file, curve)
        shutil.rmtree(run.run_dir)
    return {int(seen): value for seen, value in read_json(file).items()}


class Replay:
    """One search of a table by the project's own ledger and rules: only the waiting for training is left out."""

    def __init__(self, table: Table, arm: str, seed: int, at_once: int = 2) -> None:
        self.table, self.at_once = table, at_once
        search = SearchConfig(**ARMS[arm])
        grace = max(1, round(search.grace * table.budget))
        rule = rule_of(search, rungs(table.budget, grace, search.reduction), grace)
        self.waits_for_all = search.stop == "constant"
        self.ledger = Ledger(
            Path(":memory:"), "replay", table.space(), trials=BATCH if self.waits_for_all else MOST,
            sampler=search.sampler, seed=seed, startup=search.startup_trials, waits=search.sets_aside,
            judged_at=grace if self.waits_for_all else None,
        )  # fmt: skip
        self.controller = Controller(self.ledger, rule, self, lambda: at_once)
        self.events: list[tuple[float, int]] = []
        """When a trial shows its next figure, in samples trained one after the other, and its number."""
        self.now = 0.0
        self.spent = 0

    def until(self, targets: Sequence[float]) -> list[float]:
        """Full runs' worth of samples until a trial ends with each target; infinite where the search was given up."""
        found = [math.inf] * len(targets)
        while math.isinf(max(found)) and self._fill():
            self.now, number = heapq.heappop(self.events)
            curve = self.table.curve(self.settings[number])
            seen = self.ledger.curves[number]
            samples = min(set(curve) - set(seen))
            self.spent += samples - max(seen, default=0)
            self.ledger.report(number, samples, curve[samples])
            if samples == max(curve):
                self.ledger.finish(number, "complete")
                spent = self.spent / self.table.budget
                found = [min(was, spent) if curve[samples] >= target else was
                         for was, target in zip(found, targets, strict=True)]  # fmt: skip
            elif self.controller.gives_up(number):
                self.controller.give_up(number)
            else:
                self._await(number)
        return found

    def _fill(self) -> bool:
        """Begin what there is room for; false when the search is over."""
        while len(self.events) < self.at_once and self.controller.next("") is not None:
            pass
        if self.events or not self.waits_for_all or self.ledger.trials >= MOST:
            return bool(self.events)
        self.controller.close_aside()
        self.ledger.trials += BATCH
        return self._fill()

    def _await(self, number: int) -> None:
        seen = self.ledger.curves[number]
        following = min(set(self.table.curve(self.settings[number])) - set(seen))
        heapq.heappush(self.events, (self.now + following - max(seen, default=0), number))

    # What hears of trials where there is no training.

    @property
    def settings(self) -> dict[int, Settings]:
        """What was drawn, by trial."""
        return self.__dict__.setdefault("_settings", {})

    def began(self, assignment: Assignment) -> dict[str, Any]:
        """Remember what was drawn."""
        self.settings[assignment.number] = assignment.settings
        self._await(assignment.number)
        return {}

    def again(self, number: int, reason: str) -> None:
        """Nothing dies here."""

    def ended(self, number: int, state: State, reason: str) -> None:
        """The ledger has it."""

    def set_aside(self, number: int) -> None:
        """The ledger has it."""


def searchers(table: Table, seeds: int, arms: list[str], record: Record, at_once: int = 1) -> None:
    """Print what each way to search needs, beside random search."""
    finals = table.finals()
    console.say(f"{len(finals)} settings, {table.budget} samples each; best {finals[0]:.4f}, median "
                f"{statistics.median(finals):.4f}, worst {finals[-1]:.4f}")  # fmt: skip
    ends = [curve[max(curve)] for curve in table.curves.values()]
    for samples in sorted(set.intersection(*(set(curve) for curve in table.curves.values())))[:-1]:
        early = rank_correlation([curve[samples] for curve in table.curves.values()], ends)
        told = "none" if early is None else f"{early:+.2f}"
        console.say(f"rank correlation of the figures after {samples} samples with those at the end: {told}")
    targets = [finals[max(1, round(share * len(finals))) - 1] for share in SHARES]
    jobs = [(arm, seed) for arm in arms for seed in range(seeds)]
    with ProcessPoolExecutor(
        at_once, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        found = dict(zip(jobs, pool.map(_searched, repeat(table), repeat(targets), jobs), strict=True))
    for place, (share, target) in enumerate(zip(SHARES, targets, strict=True)):
        rows: list[list[object]] = []
        base = 0.0
        for arm in arms:
            # A search that was given up needs more than it spent: it stands above all others.
            needed = sorted(found[arm, seed][place] for seed in range(seeds))
            middle = statistics.median_low(needed)
            low, high = median_span(needed)
            base = base or middle
            record.add(f"{arm}, to the best {share:.0%}", "full runs' worth", [middle])
            rows.append([arm, f"{middle:.1f}", f"{low:.1f} to {high:.1f}", f"{middle / base:.2f}",
                         sum(map(math.isinf, needed))])  # fmt: skip
        columns = ["search", "full runs' worth (median)", "95 % of the median", f"times {arms[0]}", "not reached"]
        console.table(columns, rows, title=f"to {target:.4f}, which {share:.0%} of the settings reach; {seeds} seeds")


def _searched(table: Table, targets: Sequence[float], job: tuple[str, int]) -> list[float]:
    import optuna

    arm, seed = job
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Replay(table, arm, seed).until(targets)


def median_span(ascending: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a median by order statistics: how many of n lie below it is binomial with a half."""
    below = int(stats.binom.ppf(0.025, len(ascending), 0.5))
    place = max(0, below - 1)
    return ascending[place], ascending[len(ascending) - 1 - place]


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
