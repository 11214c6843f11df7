"""The arithmetic of a step, against gradients and updates computed in other ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from efafnet.models.config import HeatmapConfig, LossConfig
from efafnet.models.heatmaps import encode
from efafnet.models.network import PoseOutput, normalise
from efafnet.models.settings import InputSize
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.config_groups import ComputeConfig, OptimizerConfig
from efafnet.pipelines.training.optimizer import build_optimizer
from efafnet.pipelines.training.step import Trainee, average_batch_norm, average_of, train_step
from efafnet.platform.machine import Precision

ROOT = Path(__file__).resolve().parents[1]
SIZE = InputSize(height=64, width=32)
JOINTS = 3


class Linear(nn.Module):
    """A network without batch norm, so that a sample's gradient does not depend on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.final = nn.Conv2d(3, JOINTS, 4, stride=4)
        self.auxiliary = nn.Conv2d(3, JOINTS, 8, stride=8)

    def forward(self, images: Tensor) -> PoseOutput:
        return PoseOutput(self.final(images), {"c3": self.auxiliary(images)} if self.training else {})


def batch_of(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (count, 3, 64, 32), dtype=torch.uint8, generator=generator),
        joints_px=torch.rand(count, JOINTS, 2, generator=generator) * 30,
        visibility=torch.randint(0, 3, (count, JOINTS), dtype=torch.uint8, generator=generator),
        rows=torch.arange(count),
        input_to_image=torch.eye(2, 3, dtype=torch.float64).repeat(count, 1, 1),
    )


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.images[rows], batch.joints_px[rows], batch.visibility[rows], batch.rows[rows],
                 batch.input_to_image[rows])  # fmt: skip


def trainee_of(
    optimizing: OptimizerConfig,
    *,
    network: Any = None,
    precision: Precision = "fp32",
    scaled: bool = False,
    **given: Any,
) -> Trainee:
    torch.manual_seed(3)
    network = network or Linear()
    settings: dict[str, Any] = {"global_batch": 8, "rank": 0, "world_size": 1, "loss": LossConfig(), **given}
    return Trainee(
        module=network,
        wrapped=network,
        optimizer=build_optimizer(optimizing, network),
        scaler=torch.amp.GradScaler("cpu", enabled=scaled),
        ema=average_of(network) if optimizing.ema_decay else None,
        input_size=SIZE,
        heatmap=HeatmapConfig(),
        optimizing=optimizing,
        compute=ComputeConfig(channels_last=False),
        precision=precision,
        seed=0,
        device=torch.device("cpu"),
        **settings,
    )


def test_parts_of_a_batch_stay_where_it_is() -> None:
    """No copy on the host: a pinned batch stays pinned, and its parts travel without a wait."""
    batch = batch_of(8)
    part = batch.part(2, 5)
    assert part.images.data_ptr() == batch.images[2].data_ptr()
    assert part.rows.tolist() == [2, 3, 4]
    assert len(part) == 3


def gradient(trainee: Trainee) -> Tensor:
    return torch.cat([p.grad.flatten() for p in trainee.module.parameters() if p.grad is not None])


def expected_gradient(trainee: Trainee, batch: Batch) -> tuple[float, Tensor]:
    """Loss and gradient from the definition: (1/N) sum over persons of 1/K sum over joints of half the squared error,
    plus a quarter of the same for the auxiliary head against the block means of the target."""
    target = encode(batch.joints_px, batch.visibility, SIZE, trainee.heatmap)
    output = trainee.module(normalise(batch.images))
    halved = nn.functional.avg_pool2d(target.heatmaps, 2)
    weights = target.weights.square()
    final = (0.5 * (output.heatmaps - target.heatmaps).square().mean((2, 3)) * weights).mean()
    auxiliary = (0.5 * (output.auxiliary["c3"] - halved).square().mean((2, 3)) * weights).mean()
    loss = final + 0.25 * auxiliary
    parts = torch.autograd.grad(loss, list(trainee.module.parameters()))
    return loss.item(), torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("held", [None, 3, 20])
def test_loss_and_gradient_are_the_global_batchs_mean(held: int | None) -> None:
    trainee, batch = trainee_of(OptimizerConfig(), micro_batch=held), batch_of(8)
    loss, expected = expected_gradient(trainee, batch)
    losses = train_step(trainee, batch, 0, 0.0)
    assert losses.total.item() == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradient(trainee), expected, rtol=1e-4, atol=1e-7)
    assert losses.grad_norm.item() == pytest.approx(expected.norm().item(), rel=1e-4)
    by_head = losses.by_head["final"] + 0.25 * losses.by_head["c3"]
    assert by_head.item() == pytest.approx(loss, rel=1e-5)
    assert losses.by_joint.mean().item() == pytest.approx(losses.by_head["final"].item(), rel=1e-5)


def test_workers_with_slices_of_different_sizes_average_to_the_global_mean() -> None:
    batch = batch_of(8)
    loss, expected = expected_gradient(trainee_of(OptimizerConfig()), batch)
    gradients, shares = [], []
    for rank, rows in enumerate((slice(0, 3), slice(3, 6), slice(6, 8))):
        worker = trainee_of(OptimizerConfig(), rank=rank, world_size=3)
        shares.append(train_step(worker, rows_of(batch, rows), 0, 0.0).total.item())
        gradients.append(gradient(worker))
    assert sum(shares) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(torch.stack(gradients).mean(dim=0), expected, rtol=1e-4, atol=1e-7)


def test_draws_begin_from_the_step_whatever_was_drawn_before() -> None:
    """As after PyTorch's own seeding, of which a step does what concerns its device."""
    torch.rand(5)
    train_step(trainee_of(OptimizerConfig(), rank=1, world_size=2), batch_of(8), 7, 0.0)
    drawn = torch.rand(3)
    torch.manual_seed(7 * 4_099 + 1)
    assert torch.equal(drawn, torch.rand(3))


def test_the_first_adam_step_moves_every_weight_by_the_learning_rate() -> None:
    # m / (sqrt(v) + eps) is the sign of the gradient after the bias correction of step 1.
    trainee = trainee_of(OptimizerConfig(lr=1.0))
    before = torch.cat([p.detach().flatten().clone() for p in trainee.module.parameters()])
    train_step(trainee, batch_of(8), 0, 0.01)
    after = torch.cat([p.detach().flatten() for p in trainee.module.parameters()])
    moved = before - after
    strong = gradient(trainee).abs() > 1e-4
    assert strong.sum() > 100
    torch.testing.assert_close(moved[strong], 0.01 * gradient(trainee)[strong].sign(), rtol=2e-3, atol=1e-6)


def test_clipping_scales_the_whole_gradient_to_its_limit() -> None:
    free, clipped = trainee_of(OptimizerConfig()), trainee_of(OptimizerConfig(clip_norm=0.01))
    norm = train_step(free, batch_of(8), 0, 0.0).grad_norm
    assert norm > 0.05
    assert train_step(clipped, batch_of(8), 0, 0.0).grad_norm == norm  # told before clipping
    torch.testing.assert_close(gradient(clipped), gradient(free) * (0.01 / norm.item()), rtol=1e-4, atol=1e-8)


def test_loss_scaling_does_not_change_the_step() -> None:
    plain, scaled = trainee_of(OptimizerConfig()), trainee_of(OptimizerConfig(), scaled=True)
    for step in range(3):
        # A power of two as scale: exact in floating point.
        torch.testing.assert_close(
            train_step(scaled, batch_of(8, step), step, 1e-3).total,
            train_step(plain, batch_of(8, step), step, 1e-3).total,
            rtol=0, atol=0,
        )  # fmt: skip
    for a, b in zip(plain.module.parameters(), scaled.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_half_precision_computes_the_network_and_not_the_loss() -> None:
    exact = train_step(trainee_of(OptimizerConfig()), batch_of(8), 0, 0.0)
    half = train_step(trainee_of(OptimizerConfig(), precision="bf16"), batch_of(8), 0, 0.0)
    assert half.total.dtype == half.by_joint.dtype == torch.float32
    assert half.total.item() != exact.total.item()
    assert half.total.item() == pytest.approx(exact.total.item(), rel=0.02)


def test_the_moving_average_starts_fast_and_follows_the_weights() -> None:
    trainee = trainee_of(OptimizerConfig(ema_decay=0.5))
    assert trainee.ema is not None
    assert trainee.published is trainee.ema
    name = "final.bias"
    average = trainee.module.state_dict()[name].clone()
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12)):  # (1 + step) / (10 + step), below .5 so far
        train_step(trainee, batch_of(8, step), step, 0.01)
        average = decay * average + (1 - decay) * trainee.module.state_dict()[name]
    torch.testing.assert_close(trainee.ema.state_dict()[name], average)
    train_step(trainee, batch_of(8, 9), 1000, 0.01)  # 1001 / 1010 is above the limit
    average = 0.5 * average + 0.5 * trainee.module.state_dict()[name]
    torch.testing.assert_close(trainee.ema.state_dict()[name], average)


def test_a_person_without_joints_adds_nothing_but_counts() -> None:
    batch = batch_of(8)
    batch.visibility[4:] = 0
    half = rows_of(batch, slice(0, 4))
    with_empty = train_step(trainee_of(OptimizerConfig()), batch, 0, 0.0).total.item()
    without = train_step(trainee_of(OptimizerConfig(), global_batch=4), half, 0, 0.0).total.item()
    assert with_empty == pytest.approx(without / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0}, "lr must be positive"),
        ({"lr": math.nan}, "finite"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"clip_norm": -1}, "null for no clipping"),
        ({"ema_decay": 1.0}, "between 0 and 1"),
        ({"weight_decay": -0.1}, "not be negative"),
    ],
)
def test_impossible_optimizers_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimizerConfig.model_validate(settings)


def test_batch_norm_statistics_become_the_mean_of_the_workers() -> None:
    trainee = trainee_of(OptimizerConfig(ema_decay=0.9), network=nn.BatchNorm2d(2), world_size=2)
    assert trainee.ema is not None
    own, average = (dict(network.named_buffers()) for network in (trainee.module, trainee.ema))
    own["running_mean"][:] = torch.tensor([1.0, 2.0])
    own["num_batches_tracked"].fill_(7)
    # The other worker has 3 more in every statistic: of the means (in the average still 0) and of the variances (1).
    average_batch_norm(trainee, lambda values: values + (values + 3))
    assert own["running_mean"].tolist() == [2.5, 3.5]
    assert own["running_var"].tolist() == [2.5, 2.5]
    assert own["num_batches_tracked"] == 7
    assert average["running_mean"].tolist() == [1.5, 1.5]
    assert average["running_var"].tolist() == [2.5, 2.5]
