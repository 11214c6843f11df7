"""Bulk work through Ray Data: what is told of a worker that failed. What it computes, the stages' tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from ray.exceptions import RayTaskError

from efafnet.platform import ray_data, ray_private
from efafnet.platform.cluster import ClusterConfig


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


@pytest.mark.parametrize(("blocks", "groups"), [(1, [4, 4]), (3, [2, 2, 2, 2]), (4, [2, 2, 2, 2]), (99, [1] * 8)])
def test_files_are_cut_into_blocks_of_whole_row_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blocks: int, groups: list[int]
) -> None:
    """Ten and five rows, two of them in each row group: in their order, and no fewer blocks than are asked for."""
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file, numbers in zip(files, (range(10), range(10, 15)), strict=True):
        pq.write_table(pa.table({"number": numbers, "other": numbers}), file, row_group_size=2)
    monkeypatch.setattr(ray_data, "_library", mock.MagicMock())
    monkeypatch.setattr(ray_data, "from_tables", list)
    monkeypatch.setattr(ray_data, "map_in_tasks", lambda *mapped: mapped)
    named, read, arguments = cast(Any, ray_data.from_parquet(files, ["number"], blocks))
    assert [table.num_rows for table in named] == groups
    rows = pa.concat_tables(part for table in named for part in read(table, **arguments))
    assert rows.to_pydict() == {"number": list(range(15))}


@pytest.mark.parametrize(
    ("number", "config", "address", "running", "connected", "here"),
    [
        (5, ClusterConfig(), None, None, False, True),
        (6, ClusterConfig(), None, None, False, False),
        (5, ClusterConfig(), None, None, True, False),
        (5, ClusterConfig(), None, "10.0.0.1:6379", False, False),
        (5, ClusterConfig(), "10.0.0.2:6379", None, False, False),
        (5, ClusterConfig(address="local"), None, None, False, False),
        (5, ClusterConfig(num_cpus=8), None, None, False, False),
    ],
)
def test_little_work_is_done_here_unless_a_ray_is_there_or_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    config: ClusterConfig,
    address: str | None,
    running: str | None,
    connected: bool,
    here: bool,
) -> None:
    monkeypatch.setattr(ray_private, "running_here", lambda: running)
    monkeypatch.setattr(ray, "is_initialized", lambda: connected)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_data.is_little(number, 5, "person", config) == here
    assert ("5 persons: in this process" in capsys.readouterr().err) == here
