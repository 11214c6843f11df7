"""Validation between training steps: every worker predicts its share of the persons, the first computes the figures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efafnet.models.network import PoseNetwork
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.config import ScoringConfig
from efafnet.pipelines.evaluation.gallery import write_galleries
from efafnet.pipelines.evaluation.inference import predict_batches
from efafnet.pipelines.evaluation.predictions import PERSON_COLUMNS, Predictions, coco_results
from efafnet.pipelines.evaluation.results_file import reference_of
from efafnet.pipelines.evaluation.scoring import Scored, score_results, write_picture
from efafnet.pipelines.evaluation.trained import filled_network
from efafnet.pipelines.evaluation.visibility import (
    META,
    Calibration,
    NoCalibrationError,
    calibrate_on,
    calibration_of,
    shown_as_sure,
)
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.costs import metered
from efafnet.pipelines.training.inputs import val_reader
from efafnet.platform import console
from efafnet.platform.storage import atomic_directory, make_directory, read_sealed, write_json, write_sealed

SCORES = "metrics.json"
"""Figures, their intervals and the mistakes of a validation, beside its pictures."""


def validate(
    config: TrainConfig, network: PoseNetwork, store: CropStore, context: PlainContext, step: int
) -> dict[str, float]:
    """Return the figures of ``network`` on every person of ``store``, and the ``seconds`` it took, on all workers.

    They are what `efafnet evaluate` finds. Pictures of the best and worst persons and of the errors go to
    ``pictures_of(config, step)``; how probably joints are visible is then known to ``calibrated(config, step)``.

    Raises:
        ValueError: the network puts out NaN.
    """
    began = time.monotonic()
    parts = context.gather(predict_share(config, network, store, context))
    figures: dict[str, float] = {}
    if context.rank == 0:
        predictions = Predictions.concat(parts)
        scored = score(config, store, predictions)
        figures = scored.figures
        calibration = _calibrate(config, store, predictions, step)
        if config.validation.overlays:
            joints, sure_from = store.skeleton.joints, config.test.joint_score_threshold
            sure = shown_as_sure(calibration, predictions.scores, joints, sure_from)
            _draw(config, store, predictions, scored, sure, pictures_of(config, step))
    return context.agree({**figures, "seconds": time.monotonic() - began})


def pictures_of(config: TrainConfig, step: int) -> Path:
    """Directory of the pictures of the validation after ``step`` steps."""
    return config.run_dir / "validation" / f"step-{step:08d}"


def _calibration_file(config: TrainConfig, step: int) -> Path:
    return config.run_dir / "validation" / f"visibility-{step:08d}.json"


def _calibrate(config: TrainConfig, store: CropStore, predictions: Predictions, step: int) -> Calibration | None:
    """Find and write how probably joints are visible, where the store can say; a full disk costs the file."""
    file = _calibration_file(config, step)
    truth = reference_of(store.path, store.digest).truth
    try:
        found = calibrate_on(store, predictions, truth, flip_test=config.test.flip_test)
    except NoCalibrationError:
        return None
    try:
        make_directory(file.parent)
        write_sealed(file, found.model_dump(mode="json"))
    except OSError as error:
        console.warn(f"the calibration of visibility was not written: {error}")
    return found


def calibrated(config: TrainConfig, step: int) -> dict[str, Any]:
    """The entry of a checkpoint's metadata that the validation after ``step`` steps gave; nothing where none did."""
    try:
        return {META: read_sealed(_calibration_file(config, step))}
    except (OSError, ValueError):
        # There is none, or a disk garbled it: a run goes on without.
        return {}


def val_metrics(config: TrainConfig, step: int, figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of a validation as the tracking server names them, with the Brier score of visibility beside."""
    calibration = calibration_of(calibrated(config, step))
    beside = calibration.figures() if calibration else {}
    return {f"val/{name}": value for name, value in {**figures, **beside}.items()}


def validate_weights(config_json: str, weights: Mapping[str, Tensor], step: int, device: str) -> dict[str, float]:
    """Validate a network beside the training it comes from, in a process of its own; returns what ``validate`` does.

    Args:
        config_json: the run's settings.
        weights: of the network to validate.
        step: steps it was trained for.
        device: where to compute, ``cpu`` or ``cuda``.
    """
    config = TrainConfig.model_validate_json(config_json)
    torch.set_num_threads(config.worker.threads)
    assert config.data.val is not None, "who validates has a store"
    store = CropStore.open(config.data.val)
    network = filled_network(config.network, store.skeleton.num_joints, weights, f"the network of step {step}")
    memory_format = torch.channels_last if config.compute.channels_last else torch.contiguous_format
    network = network.to(device).to(memory_format=memory_format)
    context = PlainContext(torch.device(device))
    with metered(config, context.device):
        return validate(config, network, store, context, step)


def predict_share(config: TrainConfig, network: PoseNetwork, store: CropStore, context: PlainContext) -> Predictions:
    """Predict this worker's share of the persons of ``store``, in the original images' pixels."""
    k = store.skeleton.num_joints
    rows, joints, scores = [np.zeros(0, np.int64)], [np.zeros((0, k, 2))], [np.zeros((0, k), np.float32)]
    with val_reader(config, store, context) as reader:
        predicted = predict_batches(
            network,
            reader.batches(),
            context.device,
            skeleton=store.skeleton,
            input_size=config.input,
            heatmap=config.heatmap,
            flip_test=config.test.flip_test,
            precision=config.test.precision,
        )
        for batch, joints_px, joint_scores in predicted:
            rows.append(batch.rows.numpy())
            joints.append(joints_px)
            scores.append(joint_scores)
    people = store.columns(list(PERSON_COLUMNS))
    return Predictions.gather(people, np.concatenate(rows), np.concatenate(joints), np.concatenate(scores))


def score(config: TrainConfig, store: CropStore, predictions: Predictions) -> Scored:
    """Score predictions of every person of ``store``: OKS AP and AR, by crowding on CrowdPose, or PCKh on MPII."""
    reference = reference_of(store.path, store.digest)
    results = coco_results(
        predictions,
        skeleton=store.skeleton,
        input_size=config.input,
        padding=config.augmentation.padding,
        test=config.test,
        by_person=reference.by_person,
    )
    # What people look at: intervals and mistakes cost seconds, and go with the pictures.
    scoring = ScoringConfig() if config.validation.overlays else ScoringConfig(bootstrap=0, errors=False)
    return score_results(results, reference, scoring)


def _draw(
    config: TrainConfig,
    store: CropStore,
    predictions: Predictions,
    scored: Scored,
    sure: NDArray[np.bool_],
    folder: Path,
) -> None:
    """Draw; a full disk costs the pictures and not the run."""
    try:
        with atomic_directory(folder, overwrite=True) as fresh:
            write_json(fresh / SCORES, scored.to_json())
            write_picture(scored, fresh / "errors.png", f"{config.name}, {folder.name}")
            write_galleries(
                fresh,
                store,
                predictions,
                reference_of(store.path, store.digest).truth,
                count=config.validation.overlays,
                input_size=config.input,
                padding=config.augmentation.padding,
                sure=sure,
            )
    except OSError as error:
        console.warn(f"the pictures of the validation were not written: {error}")
