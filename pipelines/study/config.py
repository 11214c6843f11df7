"""The settings of a study: those of a training run, the base of every row, and how often rows are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from efafnet.models.variants import VARIANTS
from efafnet.pipelines.runs.settings import check_run, with_settings
from efafnet.pipelines.study.scale import row_settings
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.configuration import resolve
from efafnet.tune_spaces.checking import check_space
from efafnet.tune_spaces.space import Space, SpaceError
from efafnet.tune_spaces.study import Study, StudyRow

if TYPE_CHECKING:
    from efafnet.models.known_costs import Size
    from efafnet.pipelines.training.inputs import Inputs

_STUDY_ONLY = ("study", "seeds", "concurrency", "retries", "confidence", "scatter", "resolve", "bootstrap", "keep")


class StudyConfig(TrainConfig):
    """A study: rows of settings, each trained with the same seeds, and compared."""

    name: str = "auto"
    """Name of the study, and of its directory under ``runs``; auto makes one of the file's name and all settings."""
    study: str
    """What is compared: a name (table_i, table_vi, table_vii, table_viii, table_x, table_xi, table_xii) or the path of
    a YAML file."""
    seeds: int = Field(default=3, ge=1)
    """Runs per row, with the seeds ``seed``, ``seed`` + 1, …; the same for all rows. More may be asked for later."""
    concurrency: int | None = Field(default=None, ge=1)
    """Runs at a time; none for as many as the cluster has room for."""
    retries: int = Field(default=2, ge=0)
    """Times that a run whose process died (a node was lost) starts again from its checkpoint. Its workers are replaced
    ``worker.max_failures`` times besides."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the intervals, and of all that the table claims together."""
    scatter: Literal["auto", "equal", "own"] = "auto"
    """Whether rows are taken to scatter alike. equal: one spread from all rows, which sees most. own: each difference
    is judged by the seeds of its own two rows, which is right however rows scatter, and wants five seeds or more. auto:
    own, except where the seeds show rows to be so much alike that one spread for all is safe."""
    resolve: float | None = Field(default=None, gt=0)
    """A difference in percent points: the table says how many seeds would show it."""
    bootstrap: int = Field(default=1000, ge=0)
    """Resamplings of the validation images; 0 for intervals by seeds alone."""
    keep: Literal["none", "all"] = "none"
    """Whose checkpoints stay once a run is measured."""

    @model_validator(mode="after")
    def _comparable(self) -> StudyConfig:
        if (self.data.train is None) != (self.data.val is None):
            raise ValueError(
                "data.train and data.val: rows are compared by their figures on data.val; give both, or neither for "
                "synthetic people"
            )
        if self.max_time_s is not None:
            raise ValueError("max_time_s: runs of a study need equal budgets; use max_samples or epochs")
        if self.resample == "train" and self.seeds == 1:
            raise ValueError("resample=train with seeds=1: one draw of the training data shows no spread; give seeds=3 "
                             "or more, or resample=none")  # fmt: skip
        if self.bootstrap == 1:
            raise ValueError("bootstrap = 1: one resampling has no spread; use 0 for none, or about 1000")
        return self

    def base(self) -> dict[str, Any]:
        """The training settings as a tree."""
        return self.model_dump(mode="json", exclude=set(_STUDY_ONLY))

    def identity(self, train_digest: str, val_digest: str | None) -> dict[str, Any]:
        """What makes the study the study it is: the training settings all rows start from, and the data.

        Seeds may be added, and rows: each run is held to its own settings.
        """
        whole = super().identity(train_digest, val_digest)
        return {key: value for key, value in whole.items() if key != "seed"}


@dataclass(frozen=True)
class Plan:
    """One row, ready to run or known not to."""

    row: StudyRow
    config: TrainConfig | None
    """Its run with the first seed; None for a row that does not run."""
    cost: Size | None
    why: str
    """Why it does not run."""


def row_config(config: TrainConfig, tree: Mapping[str, Any], row: StudyRow, settings: Mapping[str, Any]) -> TrainConfig:
    """The training settings of a row with ``settings`` on top of its network.

    Every run is validated once, at its end: the best of several validations would be a little too good.

    Args:
        config: what all rows start from.
        tree: the same as a tree, without what is not a run's.
        row: the row.
        settings: by dotted key; the row's own.

    Raises:
        ConfigurationError: the settings are not possible.
    """
    network = {} if row.network is None else row_settings(VARIANTS[row.network], config)
    always = {
        "validation.every_epochs": None, "validation.patience": None, "validation.overlays": 0,
        "tracking.log_checkpoint": False, "tracking.log_network": False, "tracking.register_as": None,
        "tracking.alias": None,
    }  # fmt: skip
    return resolve(TrainConfig, with_settings(tree, {**network, **settings, **always}))


def plan_rows(study: Study, config: TrainConfig, tree: Mapping[str, Any], inputs: Inputs) -> list[Plan]:
    """Check every row as its runs would be checked, and find those that cannot run or would repeat another.

    Args:
        study: the rows.
        config: what they start from.
        tree: the same as a tree, without what is not a run's.
        inputs: the stores.

    Raises:
        SpaceError: a key or value that the configuration or the data refuse; names the file and the line.
    """
    from efafnet.models.cost import network_size

    plans: dict[str, Plan] = {}
    # The baseline first: of two rows that are the same it must be the one that runs.
    for row in sorted(study.rows, key=lambda row: row.name != study.baseline):
        if row.missing:
            plans[row.name] = Plan(row, None, None, row.missing)
            continue
        trained = _checked(study, row, config, tree, inputs)
        same = next((name for name, plan in plans.items() if plan.config == trained), None)
        if same is not None:
            plans[row.name] = Plan(row, None, None, f"the same as {same!r} at this scale")
        else:
            cost = network_size(trained.network, inputs.skeleton.num_joints, trained.input)
            plans[row.name] = Plan(row, trained, cost, "")
    return [plans[row.name] for row in study.rows]


def _checked(study: Study, row: StudyRow, config: TrainConfig, tree: Mapping[str, Any], inputs: Inputs) -> TrainConfig:
    def build(settings: Mapping[str, Any]) -> TrainConfig:
        trained = row_config(config, tree, row, settings)
        check_run(trained, inputs)
        return trained

    def problem(settings: Mapping[str, Any]) -> str:
        try:
            build(settings)
        except ValueError as error:
            return str(error)
        return ""

    refused = problem(row.settings)
    if refused and refused != problem({}):  # the settings are at fault, and check_space finds which
        check_space(Space(row.name, study.source, "", "", row.entries), build)
    if refused:
        raise SpaceError(f"{study.source}:{row.line}: the row {row.name!r} is refused: {refused}")
    return build(row.settings)


def runs_of(plans: Sequence[Plan], seeds: Sequence[int], directory: Path) -> dict[tuple[str, int], TrainConfig]:
    """Every run by its row's name and its seed, seed after seed: an interrupted study holds whole tables.

    ``directory`` holds the runs' own directories.
    """
    found: dict[tuple[str, int], TrainConfig] = {}
    for seed in seeds:
        for plan in plans:
            if plan.config is not None:
                title = {"run_name": f"{plan.row.name}, seed {seed}"}
                update = {
                    "name": f"{plan.row.key}-s{seed}",
                    "runs": directory,
                    "seed": seed,
                    "tracking": plan.config.tracking.model_copy(update=title),
                }
                found[plan.row.name, seed] = plan.config.model_copy(update=update)
    return found
