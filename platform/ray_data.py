"""Bulk work on a cluster: tables that Ray Data hands to tasks, or to actors that load something large once.

What every stage that works in bulk has to know of Ray Data is here: how it is kept quiet, what an actor reserves, and
what its errors carry. The functions that are mapped, and the columns of the tables, are the stages' own.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from efafnet.platform import console
from efafnet.platform.capacity import ActorPool
from efafnet.platform.cluster import ClusterConfig, is_running, quiet_logs
from efafnet.platform.ray_errors import reason_of

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

Mapped = Callable[..., "pa.Table | Iterator[pa.Table]"]
"""A function from one table to another, or to several."""


def is_little(number: int, most: int, unit: str, config: ClusterConfig) -> bool:
    """Whether work is better done by this process, and say so: little of it, and no Ray there or asked for.

    ``connect`` would start a Ray for this program alone, and its processes would import once more what is here.

    Args:
        number: pieces of work, in ``unit``s.
        most: of them that are little.
        unit: their name, for one of them.
        config: which Ray; one that is named or sized is asked for, one that runs or is connected is there.
    """
    ray = sys.modules.get("ray")  # a program that has not imported it is connected to none
    connected = ray is not None and ray.is_initialized()
    if number > most or config != ClusterConfig() or connected or is_running(config):
        return False
    console.note(f"{console.counted(number, unit)}: in this process, sooner than a Ray starts; workers=N takes one")
    return True


def from_tables(tables: Iterable[pa.Table]) -> ray.data.Dataset:
    """Rows that this process holds; each table is one block, which one task gets unless Ray Data splits or joins it."""
    # With from_arrow tasks would first be asked what is known here: each table's size, and the types in it.
    return cast("ray.data.Dataset", _library().from_blocks(list(tables)))


def from_parquet(files: Sequence[Path], columns: Sequence[str], blocks: int) -> ray.data.Dataset:
    """Rows of Parquet files that all nodes see, in their order.

    Whoever maps them reads them, in the same tasks. Ray's own reader starts four actors first, to look at the files'
    ends, and ends them again, which takes 4 CPU seconds for a single small file.

    Args:
        files: the files; at least one.
        columns: those that are read.
        blocks: fewest blocks that the rows are cut into, where there are so many row groups: a small store is one file,
            and every actor shall get some.
    """
    import pyarrow.parquet as pq

    _library().DataContext.get_current().execution_options.preserve_order = True
    groups = [(str(file.absolute()), group) for file in files for group in range(pq.read_metadata(file).num_row_groups)]
    each = max(1, len(groups) // max(len(files), blocks))
    parts = (groups[first : first + each] for first in range(0, len(groups), each))
    named = from_tables(_named(part) for part in parts)
    return map_in_tasks(named, _row_groups, {"columns": list(columns)})


def _named(groups: Sequence[tuple[str, int]]) -> pa.Table:
    import pyarrow as pa

    return pa.table({"file": [file for file, _ in groups], "row_group": [group for _, group in groups]})


def _row_groups(named: pa.Table, columns: list[str]) -> Iterator[pa.Table]:
    """Ray Data's task: names of row groups -> their rows."""
    import pyarrow.parquet as pq

    for path, parts in itertools.groupby(named.to_pylist(), key=itemgetter("file")):
        with pq.ParquetFile(path) as file:
            for part in parts:
                yield file.read_row_group(part["row_group"], columns)


def map_in_tasks(
    rows: ray.data.Dataset,
    function: Mapped,
    arguments: Mapping[str, object],
    *,
    batch_size: int | None = None,
    at_once: int | None = None,
) -> ray.data.Dataset:
    """Map tables in tasks that keep nothing.

    Args:
        rows: the tables.
        function: takes a table and ``arguments`` by name; the table may be memory that others read, too.
        arguments: what it is told beside the table.
        batch_size: rows of each table; None for a block.
        at_once: most tasks at a time; None for as many as there is room for.
    """
    return rows.map_batches(
        cast(Any, function),  # Ray's annotations leave out Arrow tables and keyword arguments
        fn_kwargs=dict(arguments),
        batch_size=batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        concurrency=at_once,
    )


def map_in_actors(
    rows: ray.data.Dataset,
    actor: type[Any],
    arguments: Sequence[object],
    pool: ActorPool,
    *,
    cpus: float,
    batch_size: int | None = None,
) -> ray.data.Dataset:
    """Map tables in actors.

    Args:
        rows: the tables.
        actor: a class whose objects take a table.
        arguments: of its constructor.
        pool: how many actors, and whether each has a GPU.
        cpus: cores that each of them reserves.
        batch_size: rows of each table; None for a block.
    """
    return rows.map_batches(
        actor,
        fn_constructor_args=tuple(arguments),
        compute=_library().ActorPoolStrategy(min_size=pool.living, max_size=pool.count),
        num_cpus=cpus,
        num_gpus=1 if pool.gpu else 0,
        batch_size=batch_size,
        batch_format="pyarrow",
    )


def computed(rows: ray.data.Dataset, doing: str) -> Iterator[pa.Table]:
    """Compute the tables and give them as they come.

    Raises:
        OSError: a worker failed; the message begins with ``doing`` and holds the cause alone.
    """
    import ray

    try:
        yield from cast("Iterator[pa.Table]", rows.iter_batches(batch_size=None, batch_format="pyarrow"))
    except ray.exceptions.RayError as error:
        raise OSError(f"{doing} on Ray failed: {reason_of(error)}") from error


def _library() -> Any:
    """Ray Data, which sets its loggers up when it is imported: only its warnings are for people, and progress is shown
    by this program, so that it need not explain that it shows none."""
    import ray.data

    quiet_logs()
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    return ray.data
