"""A study as JSON and back: how a search travels to MLflow, where the report finds it whatever machine it ran on."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

STUDY_FILE = "search/study.json"
"""Where the parent run of a search keeps its study among its artifacts."""


def study_to_json(trials: list[FrozenTrial]) -> dict[str, Any]:
    """Describe finished and running trials as plain JSON."""
    return {"direction": "maximize", "trials": [_trial_to_json(trial) for trial in trials]}


def _trial_to_json(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value if trial.values else None,
        "params": trial.params,
        "distributions": {name: distribution_to_json(each) for name, each in trial.distributions.items()},
        "intermediate_values": {str(step): value for step, value in trial.intermediate_values.items()},
        "user_attrs": trial.user_attrs,
        "seconds": trial.duration.total_seconds() if trial.duration else None,
    }


def study_from_json(content: dict[str, Any]) -> optuna.Study:
    """Rebuild a study in memory, with its trials' numbers; trials that never ended are left out."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=content["direction"])
    for trial in content["trials"]:
        state = TrialState[trial["state"]]
        if not state.is_finished():
            continue
        study.add_trial(
            create_trial(
                state=state,
                value=trial["value"],
                params=trial["params"],
                distributions={name: json_to_distribution(text) for name, text in trial["distributions"].items()},
                intermediate_values={int(step): value for step, value in trial["intermediate_values"].items()},
                user_attrs={**trial["user_attrs"], "number": trial["number"]},
            )
        )
    return study
