"""Opening a search's ledger: how it draws, what is queued before it draws, and what is known from an earlier search."""

from __future__ import annotations

import uuid
from pathlib import Path

from optuna.trial import FrozenTrial

from efafnet.pipelines.search.config import TRIALS, TuneConfig, trained_as
from efafnet.pipelines.search.costs import LATENCIES, Costs
from efafnet.pipelines.search.earlier import COST_UNIT, Terms, check_terms, open_study
from efafnet.pipelines.search.ledger import Ledger, Shared
from efafnet.pipelines.search.limits import Limits
from efafnet.pipelines.search.pareto import COST
from efafnet.pipelines.search.samplers import settled_sampler
from efafnet.pipelines.search.untried import NEVER_TWICE
from efafnet.pipelines.training.inputs import Inputs
from efafnet.platform import console
from efafnet.platform.presence import is_there
from efafnet.platform.storage import write_text
from efafnet.tune_spaces.space import Settings, Space, grid, grid_size

STUDY = "study.db"
"""The Optuna study, in the search's directory."""


def open_ledger(config: TuneConfig, inputs: Inputs, space: Space, limits: Limits | None, identity: str) -> Ledger:
    """Open a search's ledger, with everything queued that is not drawn.

    Args:
        config: the search, its name and paths settled.
        inputs: its stores.
        space: what is searched.
        limits: what networks may cost; None for no limits.
        identity: digest of what makes the search the search it is.

    Raises:
        ValueError: settings that do not fit the space, or a study that cannot be used.
        OSError: what keeps the study does not answer.
    """
    search = config.search
    points = _grid_points(config, space, limits) if search.sampler == "grid" else []
    wanted = len(points) or search.trials or TRIALS
    sampler = settled_sampler(search, space, wanted)
    if sampler != search.sampler:
        console.note(f"search.sampler=auto: {sampler}")
    ledger = Ledger(
        config.run_dir / STUDY,
        config.name,
        space,
        trials=wanted if sampler == "grid" else at_most(space, wanted, sampler),
        sampler=sampler,
        seed=search.seed,
        startup=search.startup_trials,
        weighed=search.against != "none",
        waits=search.pauses,
        judged_at=config.rungs(inputs)[1] if search.stop == "constant" else None,
        limits=limits,
        shared=None if search.storage is None else Shared(search.storage, _driver(config.run_dir), identity),
    )
    if search.sampler == "grid":
        ledger.enqueue_grid(points)
    ledger.enqueue_start()
    if search.retry_failed and (again := ledger.retry_failed()):
        console.note(f"{again} failed trials are tried again")
    _learn(config, inputs, ledger)
    return ledger


def _learn(config: TuneConfig, inputs: Inputs, ledger: Ledger) -> None:
    """Take over what an earlier search found, where its figures are of the same kind."""
    joints, against, source = inputs.skeleton.num_joints, config.search.against, config.search.learn_from
    own = Terms(
        config.validation.metric or inputs.metric,
        f"{inputs.skeleton.name}, {joints} joints",
        inputs.plan(config).steps * config.batch_size,
    )
    if source is not None:
        earlier = open_study(source / STUDY)
        if doubt := check_terms(earlier, own, source):
            console.warn(doubt)

        costs = Costs(against, joints, config.run_dir / LATENCIES)

        def cost(trial: FrozenTrial) -> float | None:
            if against == "latency_ms" and earlier.user_attrs.get(COST_UNIT) == against:
                return trial.user_attrs.get(COST)  # as it was measured there
            settings = trial.user_attrs.get("settings")
            return None if settings is None else costs.of(trained_as(config, settings))

        known = ledger.learn_from(earlier, cost if against != "none" else None)
        console.note(f"{known} trials of {source} are known from the start")
    ledger.set_terms(own, against)


def at_most(space: Space, wanted: int, sampler: str) -> int:
    """How many of the ``wanted`` trials there are: no more than settings, where ``sampler`` tries none twice.

    Says it where that makes fewer, or where the sampler will draw settings again: they give the same figure again.
    """
    points = grid_size(space)
    if points is None or points > wanted or (points == wanted and sampler in NEVER_TWICE):
        return wanted
    if sampler in NEVER_TWICE:
        console.note(f"{space.source} has {points} settings: {points} trials in place of {wanted}, none is tried twice")
        return points
    console.note(
        f"{space.source} has {points} settings, and {wanted} trials are wanted: search.sampler=grid tries each once, "
        f"{sampler} draws some again, which tells nothing new"
    )
    return wanted


def _grid_points(config: TuneConfig, space: Space, limits: Limits | None) -> list[Settings]:
    """The combinations of a space that are within the limits; ValueError where fewer trials are wanted, or none is."""
    whole, wanted = grid(space), config.search.trials
    points = whole if limits is None else limits.within(whole)
    if not points and limits is not None:
        raise ValueError(limits.none_found(space.source, f"the {len(whole)} points of the grid"))
    if wanted is not None and wanted < len(points):
        raise ValueError(f"search.trials={wanted}: the grid of {space.source} has {len(points)} points; raise it or "
                         "leave it out, or narrow the space")  # fmt: skip
    if len(points) < len(whole):
        console.note(f"{len(whole) - len(points)} of the {len(whole)} points of the grid are above search.limit")
    return points


def _driver(run_dir: Path) -> str:
    """What tells the commands of a shared search apart: drawn once for each directory."""
    file = run_dir / "driver"
    if not is_there(file):
        write_text(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")
