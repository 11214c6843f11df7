"""The table of a video's people: who was seen from when to when, how surely, how large."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

from efafnet.pipelines.prediction.spool import Record
from efafnet.platform import console

_MOST_TOLD = 12
COLUMNS = (
    "file_name", "track_id", "frames", "first_frame", "last_frame", "first_s", "last_s", "mean_score", "mean_size_px",
)  # fmt: skip


@dataclass
class Person:
    """One track, as far as it was seen."""

    file_name: str
    track_id: int
    first_frame: int
    first_s: float
    frames: int = 0
    last_frame: int = 0
    last_s: float = 0.0
    scores: float = 0.0
    sizes_px: float = 0.0

    def row(self) -> tuple[object, ...]:
        """The values of ``COLUMNS``. Size is the root of the box's area."""
        return (
            self.file_name, self.track_id, self.frames, self.first_frame, self.last_frame, round(self.first_s, 3),
            round(self.last_s, 3), round(self.scores / self.frames, 3), round(self.sizes_px / self.frames, 1),
        )  # fmt: skip


class People:
    """Gathers the tracks of all videos, frame by frame."""

    def __init__(self) -> None:
        self._tracks: dict[tuple[int, int], Person] = {}

    def add(self, record: Record, file_name: str) -> None:
        """Count the persons of one picture; those without a track are nobody's."""
        for result in record.results:
            if "track_id" not in result:
                continue
            key = (record.source, result["track_id"])
            person = self._tracks.setdefault(key, Person(file_name, key[1], record.frame, record.time_s))
            person.frames += 1
            person.last_frame, person.last_s = record.frame, record.time_s
            person.scores += result["score"]
            person.sizes_px += math.sqrt(result["bbox"][2] * result["bbox"][3])

    def __len__(self) -> int:
        return len(self._tracks)

    def __iter__(self) -> Iterator[Person]:
        return iter(self._tracks.values())

    def csv(self) -> str:
        """The whole table as CSV with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(person.row() for person in self)
        return text.getvalue()

    def tell(self, place: str) -> None:
        """Print those seen in most frames."""
        rows = [person.row() for person in sorted(self, key=lambda person: -person.frames)]
        console.table([name.replace("_", " ") for name in COLUMNS], rows[:_MOST_TOLD])
        if len(rows) > _MOST_TOLD:
            console.note(f"{len(rows) - _MOST_TOLD} more people, seen in fewer frames: {place}")
