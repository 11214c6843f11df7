"""Which sampler a search takes, and what it is shown."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines.search.config import SearchConfig
from efafnet.pipelines.search.samplers import as_judged, settled_sampler
from tests.search_cases import SPACE, ledger, space

NUMBERS = "search:\n  optimizer.lr: {float: [1e-4, 1e-2], log: true}\n  heatmap.sigma_px: {float: [0.5, 3]}\n"


@pytest.mark.parametrize("kind", ["gp", "cmaes", "qmc", "optuna.samplers.NSGAIISampler"])
def test_every_sampler_goes_on_after_a_restart_without_repeating_itself(tmp_path: Path, kind: str) -> None:
    drawn = []
    for _ in range(6):
        book = ledger(tmp_path, space=space(NUMBERS), sampler=kind, trials=6)
        assigned = book.next()
        assert assigned is not None
        drawn.append(tuple(assigned.settings.values()))
        rate, sigma = drawn[-1]
        book.report(assigned.number, 100, -((math.log10(rate) + 3) ** 2) - (sigma - 1.5) ** 2)
        book.finish(assigned.number, "complete")
    assert len(set(drawn)) == 6


@pytest.mark.parametrize(
    ("text", "changes", "sampler"),
    [
        (NUMBERS, {"stop": "none"}, "gp"),
        (NUMBERS, {"stop": "constant"}, "gp"),
        (NUMBERS, {"stop": "asha"}, "tpe"),  # it learns from stopped trials
        (SPACE, {"stop": "none"}, "tpe"),  # it knows options
    ],
)
def test_auto_takes_the_sampler_that_suits(text: str, changes: dict[str, Any], sampler: str) -> None:
    search = SearchConfig(sampler="auto", **changes)
    assert settled_sampler(search, space(text), 50) == sampler
    assert settled_sampler(search, space(text), 500) == "tpe"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.Sampler", "No module named 'no'; give one of auto, tpe"),
        ("optuna.samplers.Bayes", "has no attribute 'Bayes'; give one of"),
        ("pathlib.Path", "no class derived from optuna.samplers.BaseSampler"),
    ],
)
def test_a_class_that_is_no_sampler_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"search\.sampler={re.escape(path)}.*{message}"):
        settled_sampler(SearchConfig(sampler=path), space(), 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "bayes"}, "give one of auto, tpe, gp, cmaes, qmc, random, grid, or a class"),
        ({"promotes": True, "stop": "median"}, "promotes=true belongs to stop=asha"),
        ({"sampler": "cmaes", "stop": "constant"}, "sampler=cmaes learns from complete trials"),
    ],
)
def test_ways_to_search_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**changes)


def test_a_sampler_is_shown_the_figures_at_the_one_point_where_all_wait(tmp_path: Path) -> None:
    book = ledger(tmp_path, judged_at=100, waits=True)
    for figure in (0.5, 0.25, 0.75):
        book.next()
        number = book.live()[-1]
        book.report(number, 100, figure)
        book.pause(number)
    book.resume(2)
    book.report(2, 200, 0.8)
    shown = as_judged(book.study.trials, {0, 1}, 100).trials
    assert [(each.state.name, each.value) for each in shown] == [
        ("COMPLETE", 0.5),
        ("COMPLETE", 0.25),
        ("COMPLETE", 0.75),
    ]
    shown = as_judged(book.study.trials, {0, 1}, None).trials
    assert [each.state.name for each in shown] == ["PRUNED", "PRUNED", "RUNNING"]
    assert [each.intermediate_values for each in shown] == [{100: 0.5}, {100: 0.25}, {}]
