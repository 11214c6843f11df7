"""Records on disk: given back in order; JSON written piece by piece is JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efafnet.pipelines.prediction.spool import JsonList, Record, Spool


def test_records_come_back_by_source_and_frame(tmp_path: Path) -> None:
    path = tmp_path / "records"
    records = [Record(source, frame, 8, 6, [{"score": frame / 2}]) for source in (1, 0) for frame in (10, 2)]
    with Spool(path) as spool:
        for record in records:
            spool.add(record)
        assert list(spool) == sorted(records, key=lambda record: (record.source, record.frame))
    assert not path.exists()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_alone_and_in_an_object(tmp_path: Path, count: int) -> None:
    entries = [{"id": n, "name": "ä"} for n in range(count)]
    for name in (None, "images"):
        with JsonList(tmp_path / "a.json", name) as written:
            for entry in entries:
                written.add(entry)
            written.rest = {"info": {"seconds": 1.5}} if name else {}
        expected = entries if name is None else {"images": entries, "info": {"seconds": 1.5}}
        assert json.loads((tmp_path / "a.json").read_text()) == expected
        assert written.count == count


def test_what_json_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"), JsonList(tmp_path / "a.json") as written:
        written.add({"score": float("nan")})
