"""The crop store: a directory of Parquet shards with one row per person, and a manifest that says what they hold.

    manifest.json          skeleton, sources, envelope, counts, digests
    persons-00000.parquet  one row per person: the encoded crop, its affine, joints, box, ids
    ground_truth.parquet   every usable source annotation, crowds and persons without joints included
    images.parquet         every source image
    rejects.parquet        what was left out, and why

Legend: K joints. Coordinates are in pixels of the original image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.file_table import FileRecord
from efafnet.pipelines.crops.manifest import (
    GROUND_TRUTH,
    IMAGES,
    MANIFEST,
    REJECTS,
    Manifest,
    footer_sha256,
    parse_manifest,
    read_document,
)
from efafnet.pipelines.crops.schema import PERSON_SCHEMA, person_schema
from efafnet.platform import console
from efafnet.platform.mirror import Mirror, cache_directory, is_address, is_cache_chosen
from efafnet.platform.mounts import is_on_network
from efafnet.platform.storage import UnreadableFileError, sha256_file, write_bytes

__all__ = ["GROUND_TRUTH", "IMAGES", "PERSON_SCHEMA", "REJECTS", "CropStore", "GroundTruth", "Manifest", "RowGroups"]


PERSONS = "persons"
"""Name of the person shards for :meth:`CropStore.batches`."""
_BATCH_ROWS = 65536


@dataclass(frozen=True)
class RowGroups:
    """The row groups of all shards, in row order: G groups."""

    shard: npt.NDArray[np.int64]
    """(G,) shard index."""
    index: npt.NDArray[np.int64]
    """(G,) row group inside the shard."""
    first_row: npt.NDArray[np.int64]
    """(G,) first row in the store."""
    rows: npt.NDArray[np.int64]
    """(G,) number of rows."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_rows(self) -> int:
        """Rows of all groups."""
        return int(self.rows.sum())

    def group_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Group (N,) of each row (N,)."""
        return np.searchsorted(self.first_row, rows, side="right") - 1

    def chosen(self, groups: npt.NDArray[np.int64]) -> RowGroups:
        """The row groups of a store that has ``groups`` (C,) of this one, one after the other, repeated or not."""
        rows = self.rows[groups]
        return RowGroups(self.shard[groups], self.index[groups], np.cumsum(rows) - rows, rows)

    @classmethod
    def of(cls, shard_rows: Sequence[int] | npt.NDArray[np.int64], rows_per_group: int) -> RowGroups:
        """Groups of shards with ``shard_rows`` rows, each cut every ``rows_per_group`` rows."""
        # In whole arrays: a hundred million persons have millions of groups.
        totals = np.array(shard_rows, dtype=np.int64)
        counts = -(-totals // rows_per_group)
        shard = np.repeat(np.arange(len(totals)), counts)
        index = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
        sizes = np.minimum(rows_per_group, totals[shard] - index * rows_per_group)
        return cls(shard, index, np.cumsum(sizes) - sizes, sizes)


class GroundTruth:
    """Every usable annotation of the sources: what OKS AP is measured against."""

    def __init__(self, skeleton: Skeleton, images: pa.Table, annotations: pa.Table) -> None:
        self.skeleton = skeleton
        self.images = images
        self.annotations = annotations

    def to_coco(self) -> dict[str, Any]:
        """COCO's layout: images, annotations without segmentation, categories; evaluates as the source file does."""
        return {
            "images": [self._image(row) for row in self.images.to_pylist()],
            "annotations": [self._annotation(row) for row in self.annotations.to_pylist()],
            "categories": [
                {
                    "id": category,
                    "name": "person",
                    "keypoints": list(self.skeleton.joints),
                    "skeleton": [[a + 1, b + 1] for a, b in self.skeleton.limbs],
                    "sigmas": list(self.skeleton.sigmas),
                    "flip_pairs": [list(pair) for pair in self.skeleton.flip_pairs],
                    "upper_body": list(self.skeleton.upper_body),
                }
                for category in sorted(set(self.annotations.column("category_id").to_pylist())) or [1]
            ],
        }

    @staticmethod
    def _image(row: dict[str, Any]) -> dict[str, Any]:
        image = {"id": row["image_id"], **{name: row[name] for name in ("file_name", "width", "height")}}
        return image if row["crowd_index"] is None else {**image, "crowdIndex": row["crowd_index"]}

    @staticmethod
    def _annotation(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": row["annotation_id"],
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": row["box_xywh"],
            "area": row["area"],
            "iscrowd": int(row["is_crowd"]),
            "num_keypoints": row["num_keypoints"],
            "keypoints": row["keypoints"],
            **({} if row["head_size"] is None else {"head_size": row["head_size"]}),
        }


class CropStore:
    """A crop store opened for reading. Holds the manifest only; tables are read when asked for."""

    def __init__(self, path: Path, manifest: Manifest, mirror: Mirror | None = None) -> None:
        self.path = path
        """Its directory; of a store in object storage, that of the local copy."""
        self.manifest = manifest
        self._mirror = mirror
        self._nearby = _nearby(path, manifest) if mirror is None else None
        self._checked: set[str] = set()
        self.row_groups = RowGroups.of(manifest.shards.rows, manifest.rows_per_group)

    @classmethod
    def open(cls, location: str | Path, expect_skeleton: Skeleton | None = None) -> CropStore:
        """Open the store at ``location``: a directory, or an address whose files are brought here as they are needed.

        Raises ValueError or OSError where there is no store, where it was written by another version or is
        incomplete, or where its joints are not those of ``expect_skeleton``.
        """
        document = read_document(location)
        manifest = parse_manifest(document, location)
        if is_address(os.fspath(location)):
            mirror: Mirror | None = _mirror(os.fspath(location), manifest, document)
        else:
            mirror = Mirror.at(Path(location))
        path = Path(location) if mirror is None else mirror.directory
        if mirror is None:
            _check_files(path, manifest)
        if expect_skeleton is not None and manifest.skeleton.joints != expect_skeleton.joints:
            raise ValueError(
                f"crop store {path} holds skeleton {manifest.skeleton.name!r} ({manifest.skeleton.num_joints} joints), "
                f"but {expect_skeleton.name!r} ({expect_skeleton.num_joints} joints) is needed; give a store and a "
                "model of the same skeleton"
            )
        return cls(path, manifest, mirror)

    @property
    def location(self) -> str:
        """Where it is: a directory, or an address in object storage."""
        return str(self.path) if self._mirror is None else self._mirror.location

    def file(self, record: FileRecord) -> Path:
        """Local path of one of its files, brought here first where the store is in object storage.

        Raises OSError where it cannot be had or its footer is damaged, ValueError where what arrived is damaged.
        """
        path = self._path(record)
        if record.name not in self._checked and record.footer_sha256 is not None:
            if footer_sha256(path) != record.footer_sha256:
                raise UnreadableFileError(
                    f"crop store {self.location}: the footer of {record.name} is not what was written; check the store "
                    "with: efafnet inspect"
                )
            self._checked.add(record.name)
        return path

    def _path(self, record: FileRecord) -> Path:
        if self._mirror is not None:
            return self._mirror.fetch(record.name, record.bytes, record.sha256)
        if self._nearby is not None and record not in self.manifest.tables:
            try:
                return self._nearby.fetch(record.name, record.bytes, record.sha256)
            except OSError as error:
                console.warn(f"{error}; crop store {self.path} is read where it is")
                self._nearby = None
        return self.path / record.name

    @property
    def skeleton(self) -> Skeleton:
        """Joints of every row."""
        return self.manifest.skeleton

    @property
    def digest(self) -> str:
        """Content digest."""
        return self.manifest.digest

    @property
    def num_persons(self) -> int:
        """Number of rows."""
        return self.row_groups.num_rows

    def columns(self, names: Sequence[str]) -> pa.Table:
        """The person columns ``names`` of all rows, in row order. Cheap without ``image``."""
        parts = [_read(self.file(shard), names) for shard in self.manifest.shards]
        schema = person_schema(self.skeleton.num_joints)
        empty = pa.schema([schema.field(name) for name in names]).empty_table()
        return pa.concat_tables(parts) if parts else empty

    def rows(self, names: Sequence[str], rows: Sequence[int]) -> pa.Table:
        """The person columns ``names`` of some rows, in the order given; reads the row groups that hold them."""
        groups, parts = self.row_groups, []
        for row, group in zip(rows, groups.group_of(np.array(rows, np.int64)).tolist(), strict=True):
            path = self.file(self.manifest.shards[int(groups.shard[group])])
            with _opened(path) as file:
                held = file.read_row_group(int(groups.index[group]), columns=list(names))
            parts.append(held.slice(row - int(groups.first_row[group]), 1))
        return pa.concat_tables(parts)

    def batches(self, name: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """One of the tables IMAGES, GROUND_TRUTH, REJECTS a part at a time, or the person shards by :data:`PERSONS`.

        What is held does not grow with the number of rows. Raises UnreadableFileError as reading all does.
        """
        records = self.manifest.shards if name == PERSONS else [r for r in self.manifest.tables if r.name == name]
        for record in records:
            with _opened(self.file(record)) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                    yield pa.table(batch)

    def groups(self, shard: FileRecord) -> Iterator[pa.Table]:
        """All columns of one of the person shards, a row group at a time. Raises UnreadableFileError where damaged."""
        with _opened(self.file(shard)) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)

    @property
    def has_annotated_boxes(self) -> bool:
        """Whether the persons' boxes are those of the annotations, and not a detector's."""
        return all(source.detections is None for source in self.manifest.sources)

    @property
    def has_head_sizes(self) -> bool:
        """Whether heads of some persons are measured, as PCKh needs: MPII's own release has them, its JSON has not."""
        sizes = self.table(GROUND_TRUTH, ["head_size"])["head_size"]
        return bool(sizes.null_count < len(sizes))

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """One of the tables IMAGES, GROUND_TRUTH, REJECTS: its ``columns``, or all."""
        (record,) = (record for record in self.manifest.tables if record.name == name)
        return _read(self.file(record), columns)

    def ground_truth(self) -> GroundTruth:
        """Every usable annotation of the sources."""
        return GroundTruth(self.skeleton, self.table(IMAGES), self.table(GROUND_TRUTH))

    def verify(self) -> list[str]:
        """What does not agree with the manifest, one sentence each; reads every byte."""
        problems = []
        for record in (*self.manifest.shards, *self.manifest.tables):
            found = sha256_file(self.path / record.name if self._mirror is None else self._path(record))
            if found != record.sha256:
                problems.append(f"{record.name}: sha256 {found[:12]}, manifest {record.sha256[:12]}")
        return problems


def tell_protection(store: CropStore) -> None:
    """Say of a store that an earlier version wrote that reading it does not notice damage."""
    if not store.manifest.page_checksums:
        console.note(
            f"crop store {store.location} has no check sums inside its files: damage is noticed by efafnet inspect "
            "only; prepare it again to have them"
        )


def _read(path: Path, names: Sequence[str] | None = None) -> pa.Table:
    """The columns ``names`` of a file of the store, all where none are named.

    Raises UnreadableFileError where it is damaged, or cannot be read at present.
    """
    columns = None if names is None else list(names)
    with _damage_told(path):
        return pq.read_table(path, columns=columns, page_checksum_verification=True, memory_map=False)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    with _damage_told(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableFileError(
            f"crop store {path.parent}: {path.name} cannot be read ({reason}); check it with: efafnet inspect"
        ) from error


def _check_files(path: Path, manifest: Manifest) -> None:
    # One pass over the directory: asking for each of many files by its path takes several times as long.
    with os.scandir(path) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    shards, tables = manifest.shards, manifest.tables
    wanted = chain(zip(shards.names, shards.sizes_bytes.tolist(), strict=True), ((r.name, r.bytes) for r in tables))
    for name, size in wanted:
        if sizes.get(name) != size:
            found = f"has {sizes[name]} bytes instead of {size}" if name in sizes else "is missing"
            raise ValueError(f"crop store {path}: {name} {found}; prepare the store again")


def _nearby(path: Path, manifest: Manifest) -> Mirror | None:
    """Where shards of a store on a share are copied to, once per machine: EFAFNET_CACHE, if that names a local disk."""
    if not (is_cache_chosen() and is_on_network(path)) or is_on_network(cache_directory()):
        return None
    try:
        mirror = Mirror.begin(str(path.absolute()), manifest.digest[:16])
        mirror.make_room(sum(r.bytes for r in manifest.shards if not (mirror.directory / r.name).is_file()))
    except OSError as error:
        console.warn(f"{error}; crop store {path} is read where it is")
        return None
    return mirror


def _mirror(location: str, manifest: Manifest, document: bytes) -> Mirror:
    """The local copy of a store in object storage: manifest and tables at once, shards when they are read."""
    mirror = Mirror.begin(location, manifest.digest[:16])
    records = (*manifest.shards, *manifest.tables)
    mirror.make_room(sum(r.bytes for r in records if not (mirror.directory / r.name).is_file()))
    write_bytes(mirror.directory / MANIFEST, document)
    for record in manifest.tables:
        mirror.fetch(record.name, record.bytes, record.sha256)
    return mirror
