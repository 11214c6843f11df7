"""The settings of a search: those of a training run, the base of every trial, and how the search goes about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from efafnet.models.settings import MAX_SEED, Settings
from efafnet.pipelines.runs.settings import with_settings
from efafnet.pipelines.search.stopping import (
    Rule,
    constant_pauses,
    constant_promotes,
    halving_pauses,
    halving_promotes,
    halving_stops,
    median_stops,
    rungs,
)
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.addresses import BareAddress
from efafnet.platform.configuration import resolve

if TYPE_CHECKING:
    from efafnet.pipelines.training.inputs import Inputs

SAMPLERS = ("auto", "tpe", "gp", "cmaes", "qmc", "random", "grid")
"""Samplers that have a short name."""
Against = Literal["none", "gmac", "latency_ms"]

TRIALS = 20
"""Trials of a search that does not say how many."""
_TUNE_ONLY = ("space", "search", "promote")
_MAY_CHANGE = {"trials", "concurrency", "retries", "retry_failed", "time_s", "trial_s", "patience", "keep",
               "learn_from"}  # fmt: skip


class LimitConfig(Settings):
    """What a trial's network may cost at most: settings above a limit are drawn, but not trained."""

    gmac: float | None = Field(default=None, gt=0)
    """Multiply-adds of one crop, in 10^9. Null for no limit."""
    params_m: float | None = Field(default=None, gt=0)
    """Parameters in millions, without the auxiliary heads. Null for no limit."""

    def values(self) -> dict[str, float]:
        """The limits that there are."""
        return self.model_dump(exclude_none=True)


class SearchConfig(Settings):
    """How a search looks for settings."""

    trials: int | None = Field(default=None, ge=1)
    """Trials in all, stopped and failed ones included; none for 20, or for all points of a grid."""
    sampler: str = "tpe"
    """How values are drawn. tpe learns from finished and stopped trials and knows conditions; gp, a Gaussian process
    that fits the noise, needs fewest trials where all that is searched are numbers, and learns from complete trials
    only; cmaes suits hundreds of trials over numbers; qmc covers the space evenly; random; grid walks through all. auto
    takes gp where it suits and tpe elsewhere. Or the path of any class of Optuna's kind: package.Class."""
    stop: Literal["asha", "median", "constant", "none"] = "asha"
    """Which trials end early. asha: at each rung all but the best 1/``reduction`` of those that got there. median:
    those below the median of the others. constant: all wait after ``grace`` of their budget, and once every trial has
    come there the best ``finish`` go on to the end. none: no trial."""
    promotes: bool = False
    """Whether asha lets trials wait in place of stopping them, and sends on those that the trials behind them leave
    among the best 1/``reduction`` of their rung: going on costs nothing here. What waits keeps its checkpoints."""
    finish: int = Field(default=3, ge=1)
    """Trials that go on to the end with stop=constant."""
    against: Against = "none"
    """What the figure is weighed against, for a Pareto front in place of one best trial: gmac, multiply-adds of one
    crop in 10^9; latency_ms, milliseconds of one on the machine that runs the search. tpe then draws for both. Needs
    stop=none, since asha and median would stop the cheap networks for their figure alone."""
    limit: LimitConfig = LimitConfig()
    """What a trial's network may cost. tpe and gp are told by how much, and learn to keep below it."""
    grace: float = Field(default=0.25, gt=0, le=1)
    """Share of a trial's budget that every trial gets; asha's first rung."""
    reduction: float = Field(default=2.0, gt=1)
    """Factor from one asha rung to the next, and of trials from one to the next."""
    validations: int = Field(default=4, ge=1)
    """Validations per trial, evenly spread over its budget, in place of ``validation.every_epochs``."""
    concurrency: int | None = Field(default=None, ge=1)
    """Trials at a time; none for as many as the cluster has room for."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of what is drawn. All trials train with the run's own ``seed``, so that they see the same data in the same
    order."""
    startup: int | None = Field(default=None, ge=1)
    """Trials drawn at random before tpe learns; none for a third of the trials, between 3 and 10."""
    retries: int = Field(default=2, ge=0)
    """Times that a trial whose process died (a node was lost) starts again from its checkpoint. Its workers are
    replaced ``worker.max_failures`` times besides."""
    retry_failed: bool = False
    """Whether trials that had failed when the command is given are tried once more, from their beginning; they do not
    count as trials then."""
    time_s: float | None = Field(default=None, gt=0)
    """Seconds of this command after which no more trials start; those that run are left as Ctrl-C leaves them, and the
    same command goes on with them. None for no limit."""
    trial_s: float | None = Field(default=None, gt=0)
    """Seconds of one attempt at a trial after which it ends as stopped, or as failed if it has no figure yet; none for
    no limit."""
    patience: int | None = Field(default=None, ge=1)
    """Trials in a row without a better figure after which no more are begun; none for no such end."""
    keep: Literal["best", "all"] = "best"
    """Whose checkpoints stay: the best complete trial's, or all. A search leaves hundreds of megabytes otherwise."""
    learn_from: Path | None = None
    """Directory of an earlier search over the same space, whose results are known to this one from the start."""
    storage: BareAddress | None = None
    """Where the study is kept; none for an sqlite file in the search's directory, which must not lie on a network file
    system. journal for a file there that may, or journal:PATH; or the address of a database, postgresql://HOST/NAME.
    Commands with ``runs`` of their own that share a study search together."""

    @field_validator("storage")
    @classmethod
    def _known(cls, storage: str | None) -> str | None:
        sound = storage is None or storage == "journal" or storage.startswith("journal:") or "://" in storage
        if not sound or str(storage).startswith("sqlite:"):
            raise ValueError(
                f"storage = {storage}: give journal, journal:PATH or the address of a database, "
                "postgresql://USER:PASSWORD@HOST/NAME; leave it out for an sqlite file in the search's directory"
            )
        return storage

    @model_validator(mode="after")
    def _consistent(self) -> SearchConfig:
        if self.sampler not in SAMPLERS and "." not in self.sampler:
            raise ValueError(
                f"sampler = {self.sampler}: give one of {', '.join(SAMPLERS)}, or a class as package.Class"
            )
        if self.promotes and self.stop != "asha":
            raise ValueError(f"promotes=true belongs to stop=asha; stop={self.stop} has its own way to go on, or none")
        if self.sampler == "cmaes" and (self.pauses or self.against != "none"):
            raise ValueError(
                "sampler=cmaes learns from complete trials and from one figure alone: set promotes=false, against=none "
                "and stop to none, asha or median; or take another sampler"
            )
        return self

    @property
    def pauses(self) -> bool:
        """Whether trials may wait and go on later."""
        return self.promotes or self.stop == "constant"

    def rule(self, levels: list[int], grace: int) -> Rule:
        """Where trials halt and which go on, with the search's rungs and the samples that every trial gets."""
        reduction, finish = self.reduction, self.finish
        if self.promotes:
            return Rule(
                lambda curves, number: halving_pauses(curves, number, levels, reduction),
                lambda state: halving_promotes(state, levels, reduction),
            )
        if self.stop == "asha":
            return Rule(lambda curves, number: halving_stops(curves, number, levels, reduction))
        if self.stop == "median":
            return Rule(lambda curves, number: median_stops(curves, number, grace))
        if self.stop == "constant":
            return Rule(
                lambda curves, number: constant_pauses(curves, number, grace),
                lambda state: constant_promotes(state, grace, finish),
            )
        return Rule(lambda _curves, _number: False)

    @property
    def startup_trials(self) -> int:
        """Trials drawn at random before the sampler learns."""
        return self.startup or min(10, max(3, (self.trials or TRIALS) // 3))


class PromoteConfig(Settings):
    """From a search's many short runs to a winner that was judged on runs of its own.

    The best of many runs is too good by its luck: finalists are compared on seeds that took no part in choosing them.
    """

    finalists: int = Field(default=0, ge=0)
    """Settings that are repeated with new seeds, beside the settings as given; 0 ends with the search."""
    longer: int = Field(default=0, ge=0)
    """Best trials that first get one longer run each, which chooses the finalists; 0 lets the search choose them."""
    repeats: int = Field(default=3, ge=2)
    """Runs of each finalist, with the same seeds ``seed`` + 1, ``seed`` + 2, …"""
    samples: int | None = Field(default=None, ge=1)
    """Training samples of each longer run and each repeat; none for the geometric mean of a trial's and the full
    run's."""
    full: bool = False
    """Train the winner in full, with one more seed, as the run NAME-winner; registered as ``tracking`` says."""
    full_samples: int | None = Field(default=None, ge=1)
    """Training samples of a full run; none for all of ``epochs``."""

    @model_validator(mode="after")
    def _ordered(self) -> PromoteConfig:
        if self.finalists == 0 and (self.longer or self.full):
            raise ValueError("longer and full need finalists: say how many settings are to be repeated, finalists=3")
        if self.longer and self.longer <= self.finalists:
            raise ValueError(
                f"longer = {self.longer} runs cannot choose finalists={self.finalists}; let more trials run longer, or "
                "leave it out"
            )
        return self


class TuneConfig(TrainConfig):
    """A search: the settings of a training run, and what of them is searched. Giving the same again continues it."""

    name: str = "auto"
    """Name of the search, and of its directory under ``runs``; auto makes one of the space and all settings."""
    space: str
    """What is searched: a name (ohkm, lr_schedule, input_size, all, …), the path of a YAML file, or in its place ranges
    such as optimizer.lr=log(1e-4, 1e-2)."""
    search: SearchConfig = SearchConfig()
    promote: PromoteConfig = PromoteConfig()

    @model_validator(mode="after")
    def _searchable(self) -> TuneConfig:
        if self.data.val is None:
            raise ValueError("data.val is required: trials are compared by their figures on it, data.val=crops/val")
        if self.max_time_s is not None:
            raise ValueError("max_time_s: trials of a search need equal budgets; use max_samples or epochs")
        if self.search.against != "none" and self.search.stop != "none":
            raise ValueError(
                f"search.against = {self.search.against}: search.stop={self.search.stop} would stop cheap networks for "
                "their figure alone; set search.stop=none"
            )
        if self.search.stop != "none" and self.search.validations == 1:
            raise ValueError(
                "search.validations=1 leaves nothing to stop a trial by; raise it, or set search.stop=none"
            )
        return self

    def base(self) -> dict[str, Any]:
        """The training settings as a tree."""
        return self.model_dump(mode="json", exclude=set(_TUNE_ONLY))

    def unequal(self) -> dict[str, str]:
        """Keys that this search's space must not set, since they change how long a trial is, and why."""
        if self.search.stop == "none":
            return {}
        reason = f"search.stop={self.search.stop} compares trials at equal samples; set search.stop=none to search it"
        # With a limit in samples the epochs only say how long the schedule is.
        return {"max_samples": reason} | ({} if self.max_samples is not None else {"epochs": reason})

    def rungs(self, inputs: Inputs) -> tuple[list[int], int]:
        """Samples at which trials are compared, and the samples every trial gets."""
        budget = inputs.plan(self).steps * self.batch_size
        grace = max(1, round(self.search.grace * budget))
        return rungs(budget, grace, self.search.reduction), grace

    def identity(self, train_digest: str, val_digest: str | None) -> dict[str, Any]:
        """What makes the search the search it is: the training settings and data, the space and how it is searched.

        How many trials there are, how many run at a time and the like may change from one continuation to the next.
        """
        # What came later is left out where it changes nothing: searches from before go on under their names.
        there = {"finish": self.search.stop == "constant", "promotes": self.search.promotes,
                 "limit": bool(self.search.limit.values()), "storage": self.search.storage is not None}  # fmt: skip
        later = {key for key, matters in there.items() if not matters}
        search = self.search.model_dump(mode="json", exclude=_MAY_CHANGE | later)
        return super().identity(train_digest, val_digest) | {f"search.{key}": v for key, v in search.items()}


def trial_config(config: TuneConfig, settings: Mapping[str, Any], number: int, directory: Path) -> TrainConfig:
    """The training settings of one trial.

    Raises:
        ConfigurationError: the settings are not possible.
    """
    tree = with_settings(config.base(), settings)
    tree |= {"name": f"{number:04d}", "runs": str(directory)}
    # The best trial's weights stay in its directory; a hundred networks in MLflow are gigabytes that nobody loads.
    tree["tracking"] |= {"log_checkpoint": False, "log_network": False, "register_as": None, "alias": None}
    return resolve(TrainConfig, tree)


def trained_as(config: TuneConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The training settings of any trial with these settings, where its number and directory do not matter.

    Raises:
        ConfigurationError: the settings are not possible.
    """
    return trial_config(config, settings, 0, Path("/"))


def paced(trial: TrainConfig, inputs: Inputs, validations: int) -> TrainConfig:
    """The same trial with its validations spread evenly over its budget, on its own workers and without pictures: the
    room beside them is for other trials.
    """
    plan = inputs.plan(trial)
    every = plan.epoch(plan.steps) / validations
    validation = trial.validation.model_copy(update={"every_epochs": every, "overlays": 0, "where": "inline"})
    return trial.model_copy(update={"validation": validation})
