"""The last step of preparing: tables and manifest beside the finished shards, then everything appears at once.

Joining ends with the same pieces.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from efafnet.pipelines.crops.annotation_sources import Source, image_index
from efafnet.pipelines.crops.card import CARD, card
from efafnet.pipelines.crops.file_table import LISTED_UP_TO, FileRecord, FileTable
from efafnet.pipelines.crops.manifest import (
    COLUMNS_VERSION,
    FORMAT_VERSION,
    GROUND_TRUTH,
    IMAGES,
    MANIFEST,
    REJECTS,
    Counts,
    Manifest,
    footer_sha256,
    sealed,
)
from efafnet.pipelines.crops.schema import GROUND_TRUTH_SCHEMA, IMAGES_SCHEMA, REJECTS_SCHEMA
from efafnet.pipelines.crops.shard_writing import WorkDirectory
from efafnet.pipelines.crops.shards import CropSettings, ShardResult, shard_name
from efafnet.pipelines.formats.annotations import Annotation, ImageEntry
from efafnet.pipelines.formats.rejects import Reject, explained
from efafnet.platform import provenance, storage


def finish_store(
    out: Path,
    overwrite: bool,
    work: WorkDirectory,
    settings: CropSettings,
    sources: Sequence[Source],
    results: Sequence[ShardResult],
    input_digest: str,
) -> Manifest:
    """Make the store at ``out`` of the shards in ``work``; it is there whole or not at all.

    Raises ValueError where every person was rejected.
    """
    kept = [result for result in results if result.rows]
    if not kept:
        rows = _reject_rows(sources, results)
        lost = [Reject(**{key: value for key, value in row.items() if key != "data_set"}) for row in rows]
        raise ValueError(f"every person was rejected: there is nothing to store; {explained(lost)}")
    with storage.atomic_directory(out, overwrite=overwrite) as directory:
        shards = []
        for number, result in enumerate(kept):
            path = directory / shard_name(number)
            # Linked rather than moved: should we be killed now, the work directory is still whole.
            place(work.path / result.name, path)
            shards.append(file_record(path, result.rows, result.sha256))
        rejects = _reject_rows(sources, results)
        tables = [
            _write_rows(directory / GROUND_TRUTH, _ground_truth_rows(sources), GROUND_TRUTH_SCHEMA),
            _write_rows(directory / IMAGES, _image_rows(sources, results), IMAGES_SCHEMA),
            _write_rows(directory / REJECTS, rejects, REJECTS_SCHEMA),
        ]
        return write_manifest(directory, _manifest(settings, sources, results, shards, tables, rejects, input_digest))


def place(source: Path, target: Path) -> None:
    """Let a finished shard stand at ``target`` too; it takes no second room where both lie on one disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> FileRecord:
    return write_table(path, [pa.Table.from_pylist(rows, schema=schema)], schema)


def write_table(path: Path, parts: Iterable[pa.Table], schema: pa.Schema) -> FileRecord:
    """Write one of the tables beside the shards, a part at a time."""
    rows = 0
    with (
        storage.full_disk_named(path),
        pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for part in parts:
            writer.write_table(part)
            rows += len(part)
    return file_record(path, rows, storage.sha256_file(path))


def file_record(path: Path, rows: int, sha256: str) -> FileRecord:
    """What the manifest says of a written Parquet file whose digest is known."""
    size = path.stat().st_size
    return FileRecord(name=path.name, rows=rows, bytes=size, sha256=sha256, footer_sha256=footer_sha256(path))


def files_and_software(shards: Sequence[FileRecord], tables: Sequence[FileRecord]) -> dict[str, Any]:
    """The fields of a manifest that follow from its files and from the software that writes them."""
    return {
        "format_version": FORMAT_VERSION if len(shards) <= LISTED_UP_TO else COLUMNS_VERSION,
        "shards": FileTable.of(shards),
        "tables": tuple(tables),
        "versions": {
            "efafnet": str(provenance.code_version()["version"]),
            "opencv": cv2.__version__,
            "pyarrow": pa.__version__,
        },
    }


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write the last two files of a store, its card and its manifest; returns the manifest with its digests."""
    storage.write_text(directory / CARD, card(manifest.skeleton, manifest.encoding, manifest.counts.persons))
    document = sealed(manifest)
    storage.write_json(directory / MANIFEST, document)
    return manifest.model_copy(update={name: document[name] for name in ("digest", "document_sha256")})


def _columns(entry: Annotation | ImageEntry | Reject) -> dict[str, Any]:
    """The fields of an entry by name. dataclasses.asdict would copy every number of every joint."""
    return {column.name: getattr(entry, column.name) for column in fields(entry)}


def _ground_truth_rows(sources: Sequence[Source]) -> list[dict[str, Any]]:
    return [
        {**_columns(annotation), "data_set": source.record.data_set}
        for source in sources
        for annotation in source.content.annotations
    ]


def _image_rows(sources: Sequence[Source], results: Sequence[ShardResult]) -> list[dict[str, Any]]:
    measured = {image_id: (width, height) for result in results for image_id, width, height in result.sizes}
    rows = []
    for source in sources:
        for image in source.content.images:
            row = {**_columns(image), "data_set": source.record.data_set}
            if image.width is None:
                row["width"], row["height"] = measured.get(image.image_id, (None, None))
            rows.append(row)
    return rows


def _reject_rows(sources: Sequence[Source], results: Sequence[ShardResult]) -> list[dict[str, Any]]:
    rows = []
    for source in sources:
        images = image_index(source)
        for reject in source.rejects:
            row = {**_columns(reject), "data_set": source.record.data_set}
            if reject.image_id in images and reject.file_name is None:
                row["file_name"] = images[reject.image_id].file_name
            rows.append(row)
    return rows + [row for result in results for row in result.rejects]


def _manifest(
    settings: CropSettings,
    sources: Sequence[Source],
    results: Sequence[ShardResult],
    shards: list[FileRecord],
    tables: list[FileRecord],
    rejects: list[dict[str, Any]],
    input_digest: str,
) -> Manifest:
    counts = Counts(
        images=sum(len(source.content.images) for source in sources),
        images_read=sum(result.images for result in results),
        annotations=sum(source.candidates for source in sources),
        crowds=sum(source.crowds for source in sources),
        persons=sum(shard.rows for shard in shards),
        reduced=sum(result.reduced for result in results),
    )
    return Manifest(
        **files_and_software(shards, tables),
        skeleton=settings.skeleton,
        sources=tuple(source.record for source in sources),
        envelope=settings.envelope,
        encoding=settings.encoding,
        max_oversampling=settings.max_oversampling,
        rows_per_group=settings.rows_per_group,
        counts=counts,
        rejects=dict(sorted(Counter(row["reason"] for row in rejects).items())),
        input_digest=input_digest,
        digest="",
        page_checksums=True,
    )
