"""What networks may cost, known before anything is trained: what is drawn above a limit, and what a search says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from efafnet.models.cost import multiply_adds, network_cost
from efafnet.pipelines.search import ledger as ledger_module
from efafnet.pipelines.search.config import LimitConfig, TuneConfig
from efafnet.pipelines.search.costs import LATENCIES, MOST_NETWORKS, Costs, networks_of
from efafnet.pipelines.search.ledger import Ledger
from efafnet.pipelines.search.limits import INFEASIBLE, Limits
from efafnet.pipelines.search.opening import open_ledger
from efafnet.pipelines.search.tune import tune
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.platform.configuration import ConfigurationError, apply_overrides, load_preset, resolve
from efafnet.platform.storage import read_json, write_json
from efafnet.tune_spaces.reading import parse_space
from efafnet.tune_spaces.space import Settings
from tests.training_cases import write_store

WIDTHS = parse_space("search:\n  network.base_width: {choice: [8, 16, 24, 32, 40, 48]}\n", "widths.yaml")
MIXED = parse_space(f"{WIDTHS.text}  optimizer.lr: {{float: [1e-4, 1e-2], log: true}}\n", "widths.yaml")
"""The same widths, each of endlessly many settings."""


PRESET = load_preset("nano_test")


def built(settings: Settings) -> TrainConfig:
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return resolve(TrainConfig, apply_overrides(PRESET, overrides))


def gmac(width: int) -> float:
    """As it is counted for the search, once for both; that it is the network's is a test of its own."""
    config = built({"network.base_width": width})
    return multiply_adds(config.network, 4, config.input) / 1e9


def limits(**values: float) -> Limits:
    return Limits(LimitConfig(**values), built, 4)


def ledger(place: Path, **changes: Any) -> Ledger:
    settings: dict[str, Any] = {"trials": 6, "sampler": "random", "seed": 2, "startup": 2} | changes
    return Ledger(place / "study.db", "limited", settings.pop("space", MIXED), **settings)


def finish(book: Ledger, count: int = 99) -> list[int]:
    """Run up to ``count`` trials to their end; returns the widths that were handed out."""
    widths: list[int] = []
    while len(widths) < count and (assignment := book.next()) is not None:
        widths.append(assignment.settings["network.base_width"])
        book.report(assignment.number, 100, 0.5)
        book.finish(assignment.number, "complete")
    return widths


def test_costs_are_those_of_the_network() -> None:
    config = built({"network.base_width": 16})
    known = network_cost(config.network, 4, config.input)
    excess = limits(gmac=2 * known.gmac, params_m=known.params_m / 3).excess({"network.base_width": 16})
    assert excess == pytest.approx({"gmac": -0.5, "params_m": 2.0})


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_is_above_a_limit_is_never_handed_out_and_does_not_count(tmp_path: Path, sampler: str) -> None:
    book = ledger(tmp_path, sampler=sampler, limits=limits(gmac=1.001 * gmac(24)), trials=8)
    widths = finish(book)
    assert len(widths) == 8
    assert max(widths) <= 24
    above = [trial for trial in book.study.trials if INFEASIBLE in trial.user_attrs]
    assert len(above) == book.infeasible() > 0
    assert {trial.state for trial in above} == {TrialState.PRUNED}
    assert all(trial.params["network.base_width"] > 24 for trial in above)
    assert above[0].user_attrs[INFEASIBLE].startswith("gmac ")
    assert len(book.own()) == 8
    for trial in book.study.trials:  # what samplers are told
        cost = gmac(trial.params["network.base_width"])
        assert trial.constraints == {"gmac": pytest.approx(cost / (1.001 * gmac(24)) - 1)}
    assert book.remaining() == 0


def test_a_restart_draws_the_same(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    limit = limits(gmac=1.001 * gmac(16))
    whole = finish(ledger(tmp_path / "whole", limits=limit))
    broken = [*finish(ledger(tmp_path / "broken", limits=limit), 3), *finish(ledger(tmp_path / "broken", limits=limit))]
    assert whole == broken
    assert set(whole) <= {8, 16}


@pytest.mark.parametrize("more", [{"weighed": True}, {"waits": True}])
def test_draws_on_a_copy_know_the_limits_too(tmp_path: Path, more: dict[str, bool]) -> None:
    """Where the sampler sees a copy of the study, it sees there which networks were above."""
    from efafnet.pipelines.search.pareto import both_objectives
    from efafnet.pipelines.search.samplers import as_judged

    book = ledger(tmp_path, sampler="tpe", limits=limits(gmac=1.001 * gmac(16)), **more)
    assert max(finish(book)) <= 16
    trials = book.study.get_trials(deepcopy=False)
    copy = both_objectives(trials) if "weighed" in more else as_judged(trials, (), None)
    above = [trial for trial in copy.trials if trial.constraints["gmac"] > 0]
    assert len(above) == book.infeasible() > 0


def test_a_space_without_a_network_within_is_refused_with_the_smallest_seen() -> None:
    least = f"{gmac(8):.4g}"
    with pytest.raises(ValueError, match=rf"none of 200 settings .* of widths\.yaml is within gmac=1e-05; the smallest "
                                         rf"seen: gmac {least}\. Raise the limit"):  # fmt: skip
        limits(gmac=1e-5).check_space(WIDTHS, seed=0)
    limits(gmac=1.001 * gmac(8)).check_space(WIDTHS, seed=0)


def test_a_search_that_draws_nothing_left_any_more_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "DRAWS", 3)
    book = ledger(tmp_path, limits=limits(gmac=1e-5))
    assert book.next() is None
    assert book.exhausted()
    assert book.nothing_left.startswith("search.limit: none of 3 settings drawn in a row of widths.yaml")
    assert (len(book.own()), book.infeasible(), book.remaining()) == (0, 3, 6)


def test_a_search_that_has_tried_all_within_ends(tmp_path: Path) -> None:
    book = ledger(tmp_path, space=WIDTHS, limits=limits(gmac=1.001 * gmac(24)))
    assert sorted(finish(book)) == [8, 16, 24]
    assert book.exhausted()
    assert book.nothing_left == "all settings of widths.yaml that could be drawn have been tried"
    assert (book.infeasible(), book.remaining()) == (3, 3)


def search(place: Path, *overrides: str) -> TuneConfig:
    for name, persons in (("train", 40), ("val", 11)):
        if not (place / name).exists():
            write_store(place / name, persons, seed=len(name))
    (place / "widths.yaml").write_text(WIDTHS.text)
    own = [f"data.train={place}/train", f"data.val={place}/val", f"runs={place}/runs", f"space={place}/widths.yaml",
           "name=widths", "tracking.enabled=false", "search.stop=none"]  # fmt: skip
    return resolve(TuneConfig, apply_overrides(load_preset("nano_test"), [*own, *overrides]))


def test_a_grid_leaves_out_what_is_above(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = search(tmp_path, "search.sampler=grid", f"search.limit.gmac={1.001 * gmac(24)}")
    config.run_dir.mkdir(parents=True)
    limit = Limits(config.search.limit, built, 4)
    book = open_ledger(config, open_inputs(config), WIDTHS, limit, "")
    assert finish(book) == [8, 16, 24]
    assert (book.infeasible(), book.remaining()) == (0, 0)
    assert "3 of the 6 points of the grid are above search.limit" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_search_without_a_network_within_ends_before_anything_is_written(tmp_path: Path, sampler: str) -> None:
    config = search(tmp_path, f"search.sampler={sampler}", "search.limit.params_m=1e-6")
    with pytest.raises(ValueError, match=r"search\.limit: none of .* is within params_m=1e-06; the smallest seen"):
        tune(config)
    assert not list(tmp_path.glob("runs/*/trials"))


def test_limits_are_part_of_what_a_search_is_only_where_there_are_any(tmp_path: Path) -> None:
    assert not any("limit" in key or "storage" in key for key in search(tmp_path).identity("", ""))
    assert search(tmp_path, "search.limit.gmac=6").identity("", "")["search.limit"]["gmac"] == 6
    with pytest.raises(ConfigurationError, match=r"search\.limit\.gmac"):
        search(tmp_path, "search.limit.gmac=0")


# ---- what is measured


def test_every_network_of_a_space_is_measured_once_before_it_is_searched(tmp_path: Path) -> None:
    space = parse_space(
        "search:\n  optimizer.lr: {float: [1e-4, 1e-2], log: true}\n  input: {choice: [32x32, 64x64]}\n"
        "  loss.kind: {choice: {mse: {network.base_width: {choice: [8, 16]}}, ohkm: {}}}\n", "mixed.yaml",
    )  # fmt: skip
    points = networks_of(space)
    assert points is not None
    assert len(points) == 6  # two inputs, and widths 8, 16 or as given
    costs = Costs("latency_ms", 4, tmp_path / LATENCIES)
    assert costs.measure(space, built) == len({str(built(point).network) + str(built(point).input) for point in points})
    known = read_json(tmp_path / LATENCIES)
    assert all(value > 0 for value in known.values())
    first = next(iter(known))
    write_json(tmp_path / LATENCIES, known | {first: 123.0})
    again = Costs("latency_ms", 4, tmp_path / LATENCIES)
    again.measure(space, built)
    assert again.of(built(points[0])) == 123.0, "what is known is not measured again"


def test_a_space_of_too_many_networks_is_measured_as_it_is_drawn(tmp_path: Path) -> None:
    wide = parse_space(f"search:\n  network.base_width: {{int: [8, {8 + MOST_NETWORKS}]}}\n", "wide.yaml")
    assert networks_of(wide) is None
    assert Costs("latency_ms", 4, tmp_path / LATENCIES).measure(wide, built) is None
    assert not (tmp_path / LATENCIES).exists()
