"""The figure weighed against cost: what a network costs, the front, and draws that know both."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from efafnet.models.cost import network_cost
from efafnet.pipelines.search.config import TuneConfig
from efafnet.pipelines.search.costs import cost_of
from efafnet.pipelines.search.earlier import open_study
from efafnet.pipelines.search.ledger import Ledger
from efafnet.pipelines.search.outcome import show
from efafnet.pipelines.search.pareto import COST, both_objectives, front
from efafnet.pipelines.search.tune import tune
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.configuration import ConfigurationError, apply_overrides, load_preset, resolve
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.storage import read_json
from efafnet.tune_spaces.reading import parse_space
from tests.training_cases import SIMPLE, write_store

WIDTHS = parse_space("search:\n  network.base_width: {int: [8, 64]}\n", "widths.yaml")


def test_multiply_adds_are_those_of_the_network() -> None:
    config = resolve(TrainConfig, load_preset("nano_test"))
    assert cost_of(config, 4, "gmac") == network_cost(config.network, 4, config.input).gmac


def test_a_larger_input_takes_longer() -> None:
    small = resolve(TrainConfig, load_preset("nano_test"))
    large = resolve(TrainConfig, apply_overrides(load_preset("nano_test"), ["input=256x256", "network.base_width=32"]))
    assert 0 < cost_of(small, 4, "latency_ms") < cost_of(large, 4, "latency_ms")


def trials(*figures_and_costs: tuple[float, float]) -> list[optuna.trial.FrozenTrial]:
    found = [create_trial(value=figure, user_attrs={COST: cost, "number": number})
             for number, (figure, cost) in enumerate(figures_and_costs)]  # fmt: skip
    found.append(create_trial(state=TrialState.FAIL, user_attrs={COST: 0.0, "number": len(found)}))
    found.append(create_trial(value=1.0, user_attrs={"number": len(found)}))  # of another search, without a cost
    return found


def test_the_front_is_what_none_beats_in_both_the_cheapest_first() -> None:
    assert front(trials((0.5, 2.0), (0.6, 3.0), (0.4, 2.5), (0.3, 1.0), (0.6, 3.5))) == [3, 0, 1]
    assert front(trials()) == []


def test_running_trials_are_known_by_their_parameters() -> None:
    domain = optuna.distributions.IntDistribution(8, 64, step=4)
    running = create_trial(state=TrialState.RUNNING, params={"w": 8}, distributions={"w": domain})
    (seen,) = both_objectives([running]).trials
    assert (seen.state, seen.params) == (TrialState.RUNNING, {"w": 8})


def searched(place: Path, *, weighed: bool, restart_at: int = -1, trials: int = 30) -> list[int]:
    """Widths that a search draws; the figure grows slowly with the width, the cost with its square."""

    def open_ledger() -> Ledger:
        return Ledger(place / "study.db", "s", WIDTHS, trials=trials, sampler="tpe", seed=3, startup=8, weighed=weighed)

    place.mkdir()
    ledger, widths = open_ledger(), []
    for index in range(trials):
        if index == restart_at:
            ledger = open_ledger()
        assignment = ledger.next()
        assert assignment is not None
        width = assignment.settings["network.base_width"]
        ledger.note(assignment.number, COST, float(width**2))
        ledger.report(assignment.number, 100, math.log(width))
        ledger.finish(assignment.number, "complete")
        widths.append(width)
    assert ledger.next() is None
    return widths


@pytest.fixture(scope="module")
def weighed_widths(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """What a search draws that weighs the cost."""
    return searched(tmp_path_factory.mktemp("weighed") / "a", weighed=True)


@pytest.mark.slow
@pytest.mark.no_ray
def test_draws_that_weigh_the_cost_spread_over_the_front(tmp_path: Path, weighed_widths: list[int]) -> None:
    """By the figure alone the widest network is best; every width is on the front of figure and cost."""
    alone, weighed = searched(tmp_path / "a", weighed=False)[8:], weighed_widths[8:]
    assert sum(alone) / len(alone) > sum(weighed) / len(weighed) + 8
    assert sum(width <= 24 for width in weighed) > sum(width <= 24 for width in alone) + 2


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_restart_draws_the_same(tmp_path: Path, weighed_widths: list[int]) -> None:
    assert searched(tmp_path / "a", weighed=True, restart_at=15, trials=20) == weighed_widths[:20]


def test_what_an_earlier_search_found_is_known_to_the_draws_that_weigh(tmp_path: Path) -> None:
    """Ten trials are known, eight of them drawn at random: the first own trial is drawn from what they tell."""
    searched(tmp_path / "old", weighed=False, trials=10)

    def first(name: str, cost: float | None) -> tuple[int, int]:
        (tmp_path / name).mkdir()
        ledger = Ledger(tmp_path / name / "study.db", "s", WIDTHS, trials=9, sampler="tpe", seed=3, startup=8,
                        weighed=True)  # fmt: skip
        ledger.learn_from(open_study(tmp_path / "old/study.db"), lambda _: cost)
        assignment = ledger.next()
        assert assignment is not None
        known = [trial for trial in ledger.study.trials if COST in trial.user_attrs]
        return len(known), assignment.settings["network.base_width"]

    assert first("without", None)[0] == 0
    assert first("with", 5.0)[0] == 10
    assert first("without2", None)[1] != first("with2", 5.0)[1]


def test_stopping_by_the_figure_alone_is_refused() -> None:
    tree = load_preset("nano_test") | {"space": "x", "data": {"val": "x"}, "search": {"against": "gmac"}}
    with pytest.raises(ConfigurationError, match=r"search\.stop=asha would stop cheap networks"):
        resolve(TuneConfig, tree)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_search_for_a_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, persons in (("train", 40), ("val", 11)):
        write_store(tmp_path / name, persons, seed=len(name))
    (tmp_path / "widths.yaml").write_text("search:\n  network.base_width: {choice: [8, 16, 24]}\n")
    own = [f"data.train={tmp_path}/train", f"data.val={tmp_path}/val", f"runs={tmp_path}/runs", "search.trials=3",
           f"space={tmp_path}/widths.yaml", "name=widths", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
           "tracking.enabled=true", "tracking.system_metrics_every_s=null", "search.sampler=grid", "search.stop=none",
           "search.against=gmac", "search.concurrency=1", "worker.cpus=1", *SIMPLE]  # fmt: skip
    result = tune(resolve(TuneConfig, apply_overrides(load_preset("nano_test"), own)), shown=show)
    study = open_study(tmp_path / "runs/widths/study.db")
    costs = [trial.user_attrs[COST] for trial in study.trials]
    assert costs == sorted(costs)
    assert 0 in result.front  # nothing is cheaper
    assert read_json(tmp_path / "runs/widths/result.json")["front"] == list(result.front)
    told = capsys.readouterr().out
    assert "gmac" in told
    assert "are beaten by none in both ap and gmac" in told
    client = mlflow_client(f"sqlite:///{tmp_path}/mlflow.db")
    assert result.mlflow_run_id is not None
    assert "search/charts.html" in [file.path for file in client.list_artifacts(result.mlflow_run_id, "search")]
