"""Bulk work through Ray Data: what is told of a worker that failed. What it computes, the stages' tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from ray.exceptions import RayTaskError

from efafnet.platform import ray_data


class Rows:
    """A data set whose second table cannot be computed."""

    def iter_batches(self, **_: object) -> Iterator[pa.Table]:
        yield pa.table({"number": [1]})
        raise RayTaskError("map", "Traceback (most recent call last): …", OSError("the disk is full"))


def test_a_worker_that_failed_is_one_line_with_its_cause() -> None:
    rows: Any = Rows()
    tables = ray_data.computed(rows, "preparing")
    assert next(tables)["number"].to_pylist() == [1]
    with pytest.raises(OSError, match=r"^preparing on Ray failed: OSError: the disk is full$"):
        next(tables)
