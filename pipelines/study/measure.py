"""From the files of runs to what the statistics take: their figures, and the same on other draws of the images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from efafnet.pipelines.evaluation.bootstrap import FIGURES, effective_images, resample
from efafnet.pipelines.evaluation.columns import detections
from efafnet.pipelines.evaluation.matching import match
from efafnet.pipelines.evaluation.results_file import reference_of
from efafnet.pipelines.runs.measured import figure_of, has_images, is_done, predictions_of
from efafnet.pipelines.study.statistics import PERCENT, Measured
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.inputs import Inputs
from efafnet.platform import console


def measure(
    rows: Iterable[str],
    runs: Mapping[tuple[str, int], TrainConfig],
    inputs: Inputs,
    *,
    metric: str,
    bootstrap: int,
) -> list[Measured]:
    """Collect the figures of all runs that are done, in percent. One that is no number says nothing of any row: it is
    told and left out.

    Args:
        rows: names of the rows, in order; those without runs are empty.
        runs: by row and seed.
        inputs: the stores.
        metric: the figure that counts.
        bootstrap: draws of the validation images; 0 for none, and none for figures that are not kept image by image.
    """
    by_image = has_images(inputs)
    done = {key: run for key, run in runs.items() if is_done(run, by_image) and _has_figure(run, metric)}
    drawn = by_image and bootstrap > 0 and metric in FIGURES
    draws = {key: _draws(run, inputs, metric, bootstrap) for key, run in done.items()} if drawn else {}
    return [
        Measured(
            name,
            {seed: PERCENT * figure_of(run, metric) for (row, seed), run in done.items() if row == name},
            {seed: each for (row, seed), (each, _) in draws.items() if row == name},
            min((images for _, images in draws.values()), default=math.inf),
        )
        for name in rows
    ]


def _has_figure(run: TrainConfig, metric: str) -> bool:
    """Whether a run that is done ended with a number."""
    figure = figure_of(run, metric)
    if not math.isfinite(figure):
        console.warn(f"run {run.name} is left out: its {metric} is {figure}; remove {run.run_dir} to train it again")
    return math.isfinite(figure)


def _draws(run: TrainConfig, inputs: Inputs, metric: str, replicates: int) -> tuple[NDArray[np.float64], float]:
    """The run's figure on each draw, percent, the same draws for every run of the same store; and how many images of
    equally many persons would say as much."""
    assert inputs.val is not None, "runs are measured on a validation store"
    truth = reference_of(inputs.val.path, inputs.val.digest).truth
    table = match(truth, detections(predictions_of(run), truth))
    return PERCENT * resample(table, replicates=replicates)[:, FIGURES.index(metric)], effective_images(table)
