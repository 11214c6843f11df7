"""A run that waits for data says so, once and with what can be done."""

from __future__ import annotations

import pytest
import torch

from efafnet.pipelines.crops.config import ReaderConfig
from efafnet.pipelines.crops.reader import _threads
from efafnet.pipelines.training.monitor import DataWait
from efafnet.platform import machine


def test_it_is_said_once_when_a_tenth_of_ten_seconds_went_by() -> None:
    watch = DataWait()
    assert watch.text(9.0, 20.0) is None, "the first window fills the queues"
    assert watch.text(0.9, 6.0) is None, "six seconds are too few to judge by"
    # 0.9 + 0.1 of 12 seconds is less than a tenth.
    assert watch.text(0.1, 6.0) is None
    text = watch.text(2.5, 10.0)
    assert text is not None
    assert text.startswith(
        "warning: 25% of the last 10 s went by waiting for data; where there are cores, raise worker.cpus"
    )
    assert watch.text(9.0, 10.0) is None, "once"


@pytest.mark.parametrize(
    ("cores", "given", "beside_gpu", "expected"),
    [(16, 16, True, 15), (64, 32, True, 16), (4, 4, True, 3), (1, 1, True, 1), (2, 2, False, 1), (16, 16, False, 4),
     (16, 4, True, 3), (16, 1, False, 1)],
)  # fmt: skip
def test_readers_follow_the_cores_that_a_worker_has(
    monkeypatch: pytest.MonkeyPatch, cores: int, given: int, beside_gpu: bool, expected: int
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: given)
    assert _threads(ReaderConfig(), beside_gpu=beside_gpu) == expected
    assert _threads(ReaderConfig(threads=5), beside_gpu=beside_gpu) == 5
