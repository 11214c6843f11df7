"""The arithmetic of one training step, the same for every precision, accumulation and number of workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from efafnet.models.config import HeatmapConfig, LossConfig
from efafnet.models.heatmaps import encode
from efafnet.models.losses import pose_loss
from efafnet.models.network import PoseNetwork, PoseOutput, normalise
from efafnet.models.settings import InputSize
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.config_groups import ComputeConfig, OptimizerConfig
from efafnet.platform import machine
from efafnet.platform.machine import Precision


@dataclass(frozen=True)
class Averaged:
    """The tensors of a moving average and those that it follows, pair by pair."""

    moving: tuple[list[Tensor], list[Tensor]]
    """Weights and batch-norm statistics."""
    copied: tuple[list[Tensor], list[Tensor]]
    """Counters, which have no average."""

    @classmethod
    def of(cls, average: nn.Module, network: nn.Module) -> Averaged:
        """Pair the tensors of two networks of the same make."""
        found: dict[bool, tuple[list[Tensor], list[Tensor]]] = {True: ([], []), False: ([], [])}
        follows = zip(_tensors(average), _tensors(network), strict=True)
        for mean, value in follows:
            means, values = found[value.is_floating_point()]
            means.append(mean)
            values.append(value)
        return cls(found[True], found[False])


def _tensors(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]


@dataclass
class Trainee:
    """What a step needs: the network in its wrappings, the optimizer, and the settings of the arithmetic."""

    module: PoseNetwork
    """The bare network: its parameters and buffers are the run's weights."""
    wrapped: nn.Module
    """The same network as the step calls it: distributed and compiled where asked."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Loss scaling for fp16; passes everything through otherwise."""
    ema: PoseNetwork | None
    """Moving average of the weights."""
    input_size: InputSize
    heatmap: HeatmapConfig
    loss: LossConfig
    optimizing: OptimizerConfig
    compute: ComputeConfig
    precision: Precision
    seed: int
    global_batch: int
    """Samples per step over all workers."""
    rank: int
    world_size: int
    device: torch.device
    origin: str = ""
    """One line on where the network's weights came from at the start of the run; empty for random ones."""
    ddp: DistributedDataParallel | None = None
    """Exchanges gradients in the backward pass, somewhere inside ``wrapped``; None for one worker."""
    micro_batch: int | None = None
    """Crops that the device holds at once; a larger slice is computed in parts. None for any number."""
    parameters: list[nn.Parameter] = field(init=False)
    """Of ``module``. Kept, as is ``averaged``: walking a network takes longer than launching what is done to it."""
    averaged: Averaged | None = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = list(self.module.parameters())
        self.averaged = None if self.ema is None else Averaged.of(self.ema, self.module)

    @property
    def published(self) -> PoseNetwork:
        """The network to validate and to hand out: the moving average if there is one."""
        return self.module if self.ema is None else self.ema


@dataclass
class StepLosses:
    """Losses of this worker's slice of one step, as shares of the global batch: their sum over workers is the mean."""

    total: Tensor
    """() what was minimised."""
    by_head: dict[str, Tensor]
    """Each head's () share."""
    by_joint: Tensor
    """(K,) loss of each joint at the final head."""
    grad_norm: Tensor
    """() L2 norm of the averaged gradient before clipping; equal on all workers. Not finite in a step that fp16's
    loss scaling skipped."""


def train_step(trainee: Trainee, batch: Batch, step: int, learning_rate: float) -> StepLosses:
    """Do the 0-based optimizer step ``step`` on this worker's slice of the global batch.

    Workers average their gradients. Each weights its samples by ``world_size / global_batch``, so that the average is
    the mean over the global batch even when the slices differ in size.
    """
    # Drawn from the step, not from a running generator: nothing to save, and the same after any restart.
    seed_draws(step_seed(trainee.seed, step, trainee.rank), trainee.device)
    for group in trainee.optimizer.param_groups:
        group["lr"] = learning_rate
    trainee.optimizer.zero_grad(set_to_none=True)
    parts = [backward(trainee, part, synchronise) for part, synchronise in micro_batches(trainee, batch)]
    grad_norm = update(trainee)
    move_average(trainee, step)
    return combined(parts, grad_norm)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return what a worker's draws in a step begin from; torch takes 64 bits."""
    return (seed * 1_000_003 + step) * 4_099 + rank


def seed_draws(seed: int, device: torch.device) -> None:
    """Let what is drawn on the CPU and on ``device`` begin from ``seed``.

    ``torch.manual_seed`` seeds every kind of device that PyTorch knows. For each kind that is not there it writes down
    the stack of whoever asked, .4 ms a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)


def update(trainee: Trainee) -> Tensor:
    """Clip the gradients that were added up and let the optimizer move the weights; the () norm before clipping."""
    trainee.scaler.unscale_(trainee.optimizer)
    grad_norm = nn.utils.get_total_norm([p.grad for p in trainee.parameters if p.grad is not None])
    if trainee.optimizing.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(trainee.parameters, trainee.optimizing.clip_norm, grad_norm)
    trainee.scaler.step(trainee.optimizer)
    trainee.scaler.update()
    return grad_norm


def combined(parts: list[StepLosses], grad_norm: Tensor) -> StepLosses:
    """The losses of a slice from those of its parts."""
    return StepLosses(
        total=_summed([part.total for part in parts]),
        by_head={name: _summed([part.by_head[name] for part in parts]) for name in parts[0].by_head},
        by_joint=_summed([part.by_joint for part in parts]),
        grad_norm=grad_norm,
    )


def backward(trainee: Trainee, part: Batch, synchronise: AbstractContextManager[object]) -> StepLosses:
    """Add the gradient of one micro-batch. The loss is computed in float32 whatever the network's precision."""
    part = part.to(trainee.device)
    target = encode(part.joints_px, part.visibility, trainee.input_size, trainee.heatmap)
    with synchronise:
        output = forward(trainee, part.images)
        loss = pose_loss(output, target, trainee.loss)
        share = loss.per_sample.sum() / trainee.global_batch
        trainee.scaler.scale(share * trainee.world_size).backward()
    return StepLosses(
        total=share.detach(),
        by_head={name: value.sum() / trainee.global_batch for name, value in loss.by_head.items()},
        by_joint=loss.by_joint.sum(dim=0) / trainee.global_batch,
        grad_norm=share.new_zeros(()),
    )


def forward(trainee: Trainee, images: Tensor) -> PoseOutput:
    """Run the wrapped network on uint8 images (N,3,H,W); heatmaps and auxiliary maps come back in float32."""
    inputs = normalise(images)
    if trainee.compute.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with machine.autocast(trainee.precision, trainee.device):
        output: PoseOutput = trainee.wrapped(inputs)
    return PoseOutput(
        heatmaps=output.heatmaps.float(),
        auxiliary={name: heatmaps.float() for name, heatmaps in output.auxiliary.items()},
    )


def micro_batches(trainee: Trainee, batch: Batch) -> Iterator[tuple[Batch, AbstractContextManager[object]]]:
    """Parts of the slice that the device holds; workers exchange gradients in the last one only."""
    count = len(batch)
    size = min(trainee.micro_batch or count, count)
    for first in range(0, count, size):
        silent = first + size < count and trainee.ddp is not None
        part = batch if size == count else batch.part(first, first + size)
        yield part, cast(DistributedDataParallel, trainee.ddp).no_sync() if silent else nullcontext()


def _summed(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum(dim=0)


@torch.no_grad()
def move_average(trainee: Trainee, step: int) -> None:
    """Move the average towards the weights; batch-norm statistics are averaged like the weights they belong to."""
    decay = trainee.optimizing.ema_decay
    if trainee.averaged is None or decay is None:
        return
    torch._foreach_lerp_(*trainee.averaged.moving, 1 - min(decay, (1 + step) / (10 + step)))
    if trainee.averaged.copied[0]:
        torch._foreach_copy_(*trainee.averaged.copied)


@torch.no_grad()
def average_batch_norm(trainee: Trainee, total: Callable[[Tensor], Tensor]) -> None:
    """Give all workers the same batch-norm statistics: the mean of theirs, each from its own slices of the batches.

    Args:
        trainee: its network's and its average's buffers are changed in place.
        total: sums a tensor over the workers; all of them call this together.
    """
    if trainee.world_size == 1:
        return
    networks = [network for network in (trainee.module, trainee.ema) if network is not None]
    buffers = [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()]
    means = total(torch.cat([buffer.flatten() for buffer in buffers])) / trainee.world_size
    for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def average_of(network: PoseNetwork) -> PoseNetwork:
    """Copy a network as the start of its moving average: evaluation mode, no gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)
