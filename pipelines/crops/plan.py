"""Which images make which shard: decided from the annotations alone, before an image is read or a task begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from efafnet.pipelines.crops.annotation_sources import Source
from efafnet.pipelines.crops.shards import PLAN_SCHEMA


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its place in the store and its images, as rows of PLAN_SCHEMA."""

    index: int
    images: pa.Table

    @property
    def num_images(self) -> int:
        """Images to open."""
        return int(self.images.num_rows)


def plan_shards(sources: Sequence[Source], rows_per_shard: int) -> list[ShardPlan]:
    """Cut the wanted images, in file order, into shards of at most ``rows_per_shard`` persons."""
    plans: list[ShardPlan] = []
    entries: list[dict[str, Any]] = []
    persons = 0
    for entry in (entry for source in sources for entry in _entries(source)):
        count = len(entry["persons"])
        if entries and persons + count > rows_per_shard:
            plans.append(_plan(len(plans), entries))
            entries, persons = [], 0
        entries.append(entry)
        persons += count
    if entries:
        plans.append(_plan(len(plans), entries))
    return plans


def _plan(index: int, entries: list[dict[str, Any]]) -> ShardPlan:
    rows = [{**entry, "shard": index} for entry in entries]
    return ShardPlan(index, pa.Table.from_pylist(rows, schema=PLAN_SCHEMA))


def _entries(source: Source) -> Iterator[dict[str, Any]]:
    for image in source.content.images:
        persons = source.wanted.get(image.image_id)
        if persons:
            yield {
                "folder": source.folder.location,
                "outside": source.folder.outside,
                "box_rule": source.box_rule,
                "upright": source.upright,
                "data_set": source.record.data_set,
                "image_id": image.image_id,
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
                "crowd_index": image.crowd_index,
                "persons": [vars(person) for person in persons],
            }
