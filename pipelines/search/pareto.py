"""A trial's figure weighed against what its network costs: two objectives, and the trials that nothing beats in both.

The search's own study keeps one objective, the figure: Optuna takes no intermediate figures for several. What is drawn
for two objectives is drawn on a copy in memory that knows both, and enqueued in the study.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from efafnet.pipelines.search.limits import INFEASIBLE, copy_constraints

COST = "cost"
"""Attribute of a trial: what its network costs, in the unit that ``search.against`` names."""


def both_objectives(trials: Sequence[FrozenTrial]) -> optuna.Study:
    """A study in memory of the figure (the larger the better) and the cost (the smaller).

    Complete trials have both; those that run, and those above a limit, have their parameters only, so that a sampler
    keeps away from them. The attribute ``number`` of each is its number in ``trials``.
    """
    study = optuna.create_study(directions=["maximize", "minimize"])
    for trial in trials:
        cost, figure = trial.user_attrs.get(COST), trial.value if trial.state == TrialState.COMPLETE else None
        values = [figure, cost] if figure is not None and cost is not None else None
        if values or trial.state == TrialState.RUNNING or INFEASIBLE in trial.user_attrs:
            copy = create_trial(
                state=trial.state,
                values=values,
                params=trial.params,
                distributions=trial.distributions,
                # A study read back from a file numbers its trials itself and keeps the search's number here.
                user_attrs={"number": trial.user_attrs.get("number", trial.number)},
            )
            study.add_trial(copy_constraints(trial, copy))
    return study


def front(trials: Sequence[FrozenTrial]) -> list[int]:
    """Numbers of the complete trials that no other beats in figure and cost at once, the cheapest first."""
    best = both_objectives(trials).best_trials
    return [trial.user_attrs["number"] for trial in sorted(best, key=lambda trial: trial.values[1])]
