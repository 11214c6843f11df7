"""What a search costs beyond its training, and what a learning search saves.

    python -m benchmarks.bench_search trials [--trials 100]       # overhead per trial, and what grows over many trials
    python -m benchmarks.bench_search searchers --table DIR       # random, TPE and TPE with ASHA to the same AP50

``trials`` runs a real search of tiny trials on a Ray of its own. ``searchers`` trains every setting of a lattice once
(``--table`` keeps the runs, and goes on where it stopped) and then lets the project's own ledger and stopping rule
search that table many times: all figures are those of real runs, only the waiting is left out.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from efafnet.pipelines.search.config import Sampler, TuneConfig, paced, trial_config
from efafnet.pipelines.search.ledger import Ledger, open_study
from efafnet.pipelines.search.stopping import halving_stops, rungs
from efafnet.pipelines.search.trial import Watch
from efafnet.pipelines.search.tune import tune
from efafnet.pipelines.study.people import synthetic_people
from efafnet.pipelines.synth.dataset import SplitCounts
from efafnet.pipelines.training.config import DataConfig, TrainConfig
from efafnet.pipelines.training.inputs import open_inputs
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


def trials(count: int) -> None:
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


# ---- what a learning search saves

RATES = tuple(1e-3 * 10 ** (step / 3) for step in range(6))
"""1e-3 to 4.6e-2, three to a decade."""
SIGMAS = (0.75, 1.0, 1.5)
LOSSES: tuple[Settings, ...] = ({"loss.kind": "mse"}, {"loss.kind": "ohkm", "loss.hard_joints": 8})
SPACE = f"""\
about: rate, width of the target, loss
search:
  optimizer.lr: {{float: [{RATES[0]}, {RATES[-1]}], log: true}}
  heatmap.sigma_px: {{choice: [0.75, 1.0, 1.5]}}
  loss.kind: {{choice: {{mse: {{}}, ohkm: {{loss.hard_joints: 8}}}}}}
"""
VALIDATIONS = 4
Table = dict[str, dict[int, float]]
"""Validation figure by samples seen, by setting."""
SEARCHERS: dict[str, tuple[Sampler, bool]] = {
    "random": ("random", False),
    "TPE": ("tpe", False),
    "random, ASHA": ("random", True),
    "TPE, ASHA": ("tpe", True),
}


def key(settings: Mapping[str, Any]) -> str:
    """The nearest setting of the lattice, as text."""
    rate = min(RATES, key=lambda each: abs(math.log(each / settings["optimizer.lr"])))
    rest = {name: value for name, value in sorted(settings.items()) if name != "optimizer.lr"}
    return json.dumps({"optimizer.lr": round(rate, 6), **rest}, sort_keys=True)


def lattice() -> Iterator[Settings]:
    """Every setting that is trained."""
    for rate in RATES:
        for sigma in SIGMAS:
            for loss in LOSSES:
                yield {"optimizer.lr": rate, "heatmap.sigma_px": sigma, **loss}


def train_table(place: Path, samples: int, data: DataConfig | None) -> Table:
    """Train what is missing of the table, one run after the other in this process."""
    from efafnet.pipelines.training.ray_run import train

    changes = [f"runs={place}", "workers=0", "network.base_width=8", "input=64x64", "batch_size=16", "space=ohkm",
               "augmentation.rotation_deg=0", "augmentation.scale_factor=0.15", f"max_samples={samples}",
               "validation.metric=ap_50", "tracking.enabled=false", "cluster.address=local"]  # fmt: skip
    base = apply_overrides(load_preset("synth_nano"), changes)
    data = data or synthetic_people(resolve(TrainConfig, {k: v for k, v in base.items() if k != "space"}))
    config = resolve(TuneConfig, base | {"data": data.model_dump(mode="json")})
    inputs, table = open_inputs(config), Table()
    for number, settings in enumerate(lattice()):
        file = place / f"{number:04d}.json"
        if not file.exists():
            run = paced(trial_config(config, settings, number, place), inputs, VALIDATIONS)
            train(run)
            write_json(file, {figure.samples: figure.value for figure in Watch(run.run_dir).new()})
        table[key(settings)] = {int(samples): value for samples, value in read_json(file).items()}
    return table


def samples_needed(
    table: Table, space: Space, target: float, searcher: str, seed: int, *, at_once: int = 2, most: int = 150
) -> tuple[int, bool]:
    """Samples that a search of the table trains until a trial ends with ``target``, and whether one did."""
    sampler, halving = SEARCHERS[searcher]
    budget = max(max(curve) for curve in table.values())
    levels = rungs(budget, min(min(curve) for curve in table.values()), 2.0)
    ledger = Ledger(Path(":memory:"), "replay", space, trials=most, sampler=sampler, seed=seed, startup=10)
    events: list[tuple[float, int]] = []
    curves: dict[int, dict[int, float]] = {}
    spent: dict[int, int] = {}
    now = 0.0

    def begin() -> None:
        assignment = ledger.next()
        if assignment is not None:
            curves[assignment.number] = dict(table[key(assignment.settings)])
            heapq.heappush(events, (now + min(curves[assignment.number]), assignment.number))

    for _ in range(at_once):
        begin()
    while events:
        now, number = heapq.heappop(events)
        samples = min(curves[number])
        ledger.report(number, samples, figure := curves[number].pop(samples))
        spent[number] = samples
        if not curves[number] and figure >= target:
            return sum(spent.values()), True
        if curves[number] and not (halving and halving_stops(ledger.curves, number, levels, 2.0)):
            heapq.heappush(events, (now + min(curves[number]) - samples, number))
            continue
        ledger.finish(number, "pruned" if curves[number] else "complete")
        begin()
    return sum(spent.values()), False


def searchers(place: Path, samples: int, seeds: int, data: DataConfig | None) -> None:
    """Print what each searcher needs, beside random search."""
    place.mkdir(parents=True, exist_ok=True)
    table = train_table(place, samples, data)
    finals = sorted((curve[max(curve)] for curve in table.values()), reverse=True)
    space = parse_space(SPACE, "bench_search")
    budget = max(max(curve) for curve in table.values())
    console.say(f"{len(table)} settings, {budget} samples each; best {finals[0]:.4f}, median "
                f"{statistics.median(finals):.4f}, worst {finals[-1]:.4f}")  # fmt: skip
    for share in (0.1, 0.05):
        target = finals[max(1, round(share * len(finals))) - 1]
        rows: list[list[object]] = []
        base = 0.0
        for name in SEARCHERS:
            found = [samples_needed(table, space, target, name, seed) for seed in range(seeds)]
            spent = [each / budget for each, _ in found]
            mean = statistics.mean(spent)
            base = base or mean
            error = statistics.stdev(spent) / math.sqrt(seeds)
            rows.append([name, f"{mean:.1f} ± {error:.1f}", f"{statistics.median(spent):.1f}", f"{mean / base:.2f}",
                         sum(not there for _, there in found)])  # fmt: skip
        columns = ["search", "full trainings' worth (mean ± its error)", "median", "times random", "not reached"]
        console.table(
            columns, rows, title=f"to AP50 {target:.4f}, which {share:.0%} of the settings reach; {seeds} seeds"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["trials", "searchers"], nargs="?", default="trials")
    parser.add_argument("--trials", type=int, default=20, help="tiny trials of the search")
    parser.add_argument("--table", type=Path, default=Path("runs/bench_search"), help="where the table's runs lie")
    parser.add_argument("--samples", type=int, default=3200, help="training samples of each run of the table")
    parser.add_argument("--seeds", type=int, default=20, help="searches of the table per searcher")
    parser.add_argument("--data", type=Path, default=None, help="folder with crop stores train and val; else drawn")
    given = parser.parse_args()
    began = time.monotonic()
    if given.what == "trials":
        trials(given.trials)
    else:
        data = None if given.data is None else DataConfig(train=given.data / "train", val=given.data / "val")
        searchers(given.table, given.samples, given.seeds, data)
    console.say(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
