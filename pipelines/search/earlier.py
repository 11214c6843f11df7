"""An earlier search, and whether this one may learn from it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from efafnet.pipelines.search.study_db import JOURNAL, StudyFileError, open_storage, readable
from efafnet.tune_spaces.space import Space, suggest

TERMS = "terms"
"""Attribute of a study: what its figures are figures of (``Terms``)."""
COST_UNIT = "cost_unit"
"""Attribute of a study: what its trials' costs are, as ``search.against`` names it."""


@dataclass(frozen=True)
class Terms:
    """What makes the figures of two searches comparable."""

    metric: str
    skeleton: str
    """Name of the skeleton and its number of joints."""
    samples: int
    """Training samples of a trial of the base settings."""


def open_study(path: Path) -> optuna.Study:
    """Open the one study of an earlier search's file.

    Raises:
        ValueError: there is none.
    """
    journal = path.with_suffix(JOURNAL)
    if not path.is_file() and not journal.is_file():
        raise ValueError(
            f"{path} does not exist: name the directory of an earlier search, which holds {path.name} or {journal.name}"
        )
    file, address = (path, None) if path.is_file() else (journal, "journal")
    storage = open_storage(path, address)
    with readable(file):
        names = optuna.get_all_study_names(storage)
        study = optuna.load_study(study_name=names[0], storage=storage) if len(names) == 1 else None
        if study is not None:
            study.get_trials(deepcopy=False)
    if study is None:
        raise StudyFileError(f"{file} holds {len(names)} studies; a search's file holds one")
    return study


def study_identity(study: optuna.Study) -> str:
    """What tells a study from all others, wherever its file lies: its name and when its first trial began."""
    began = min((trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start),
                default=None)  # fmt: skip
    return f"{study.study_name}@{began.isoformat() if began else 'empty'}"


def fits(space: Space, trial: FrozenTrial) -> bool:
    """Whether ``space`` could have drawn the trial: the same parameters over the same ranges."""
    replay = optuna.trial.FixedTrial(trial.params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a value outside this space's range is why this is asked
        try:
            suggest(space, replay)
        except ValueError:
            return False
    return replay.distributions == trial.distributions


def check_terms(earlier: optuna.Study, own: Terms, source: Path) -> str:
    """Compare what the figures of an earlier search are with ``own``; returns what is to be said, or nothing.

    Raises:
        ValueError: its figures are of another kind and would mislead.
    """
    told = earlier.user_attrs.get(TERMS)
    if told is None:
        return f"{source} does not say what its figures are of; make sure that they are {own.metric} on {own.skeleton}"
    terms = Terms(**told)
    for what, its, ours in (("metric", terms.metric, own.metric), ("skeleton", terms.skeleton, own.skeleton)):
        if its != ours:
            raise ValueError(
                f"search.learn_from={source}: its {what} is {its}, this search's {ours}; figures of two kinds cannot "
                "be compared, so leave it out"
            )
    if terms.samples != own.samples:
        return (
            f"trials of {source} trained on {terms.samples} samples, those of this search train on {own.samples}: its "
            f"figures are {'lower' if terms.samples < own.samples else 'higher'} for that alone"
        )
    return ""
