"""What networks may cost (``search.limit``): known from their shapes before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import optuna
from optuna.trial import FrozenTrial, Trial

from efafnet.models.network_config import AnyNetworkConfig
from efafnet.models.settings import InputSize
from efafnet.pipelines.search.config import LimitConfig
from efafnet.pipelines.training.config import TrainConfig
from efafnet.tune_spaces.space import Settings, Space, suggest

DRAWS = 200
"""Settings in a row that may be above a limit before a search is said to have no network within it."""
INFEASIBLE = "infeasible"
"""Attribute of a trial that was drawn and never trained: which limit its network is above, in words."""


class Limits:
    """What networks may cost, and what those that were drawn do.

    Args:
        limit: the limits.
        build: the training settings of a trial with these settings.
        num_joints: of the skeleton.
    """

    def __init__(self, limit: LimitConfig, build: Callable[[Settings], TrainConfig], num_joints: int) -> None:
        self.values = limit.values()
        self._build, self._num_joints = build, num_joints
        self._smallest: dict[str, float] = {}

    def excess(self, settings: Settings) -> dict[str, float]:
        """By how much a network is above each limit, as a share of it; 0 and less is within."""
        config = self._build(settings)
        costs = _costs(config.network, self._num_joints, config.input)
        for name in self.values:
            self._smallest[name] = min(costs[name], self._smallest.get(name, costs[name]))
        return {name: costs[name] / limit - 1 for name, limit in self.values.items()}

    def above(self, excess: Mapping[str, float]) -> str:
        """Which limits that is above, in words; nothing for a network within all."""
        over = [f"{name} {self.values[name] * (1 + more):.4g} > {self.values[name]:g}"
                for name, more in excess.items() if more > 0]  # fmt: skip
        return ", ".join(over)

    def judge(self, trial: Trial | FrozenTrial, settings: Settings) -> str:
        """Tell samplers how a trial stands to the limits; returns which it is above, in words."""
        excess = self.excess(settings)
        for name, more in excess.items():
            trial.set_constraint(name, more)
        return self.above(excess)

    def within(self, points: Sequence[Settings]) -> list[Settings]:
        """Those of ``points`` that are within all limits."""
        return [settings for settings in points if not self.above(self.excess(settings))]

    def none_found(self, source: str, tried: str) -> str:
        """That no network is within the limits, in words."""
        wanted = ", ".join(f"{name}={value:g}" for name, value in self.values.items())
        least = ", ".join(f"{name} {value:.4g}" for name, value in self._smallest.items())
        return (
            f"search.limit: none of {tried} of {source} is within {wanted}; the smallest seen: {least}. Raise the "
            "limit, or widen the space downwards"
        )

    def check_space(self, space: Space, seed: int) -> None:
        """Look for one network within the limits.

        Raises:
            ValueError: there is none among ``DRAWS`` random ones.
        """
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        for _ in range(DRAWS):
            if not self.above(self.excess(suggest(space, study.ask()))):
                return
        raise ValueError(self.none_found(space.source, f"{DRAWS} settings drawn at random"))


@lru_cache(maxsize=1024)
def _costs(network: AnyNetworkConfig, num_joints: int, size: InputSize) -> dict[str, float]:
    from efafnet.models.cost import network_size  # it loads torch, which reports do without

    found = network_size(network, num_joints, size)
    return {"gmac": found.gmac, "params_m": found.params_m}


def judge_again(trial: FrozenTrial, limits: Limits | None) -> None:
    """Tell samplers how a trial of another search stands to the limits of this one, whatever its own were."""
    for key in [key for key in trial.system_attrs if key.startswith("constraints")]:
        del trial.system_attrs[key]
    settings = trial.user_attrs.get("settings")
    if limits is not None and settings is not None:
        limits.judge(trial, settings)


def copy_constraints(source: FrozenTrial, copy: FrozenTrial) -> FrozenTrial:
    """Give the copy of a trial what samplers know of its limits; returns the copy."""
    for name, value in source.constraints.items():
        copy.set_constraint(name, value)
    return copy
