"""Which trials are stopped early: pure functions of the validation figures so far, so that a search that was killed
and continued decides as it would have decided before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Curves = Mapping[int, Mapping[int, float]]
"""Validation figure by trial number and by samples seen; larger is better."""


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


def halving_stops(curves: Curves, number: int, levels: list[int], reduction: float) -> bool:
    """Asynchronous successive halving: stop a trial that is not among the best 1/``reduction`` at its newest rung.

    It is compared with whatever has reached that rung so far (nobody waits for anybody), once: by its first figure
    there. The first trial at a rung always goes on.
    """
    curve = curves[number]
    newest = max(curve)
    passed = [level for level in levels if level <= newest]
    if not passed or any(samples >= passed[-1] for samples in curve if samples != newest):
        return False
    others = [value for other, its in curves.items() if other != number and (value := at_rung(its, passed[-1]))
              is not None]  # fmt: skip
    # The cut is taken before the trial itself counts, as Ray's ASHA does: with few trials that is the stricter choice.
    return bool(others) and curve[newest] < float(np.percentile(others, (1 - 1 / reduction) * 100))


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
