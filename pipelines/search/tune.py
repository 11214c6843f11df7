"""``efafnet tune``: a search, from its checks to its result. The one module of the search that runs Ray Tune."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optuna.trial import FrozenTrial

from efafnet.pipelines.search.books import STAGE, Books
from efafnet.pipelines.search.config import TRIALS, SearchConfig, TuneConfig, automatic_name, check_trial, trial_config
from efafnet.pipelines.search.ledger import COST_UNIT, Ledger, Terms, check_terms, open_study
from efafnet.pipelines.search.outcome import SearchResult, conclude, show
from efafnet.pipelines.search.pareto import COST, cost_of
from efafnet.pipelines.search.placement import Room
from efafnet.pipelines.search.samplers import settled_sampler
from efafnet.pipelines.search.searcher import SAME_REASON, Desk, StudyScheduler, StudySearch
from efafnet.pipelines.search.stopping import (
    Rule,
    constant_pauses,
    constant_promotes,
    halving_pauses,
    halving_promotes,
    halving_stops,
    median_stops,
)
from efafnet.pipelines.search.trial import PLACEMENT, TrialActor
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs, open_inputs
from efafnet.pipelines.training.placement import needs, placed
from efafnet.pipelines.training.recording import open_record
from efafnet.pipelines.training.rundir import RunConflictError, RunDirectory
from efafnet.platform import console
from efafnet.platform.capacity import capacity
from efafnet.platform.cluster import connect
from efafnet.platform.configuration import absolute_paths, to_yaml
from efafnet.platform.tracking import finish_run
from efafnet.tune_spaces.checking import check_space
from efafnet.tune_spaces.reading import load_space
from efafnet.tune_spaces.refused import refuse
from efafnet.tune_spaces.space import Space, grid, grid_size, walk

STUDY = "study.db"
"""The Optuna study, in the search's directory."""
RELEASE_EVERY_S = 3.0
"""Seconds between two looks for trials that ended and left a reservation."""
ENDING_S = 20.0
"""Most seconds that the search waits in the end for processes of stopped trials."""


def run_tune(config: TuneConfig) -> SearchResult:
    """Search and show what was found."""
    return tune(config, shown=show)


def tune(
    config: TuneConfig, shown: Callable[[Books, SearchResult], None] = lambda _books, _result: None
) -> SearchResult:
    """Run a search to its end, from wherever it stands.

    Args:
        config: the search.
        shown: called with the result while the search's directory is still held.

    Raises:
        ValueError: the space, the settings, the stores or the directory do not fit together.
        OSError: no Ray, no tracking store, or a file system that refuses.
        KeyboardInterrupt: it was interrupted; the same command continues it.
    """
    config = absolute_paths(config)
    inputs = open_inputs(config)
    space = load_space(config.space, config.names(inputs))
    refuse(space.source, walk(space.entries), config.unequal())
    tried = check_space(space, lambda settings: check_trial(trial_config(config, settings, 0, Path("/")), inputs))
    identity = inputs.identity(config) | {"space": space.text}
    config = config.model_copy(update={"name": automatic_name(config, space.name, identity)})
    console.note(f"search {config.name}: {space.about or space.name} ({tried} extreme settings checked)")
    directory = RunDirectory(config.run_dir)
    with directory.locked():
        record = directory.claim(identity, config.told())
        record = open_record(
            config, inputs, record, parent_run_id=None, tags={STAGE: "search"}, about=_about(config, space)
        )
        directory.record(record, to_yaml(config))
        books = Books(config, inputs, space, _open_ledger(config, inputs, space), record)
        if books.ledger.own():
            books.reconcile()
        try:
            _search(books)
            result = conclude(books)
        except BaseException as error:
            books.stopped(error)
            raise
        finally:
            books.close()
        if record.mlflow_run_id is not None and record.tracking_uri is not None:
            finish_run(record.tracking_uri, record.mlflow_run_id)
        shown(books, result)
        return result


def _about(config: TuneConfig, space: Space) -> str:
    """What the search is, for its description in MLflow."""
    keys = ", ".join(f"`{entry.key}`" for entry in space.searched)
    sentence = f" {space.about}" if space.about else ""
    return f"Search {config.name} over {space.name}: {keys}.{sentence}\n\n```yaml\n{space.text.strip()}\n```"


def _open_ledger(config: TuneConfig, inputs: Inputs, space: Space) -> Ledger:
    search = config.search
    points = len(grid(space)) if search.sampler == "grid" else TRIALS
    if search.sampler == "grid" and (search.trials or points) < points:
        raise ValueError(f"search.trials={search.trials}: the grid of {space.source} has {points} points; raise it or "
                         "leave it out, or narrow the space")  # fmt: skip
    trials = min(search.trials or points, points) if search.sampler == "grid" else search.trials or TRIALS
    sampler = settled_sampler(search, space, trials)
    if sampler != search.sampler:
        console.note(f"search.sampler=auto: {sampler}")
    ledger = Ledger(
        config.run_dir / STUDY,
        config.name,
        space,
        trials=trials,
        sampler=sampler,
        seed=search.seed,
        startup=search.startup_trials,
        weighed=search.against != "none",
        waits=search.sets_aside,
        judged_at=config.rungs(inputs)[1] if search.stop == "constant" else None,
    )
    if search.sampler == "grid":
        ledger.enqueue_grid()
    else:
        _advise_grid(space, ledger.trials, search.sampler)
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
        config.plan(inputs).steps * config.batch_size,
    )
    if source is not None:
        earlier = open_study(source / STUDY)
        if doubt := check_terms(earlier, own, source):
            console.warn(doubt)

        def cost(trial: FrozenTrial) -> float | None:
            if against == "latency_ms" and earlier.user_attrs.get(COST_UNIT) == against:
                return trial.user_attrs.get(COST)  # as it was measured there
            settings = trial.user_attrs.get("settings")
            return None if settings is None else cost_of(trial_config(config, settings, 0, Path("/")), joints, against)

        known = ledger.learn_from(earlier, cost if against != "none" else None)
        console.note(f"{known} trials of {source} are known from the start")
    ledger.set_terms(own, against)


def _advise_grid(space: Space, trials: int, sampler: str) -> None:
    """Say it where trials would repeat each other: the same settings and seed give the same figure."""
    points = grid_size(space)
    if points is not None and points <= trials:
        console.note(
            f"{space.source} has {points} settings, and {trials} trials are wanted: search.sampler=grid tries each "
            f"once, {sampler} draws some again, which tells nothing new"
        )


def _search(books: Books) -> None:
    """Run what is left to run."""
    ledger, config = books.ledger, books.config
    left = ledger.remaining()
    if left == 0:
        console.note("this search had ended before; raise search.trials to go on, or choose another name=…")
        return
    _quiet_tune()
    there = connect(config.cluster, show_workers=False)  # each trial has its own log
    if there.is_local:
        # Nobody drains a Ray that lives and dies with this program, and each trial's watcher is one process more.
        books.environment = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
    at_most = config.search.concurrency
    config = books.config = placed(config, capacity(there), runs=min(left, at_most or left))
    room = Room(config, at_most)
    console.note(f"{there}; {left} trials to run, {min(left, room())} at a time")
    desk = Desk(ledger, rule_of(config.search, *config.rungs(books.inputs)), books, room, config.search.patience)
    _run_tune(desk, books, left)
    _let_end(books)
    if desk.broken:
        console.warn(
            f"{SAME_REASON} trials failed for the same reason and none showed a figure, so no more were begun: "
            f"{desk.broken}; mend it and give the same command again, with search.retry_failed=true for those too"
        )
    elif ledger.live() or (desk.rule.sets_aside and not desk.over):
        _leave(books)
    else:
        desk.close_aside()
        if desk.out_of_patience:
            console.note(f"{config.search.patience} trials in a row brought nothing better: no more are begun")


def _quiet_tune() -> None:
    """Leave Tune nothing to write and to say: MLflow, the study and this program's own lines have it all."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    # At Ctrl-C it would wait for trials, minutes long; what they reached is in their checkpoints.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def _run_tune(desk: Desk, books: Books, left: int) -> None:
    from ray import tune as ray_tune

    config = books.config
    session = config.run_dir / "tune"
    shutil.rmtree(session, ignore_errors=True)  # Tune's notes of an earlier life; the study is what is continued
    resources = trial_resources(config)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(TrialActor, resources),
        tune_config=ray_tune.TuneConfig(
            search_alg=StudySearch(desk),
            scheduler=StudyScheduler(desk),
            num_samples=-1 if desk.rule.sets_aside else left,  # a trial that goes on is one more to Tune
            time_budget_s=config.search.time_s,
            # A trial on Ray's workers ends with its process, and one on a GPU can spoil it for the next.
            reuse_actors=config.workers == 0 and "GPU" not in resources,
            trial_name_creator=lambda trial: f"trial-{trial.config['number']:04d}",
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}-{trial.trial_id}",
        ),
        run_config=ray_tune.RunConfig(
            name=session.name,
            storage_path=str(session.parent),
            failure_config=ray_tune.FailureConfig(max_failures=config.search.retries),
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
            verbose=0,
        ),
    )
    with _releasing(books):
        tuner.fit()


@contextmanager
def _releasing(books: Books) -> Iterator[None]:
    """Meanwhile give back, again and again, what trials that ended had reserved."""
    from efafnet.pipelines.search.placement import release

    done = threading.Event()

    def watch() -> None:
        seen: set[int] = set()
        while not done.wait(RELEASE_EVERY_S):
            # Only those that had ended a round ago: their processes must be gone, or they would reserve once more.
            for number in seen.intersection(books.over):
                release(books.trials_dir / f"{number:04d}" / PLACEMENT)
            seen = set(books.over)

    thread = threading.Thread(target=watch, name="release", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _let_end(books: Books) -> None:
    """Wait until the processes of stopped trials are gone: they would write checkpoints again that were tidied away."""
    deadline = time.monotonic() + ENDING_S
    for number in books.over:
        directory = RunDirectory(books.trials_dir / f"{number:04d}")
        while time.monotonic() < deadline:
            with suppress(RunConflictError), directory.locked():
                break
            time.sleep(0.1)


def _leave(books: Books) -> None:
    """Leave what still runs when the time was up, or what an interruption left, to be continued.

    Nobody has judged those trials: what they reached is in their checkpoints, and the study knows them as running.
    """
    if books.config.search.time_s is None:
        raise KeyboardInterrupt
    live = books.leave()
    console.note(
        f"search.time_s={books.config.search.time_s:g} is over: {books.ledger.over()} of {books.ledger.trials} trials "
        f"over, {live} left where they stand; the same command goes on with them"
    )


def rule_of(search: SearchConfig, levels: list[int], grace: int) -> Rule:
    """The rule by which trials of a search end early, with its rungs and the samples that every trial gets."""
    reduction, finish = search.reduction, search.finish
    if search.promotes:
        return Rule(
            lambda curves, number: halving_pauses(curves, number, levels, reduction),
            lambda standings: halving_promotes(standings, levels, reduction),
        )
    if search.stop == "asha":
        return Rule(lambda curves, number: halving_stops(curves, number, levels, reduction))
    if search.stop == "median":
        return Rule(lambda curves, number: median_stops(curves, number, grace))
    if search.stop == "constant":
        return Rule(
            lambda curves, number: constant_pauses(curves, number, grace),
            lambda standings: constant_promotes(standings, grace, finish),
        )
    return Rule(lambda _curves, _number: False)


def trial_resources(config: TrainConfig) -> dict[str, float]:
    """What Tune reserves for the own process of a trial that was placed. With Ray's workers that is nothing but a place
    on the head node: the workers reserve for themselves, and two 1-CPU trials fit a machine with two CPUs exactly.
    """
    return {"node:__internal_head__": 0.001} if config.workers > 0 else needs(config)
