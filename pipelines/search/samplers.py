"""How a search's values are drawn: Optuna's samplers by their short names, or any other by the path of its class."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from efafnet.pipelines.search.config import SAMPLERS, SearchConfig
from efafnet.pipelines.search.limits import copy_constraints
from efafnet.pipelines.search.stopping import at_rung
from efafnet.tune_spaces.space import Choice, Space

LEARN_ALONE = ("random", "grid", "qmc", "cmaes")
"""Samplers that learn nothing, or keep what they have learnt in the study itself."""
GP_TRIALS = 250
"""Most trials for which ``auto`` takes a Gaussian process, whose cost grows with their cube."""


def settled_sampler(search: SearchConfig, space: Space, trials: int) -> str:
    """The sampler that a search uses: what ``auto`` comes to, and the rest as it is given.

    A Gaussian process needs fewest trials where all that is searched are numbers which every trial has. It knows
    complete trials only and no conditions; trees (TPE) know options that bring their own settings and stopped trials.

    Raises:
        ValueError: the class is not there, or no sampler.
    """
    if search.sampler != "auto":
        if search.sampler not in SAMPLERS:
            sampler_class(search.sampler)
        return search.sampler
    numbers = not any(isinstance(entry.domain, Choice) for entry in space.searched)
    every_figure_counts = search.stop in ("none", "constant") and search.against == "none"
    return "gp" if numbers and every_figure_counts and trials <= GP_TRIALS else "tpe"


def sampler_class(path: str) -> type[BaseSampler]:
    """The class that ``search.sampler=package.Class`` names.

    Raises:
        ValueError: there is none, or it is no sampler of Optuna.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"search.sampler={path}: {error}; give one of {', '.join(SAMPLERS)}, or the path of a class that Python "
            "can import, such as optuna.samplers.NSGAIISampler"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, BaseSampler)):
        raise ValueError(f"search.sampler={path} is no class derived from optuna.samplers.BaseSampler")
    return found


def make_sampler(kind: str, seed: int, asked: int, startup: int) -> BaseSampler:
    """The sampler of one trial: a function of the seed and the number of trials before it.

    A sampler that lived as long as the process would repeat its first draws after every restart. What CMA-ES and
    quasi-Monte-Carlo remember from trial to trial lies in the study.
    """
    stream = int(np.random.SeedSequence([seed, asked]).generate_state(1)[0])
    independent = RandomSampler(seed=stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "tpe":
            return TPESampler(seed=stream, multivariate=True, group=True, constant_liar=True, n_startup_trials=startup)
        if kind == "gp":
            # It says that it would be faster with a package that is not needed.
            logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)
            # The noise between seeds is fitted with the rest: a figure is one draw of what its settings give.
            return GPSampler(
                seed=stream,
                independent_sampler=independent,
                n_startup_trials=startup,
                deterministic_objective=False,
                warn_independent_sampling=False,
            )
        if kind == "cmaes":
            return CmaEsSampler(
                seed=stream,
                independent_sampler=independent,
                n_startup_trials=startup,
                warn_independent_sampling=False,
            )
        if kind == "qmc":
            # One scrambling for the whole search: the points of a sequence belong together.
            return QMCSampler(
                seed=seed,
                scramble=True,
                independent_sampler=independent,
                warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            )
        if kind in ("random", "grid"):
            return independent
        return _foreign(sampler_class(kind), stream, startup)


def _foreign(made: type[BaseSampler], seed: int, startup: int) -> BaseSampler:
    """A sampler of another package, told what it has a parameter for."""
    taken = inspect.signature(made).parameters
    offered: dict[str, Any] = {"seed": seed, "n_startup_trials": startup}
    return made(**{name: value for name, value in offered.items() if name in taken})


def as_judged(trials: Sequence[FrozenTrial], paused: Collection[int], at: int | None) -> optuna.Study:
    """A study in memory that shows a sampler what the search's own cannot say of trials that wait: they are open.

    Args:
        trials: of the search, learnt ones included.
        paused: numbers of those that wait. They count as stopped with the figure they have.
        at: samples at which every trial waits, where there is one such point: what has a figure there counts as
            complete with that figure, for all are judged alike there.
    """
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        if trial.state in (TrialState.FAIL, TrialState.WAITING):
            continue
        curve = {samples: value for samples, value in trial.intermediate_values.items() if math.isfinite(value)}
        state, value = trial.state, trial.value if trial.state == TrialState.COMPLETE else None
        if at is not None and (there := at_rung(curve, at)) is not None:
            state, value = TrialState.COMPLETE, there
        elif trial.number in paused:
            state = TrialState.PRUNED
        newest = {max(curve): curve[max(curve)]} if curve and state == TrialState.PRUNED else None
        copy = create_trial(
            state=state,
            value=value,
            params=trial.params,
            distributions=trial.distributions,
            intermediate_values=newest,
        )
        study.add_trial(copy_constraints(trial, copy))
    return study
