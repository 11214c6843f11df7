"""Validation inside training: shares of the persons, equal figures however many workers, equal to a direct count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from efafnet.models.network import PoseNetwork, PoseOutput
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.predictions import Predictions
from efafnet.pipelines.training import validation
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.inputs import initial_network, open_inputs
from efafnet.pipelines.training.validation import predict_share, validate
from tests.training_cases import sbn_config_of


def setting(tmp_path: Path) -> tuple[TrainConfig, PoseNetwork, CropStore]:
    config = sbn_config_of(tmp_path)
    inputs = open_inputs(config)
    torch.manual_seed(0)
    assert inputs.val is not None
    return config, initial_network(config, inputs.skeleton)[0], inputs.val


def worker(rank: int, world_size: int) -> PlainContext:
    context = PlainContext(torch.device("cpu"))
    context.rank, context.world_size = rank, world_size
    return context


def test_workers_share_the_persons_and_the_figures_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, network, store = setting(tmp_path)
    alone = validate(config, network, store, worker(0, 1), 1)
    parts = [predict_share(config, network, store, worker(rank, 3)) for rank in range(3)]
    assert [len(part) for part in parts] == [4, 4, 3]  # 11 persons
    assert np.concatenate([part.rows for part in parts]).tolist() == list(range(11))
    context = worker(0, 1)
    monkeypatch.setattr(validation, "predict_share", lambda *_: None)
    monkeypatch.setattr(context, "gather", lambda _: parts)
    together = validate(config, network, store, context, 1)
    assert {**together, "seconds": 0} == {**alone, "seconds": 0}


def test_a_worker_without_persons_takes_part(tmp_path: Path) -> None:
    config, network, store = setting(tmp_path)
    parts = [predict_share(config, network, store, worker(rank, 13)) for rank in range(13)]
    assert [len(part) for part in parts] == [1] * 11 + [0] * 2
    assert len(Predictions.concat(parts)) == 11


def test_a_network_that_answers_the_truth_has_ap_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, network, store = setting(tmp_path)
    truth = np.asarray(store.columns(["joints_px"])["joints_px"].to_pylist()).reshape(-1, 4, 2)
    size = store.manifest.envelope.inputs[0]
    seen = 0

    def answer(images: torch.Tensor) -> PoseOutput:
        nonlocal seen
        # Boxes of 56 pixels, padded by 1.25 and cut at the picture's middle: 70 pixels become 64.
        rows = truth[seen : seen + len(images)]
        seen += len(images)
        heatmaps = torch.zeros(len(images), 4, size.height // 4, size.width // 4)
        # The store's boxes: (4, 4) to (60, 60), centre (32, 32).
        cells = np.rint(((rows - 32) * 64 / 70 + 32) / 4).astype(int)
        for n, person in enumerate(cells):
            for k, (x, y) in enumerate(person):
                heatmaps[n, k, y, x] = 1
        return PoseOutput(heatmaps, {})

    monkeypatch.setattr(network, "forward", answer)
    exact = config.model_copy(update={"test": config.test.model_copy(update={"flip_test": False})})
    figures = validate(exact, network, store, worker(0, 1), 1)
    assert figures["ap"] == pytest.approx(1.0)
    assert figures["ar"] == pytest.approx(1.0)
