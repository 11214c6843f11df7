"""The step in two processes that exchange gradients over gloo: how often they do, and that it adds up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from efafnet.pipelines.crops.order import slice_bounds
from efafnet.pipelines.training.config_groups import OptimizerConfig
from efafnet.pipelines.training.context import GroupContext
from efafnet.pipelines.training.speed import computing_ms
from efafnet.pipelines.training.step import Trainee, train_step
from tests.test_step import ROOT, Linear, batch_of, expected_gradient, gradient, rows_of, trainee_of
from tests.waiting import LIMIT_S

pytestmark = [pytest.mark.slow, pytest.mark.no_ray]


def join(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)


def averaged(gradients: torch.Tensor, sent: list[int]) -> torch.futures.Future[torch.Tensor]:
    """What DDP does by itself, noted."""
    sent.append(gradients.numel())
    work = torch.distributed.all_reduce(gradients.div_(2), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])


def worker_of(*, compiled: bool, held: int | None, rounded: bool = False) -> tuple[Trainee, list[int]]:
    """This process as one of two workers, and the sizes of what it has sent, where it sends float32."""
    context = GroupContext(torch.device("cpu"))
    network: Any = Linear()
    trainee = trainee_of(OptimizerConfig(), network=network, world_size=2, rank=context.rank, micro_batch=held)
    torch.distributed.broadcast(network.final.weight.data, 0)
    wrapped = context.wrap(network, "bf16" if rounded else "fp32")
    assert isinstance(wrapped, DistributedDataParallel)
    sent: list[int] = []

    if not rounded:
        wrapped.register_comm_hook(sent, lambda sent, bucket: averaged(bucket.buffer(), sent))
    trainee.ddp = wrapped
    # The compiler's front end, which is what decides how the wrapping is called; no machine code is made.
    compiling: Any = torch.compile(wrapped, dynamic=False, backend="aot_eager") if compiled else wrapped
    trainee.wrapped = compiling
    return trainee, sent


def train(rank: int) -> Iterator[tuple[Trainee, list[int]]]:
    """Two steps of every arrangement; both processes do the same."""
    for compiled in (False, True):
        for held in (None, 1):
            trainee, sent = worker_of(compiled=compiled, held=held)
            for _ in range(2):
                sent.clear()
                train_step(trainee, rows_of(batch_of(8), slice(*slice_bounds(8, rank, 2))), 0, 0.0)
                yield trainee, sent


def train_rounded() -> Trainee:
    """Enough steps with gradients in bf16 that DDP has measured one."""
    trainee, _ = worker_of(compiled=False, held=None, rounded=True)
    for _ in range(12):
        train_step(trainee, rows_of(batch_of(8), slice(*slice_bounds(8, trainee.rank, 2))), 0, 0.0)
    return trainee


@pytest.fixture
def _other_process(tmp_path: Path) -> Iterator[None]:
    program = (
        "import sys; from tests import test_distributed_step as case\n"
        "case.join(1, sys.argv[1])\n"
        "for _ in case.train(1): pass\n"
        "case.train_rounded()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    try:
        join(0, str(tmp_path))
        yield
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_other_process")
def test_gradients_are_exchanged_once_a_step_however_it_is_computed() -> None:
    """Whole or crop by crop, compiled or not: one exchange of all gradients, and the mean over the global batch."""
    for trainee, sent in train(0):
        _, expected = expected_gradient(trainee, batch_of(8))
        assert sent == [sum(p.numel() for p in trainee.module.parameters())]
        torch.testing.assert_close(gradient(trainee), expected, rtol=1e-4, atol=1e-7)
    # In bf16: each number to 8 bits, no better, and weights stay float32.
    began = time.monotonic()
    rounded = train_rounded()
    took_ms = 1000 * (time.monotonic() - began)
    _, expected = expected_gradient(rounded, batch_of(8))
    assert not torch.allclose(gradient(rounded), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradient(rounded), expected, rtol=0.02, atol=0.01 * float(expected.abs().max()))
    assert {p.dtype for p in rounded.parameters} == {torch.float32}
    assert 0 < computing_ms(rounded.ddp) < took_ms, "one of the steps"
