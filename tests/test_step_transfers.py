"""A training step reads nothing from the host but its batch and waits for nothing; shown on a stand-in for a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from efafnet.models.variants import Variant, variant
from efafnet.pipelines.training.config_groups import ComputeConfig, OptimizerConfig
from efafnet.pipelines.training.optimizer import build_optimizer
from efafnet.pipelines.training.step import Trainee, average_of, train_step
from tests.step_transfers import StandInGpu, host_batch, network_on, stand_in_gpu

CROPS = 4


def trainee_on(gpu: StandInGpu, row: Variant, optimizing: OptimizerConfig, micro_batch: int | None) -> Trainee:
    network = network_on(gpu.device, row)
    return Trainee(
        module=network,
        wrapped=network,
        optimizer=build_optimizer(optimizing, network),
        scaler=torch.amp.GradScaler("cuda", enabled=False),
        ema=average_of(network) if optimizing.ema_decay else None,
        input_size=row.input,
        heatmap=row.heatmap,
        loss=row.loss,
        optimizing=optimizing,
        compute=ComputeConfig(),
        precision="fp32",
        seed=0,
        global_batch=CROPS,
        rank=0,
        world_size=1,
        device=gpu.device,
        micro_batch=micro_batch,
    )


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("efafnet_nano", {}, [4]),
        # What the networks copy is asked in test_transfers; of the rest of a step any shows as much.
        ("sbn_nano", {"ema_decay": 0.9, "clip_norm": 1.0, "kind": "adamw", "weight_decay": 0.1}, [4]),
        ("sbn_nano", {"ema_decay": 0.9, "clip_norm": 1.0}, [3, 1]),
    ],
)
def test_a_step_copies_its_batch_and_waits_for_nothing(name: str, settings: dict[str, Any], parts: list[int]) -> None:
    row = variant(name)
    with stand_in_gpu() as gpu:
        trainee = trainee_on(gpu, row, OptimizerConfig.model_validate(settings), parts[0])
        batch = host_batch(row, CROPS)
        train_step(trainee, batch, 0, 1e-3)  # makes the constants and the optimizer's state
        gpu.transfers.clear()
        train_step(trainee, batch, 1, 1e-3)
    height, width = row.input.height, row.input.width
    assert [t.shape for t in gpu.transfers] == [
        shape for n in parts for shape in ((n, 3, height, width), (n, 17, 2), (n, 17))
    ]
    assert all(transfer.asynchronous for transfer in gpu.transfers)


def test_a_step_that_looks_at_its_loss_is_found() -> None:
    row = variant("sbn_nano")
    with stand_in_gpu() as gpu, pytest.raises(AssertionError, match=r"test_step_transfers\.py"):
        float(train_step(trainee_on(gpu, row, OptimizerConfig(), None), host_batch(row, CROPS), 0, 1e-3).total)
