"""`efafnet join`: one crop store of several that were prepared alike, in streams.

Persons keep their order, store by store. Ids are shifted as those of merged sources are, so that images of two stores
never share one; the shards of the first store are taken as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from efafnet.models.settings import Settings
from efafnet.pipelines.crops.card import described
from efafnet.pipelines.crops.file_table import FileRecord
from efafnet.pipelines.crops.finish import file_record, files_and_software, place, write_manifest, write_table
from efafnet.pipelines.crops.manifest import GROUND_TRUTH, IMAGES, REJECTS, Counts, Manifest
from efafnet.pipelines.crops.schema import GROUND_TRUTH_SCHEMA, IMAGES_SCHEMA, REJECTS_SCHEMA, person_schema
from efafnet.pipelines.crops.shards import HashingFile, parquet_options, shard_name
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.formats.annotations import SOURCE_STRIDE
from efafnet.platform import console, storage
from efafnet.platform.mirror import Location

_IDS = ("person_id", "image_id", "annotation_id")
_ALIKE = ("skeleton", "envelope", "encoding", "max_oversampling", "rows_per_group")
"""What must be the same in all stores."""


class JoinConfig(Settings):
    """Make one crop store of several."""

    stores: tuple[Location, ...]
    """Crop stores, in the order in which their persons are to come."""
    output: Path
    """Directory of the joined store."""
    overwrite: bool = False
    """Whether a store that is there is replaced."""


def run_join(config: JoinConfig) -> Manifest:
    """Write the joined store; it is there whole or not at all.

    Raises ValueError for stores that were not prepared alike, a store that is given twice, and ids too large to be
    shifted; OSError for damaged files.
    """
    storage.check_output(config.output, overwrite=config.overwrite)
    stores = [CropStore.open(location) for location in config.stores]
    _check(stores)
    with storage.atomic_directory(config.output, overwrite=config.overwrite) as directory:
        shards = _write_shards(stores, directory)
        tables = [
            write_table(directory / name, _parts(stores, name, schema), schema)
            for name, schema in (
                (GROUND_TRUTH, GROUND_TRUTH_SCHEMA), (IMAGES, IMAGES_SCHEMA), (REJECTS, REJECTS_SCHEMA)
            )
        ]  # fmt: skip
        manifest = write_manifest(directory, _manifest(stores, shards, tables))
    console.say(
        f"{config.output}: {console.counted(manifest.counts.persons, 'person')} of {len(stores)} stores, "
        f"{manifest.skeleton.name}, {manifest.shards.total_bytes / 1e6:.1f} MB, digest {manifest.digest[:12]}"
    )
    return manifest


def _check(stores: Sequence[CropStore]) -> None:
    if len(stores) < 2:
        raise ValueError("join takes two stores or more: efafnet join STORE STORE … --output DIR")
    first, *others = stores
    wanted = _flat({name: getattr(first.manifest, name) for name in _ALIKE})
    for store in others:
        found = _flat({name: getattr(store.manifest, name) for name in _ALIKE})
        for key in (key for key in {**wanted, **found} if wanted.get(key) != found.get(key)):
            remedy = (
                "prepare it with store_joints= and a joint_map"
                if key.startswith("skeleton")
                else "prepare it again with the same settings"
            )
            raise ValueError(
                f"{store.location} and {first.location} cannot be joined: {key} is {found.get(key)} there and "
                f"{wanted.get(key)} here; {remedy}"
            )
    for digest, count in Counter(store.digest for store in stores).items():
        if count > 1:
            places = [store.location for store in stores if store.digest == digest]
            raise ValueError(f"{' and '.join(places)} are the same store; join takes each once")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    content = tree.model_dump(mode="json") if isinstance(tree, Settings) else tree
    if not isinstance(content, dict):
        return {prefix: content}
    return {
        key: value
        for name, inner in content.items()
        for key, value in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()
    }


def _shifts(stores: Sequence[CropStore]) -> Iterator[tuple[CropStore, int]]:
    """Each store, and how many sources come before its own: what its ids are shifted by, in strides."""
    before = 0
    for store in stores:
        yield store, before
        before += len(store.manifest.sources)


def _write_shards(stores: Sequence[CropStore], directory: Path) -> list[FileRecord]:
    """All shards under new numbers; those of the first store as they are, the others with their ids shifted."""
    records: list[FileRecord] = []
    with console.progress("joining", sum(len(store.manifest.shards) for store in stores), unit="shards") as advance:
        for store, sources in _shifts(stores):
            schema = described(person_schema(store.skeleton.num_joints), store.skeleton, store.manifest.encoding)
            for shard in store.manifest.shards:
                path = directory / shard_name(len(records))
                if sources == 0:
                    place(store.file(shard), path)
                    records.append(shard.model_copy(update={"name": path.name}))
                else:
                    sha256 = _rewrite(store, shard, path, schema, sources)
                    records.append(file_record(path, shard.rows, sha256))
                advance(1)
    return records


def _rewrite(store: CropStore, shard: FileRecord, path: Path, schema: pa.Schema, sources: int) -> str:
    """One shard with its ids shifted, a row group at a time; the digest of its file."""
    sink = HashingFile(path)
    with storage.full_disk_named(path), sink, pq.ParquetWriter(sink, schema, **parquet_options(schema)) as writer:
        for group in store.groups(shard):
            moved = _moved(group, sources, store).cast(schema)
            writer.write_table(moved, row_group_size=store.manifest.rows_per_group)
    return sink.hexdigest()


def _parts(stores: Sequence[CropStore], name: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """One of the other tables of all stores, a part at a time."""
    for store, sources in _shifts(stores):
        for part in store.batches(name, schema.names):
            yield _moved(part, sources, store).cast(schema)


def _moved(table: pa.Table, sources: int, store: CropStore) -> pa.Table:
    """The same with its ids shifted by ``sources`` strides. Raises ValueError for ids that the shift would confuse."""
    if sources == 0:
        return table
    end = SOURCE_STRIDE * len(store.manifest.sources)
    for name in (name for name in _IDS if name in table.column_names):
        column = table[name]
        least, most = pc.min_max(column).as_py().values()
        if least is not None and not (least >= 0 and most < end):
            raise ValueError(
                f"{store.location}: {name} {least if least < 0 else most} cannot be joined: ids of stores after the "
                f"first must lie in 0..{end - 1}; give this store first"
            )
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), pc.add(column, sources * SOURCE_STRIDE))
    return table


def _manifest(stores: Sequence[CropStore], shards: list[FileRecord], tables: list[FileRecord]) -> Manifest:
    found = [store.manifest for store in stores]
    rejects: Counter[str] = Counter()
    for manifest in found:
        rejects.update(manifest.rejects)
    return found[0].model_copy(
        update={
            **files_and_software(shards, tables),
            "sources": tuple(source for manifest in found for source in manifest.sources),
            "counts": Counts(
                **{name: sum(getattr(manifest.counts, name) for manifest in found) for name in Counts.model_fields}
            ),
            "rejects": dict(sorted(rejects.items())),
            "input_digest": storage.sha256_json([manifest.digest for manifest in found]),
            "page_checksums": all(manifest.page_checksums for manifest in found),
        }
    )
