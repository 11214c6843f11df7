"""What a device holds at once: found, halved, remembered, and refused where nothing is left to halve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from efafnet.models.network import PoseOutput
from efafnet.pipelines.training.config_groups import OptimizerConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.memory import LIMITS, DeviceMemory, MemoryRanOutError, ran_out
from efafnet.pipelines.training.step import Trainee, train_step
from efafnet.platform.configuration import ConfigurationError
from efafnet.platform.storage import read_json
from tests.test_step import Linear, batch_of, gradient, trainee_of


class Small(Linear):
    """Holds ``limit`` crops at once, on a device that says so as CUDA does. Counts what it was asked for."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.limit = limit
        self.asked: list[int] = []

    def forward(self, images: Tensor) -> PoseOutput:
        self.asked.append(len(images))
        images = self.norm(images)
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand a long explanation")
        return super().forward(images)


class Pair(PlainContext):
    """One of two workers, of which the other holds less."""

    world_size = 2

    def gather(self, value: Any) -> list[Any]:
        return [value, 2]


def memory_of(
    tmp_path: Path, limit: int, *, wanted: Literal["auto"] | int = "auto", probes: bool = True, **given: Any
) -> tuple[DeviceMemory, list[str]]:
    torch.manual_seed(3)
    network: Any = Small(limit)
    trainee = trainee_of(OptimizerConfig(), network=network)
    trainee.micro_batch = None if wanted == "auto" else wanted
    told: list[str] = []
    context = given.pop("context", PlainContext(torch.device("cpu")))
    return DeviceMemory(trainee, context, tmp_path, wanted, told.append, probes=probes), told


def asked(trainee: Trainee) -> list[int]:
    network: Any = trainee.module
    return list(network.asked)


def test_what_fits_is_found_before_the_first_step_and_leaves_no_trace(tmp_path: Path) -> None:
    memory, told = memory_of(tmp_path, 3)
    memory.step(batch_of(8), 0, 0.0)
    assert asked(memory.trainee) == [8, 4, 2, 2, 2, 2, 2]
    assert memory.trainee.micro_batch == 2
    assert read_json(tmp_path / LIMITS) == {"the CPU": 2}
    assert told[0].startswith(
        "memory ran out with 8 crops at once on the CPU: 4 from here on, the batch stays batch_size=8"
    )
    assert told[-1] == "compute.micro_batch=auto: 2 crops at once on the CPU"
    # The same as parts of 2 from the start: trying moved neither gradients nor batch norm's running statistics.
    plain, _ = memory_of(tmp_path / "other", 8, wanted=2)
    train_step(plain.trainee, batch_of(8), 0, 0.0)
    assert torch.equal(gradient(plain.trainee), gradient(memory.trainee))
    for ours, theirs in zip(memory.trainee.module.buffers(), plain.trainee.module.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_next_life_begins_with_what_is_known_to_fit(tmp_path: Path) -> None:
    memory_of(tmp_path, 3)[0].step(batch_of(8), 0, 0.0)
    later, _ = memory_of(tmp_path, 3)
    later.step(batch_of(8), 0, 0.0)
    assert max(asked(later.trainee)) == 2


@pytest.mark.parametrize("content", ["{", "[2]", '{"the CPU": "2"}', '{"the CPU": 0}', '{"the CPU": true}'])
def test_what_is_damaged_is_found_out_again(tmp_path: Path, content: str) -> None:
    (tmp_path / LIMITS).write_text(content)
    memory, _ = memory_of(tmp_path, 3)
    memory.step(batch_of(8), 0, 0.0)
    assert asked(memory.trainee)[:3] == [8, 4, 2]
    assert read_json(tmp_path / LIMITS) == {"the CPU": 2}


def test_a_step_that_runs_out_later_is_done_again_in_smaller_parts(tmp_path: Path) -> None:
    memory, told = memory_of(tmp_path, 8)
    memory.step(batch_of(8), 0, 1e-3)
    assert told == []
    network: Any = memory.trainee.module
    network.limit = 5  # somebody else came onto the device
    before = torch.cat([p.detach().flatten() for p in memory.trainee.module.parameters()]).clone()
    memory.step(batch_of(8), 1, 1e-3)
    assert asked(memory.trainee)[-3:] == [8, 4, 4]
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in memory.trainee.module.parameters()]))


def test_workers_agree_and_begin_again_together(tmp_path: Path) -> None:
    memory, _ = memory_of(tmp_path, 8, context=Pair(torch.device("cpu")))
    memory.step(batch_of(8), 0, 0.0)
    assert memory.trainee.micro_batch == 2, "what the smallest holds"
    network: Any = memory.trainee.module
    network.limit = 1
    with pytest.raises(MemoryRanOutError, match=r"rank 0: CUDA out of memory\. Tried to .* GiB; the workers begin"):
        memory.step(batch_of(8), 1, 0.0)
    assert read_json(tmp_path / LIMITS) == {"the CPU": 1}


def test_a_device_too_small_for_one_crop(tmp_path: Path) -> None:
    for probes in (True, False):
        memory, _ = memory_of(tmp_path, 0, probes=probes)
        with pytest.raises(ConfigurationError, match="the CPU cannot hold a training step of a single crop"):
            memory.step(batch_of(2), 0, 0.0)


def test_a_number_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    memory, _ = memory_of(tmp_path, 3, wanted=4)
    with pytest.raises(ConfigurationError, match="micro_batch = 4: 4 crops at once do not fit the CPU"):
        memory.step(batch_of(8), 0, 0.0)
    assert not (tmp_path / LIMITS).exists()


def test_other_errors_are_not_memory(tmp_path: Path) -> None:
    assert ran_out(RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    memory, _ = memory_of(tmp_path, 8)
    batch = batch_of(8)
    with pytest.raises(RuntimeError, match="size of tensor"):
        memory.step(replace(batch, visibility=batch.visibility[:5]), 0, 0.0)
