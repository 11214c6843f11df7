"""What a learning search saves: the project's own ledger and rules search a table of real runs."""

from __future__ import annotations

import heapq
import math
import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

from optuna.storages import InMemoryStorage
from scipy import stats

from benchmarks.record import Record
from benchmarks.search_table import Table, end_with_parent
from efafnet.pipelines.search.config import SearchConfig
from efafnet.pipelines.search.controller import Controller
from efafnet.pipelines.search.ledger import Assignment, Ledger, State
from efafnet.pipelines.search.stopping import rungs
from efafnet.pipelines.study.statistics import rank_correlation
from efafnet.platform import console
from efafnet.tune_spaces.space import Settings

BATCH = 20
"""Trials of a search; where all must wait for the last, that many more are given to it whenever it is over."""
SHARES = (0.1, 0.05)
"""A search's aims: figures that so many of the settings reach."""
MOST = 120
"""Trials after which a search ends as not having reached its target."""
SOON = {"grace": 1 / 16}
"""Trials are looked at after a sixteenth of their budget in place of a quarter, which is about an epoch of the tables
that ``bench_search table`` makes. Tells something only where the table holds figures from before a quarter."""
EIGHTH = {"grace": 1 / 8}
"""Trials are looked at after an eighth, about half an epoch there."""
ARMS: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random", "stop": "none"},
    "random, ASHA stopping": {"sampler": "random", "stop": "asha"},
    "TPE": {"sampler": "tpe", "stop": "none"},
    "GP": {"sampler": "gp", "stop": "none"},
    "TPE, ASHA stopping": {"sampler": "tpe", "stop": "asha"},
    "TPE, ASHA stopping, by 4": {"sampler": "tpe", "stop": "asha", "reduction": 4},
    "TPE, ASHA stopping, 1/16": {"sampler": "tpe", "stop": "asha", **SOON},
    "TPE, ASHA stopping, 1/8": {"sampler": "tpe", "stop": "asha", **EIGHTH},
    "TPE, ASHA promoting": {"sampler": "tpe", "stop": "asha", "promotes": True},
    "TPE, ASHA promoting, by 4": {"sampler": "tpe", "stop": "asha", "promotes": True, "reduction": 4},
    "TPE, ASHA promoting, 1/8": {"sampler": "tpe", "stop": "asha", "promotes": True, **EIGHTH},
    "TPE, ASHA promoting, 1/16": {"sampler": "tpe", "stop": "asha", "promotes": True, **SOON},
    "TPE, ASHA promoting, 1/16, by 4": {
        "sampler": "tpe",
        "stop": "asha",
        "promotes": True,
        "reduction": 4,
        **SOON,
    },
    "random, constant": {"sampler": "random", "stop": "constant"},
    "TPE, constant": {"sampler": "tpe", "stop": "constant"},
    "TPE, constant, 1/16": {"sampler": "tpe", "stop": "constant", **SOON},
    "GP, constant": {"sampler": "gp", "stop": "constant"},
}
"""Settings of ``search`` by the name of the way to search."""


class Replay:
    """One search of a table by the project's own ledger and rules: only the waiting for training is left out."""

    def __init__(self, table: Table, arm: str, seed: int, at_once: int = 2) -> None:
        self.table, self.at_once = table, at_once
        self.settings: dict[int, Settings] = {}
        """What was drawn, by trial."""
        search = SearchConfig(**ARMS[arm])
        grace = max(1, round(search.grace * table.budget))
        rule = search.rule(rungs(table.budget, grace, search.reduction), grace)
        self.waits_for_all = search.stop == "constant"
        with patch("efafnet.pipelines.search.ledger.open_storage", lambda *_: InMemoryStorage()):  # sqlite is slower
            self.ledger = Ledger(
                Path("replay"), "replay", table.space(), trials=BATCH if self.waits_for_all else MOST,
                sampler=search.sampler, seed=seed, startup=search.startup_trials, waits=search.pauses,
                judged_at=grace if self.waits_for_all else None,
            )  # fmt: skip
        self.controller = Controller(self.ledger, rule, self, lambda: at_once)
        self.events: list[tuple[float, int]] = []
        """When a trial shows its next figure, in samples trained one after the other, and its number."""
        self.now = 0.0
        self.spent = 0

    def until(self, targets: Sequence[float]) -> list[float]:
        """Full runs' worth of samples until a trial ends with each target; infinite where it never does."""
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
            elif self.controller.halts(number):
                self.controller.halt(number)
            else:
                self._await(number)
        return found

    def _fill(self) -> bool:
        """Begin what there is room for; false when the search is over."""
        while len(self.events) < self.at_once and self.controller.next("") is not None:
            pass
        if self.events or not self.waits_for_all or self.ledger.trials >= MOST:
            return bool(self.events)
        self.controller.close_paused()
        self.ledger.trials += BATCH
        return self._fill()

    def _await(self, number: int) -> None:
        seen = self.ledger.curves[number]
        following = min(set(self.table.curve(self.settings[number])) - set(seen))
        heapq.heappush(self.events, (self.now + following - max(seen, default=0), number))

    # What hears of trials where there is no training.

    def began(self, assignment: Assignment) -> dict[str, Any]:
        """Remember what was drawn."""
        self.settings[assignment.number] = assignment.settings
        self._await(assignment.number)
        return {}

    def again(self, number: int, reason: str) -> None:
        """Nothing dies here."""

    def ended(self, number: int, state: State, reason: str) -> None:
        """The ledger has it."""

    def paused(self, number: int) -> None:
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
        at_once, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
    ) as pool:
        found = dict(zip(jobs, pool.map(_searched, repeat(table), repeat(targets), jobs), strict=True))
    for place, (share, target) in enumerate(zip(SHARES, targets, strict=True)):
        rows: list[list[object]] = []
        base = 0.0
        for arm in arms:
            # A search that did not get there needs more than it spent: it stands above all others.
            needed = sorted(found[arm, seed][place] for seed in range(seeds))
            middle = statistics.median_low(needed)
            low, high = median_span(needed)
            base = base or middle
            record.add(f"{arm}, to the best {share:.0%}", "full runs' worth", [middle])
            away = sum(map(math.isinf, needed))
            mean = "" if away else f"{statistics.mean(needed):.1f}"
            rows.append([arm, f"{middle:.1f}", f"{low:.1f} to {high:.1f}", f"{middle / base:.2f}", mean, away])
        columns = ["search", "full runs' worth (median)", "95 % of it", f"times {arms[0]}", "mean", "not reached"]
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
