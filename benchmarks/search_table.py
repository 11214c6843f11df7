"""Tables of real runs that searches can be replayed on: read, written and trained."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import product, repeat
from pathlib import Path
from typing import Any

from efafnet.pipelines.search.config import TuneConfig, paced, trial_config
from efafnet.pipelines.search.trial import Watch
from efafnet.pipelines.study.people import synthetic_people
from efafnet.pipelines.training.config import DataConfig, TrainConfig
from efafnet.pipelines.training.errors import DivergedError
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.schedule import due
from efafnet.platform.configuration import apply_overrides, load_preset, resolve
from efafnet.platform.storage import read_json, write_json
from efafnet.tune_spaces.reading import parse_space
from efafnet.tune_spaces.space import Settings, Space

RATES = (1e-3, 2.5e-3, 6.3e-3, 1.6e-2, 4e-2)
SIGMAS = (0.75, 1.25, 2.0)
SCHEDULES = ("one_cycle", "cosine")
HARD_JOINTS = (17, 8, 4, 12)
"""R of OHKM; all 17 are the plain mean. The outermost: what is finished of the table is whole for the first of them."""
VALIDATIONS = 16


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
        at_once, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
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


def end_with_parent() -> None:
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
        with suppress(DivergedError):  # a search would close it as failed: in a table it has found nobody from there on
            train(run)
        steps = inputs.plan(config).steps
        points = [step * run.batch_size for step in range(1, steps + 1) if due(step, steps / VALIDATIONS)]
        write_json(file, to_the_end({figure.samples: figure.value for figure in Watch(run.run_dir).new()}, points))
        shutil.rmtree(run.run_dir)
    return {int(seen): value for seen, value in read_json(file).items()}


def to_the_end(heard: Mapping[int, float], points: Sequence[int]) -> dict[int, float]:
    """A curve with a figure at each of ``points``, in samples: 0 after a run that diverged showed its last.

    Raises:
        ValueError: an earlier one is missing, which would be no figure of a real run.
    """
    if missing := [point for point in points if point not in heard and point < max(heard, default=0)]:
        raise ValueError(f"the validations after {missing} samples were not heard; the run has others after them")
    return {point: heard.get(point, 0.0) for point in points}
