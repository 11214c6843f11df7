"""Drawing settings that a search has not tried: with the same seed, the same settings only give the same figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.samplers import RandomSampler

from efafnet.tune_spaces.space import Space, suggest

NEVER_TWICE = ("tpe", "gp", "random")
"""Samplers whose draws are taken only where they are new. What others know of earlier draws lies in the study, and does
not take a draw back."""
_SAMPLERS_OWN = {"tpe": 10}
"""Draws of the sampler itself that may have been tried before random ones are taken in their place. TPE keeps away from
what it has just drawn; the others would draw the same once more."""
DRAWS = 500
"""Draws in a row that were all tried before, after which a space is said to hold nothing else."""


def draw_untried(
    space: Space, study: optuna.Study, kind: str, tried: Iterable[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Draw settings that were not tried; None where ``DRAWS`` draws found none.

    Args:
        space: what is drawn from; without continuous ranges, else everything is new.
        study: with the sampler that draws, in memory: what is drawn in vain stays in it.
        kind: the sampler's name.
        tried: parameters of the trials that there were.
    """
    known = {_key(parameters) for parameters in tried}
    for draw in range(DRAWS):
        if draw == _SAMPLERS_OWN.get(kind, 1):
            study.sampler = RandomSampler(seed=len(known))
        trial = study.ask()
        suggest(space, trial)
        if _key(trial.params) not in known:
            return trial.params
    return None


def _key(parameters: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """Parameters to compare others with: steps of a range come to the same number by more than one sum."""
    return frozenset((name, f"{value:.12g}" if isinstance(value, float) else repr(value))
                     for name, value in parameters.items())  # fmt: skip
