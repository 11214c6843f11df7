"""Stopping rules: when a trial stops, by hand-computed cases and as Ray's own ASHA decides."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from efafnet.pipelines.search.stopping import (
    SearchState,
    at_rung,
    constant_pauses,
    constant_promotes,
    halving_pauses,
    halving_promotes,
    halving_stops,
    median_stops,
    rungs,
)


def test_rungs_climb_from_the_grace_by_the_reduction_and_stay_below_the_budget() -> None:
    assert rungs(budget=8100, grace=100, reduction=3) == [100, 300, 900, 2700]
    assert rungs(budget=8000, grace=2000, reduction=2) == [2000, 4000]
    assert rungs(budget=1000, grace=1000, reduction=3) == []


def test_a_rung_takes_the_first_figure_at_or_after_it() -> None:
    curve = {100: 0.1, 220: 0.3, 410: 0.2}
    assert at_rung(curve, 200) == 0.3
    assert at_rung(curve, 410) == 0.2
    assert at_rung(curve, 411) is None


def test_halving_keeps_the_best_third_of_what_has_arrived() -> None:
    # At rung 100 there are .1 .2 .3 .4; the cut for the best third is the 66.67th percentile of those: .3
    curves = {0: {100: 0.1}, 1: {100: 0.2}, 2: {100: 0.3}, 3: {100: 0.4}}
    assert halving_stops(curves | {4: {100: 0.299}}, 4, [100, 300], 3)
    assert not halving_stops(curves | {4: {100: 0.301}}, 4, [100, 300], 3)


def test_halving_decides_once_per_rung_and_never_stops_the_first() -> None:
    assert not halving_stops({0: {100: 0.0}}, 0, [100], 2)
    assert not halving_stops({0: {100: 0.9}, 1: {50: 0.0}}, 1, [100], 2)
    assert not halving_stops({0: {100: 0.9}, 1: {100: 0.8, 150: 0.0}}, 1, [100], 2)
    assert halving_stops({0: {100: 0.9, 200: 0.9}, 1: {100: 0.95, 200: 0.8}}, 1, [100, 200], 2)


def test_of_seven_at_a_rung_the_best_third_is_two() -> None:
    curves = {number: {100: value} for number, value in enumerate((0.1, 0.7, 0.3, 0.6, 0.2, 0.5, 0.4))}
    assert [halving_pauses(curves, number, [100, 300], 3) for number in range(7)] == [True, False, True, False] + [
        True
    ] * 3
    assert halving_pauses({0: {100: 0.9}}, 0, [100], 2)  # alone it is none of the best half
    assert not halving_pauses({0: {50: 0.9}}, 0, [100], 2)


def test_a_rung_whose_figures_are_alike_stops_and_holds_nobody() -> None:
    curves = {0: {100: 0.0}, 1: {100: 0.0}, 2: {100: 0.0, 200: 0.4}, 3: {100: 0.0, 200: 0.3}}
    assert not any(halving_stops(curves, number, [100], 2) for number in (0, 1))
    assert not any(halving_pauses(curves, number, [100], 2) for number in (0, 1))
    assert halving_pauses(curves, 3, [100, 200], 2)  # of .4 and .3 the better goes on
    # Of five at 100 the best two, and the third that equals the second.
    mixed = {0: {100: 0.5}, 1: {100: 0.2}, 2: {100: 0.2}, 3: {100: 0.1}, 4: {100: 0.0}}
    assert [halving_pauses(mixed, number, [100], 2) for number in mixed] == [False, False, False, True, True]


def state(curves: dict[int, dict[int, float]], paused: set[int], **more: Any) -> SearchState:
    told: dict[str, Any] = {"running": frozenset(), "complete": frozenset(), "failed": frozenset(), "exhausted": False}
    return SearchState(curves, frozenset(paused), **(told | more))


def test_the_highest_rung_sends_on_first() -> None:
    low = {0: {100: 0.1}, 1: {100: 0.2}, 2: {100: 0.8}}  # of five at 100 the best two: 4 (.9) and 2
    high = {3: {100: 0.3, 200: 0.5}, 4: {100: 0.9, 200: 0.4}}  # of two at 200 the best one: 3
    assert halving_promotes(state(low | high, {0, 1, 2, 3, 4}), [100, 200], 2) == 3
    assert halving_promotes(state(low | high, {0, 1, 2, 4}), [100, 200], 2) == 2
    assert halving_promotes(state(low | high, {0, 1, 4}), [100, 200], 2) is None


def test_where_none_came_to_its_end_the_best_of_the_highest_rung_does() -> None:
    curves = {0: {100: 0.1}, 1: {100: 0.2, 200: 0.3}}
    assert halving_promotes(state(curves, {0, 1}), [100, 200], 2) is None
    assert halving_promotes(state(curves, {0, 1}, exhausted=True), [100, 200], 2) == 1
    assert halving_promotes(state(curves, {0, 1}, exhausted=True, complete=frozenset({7})), [100, 200], 2) is None
    assert halving_promotes(state(curves, {0, 1}, exhausted=True, running=frozenset({7})), [100, 200], 2) is None


def test_all_wait_at_the_one_point_until_the_last_is_there() -> None:
    curves = {0: {100: 0.1}, 1: {100: 0.3}, 2: {50: 0.9}, 3: {100: 0.2}}
    assert constant_pauses(curves, 0, 100)
    assert not constant_pauses(curves, 2, 100)
    assert not constant_pauses({0: {100: 0.1, 150: 0.2}}, 0, 100)
    here = {"running": frozenset({2}), "exhausted": True}
    assert constant_promotes(state(curves, {0, 1, 3}, **here), 100, 2) is None
    del curves[2]
    assert constant_promotes(state(curves, {0, 1, 3}), 100, 2) is None  # more are to be begun
    assert constant_promotes(state(curves, {0, 1, 3}, exhausted=True), 100, 2) == 1
    assert constant_promotes(state(curves, {0, 3}, exhausted=True), 100, 2) == 3
    assert constant_promotes(state(curves, {0}, exhausted=True), 100, 2) is None
    assert constant_promotes(state(curves, {0}, exhausted=True, failed=frozenset({1})), 100, 2) == 0


@pytest.mark.parametrize("reduction", [2, 3])
def test_halving_decides_as_rays_asha_does(reduction: int) -> None:
    rays = ASHAScheduler(
        time_attr="t", metric="m", mode="max", max_t=81, grace_period=3, reduction_factor=reduction
    )  # fmt: skip
    draw = random.Random(0)
    live: list[tuple[int, Any]] = []
    curves: dict[int, dict[int, float]] = {}
    number = 0
    decisions = {True: 0, False: 0}
    for _ in range(1500):
        if len(live) < 5:
            trial: Any = SimpleNamespace(trial_id=str(number))
            rays.on_trial_add(None, trial)  # type: ignore[arg-type]
            live.append((number, trial))
            curves[number] = {}
            number += 1
        key, trial = draw.choice(live)
        time = len(curves[key]) + 1
        figure = draw.random() + time / 40
        curves[key][time] = figure
        theirs = rays.on_trial_result(None, trial, {"t": time, "m": figure})  # type: ignore[arg-type]
        ours = halving_stops(curves, key, rungs(81, 3, reduction), reduction)
        assert ours == (theirs == TrialScheduler.STOP and time < 81)
        decisions[ours] += 1
        if theirs == TrialScheduler.STOP:
            live.remove((key, trial))
    assert min(decisions.values()) > 100


def test_the_median_rule_compares_a_trials_best_with_the_others_means() -> None:
    curves = {0: {10: 0.2, 20: 0.4}, 1: {10: 0.4, 20: 0.6}, 2: {10: 0.6, 20: 0.8}}  # means .3 .5 .7 at 20
    assert median_stops(curves | {3: {10: 0.49, 20: 0.1}}, 3, grace=20)
    assert not median_stops(curves | {3: {10: 0.51, 20: 0.1}}, 3, grace=20)
    assert not median_stops(curves | {3: {20: 0.1}}, 3, grace=21)
    assert not median_stops({0: {10: 0.9}, 1: {10: 0.9}, 3: {10: 0.1}}, 3, grace=5)
