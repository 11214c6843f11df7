"""Searches of spaces with so few settings that some would be drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from efafnet.pipelines.search.ledger import Ledger
from efafnet.pipelines.search.opening import at_most
from efafnet.pipelines.search.untried import draw_untried
from efafnet.tune_spaces.reading import parse_space
from efafnet.tune_spaces.space import suggest
from tests.search_cases import ledger

SIX = parse_space(
    "search:\n  optimizer.lr: {float: [0.1, 0.3], step: 0.1}\n  loss.kind: {choice: [mse, ohkm]}\n", "six.yaml"
)


def drawn(book: Ledger, count: int = 99) -> list[tuple[float, str]]:
    """Run up to ``count`` trials to their end; returns what they were given. The smallest rate is best."""
    settings: list[tuple[float, str]] = []
    while len(settings) < count and (assignment := book.next()) is not None:
        rate, loss = assignment.settings["optimizer.lr"], assignment.settings["loss.kind"]
        settings.append((round(rate, 6), loss))
        book.report(assignment.number, 100, 1 - rate)
        book.finish(assignment.number, "complete")
    return settings


@pytest.mark.parametrize(("sampler", "waits"), [("random", False), ("tpe", False), ("tpe", True), ("gp", False)])
def test_nothing_is_tried_twice(tmp_path: Path, sampler: str, waits: bool) -> None:
    book = ledger(tmp_path, space=SIX, sampler=sampler, trials=9, waits=waits)
    settings = drawn(book)
    assert sorted(settings) == [(rate, loss) for rate in (0.1, 0.2, 0.3) for loss in ("mse", "ohkm")]
    assert book.exhausted()
    assert book.nothing_left == "all settings of six.yaml that could be drawn have been tried"
    assert [trial.state for trial in book.study.trials] == [TrialState.COMPLETE] * 6


def test_a_restart_draws_the_same(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = drawn(ledger(tmp_path / "whole", space=SIX, sampler="tpe", trials=6))
    first = drawn(ledger(tmp_path / "broken", space=SIX, sampler="tpe", trials=6), 4)
    assert first + drawn(ledger(tmp_path / "broken", space=SIX, sampler="tpe", trials=6)) == whole


def test_what_failed_is_tried_again_where_that_is_asked_for(tmp_path: Path) -> None:
    book = ledger(tmp_path, space=SIX, trials=6)
    assignment = book.next()
    assert assignment is not None
    book.finish(assignment.number, "failed", "no memory")
    assert len(drawn(book)) == 5
    assert book.retry_failed() == 1
    assert [*drawn(book)] == [(round(assignment.settings["optimizer.lr"], 6), assignment.settings["loss.kind"])]


class Stubborn(optuna.samplers.RandomSampler):
    """Draws the lowest value of each range and the first of each choice, for ever."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:  # noqa: ARG002 (Optuna's)
        return getattr(distribution, "low", None) or distribution.choices[0]


def test_a_sampler_that_insists_is_overruled() -> None:
    """What is not tried is found all the same, and at the end there is nothing."""
    study = optuna.create_study(sampler=Stubborn())
    tried: list[dict[str, Any]] = []
    for _ in range(6):
        found = draw_untried(SIX, study, "tpe", tried)
        assert found is not None
        assert found not in tried
        tried.append(found)
    assert tried[0] == {"optimizer.lr": 0.1, "loss.kind": "mse"}
    assert draw_untried(SIX, study, "tpe", tried) is None


def test_a_step_that_comes_out_otherwise_is_the_same_setting() -> None:
    """0.1 + 2 * 0.1 is not 0.3 to the last bit."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = parse_space("search:\n  optimizer.lr: {float: [0.1, 0.3], step: 0.1}\n", "three.yaml")
    suggest(space, study.ask())
    tried = [{"optimizer.lr": value} for value in (0.1, 0.2, 0.1 + 2 * 0.1)]
    assert draw_untried(space, study, "random", tried) is None


def test_there_are_no_more_trials_than_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """With the same seed a setting gives the same figure: what may be drawn again is said, what is not is counted."""
    space = parse_space("search:\n  loss.hard_joints: {int: [1, 17]}\n", "r.yaml")
    assert [at_most(space, wanted, "tpe") for wanted in (16, 17)] == [16, 17]
    assert at_most(space, 16, "qmc") == 16
    assert capsys.readouterr().err == ""
    assert at_most(space, 20, "tpe") == 17
    assert "r.yaml has 17 settings: 17 trials in place of 20, none is tried twice" in capsys.readouterr().err
    assert at_most(space, 17, "qmc") == 17
    assert "r.yaml has 17 settings, and 17 trials are wanted: search.sampler=grid" in capsys.readouterr().err
    assert at_most(parse_space("search:\n  optimizer.lr: {float: [1, 2]}\n", "r.yaml"), 10**6, "tpe") == 10**6
