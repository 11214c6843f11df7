"""What was predicted, kept on disk while more is predicted: hours of video take no more memory than minutes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Record:
    """What became of one picture."""

    source: int
    frame: int
    width: int
    height: int
    results: list[dict[str, Any]]
    """COCO results with ``bbox``; their image id is still 0."""
    time_s: float = 0.0
    """Seconds from its video's first frame to when it is shown."""
    remark: str = ""
    """What is wrong with its video, told with the last frame."""
    tagged: bool = False
    """Whether its file has an orientation tag."""


class Spool:
    """Records on disk, taken in any order and given back by source and frame; in memory is where each one lies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._places: list[tuple[int, int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, record: Record) -> None:
        """Keep a record."""
        self._places.append((record.source, record.frame, self._file.seek(0, 2)))
        pickle.dump(record, self._file, pickle.HIGHEST_PROTOCOL)

    def __iter__(self) -> Iterator[Record]:
        """All records, by source and frame."""
        for _, _, place in sorted(self._places):
            self._file.seek(place)
            record: Record = pickle.load(self._file)
            yield record


class JsonList:
    """A list in a JSON file, written entry by entry, each on a line of its own.

    Args:
        path: the file.
        name: key of the list in an object, whose other entries ``rest`` holds when the file is closed; None for a bare
            list.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self._name = name
        self.rest: dict[str, Any] = {}
        self.count = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("w", encoding="utf-8")
        self._file.write("[" if self._name is None else f"{{{json.dumps(self._name)}:[")
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.write("\n]" if self.count else "]")
            for name, value in self.rest.items():
                self._file.write(f",\n{json.dumps(name)}:{json.dumps(value)}")
            self._file.write("\n" if self._name is None else "}\n")

    def add(self, entry: dict[str, Any]) -> None:
        """Write one more entry. Raises ValueError for NaN and infinity, which JSON has not."""
        self._file.write(",\n" if self.count else "\n")
        self._file.write(json.dumps(entry, separators=(",", ":"), allow_nan=False))
        self.count += 1
