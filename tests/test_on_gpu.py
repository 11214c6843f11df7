"""What only a GPU can show: every way to take a step computes the same there, and no step waits for the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed
from torch import Tensor, nn

from benchmarks.bench_step import Mode, random_batch, trainee_of
from benchmarks.step_parts import FORMS, plain_forms
from efafnet.models import aligned
from efafnet.models.fasm import FeatureAggregation
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17
from efafnet.models.variants import Variant, variant
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.evaluation.inference import placed, predict_heatmaps
from efafnet.pipelines.training.config_groups import ComputeConfig, OptimizerConfig
from efafnet.pipelines.training.context import GroupContext
from efafnet.pipelines.training.graph import WARM_UP, CudaRecorder, GraphedStep
from efafnet.pipelines.training.optimizer import build_optimizer
from efafnet.pipelines.training.step import StepLosses, Trainee, average_of, train_step
from efafnet.platform import machine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = torch.device("cuda", 0)
COUNT = 8
BF16 = Mode("bf16", "bf16", ComputeConfig())
ROUNDED = 0.05
"""Relative difference of loss and gradient norm after a few steps in bf16, which keeps 8 bits: rounding alone."""


@pytest.fixture(autouse=True)
def _arithmetic() -> Iterator[None]:
    """Trainees set how this process computes in float32; other tests find it as it was."""
    with machine.arithmetic("fp32", DEVICE):
        yield


def small(name: str) -> Variant:
    """A network at full width on small crops: kernels see the real channels, and cuDNN has little to try."""
    return replace(variant(name), input=InputSize(height=96, width=64))


def trainee(name: str = "efafnet_r50_256x192", mode: Mode = BF16, **optimizing: Any) -> Trainee:
    torch.manual_seed(1)
    machine.set_float32(mode.precision)
    made = trainee_of(small(name), mode, COUNT, DEVICE)
    settings = OptimizerConfig(**optimizing)
    average = average_of(made.module) if settings.ema_decay else None
    return replace(made, optimizing=settings, optimizer=build_optimizer(settings, made.module), ema=average)


def host_batch() -> Batch:
    """As the reader hands them over: in pinned memory."""
    batch = random_batch(COUNT, small("efafnet_r50_256x192"), torch.device("cpu"))
    pinned = {name: getattr(batch, name).pin_memory() for name in ("images", "joints_px", "visibility")}
    return replace(batch, **pinned)


def figures(losses: StepLosses) -> list[float]:
    return torch.stack([losses.total, *losses.by_head.values(), losses.by_joint.sum(), losses.grad_norm]).tolist()


def assert_alike(ours: Trainee, theirs: Trainee, take: Callable[[int, Batch], StepLosses], steps: int) -> None:
    """Steps of ``take`` on ``ours`` and as written on ``theirs``: figures and weights alike."""
    batch = host_batch()
    for step in range(steps):
        found = figures(take(step, batch))
        expected = figures(train_step(theirs, batch, step, 1e-4))
        assert found == pytest.approx(expected, rel=ROUNDED), f"step {step}"
    for mine, other in zip(ours.module.state_dict().values(), theirs.module.state_dict().values(), strict=True):
        assert mine.isfinite().all()
        # Adam's first steps have the size of the rate, whatever the gradient's: signs of tiny ones may differ.
        assert (mine.double() - other.double()).abs().max() <= 2 * steps * 1e-4 + ROUNDED * other.double().abs().max()


def test_the_forms_for_gpus_are_the_plain_forms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole network, values and all gradients; splits padded although float64 gains nothing by it."""

    def narrow(fam: FeatureAggregation, _: Tensor) -> bool:
        return fam.split_channels % aligned.STEP != 0

    network = trainee().module.double()
    images = torch.randn(4, 3, 96, 64, device=DEVICE, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    outcomes = []
    for plain in ((), FORMS):
        network.zero_grad()
        with monkeypatch.context() as patched, plain_forms(plain):
            if not plain:
                patched.setattr(aligned, "is_faster", narrow)
            output = network(images)
            sum(t.square().sum() for t in (output.heatmaps, *output.auxiliary.values())).backward()
        outcomes.append([output.heatmaps.detach(), *(cast(Tensor, p.grad).clone() for p in network.parameters())])
    for found, wanted in zip(*outcomes, strict=True):
        # A bias before a batch norm has a gradient of zero but for rounding.
        assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max() + 1e-12


def test_the_forms_for_gpus_train_as_the_plain_forms_do_in_bf16() -> None:
    ours, theirs = trainee(), trainee()

    def plain(step: int, batch: Batch) -> StepLosses:
        with plain_forms(FORMS):
            return train_step(ours, batch, step, 1e-4)

    assert_alike(ours, theirs, plain, 3)


@pytest.mark.parametrize("held", [None, 3])
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_step_waits_for_nothing(held: int | None, precision: Any) -> None:
    made = replace(trainee(mode=Mode(precision, precision, ComputeConfig()), ema_decay=0.9, clip_norm=1.0))
    made = replace(made, micro_batch=held)
    batch = host_batch()
    for step in range(2):
        train_step(made, batch, step, 1e-4)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(made, batch, 2, 1e-4)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("held", [None, 3])
def test_a_graph_takes_the_steps_as_written(held: int | None) -> None:
    """With an average, clipping and rates; of parts of three, the last has two and runs as written."""
    ours, theirs = (
        replace(trainee(ema_decay=0.9, clip_norm=1.0, kind="adamw", weight_decay=0.1), micro_batch=held)
        for _ in range(2)
    )
    graphed = GraphedStep(ours)
    assert_alike(ours, theirs, lambda step, batch: graphed(ours, batch, step, 1e-4), WARM_UP + 4)
    assert graphed.recorded is not None
    assert len(graphed.recorded.part) == (held or COUNT)
    assert ours.optimizer.state_dict()["param_groups"] == theirs.optimizer.state_dict()["param_groups"]


def test_a_recording_that_fails_leaves_the_device_usable() -> None:
    with pytest.raises(RuntimeError):
        CudaRecorder()(lambda: torch.ones(1, device=DEVICE).sum().item())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.randn(1000, device=DEVICE).std().item() > 0.5
    launch, outcome = CudaRecorder()(lambda: torch.full((3,), 2.0, device=DEVICE).square())
    launch()
    assert outcome.tolist() == [4.0, 4.0, 4.0]


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.parametrize("graph", [False, True])
def test_a_compiled_step_is_the_step_as_written(graph: bool) -> None:
    ours, theirs = trainee("efafnet_nano"), trainee("efafnet_nano")
    ours.wrapped = cast(nn.Module, torch.compile(ours.module, dynamic=False))
    graphed = GraphedStep(ours)

    def take(step: int, batch: Batch) -> StepLosses:
        return (graphed if graph else train_step)(ours, batch, step, 1e-4)

    assert_alike(ours, theirs, take, WARM_UP + 2)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[GroupContext]:
    """A group of one over NCCL, which takes itself to be one of two: so that its network is wrapped."""
    where = f"file://{tmp_path}/group"
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl", init_method=where, rank=0, world_size=1)
    try:
        context = GroupContext(DEVICE)
        context.world_size = 2
        yield context
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gradients", ["fp32", "bf16"])
def test_a_step_whose_gradients_are_exchanged(group: GroupContext, compiled: bool, gradients: Any) -> None:
    ours, theirs = trainee("efafnet_nano"), trainee("efafnet_nano")
    wrapped: Any = group.wrap(ours.module, gradients)
    ours.ddp = wrapped
    ours.wrapped = cast(nn.Module, torch.compile(wrapped, dynamic=False)) if compiled else wrapped
    assert_alike(ours, theirs, lambda step, batch: train_step(ours, batch, step, 1e-4), 3)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_heatmaps_are_those_of_a_cpu(precision: Any, allowed: float) -> None:
    row = small("efafnet_r50_256x192")
    network = trainee().module
    network(torch.randn(COUNT, 3, 96, 64, device=DEVICE))  # statistics of batch norm that fit its weights
    images = host_batch().images
    places: list[tuple[torch.device, Any]] = [(DEVICE, precision), (torch.device("cpu"), "fp32")]
    on_gpu, on_cpu = (
        predict_heatmaps(
            placed(network, device), images.to(device), skeleton=COCO_17, heatmap=row.heatmap, flip_test=True,
            precision=wanted,
        ).cpu()
        for device, wanted in places
    )  # fmt: skip
    assert (on_gpu - on_cpu).abs().max() <= allowed * on_cpu.abs().max()
