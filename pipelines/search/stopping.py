"""Which trials are stopped early, paused, or go on: pure functions of the validation figures so far, so that a
search that was killed and continued decides as it would have decided before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Curves = Mapping[int, Mapping[int, float]]
"""Validation figure by trial number and by samples seen; larger is better."""


@dataclass(frozen=True)
class SearchState:
    """Where the trials of a search stand when a place for one is free."""

    curves: Curves
    paused: frozenset[int]
    """Trials that were paused and may go on."""
    running: frozenset[int]
    complete: frozenset[int]
    failed: frozenset[int]
    exhausted: bool
    """Whether no new trial will be begun."""


@dataclass(frozen=True)
class Rule:
    """How a search spends its trials' budgets: where a trial halts, and which goes on."""

    halts: Callable[[Curves, int], bool]
    """Whether a trial is to stop or pause at its newest figure."""
    to_resume: Callable[[SearchState], int | None] | None = None
    """Which paused trial goes on now; None where a trial that halts is stopped for good."""

    @property
    def pauses(self) -> bool:
        """Whether trials that halt may go on later."""
        return self.to_resume is not None


def rungs(budget: int, grace: int, reduction: float) -> list[int]:
    """Samples at which successive halving compares trials, ascending; none at the budget itself.

    Steps of ``reduction`` upwards from ``grace``, as in Li et al., "A System for Massively Parallel Hyperparameter
    Tuning" (2020).
    """
    levels: list[int] = []
    level = float(grace)
    while level < budget - 0.5:
        levels.append(round(level))
        level *= reduction
    return levels


def at_rung(curve: Mapping[int, float], rung: int) -> float | None:
    """The first figure of a trial at or after ``rung`` samples; None while it has not got there."""
    reached = [samples for samples in curve if samples >= rung]
    return curve[min(reached)] if reached else None


def _just_reached(curve: Mapping[int, float], levels: Sequence[int]) -> int | None:
    """The rung at which a trial's newest figure is its first, the highest it has passed; None for any other figure."""
    newest = max(curve)
    rung = max((level for level in levels if level <= newest), default=None)
    return None if rung is None or any(rung <= samples < newest for samples in curve) else rung


def halving_stops(curves: Curves, number: int, levels: list[int], reduction: float) -> bool:
    """Asynchronous successive halving: stop a trial that is not among the best 1/``reduction`` at its newest rung.

    It is compared with whatever has reached that rung so far (nobody waits for anybody), once: by its first figure
    there. The first trial at a rung always goes on.
    """
    rung = _just_reached(curves[number], levels)
    if rung is None:
        return False
    others = [value for other, its in curves.items() if other != number and (value := at_rung(its, rung))
              is not None]  # fmt: skip
    # The cut is taken before the trial itself counts, as Ray's ASHA does: with few trials that is the stricter choice.
    newest = curves[number][max(curves[number])]
    return bool(others) and newest < float(np.percentile(others, (1 - 1 / reduction) * 100))


def median_stops(curves: Curves, number: int, grace: int, at_least: int = 3) -> bool:
    """Median rule: stop a trial whose best figure is below the median of the others' mean figures up to here.

    As in Golovin et al., "Google Vizier" (2017). It needs ``at_least`` other trials that got as far.
    """
    curve = curves[number]
    newest = max(curve)
    if newest < grace:
        return False
    means = [
        float(np.mean([value for samples, value in its.items() if samples <= newest]))
        for other, its in curves.items()
        if other != number and its and max(its) >= newest and min(its) <= newest
    ]
    return len(means) >= at_least and max(curve.values()) < float(np.median(means))


# ---- what is paused and may go on: a run that goes on from its checkpoint ends as if it had never paused


def halving_pauses(curves: Curves, number: int, levels: list[int], reduction: float) -> bool:
    """Whether a trial is to wait at its newest rung: it is not among the best 1/``reduction`` there, itself counted.

    As in Li et al. (2020), algorithm 2: of n trials at a rung the best n // ``reduction`` may go on. So may their
    equals: where a rung comes so early that all figures are 0, it tells nothing.
    """
    rung = _just_reached(curves[number], levels)
    return rung is not None and number not in _best_at(curves, rung, reduction)


def halving_promotes(state: SearchState, levels: list[int], reduction: float) -> int | None:
    """The waiting trial that may go on from the highest rung on which there is one, the best first.

    Where a search is over and none has come to its end, since each rung held too few, the best of the highest does.
    """
    waiting = {number: _rung_of(state.curves[number], levels) for number in state.paused}
    for level in sorted(set(waiting.values()), reverse=True):
        best = _best_at(state.curves, level, reduction)
        allowed = [number for number in best if waiting.get(number) == level]
        if allowed:
            return allowed[0]
    if not state.exhausted or state.running or state.complete or not waiting:
        return None
    top = max(waiting.values())
    return next(number for number in _order_at(state.curves, top) if waiting.get(number) == top)


def _rung_of(curve: Mapping[int, float], levels: list[int]) -> int:
    return max(level for level in levels if level <= max(curve))


def _order_at(curves: Curves, rung: int) -> list[int]:
    """The trials that reached a rung, the best first; of equals the earlier."""
    reached = {number: value for number, curve in curves.items() if (value := at_rung(curve, rung)) is not None}
    return sorted(reached, key=lambda number: (-reached[number], number))


def _best_at(curves: Curves, rung: int, reduction: float) -> list[int]:
    """The best 1/``reduction`` of the trials that reached a rung, and those that are as good as the last of them."""
    order = _order_at(curves, rung)
    count = int(len(order) / reduction + 1e-9)
    if count == 0:
        return []
    least = at_rung(curves[order[count - 1]], rung)
    return order[:count] + [number for number in order[count:] if at_rung(curves[number], rung) == least]


def constant_pauses(curves: Curves, number: int, grace: int) -> bool:
    """Whether a trial has just come to the one point at which every trial waits."""
    return _just_reached(curves[number], [grace]) is not None


def constant_promotes(state: SearchState, grace: int, finish: int) -> int | None:
    """Of the best ``finish`` at that point the next that waits, once every trial has come there.

    Egele et al., "The Unreasonable Effectiveness of Early Discarding after One Epoch in Neural Network Hyperparameter
    Optimization" (2024): as good as successive halving, for less. A trial that failed leaves its place to the next.
    """
    early = any(at_rung(state.curves[number], grace) is None for number in state.running)
    if not state.exhausted or early:
        return None
    sound = [number for number in _order_at(state.curves, grace) if number not in state.failed]
    return next((number for number in sound[:finish] if number in state.paused), None)
