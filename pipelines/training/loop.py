"""The training loop: the same in a plain process and in every worker of a cluster. Knows neither Ray nor MLflow."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.preparation import prepare_job
from efafnet.pipelines.training.schedule import learning_rate


@dataclass(frozen=True)
class LoopResult:
    """How a run ended; the same on every worker."""

    checkpoint: Path
    """The best validated checkpoint, or the last one where nothing was validated."""
    metrics: dict[str, float]
    """As ``monitor.outcome_of`` names them: the checkpoint's figures, those of the run's end apart."""


def run(config: TrainConfig, context: PlainContext) -> LoopResult:
    """Train from the newest checkpoint of the run, or from the start, to the end of its plan.

    All workers call this with the same settings; paths in them must be absolute where workers run elsewhere.

    Raises:
        ValueError: the stores do not fit the settings, or training diverged.
        RunCancelledError: whoever supervises the run does not want it any more.
    """
    job = prepare_job(config, context)
    with closing(job), collected_between_points():
        for batch in job.batches():
            context.check()
            rate = learning_rate(config.schedule, config.optimizer.lr, job.progress.step, job.plan)
            losses = job.step(batch, rate)
            job.count(batch, losses, rate)
            if job.publishes:
                job.publish()
                gc.collect(1)
            if job.validates:
                job.validate()
            if job.saves:
                job.save()
            if job.ended:
                break
        job.conclude()
        # Rank 0 wrote the checkpoints; to the others its last one may not have appeared yet.
        chosen = context.agree(job.checkpoints.to_use() if context.rank == 0 else None)
        assert chosen is not None
        return LoopResult(chosen, job.outcome())


@contextmanager
def collected_between_points() -> Iterator[None]:
    """Keep Python's collector out of the steps: a pause of one worker is a pause of all, whenever it pleases.

    What was made before the loop is left alone for good; what the loop leaves is collected at the points of its curves.
    A program that has frozen what is to stay in it finds it frozen afterwards, and nothing of this run among it.
    """
    was_enabled, frozen_before = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    if not frozen_before:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()
        if was_enabled:
            gc.enable()
