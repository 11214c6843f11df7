"""Validation between training steps: every worker predicts its share of the persons, the first computes the figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from efafnet.models.network import PoseNetwork
from efafnet.models.settings import Settings
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.inference import predict_batch
from efafnet.pipelines.evaluation.metrics import evaluate_predictions
from efafnet.pipelines.evaluation.predictions import PERSON_COLUMNS, Predictions, coco_results
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.inputs import val_reader

if TYPE_CHECKING:
    from efafnet.pipelines.training.config import TrainConfig


class ValidationConfig(Settings):
    """When and how a run is measured on its validation store. The end of the run is always validated."""

    every_epochs: float | None = Field(default=10, gt=0)
    """Epochs between two validations (a fraction is allowed); none for only one, at the end."""
    metric: str = "ap"
    """Figure by which the best checkpoint is chosen; larger is better."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations in a row without a new best figure; none to train to the end."""


def validate(config: TrainConfig, network: PoseNetwork, store: CropStore, context: PlainContext) -> dict[str, float]:
    """Return AP and AR of ``network`` on every person of ``store``, and the ``seconds`` it took, on all workers.

    Raises:
        ValueError: the network puts out NaN.
    """
    began = time.monotonic()
    parts = context.gather(predict_share(config, network, store, context))
    figures = _figures(config, store, parts) if context.rank == 0 else {}
    return context.agree({**figures, "seconds": time.monotonic() - began})


def predict_share(config: TrainConfig, network: PoseNetwork, store: CropStore, context: PlainContext) -> Predictions:
    """Predict this worker's share of the persons of ``store``, in the original images' pixels."""
    k = store.skeleton.num_joints
    rows, joints, scores = [np.zeros(0, np.int64)], [np.zeros((0, k, 2))], [np.zeros((0, k), np.float32)]
    reader = val_reader(config, store, context)
    for batch in reader.batches():
        joints_px, joint_scores = predict_batch(
            network,
            batch.to(context.device),
            skeleton=store.skeleton,
            input_size=config.input,
            heatmap=config.heatmap,
            flip_test=config.test.flip_test,
            precision=config.test.precision,
        )
        rows.append(batch.rows.numpy())
        joints.append(joints_px)
        scores.append(joint_scores)
    people = store.columns(list(PERSON_COLUMNS))
    return Predictions.gather(people, np.concatenate(rows), np.concatenate(joints), np.concatenate(scores))


def _figures(config: TrainConfig, store: CropStore, parts: list[Predictions]) -> dict[str, float]:
    results = coco_results(
        Predictions.concat(parts),
        skeleton=store.skeleton,
        input_size=config.input,
        padding=config.augmentation.padding,
        test=config.test,
    )
    return evaluate_predictions(results, store.ground_truth())
