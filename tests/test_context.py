"""What workers tell each other: one of them reads, all have it, and one's error is everyone's."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from efafnet.pipelines.training.context import GroupContext
from efafnet.platform.checkpoint import Checkpoint


class Worker(GroupContext):
    """One of two workers, which here speak one after the other: what rank 0 sends waits for rank 1."""

    def __init__(self, rank: int, wire: deque[Any]) -> None:
        self.rank, self.world_size, self._wire = rank, 2, wire

    def agree(self, value: Any) -> Any:
        if self.rank > 0:
            return self._wire.popleft()
        self._wire.append(value)
        return value


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, Worker]:
    wire: deque[Any] = deque()
    pair = Worker(0, wire), Worker(1, wire)
    sent: deque[Tensor] = deque()

    def broadcast(tensor: Tensor, src: int) -> None:
        assert src == 0
        assert tensor.dim() == 1, "NCCL and gloo send what lies in one piece"
        assert tensor.is_contiguous()
        if wire:  # rank 1 has not begun: this is rank 0
            sent.append(tensor.clone())
        else:
            tensor.copy_(sent.popleft())

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    return pair


def test_a_checkpoint_read_once_arrives_everywhere(workers: tuple[Worker, Worker]) -> None:
    nhwc = torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    weights = {"nhwc": nhwc, "turned": torch.arange(6.0).reshape(2, 3).t(), "none": torch.zeros(0, 4)}
    state = {"optimizer": [1, {"step": (torch.tensor(7.0), None)}], "name": "adam"}
    whole = Checkpoint({"network": weights}, state, {"seed": 0}, {"step": 3})
    reads = []

    def read() -> Checkpoint:
        reads.append(1)
        return whole

    for worker in workers:
        mine = worker.from_first(read)
        assert (mine.config, mine.meta, mine.state["name"]) == ({"seed": 0}, {"step": 3}, "adam")
        assert mine.state["optimizer"][0] == 1
        assert mine.state["optimizer"][1]["step"][0].item() == 7
        for name, value in weights.items():
            assert torch.equal(mine.weights["network"][name], value)
        # The fused optimizer walks moments and weights in memory order.
        assert mine.weights["network"]["nhwc"].stride() == nhwc.stride()
    assert reads == [1]


def test_what_the_reader_cannot_read_no_worker_takes_for_absent(workers: tuple[Worker, Worker]) -> None:
    def read() -> None:
        raise OSError(5, "Input/output error")

    for worker in workers:
        with pytest.raises(OSError, match="Input/output error"):
            worker.from_first(read)
