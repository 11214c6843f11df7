"""``efafnet train``: says at once that it begins, because importing what trains takes two seconds."""

from __future__ import annotations

from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform import console
from efafnet.platform.garbage import importing


def run_train(config: TrainConfig) -> None:
    """Train and show how it ended."""
    console.note(f"run {config.name} in {config.run_dir}")
    with importing():
        from efafnet.pipelines.training import ray_run

    ray_run.run_train(config)
