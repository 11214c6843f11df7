"""``efafnet inspect``: what it says, what it draws, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.config import InspectConfig
from efafnet.pipelines.crops.inspect import run_inspect, sheet_of_samples
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.drawing.poses import LEFT
from efafnet.platform import storage
from tests import crop_data


def test_a_store_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crop_data.write_coco(tmp_path)
    (tmp_path / "images" / "000001.jpg").unlink()
    store = run_prepare(crop_data.config(tmp_path))
    capsys.readouterr()
    run_inspect(InspectConfig(store=store.path, crops=5))
    said = capsys.readouterr().out
    assert store.digest in said
    assert "coco17 (17 joints)" in said
    assert "6 (6 with persons to crop)" in said
    assert "image_missing" in said
    assert "digests agree" in said
    sheet = crop_data.read_picture(tmp_path / "store-sheet.jpg")
    # Five samples of 384x288 side by side, with captions of 40 pixels, 14 between, and a header of 74.
    assert sheet.shape == (74 + 384 + 40 + 14, 14 + 5 * (288 + 14), 3)
    run_inspect(InspectConfig(store=store.path, crops=5, augmented=True, sheet=tmp_path / "other.png"))
    assert not np.array_equal(sheet, crop_data.read_picture(tmp_path / "other.png"))


def test_odd_conventions_are_remarked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, _ = crop_data.write_coco(tmp_path, images=3)

    def to_corners(content: dict[str, Any]) -> None:
        for person in content["annotations"]:
            x, y, width, height = person["bbox"]
            person["bbox"] = [x, y, x + width, y + height]

    sound = run_prepare(crop_data.config(tmp_path, out=tmp_path / "sound"))
    crop_data.edit(annotations, to_corners)
    prepared = run_prepare(crop_data.config(tmp_path))
    assert "fit their joints as x1, y1, x2, y2: corners instead of width" in capsys.readouterr().err
    run_inspect(InspectConfig(store=prepared.path, crops=0))
    assert "fit their joints as x1, y1, x2, y2: corners instead of width" in capsys.readouterr().err
    run_inspect(InspectConfig(store=sound.path, crops=0))
    assert "corners" not in capsys.readouterr().err


def test_damage_is_an_error(tmp_path: Path) -> None:
    store = crop_data.make_store(tmp_path)
    file = store.path / "images.parquet"
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged: images.parquet: sha256"):
        run_inspect(InspectConfig(store=store.path, crops=0))


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a crop store"):
        run_inspect(InspectConfig(store=tmp_path))
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a crop store: it is a file; make one with"):
        run_inspect(InspectConfig(store=tmp_path / "a.json"))
    with pytest.raises(ValueError, match="is not a crop store: it does not exist"):
        run_inspect(InspectConfig(store=tmp_path / "b"))


def test_a_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    store = crop_data.make_store(tmp_path)
    with pytest.raises(OSError, match="cannot write"):
        run_inspect(InspectConfig(store=store.path, sheet=Path("/proc/sheet.png")))


def test_the_sheet_of_a_store_that_others_own_is_drawn_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = crop_data.make_store(tmp_path)
    checked = storage.check_output_file

    def refused_beside(path: Path, *, overwrite: bool) -> None:
        if path.parent == tmp_path:
            raise storage.UnwritableError("Read-only file system")
        checked(path, overwrite=overwrite)

    monkeypatch.setattr(storage, "check_output_file", refused_beside)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run_inspect(InspectConfig(store=store.path, crops=1))
    assert (tmp_path / "here" / "store-sheet.jpg").is_file()
    assert f"contact sheet of 1 person: {tmp_path}/here/store-sheet.jpg" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    with pytest.raises(storage.UnwritableError, match="Read-only"):
        run_inspect(InspectConfig(store=store.path, crops=1))


def test_joints_are_drawn_where_they_are() -> None:
    """A visible left wrist is a filled disc at its place, a hidden one a ring, an absent one nothing."""
    joints = torch.full((3, 17, 2), 32.0)
    visibility = torch.zeros((3, 17), dtype=torch.uint8)
    visibility[0, 9], visibility[1, 9] = 2, 1
    batch = Batch(
        images=torch.zeros((3, 3, 192, 64), dtype=torch.uint8),
        joints_px=joints,
        visibility=visibility,
        rows=torch.arange(3),
        input_to_image=torch.zeros((3, 2, 3), dtype=torch.float64),
    )
    sheet = sheet_of_samples(batch, COCO_17, columns=2)
    # Two rows of 192 pixels and 40 of captions; a legend is wider than two persons of 64 pixels.
    assert sheet.shape == (74 + 2 * (192 + 40 + 14), 880, 3)
    first, second, third = (sheet[74 + y :, 14 + x :][:192, :64] for y, x in ((0, 0), (0, 78), (246, 0)))
    assert tuple(first[32, 32]) == LEFT, "a left joint has the colour it has in every other picture"
    assert second[32, 32].max() < 60
    assert np.abs(second[32, 32 - 3].astype(int) - LEFT).max() < 24
    assert not third.any()
