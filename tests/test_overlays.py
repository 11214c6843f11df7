"""Drawn poses: what is where, in which colour, and who is among the best and the worst."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.columns import Truth, truth
from efafnet.pipelines.evaluation.gallery import NOBODY, oks_of_persons, persons_in_view, write_galleries
from efafnet.pipelines.evaluation.overlays import (
    LEFT,
    MIDDLE,
    RIGHT,
    WRONG,
    Cell,
    Colour,
    Strength,
    contact_sheet,
    draw_box,
    draw_mistakes,
    draw_person,
    side_colours,
    write_picture,
)
from efafnet.pipelines.evaluation.predictions import PERSON_COLUMNS, Predictions
from tests import crop_data

NOSE, LEFT_WRIST, RIGHT_WRIST = 0, 9, 10
LEFT_SHOULDER, RIGHT_SHOULDER = 5, 6


def _grey() -> NDArray[np.uint8]:
    return np.full((256, 192, 3), 128, np.uint8)


def _strength(**chosen: Strength) -> list[Strength]:
    return [chosen.get(name, "absent") for name in COCO_17.joints]


def _places(**chosen: tuple[float, float]) -> NDArray[np.float64]:
    return np.array([chosen.get(name, (-500.0, -500.0)) for name in COCO_17.joints])


def _near(picture: NDArray[np.uint8], x: int, y: int, colour: Colour, tolerance: int = 12) -> bool:
    return bool(np.abs(picture[y, x].astype(int) - colour).max() < tolerance)


def test_sides_have_their_colours() -> None:
    colours = side_colours(COCO_17)
    assert (colours[LEFT_WRIST], colours[RIGHT_WRIST], colours[NOSE]) == (LEFT, RIGHT, MIDDLE)


def test_joints_are_filled_where_sure_hollow_where_unsure_and_left_out_where_absent() -> None:
    places = _places(left_wrist=(40, 50), right_wrist=(100, 50), nose=(150, 50))
    drawn = draw_person(_grey(), places, _strength(left_wrist="sure", right_wrist="unsure"), COCO_17)
    assert _near(drawn, 40, 50, LEFT)
    assert drawn[50, 100].max() < 60
    assert _near(drawn, 103, 50, RIGHT, tolerance=24)
    assert _near(drawn, 150, 50, (128, 128, 128))


def test_a_limb_joins_present_joints_only_and_has_the_colour_of_its_side() -> None:
    places = _places(left_shoulder=(60, 60), right_shoulder=(140, 60), left_elbow=(60, 140), right_elbow=(140, 140))
    there = {"left_shoulder": "sure", "right_shoulder": "sure", "left_elbow": "sure"}
    drawn = draw_person(_grey(), places, _strength(**there), COCO_17)  # type: ignore[arg-type]
    assert _near(drawn, 60, 100, LEFT)
    assert _near(drawn, 100, 60, MIDDLE)
    assert _near(drawn, 140, 100, (128, 128, 128))


def test_the_picture_given_stays_as_it_was() -> None:
    picture = _grey()
    draw_person(picture, _places(nose=(50, 50)), _strength(nose="sure"), COCO_17)
    draw_box(picture, np.array([[10.0, 10.0], [50.0, 50.0]]))
    assert (picture == 128).all()


def test_positions_outside_the_picture_or_without_a_number_do_no_harm() -> None:
    places = _places(nose=(1e9, -1e9), left_eye=(np.nan, np.nan), right_eye=(50, 50))
    drawn = draw_person(_grey(), places, ["sure"] * 17, COCO_17)
    assert _near(drawn, 50, 50, RIGHT)


def test_a_mistake_points_to_where_the_joint_should_be() -> None:
    predicted, true = _places(nose=(40, 40)), _places(nose=(140, 40))
    wrong = np.zeros(17, bool)
    assert np.array_equal(draw_mistakes(_grey(), predicted, true, wrong), _grey())
    wrong[NOSE] = True
    drawn = draw_mistakes(_grey(), predicted, true, wrong)
    assert _near(drawn, 90, 40, WRONG, tolerance=60)
    assert _near(drawn, 142, 42, WRONG, tolerance=60)


def test_a_sheet_holds_every_person(tmp_path: Path) -> None:
    cells = [Cell(_grey() * 0, _grey() * 0 + 200, f"OKS {n}", "detail") for n in range(5)]
    sheet = contact_sheet(cells, "title", columns=3)
    dark = (sheet.max(axis=2) == 0).sum()
    assert dark == pytest.approx(5 * 256 * 192, rel=0.01)
    assert (sheet == 200).all(axis=2).sum() >= 5 * 256 * 192
    for name in ("sheet.png", "sheet.jpg"):
        write_picture(sheet, tmp_path / name)
        read = cv2.imread(str(tmp_path / name))
        assert read is not None
        assert read.shape == sheet.shape


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

    def sheet(cells: list[Cell], title: str) -> NDArray[np.uint8]:
        captions.append([title, *(c.detail for c in cells)])
        return contact_sheet(cells, title)

    monkeypatch.setattr(gallery, "contact_sheet", sheet)
    written = write_galleries(
        tmp_path, store, found, reference,
        count=3, input_size=InputSize(height=256, width=192), padding=1.25, sure_from=0.2,
    )  # fmt: skip
    assert [p.name for p in written] == ["best.jpg", "worst.jpg"]
    persons = [f"image {i}, person {p}" for i, p in zip(found.image_id, found.person_id, strict=True)]
    assert captions[0] == ["best 3 of 12 persons", *persons[:3]]
    assert captions[1] == ["worst 3 of 12 persons", *persons[:-4:-1]]
