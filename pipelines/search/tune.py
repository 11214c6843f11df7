"""``efafnet tune``: a search, from its checks to its result. The one module of the search that runs Ray Tune."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from efafnet.pipelines.runs.children import STAGE
from efafnet.pipelines.runs.concurrency import driver_resources, launch
from efafnet.pipelines.runs.failures import SAME_REASON
from efafnet.pipelines.runs.set_line import set_line
from efafnet.pipelines.runs.settings import automatic_name, check_run, names_of
from efafnet.pipelines.search.config import TuneConfig, trained_as
from efafnet.pipelines.search.controller import Controller
from efafnet.pipelines.search.costs import MOST_NETWORKS
from efafnet.pipelines.search.limits import Limits
from efafnet.pipelines.search.opening import open_ledger
from efafnet.pipelines.search.outcome import SearchResult, conclude, show
from efafnet.pipelines.search.searcher import StudyScheduler, StudySearch
from efafnet.pipelines.search.study_db import lasting
from efafnet.pipelines.search.tracking import SearchTracking
from efafnet.pipelines.search.trial import TrialActor
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.recording import open_record
from efafnet.pipelines.training.reservations import PLACEMENT
from efafnet.pipelines.training.rundir import RunConflictError, RunDirectory
from efafnet.platform import console
from efafnet.platform.configuration import absolute_paths, to_yaml
from efafnet.platform.mlflow_pages import narrowed
from efafnet.platform.storage import sha256_json
from efafnet.platform.tracking import finish_run
from efafnet.tune_spaces.checking import check_space
from efafnet.tune_spaces.reading import load_space
from efafnet.tune_spaces.refused import refuse
from efafnet.tune_spaces.space import Space, walk

RELEASE_EVERY_S = 3.0
"""Seconds between two looks for trials that ended and left a reservation."""
ENDING_S = 20.0
"""Most seconds that the search waits in the end for processes of stopped trials."""


def run_tune(config: TuneConfig) -> SearchResult:
    """Search and show what was found."""
    return tune(config, shown=show)


def tune(
    config: TuneConfig, shown: Callable[[SearchTracking, SearchResult], None] = lambda _tracking, _result: None
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
    space = load_space(config.space, names_of(config, inputs))
    refuse(space.source, walk(space.entries), config.unequal())
    tried = check_space(space, lambda settings: check_run(trained_as(config, settings), inputs))
    limits = _limits_of(config, space, inputs.skeleton.num_joints)
    identity = inputs.identity(config) | {"space": space.text}
    config = config.model_copy(update={"name": automatic_name(config, space.name, identity)})
    console.note(f"search {config.name}: {space.about or space.name} ({tried} extreme settings checked)")
    directory = RunDirectory(config.run_dir)
    with directory.locked():
        record = directory.claim(identity, config.changeable())
        ledger = open_ledger(config, inputs, space, limits, sha256_json(identity)[:16])
        record = open_record(
            config, inputs, record, parent_run_id=None, tags={STAGE: "search"}, about=_about(config, space)
        )
        directory.record(record, to_yaml(config))
        tracking = SearchTracking(config, inputs, space, ledger, record)
        if tracking.ledger.own():
            tracking.reconcile()
        try:
            with lasting(config.search.storage):
                _search(tracking)
                result = conclude(tracking)
        except BaseException as error:
            tracking.stopped(error)
            raise
        finally:
            tracking.close()
        if record.mlflow_run_id is not None and record.tracking_uri is not None:
            finish_run(record.tracking_uri, record.mlflow_run_id)
        shown(tracking, result)
        return result


def _about(config: TuneConfig, space: Space) -> str:
    """What the search is, for its description in MLflow."""
    keys = ", ".join(f"`{entry.key}`" for entry in space.searched)
    sentence = f" {space.about}" if space.about else ""
    return f"Search `{config.name}` over `{space.name}`: {keys}.{sentence}\n\n```yaml\n{narrowed(space.text)}\n```"


def _limits_of(config: TuneConfig, space: Space, num_joints: int) -> Limits | None:
    """The limits of a search, within which its space has a network; None for none."""
    if not config.search.limit.values():
        return None
    limits = Limits(config.search.limit, lambda settings: trained_as(config, settings), num_joints)
    if config.search.sampler != "grid":  # of a grid every point is looked at
        limits.check_space(space, config.search.seed)
    return limits


def _search(tracking: SearchTracking) -> None:
    """Run what is left to run."""
    ledger, config = tracking.ledger, tracking.config
    left = ledger.remaining()
    if left == 0:
        console.note("this search had ended before; raise search.trials to go on, or choose another name=…")
        return
    if config.search.against == "latency_ms":
        _measure_networks(tracking)
    _quiet_tune()
    there = launch([config], config.search.concurrency, count=left)
    config = tracking.config = there.configs[0]
    tracking.environment = there.environment
    console.note(f"{there.cluster}; {left} trials to run, {min(left, there.concurrency())} at a time")
    rule = config.search.rule(*config.rungs(tracking.inputs))
    controller = Controller(ledger, rule, tracking, there.concurrency, config.search.patience)
    _run_tune(controller, tracking, left)
    _let_end(tracking)
    tracking.tell_stopped_again()
    if controller.broken:
        console.warn(
            f"{SAME_REASON} trials failed for the same reason and none showed a figure, so no more were begun: "
            f"{controller.broken}; mend it and give the same command again, with search.retry_failed=true for those too"
        )
    elif ledger.live() or (controller.rule.pauses and not controller.over):
        _leave(tracking)
    else:
        controller.close_paused()
        if ledger.nothing_left:
            console.warn(f"{ledger.nothing_left}; no more trials are begun")
        if controller.out_of_patience:
            console.note(f"{config.search.patience} trials in a row brought nothing better: no more are begun")


def _measure_networks(tracking: SearchTracking) -> None:
    """Measure every network of the space while nothing else runs here, if they are few enough."""
    config = tracking.config
    count = tracking.costs.measure(tracking.space, lambda settings: trained_as(config, settings))
    if count is None:
        console.note(
            f"latency_ms is measured as trials begin, beside those that run: {tracking.space.source} has more than "
            f"{MOST_NETWORKS} networks"
        )
    else:
        console.note(f"latency_ms of {count} networks measured before the first trial")


def _quiet_tune() -> None:
    """Leave Tune nothing to write and to say: MLflow, the study and this program's own lines have it all."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    # At Ctrl-C it would wait for trials, minutes long; what they reached is in their checkpoints.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


def _run_tune(controller: Controller, tracking: SearchTracking, left: int) -> None:
    from ray import tune as ray_tune

    config = tracking.config
    session = config.run_dir / "tune"
    shutil.rmtree(session, ignore_errors=True)  # Tune's notes of an earlier life; the study is what is continued
    resources = driver_resources(config)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(TrialActor, resources),
        tune_config=ray_tune.TuneConfig(
            search_alg=StudySearch(controller),
            scheduler=StudyScheduler(controller),
            num_samples=-1 if controller.rule.pauses else left,  # a trial that goes on is one more to Tune
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
    ledger = tracking.ledger
    with _releasing(tracking), set_line(config.name, "trials", ledger.trials, ledger.over()) as tracking.show:
        tracking.tell_line()
        tuner.fit()


@contextmanager
def _releasing(search: SearchTracking) -> Iterator[None]:
    """Meanwhile give back, again and again, what trials that ended had reserved."""
    from efafnet.pipelines.training.reservations import release

    done = threading.Event()

    def watch() -> None:
        seen: set[int] = set()
        while not done.wait(RELEASE_EVERY_S):
            # Only those that had ended a round ago: their processes must be gone, or they would reserve once more.
            for number in seen.intersection(search.over):
                release(search.dir_of(number) / PLACEMENT)
            seen = set(search.over)

    thread = threading.Thread(target=watch, name="release", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _let_end(tracking: SearchTracking) -> None:
    """Wait until the processes of stopped trials are gone: they would write checkpoints again that were tidied away."""
    deadline = time.monotonic() + ENDING_S
    for number in tracking.over:
        directory = RunDirectory(tracking.dir_of(number))
        while time.monotonic() < deadline:
            with suppress(RunConflictError), directory.locked():
                break
            time.sleep(0.1)


def _leave(tracking: SearchTracking) -> None:
    """Leave what still runs when the time was up, or what an interruption left, to be continued.

    Nobody has judged those trials: what they reached is in their checkpoints, and the study knows them as running.
    """
    if tracking.config.search.time_s is None:
        raise KeyboardInterrupt
    live = tracking.leave()
    ledger = tracking.ledger
    console.note(
        f"search.time_s={tracking.config.search.time_s:g} is over: {ledger.over()} of {ledger.trials} trials over, "
        f"{live} left where they stand; the same command goes on with them"
    )
