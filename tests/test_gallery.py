"""The best and the worst persons of an evaluation: who is among them, and what is shown of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from efafnet.models.settings import InputSize
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.drawing.sheets import Cell, contact_sheet
from efafnet.pipelines.drawing.text import Legend
from efafnet.pipelines.evaluation.columns import Truth, truth
from efafnet.pipelines.evaluation.gallery import persons_in_view, write_galleries
from efafnet.pipelines.evaluation.matching import NOBODY, oks_of_persons
from efafnet.pipelines.evaluation.predictions import PERSON_COLUMNS, Predictions
from tests import crop_data


def _store(tmp_path: Path) -> tuple[CropStore, Truth]:
    store = crop_data.make_store(tmp_path, images=4, persons=3, encoding={"format": "png"})
    return store, truth(store.ground_truth())


def _predicted(store: CropStore, reference: Truth, off: NDArray[np.float64]) -> Predictions:
    """The annotated joints, each person's moved by ``off`` (N,) times the root of its area."""
    people = store.columns(list(PERSON_COLUMNS))
    rows = np.arange(store.num_persons)
    person = [int(np.flatnonzero(reference.annotation_id == i)[0]) for i in people["person_id"].to_pylist()]
    shift = off * np.sqrt(reference.area_px2[person])
    joints = reference.joints_px[person] + shift[:, None, None] * np.array([1.0, 0.0])
    return Predictions.gather(people, rows, joints, np.ones((len(rows), 17), np.float32))


def test_each_prediction_is_compared_with_the_person_whose_box_was_cropped(tmp_path: Path) -> None:
    store, reference = _store(tmp_path)
    found = _predicted(store, reference, np.zeros(12))
    oks, person = oks_of_persons(found, reference, annotated_boxes=True)
    assert (oks == 1.0).all()
    assert reference.annotation_id[person].tolist() == found.person_id.tolist()
    # By the boxes of a detector nobody knows who was meant: the most similar person of the image is.
    swapped = Predictions(**{**vars(found), "person_id": np.arange(12)})
    oks, again = oks_of_persons(swapped, reference, annotated_boxes=False)
    assert (oks == 1.0).all()
    assert again.tolist() == person.tolist()
    assert (oks_of_persons(swapped, reference, annotated_boxes=True)[1] == NOBODY).all()


def test_the_picture_of_a_person_shows_the_region_around_the_box(tmp_path: Path) -> None:
    store, reference = _store(tmp_path)
    found = _predicted(store, reference, np.zeros(12))
    (picture, to_view), *_ = persons_in_view(store, np.array([5]), 0.75, 1.25)
    assert picture.shape == (320, 256, 3)
    box = found.box_xywh_px[5]
    corners = np.stack([box[:2], box[:2] + box[2:]]) @ to_view[:, :2].T + to_view[:, 2]
    assert corners.mean(axis=0) == pytest.approx([128, 160])
    assert ((corners >= 0) & (corners <= [256, 320])).all()
    name = store.columns(["file_name"])["file_name"][5].as_py()
    original = cv2.imread(str(tmp_path / "images" / name))
    assert original is not None
    x, y = (int(v) for v in box[:2] + box[2:] / 2)
    there = to_view @ np.array([x, y, 1.0])
    seen = picture[round(float(there[1])), round(float(there[0]))].astype(int)
    assert np.abs(seen - original[y, x, ::-1].astype(int)).max() < 25


def test_the_best_and_the_worst_are_sorted_by_oks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efafnet.pipelines.evaluation import gallery

    store, reference = _store(tmp_path)
    found = _predicted(store, reference, np.linspace(0.0, 0.2, 12))
    captions: list[list[str]] = []
    named: list[str] = []

    def sheet(cells: list[Cell], title: str, legend: Legend) -> NDArray[np.uint8]:
        captions.append([title, *(c.detail for c in cells)])
        named.extend(c.caption for c in cells)
        return contact_sheet(cells, title, legend)

    monkeypatch.setattr(gallery, "contact_sheet", sheet)
    written = write_galleries(
        tmp_path, store, found, reference,
        count=3, input_size=InputSize(height=256, width=192), padding=1.25, sure=found.scores >= 0.2,
    )  # fmt: skip
    assert [p.name for p in written] == ["best.jpg", "worst.jpg"]
    persons = [f"image {i}, person {p}" for i, p in zip(found.image_id, found.person_id, strict=True)]
    assert captions[0] == ["best 3 of 12 persons", *persons[:3]]
    assert captions[1] == ["worst 3 of 12 persons", *persons[:-4:-1]]
    files = store.columns(["file_name"])["file_name"].to_pylist()
    assert [caption.rsplit(maxsplit=1)[1] for caption in named] == [*files[:3], *files[:-4:-1]]


def test_persons_of_few_joints_are_among_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efafnet.pipelines.evaluation import gallery

    store, reference = _store(tmp_path)
    found = _predicted(store, reference, np.linspace(0.0, 0.2, 12))
    # The worst person keeps 8 of its 17 joints: it teaches less than the next one, which keeps 9.
    people = [int(np.flatnonzero(reference.annotation_id == i)[0]) for i in found.person_id.tolist()]
    visibility = np.where(np.arange(17) < 17, 2, reference.visibility).astype(reference.visibility.dtype)
    visibility[people[-1], 8:] = 0
    visibility[people[-2], 9:] = 0
    titles: list[list[str]] = []

    def sheet(cells: list[Cell], title: str, legend: Legend) -> NDArray[np.uint8]:
        titles.append([title, cells[0].detail])
        return contact_sheet(cells, title, legend)

    monkeypatch.setattr(gallery, "contact_sheet", sheet)
    write_galleries(
        tmp_path, store, found, replace(reference, visibility=visibility),
        count=3, input_size=InputSize(height=256, width=192), padding=1.25, sure=found.scores >= 0.2,
    )  # fmt: skip
    assert titles[1][0] == "worst 3 of 11 persons with at least half of the joints annotated (12 in all)"
    assert titles[1][1] == f"image {found.image_id[-2]}, person {found.person_id[-2]}"
