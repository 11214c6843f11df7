"""The files of a store as columns: hundreds of thousands of records cost what their text does, and no object each.

Legend: F files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from efafnet.models.settings import Settings

LISTED_UP_TO = 1000
"""Files that a manifest lists one by one, for people to read; more are written as columns."""


class FileRecord(Settings):
    """One file of the store."""

    name: str
    """File name inside the store."""
    rows: int
    """Number of rows."""
    bytes: int
    """Size in bytes."""
    sha256: str
    """Digest of the file's bytes."""
    footer_sha256: str | None = None
    """Digest of its Parquet footer, which page check sums leave out; None in stores from before there was one."""


_TEXTS, _COUNTS = TypeAdapter(list[str]), TypeAdapter(list[int])


class FileTable(Sequence[FileRecord]):
    """Records of F files, kept as columns; each is made when it is asked for."""

    def __init__(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        sizes: Sequence[int],
        sha256: Sequence[str],
        footer_sha256: Sequence[str | None] | None,
    ) -> None:
        self.names = names
        self.rows: NDArray[np.int64] = np.array(rows, np.int64)
        self.sizes_bytes: NDArray[np.int64] = np.array(sizes, np.int64)
        self.sha256 = sha256
        self._footers = footer_sha256
        lengths = {len(column) for column in (names, rows, sizes, sha256, footer_sha256 or names)}
        if len(lengths) != 1:
            raise ValueError(f"the columns of its files have different lengths: {sorted(lengths)}")

    @classmethod
    def of(cls, content: Any) -> FileTable:
        """A table of records, of a list of documents, or of one document of columns; keys unknown here are passed over.

        Raises ValueError for anything else.
        """
        if isinstance(content, FileTable):
            return content
        if isinstance(content, Mapping):
            footers = content.get("footer_sha256")
            return cls(
                _TEXTS.validate_python(content.get("name")),
                _COUNTS.validate_python(content.get("rows")),
                _COUNTS.validate_python(content.get("bytes")),
                _TEXTS.validate_python(content.get("sha256")),
                None if footers is None else _TEXTS.validate_python(footers),
            )
        if not isinstance(content, list | tuple):
            raise ValueError("a manifest's files are a list of records, or columns")
        records = [entry if isinstance(entry, FileRecord) else _record(entry) for entry in content]
        columns = ([getattr(record, name) for record in records] for name in FileRecord.model_fields)
        return cls(*columns)

    def document(self) -> Any:
        """What a manifest holds: a list of records, or columns where there are many."""
        if len(self) <= LISTED_UP_TO:
            return [record.model_dump(mode="json") for record in self]
        columns = {
            "name": list(self.names),
            "rows": self.rows.tolist(),
            "bytes": self.sizes_bytes.tolist(),
            "sha256": list(self.sha256),
        }
        return columns if self._footers is None else {**columns, "footer_sha256": list(self._footers)}

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return int(self.sizes_bytes.sum())

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> FileRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[FileRecord]: ...
    def __getitem__(self, index: int | slice) -> FileRecord | list[FileRecord]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        return FileRecord.model_construct(
            name=self.names[index],
            rows=int(self.rows[index]),
            bytes=int(self.sizes_bytes[index]),
            sha256=self.sha256[index],
            footer_sha256=None if self._footers is None else self._footers[index],
        )

    def __iter__(self) -> Iterator[FileRecord]:
        return (self[n] for n in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileTable) and self.document() == other.document()

    __hash__ = None  # type: ignore[assignment]


def _record(entry: Any) -> FileRecord:
    if not isinstance(entry, Mapping):
        raise ValueError("a file of the manifest is no object")
    return FileRecord.model_validate({key: value for key, value in entry.items() if key in FileRecord.model_fields})


Files = Annotated[
    FileTable, PlainValidator(FileTable.of), PlainSerializer(lambda files: FileTable.of(files).document())
]
"""A field of a manifest that lists files."""


def content_rows(document: Any) -> Iterator[list[Any]]:
    """Name, rows and digest of each file of a manifest's ``document`` of files, as it was written."""
    if isinstance(document, Mapping):
        return map(list, zip(document["name"], document["rows"], document["sha256"], strict=True))
    return ([record["name"], record["rows"], record["sha256"]] for record in document)


def all_rows(*documents: Any) -> list[list[Any]]:
    """:func:`content_rows` of several."""
    return list(chain.from_iterable(map(content_rows, documents)))
