"""The training loop: the same in a plain process and in every worker of a cluster. Knows neither Ray nor MLflow."""

from __future__ import annotations

import gc
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.preparation import prepare_job
from efafnet.pipelines.training.schedule import learning_rate
from efafnet.platform.garbage import collected_between_points


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
