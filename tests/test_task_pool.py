"""Calls as Ray tasks: each comes back under its key, with its answer or what went wrong in its place."""

from __future__ import annotations

import time

import pytest

from efafnet.platform.ray_errors import reason_of
from efafnet.platform.task_pool import TaskPool
from tests.waiting import LIMIT_S, wait_for


def halved(number: int) -> int:
    if number < 0:
        time.sleep(600)
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_idle")
def test_calls_end_under_their_keys_and_the_rest_is_cancelled() -> None:
    import ray

    pool: TaskPool[str, int] = TaskPool(halved, {"CPU": 0.5, "node:__internal_head__": 0.001}, retries=0)
    for key, number in (("even", 8), ("odd", 7), ("endless", -1)):
        pool.begin(key, number)
    assert pool.running() == ["even", "odd", "endless"]
    answers: dict[str, int | Exception] = {}
    wait_for("two answers", lambda: answers.update(pool.ended(timeout_s=5)) or len(answers) == 2)
    assert answers["even"] == 4
    assert isinstance(answers["odd"], Exception)
    assert reason_of(answers["odd"]) == "ValueError: 7 is odd"
    assert (len(pool), pool.running()) == (1, ["endless"])
    assert pool.ended(timeout_s=0.1) == []
    pool.cancel()
    assert len(pool) == 0
    # Its process is gone: all four slots can be had.
    assert ray.get(ray.remote(num_cpus=4)(lambda: 7).remote(), timeout=LIMIT_S) == 7
