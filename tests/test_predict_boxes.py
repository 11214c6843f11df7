"""Boxes of persons from files: found by name or id, clipped by the protocol's rules, refused with one error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efafnet.pipelines.prediction.config import PredictConfig
from efafnet.pipelines.prediction.media import Source
from efafnet.pipelines.prediction.person_boxes import Boxes, place, read_box_file, whole_image
from efafnet.pipelines.prediction.seen import Seen
from efafnet.pipelines.prediction.spool import Record


def _sources(*names: str) -> list[Source]:
    return [Source(i, Path("/data") / name, name.endswith(".mp4"), 1) for i, name in enumerate(names)]


def _file(folder: Path, content: Any, name: str = "boxes.json") -> Path:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


def _detection(image: Any, left: float = 0, score: float | None = 0.9, **fields: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": [left, 2, 30, 40], "score": score, **fields}


def _annotation(number: int, image: int, left: float = 0, **fields: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": [left, 2, 30, 40], **fields}


def _images(**names: int) -> list[dict[str, Any]]:
    return [{"id": number, "file_name": f"{name}.jpg"} for name, number in names.items()]


# ---- which boxes


def test_detections_of_images_called_by_their_ids(tmp_path: Path) -> None:
    content = [_detection(785, 1), _detection(40083, 2, 0.3), _detection(785, 3, 0.1), _detection(7, 4)]
    file = read_box_file(_file(tmp_path, content), None, min_score=0.2)
    placed = place(file, _sources("000000040083.jpg", "000000000785.jpg"))
    assert placed.ids == {(0, 0): 40083, (1, 0): 785}
    assert {key: boxes.xywh_px.tolist() for key, boxes in placed.boxes.items()} == {
        (0, 0): [[2, 2, 30, 40]],
        (1, 0): [[1, 2, 30, 40]],
    }
    assert placed.boxes[0, 0].scores.tolist() == [np.float32(0.3)]
    assert not file.is_annotated


def test_annotations_name_their_images_and_leave_out_crowds_and_other_categories(tmp_path: Path) -> None:
    content = {
        "images": [*_images(a=5), {"id": 6, "file_name": "one/b.jpg"}, {"id": 9, "file_name": "other/b.jpg"}],
        "annotations": [
            _annotation(1, 5, 10, category_id=3),
            _annotation(2, 6, 11, category_id=3, iscrowd=1),
            _annotation(3, 6, 12, category_id=3),
            _annotation(4, 5, 13, category_id=1),
            _annotation(5, 9, 14, category_id=3),
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "person"}],
    }
    file = read_box_file(_file(tmp_path, content), None, 0.0)
    assert (file.is_annotated, file.category_id) == (True, 3)
    placed = place(file, _sources("a.jpg", "other/b.jpg"))
    assert placed.ids == {(0, 0): 5, (1, 0): 9}
    assert [boxes.xywh_px[:, 0].tolist() for boxes in placed.boxes.values()] == [[10], [14]]
    assert placed.boxes[0, 0].scores.tolist() == [1.0]
    with pytest.raises(ValueError, match=r"/elsewhere/b\.jpg may be any of several listed images called b\.jpg"):
        place(file, [Source(0, Path("/elsewhere/b.jpg"), False, 1)])


def test_an_image_that_is_listed_twice_has_the_boxes_of_both_ids(tmp_path: Path) -> None:
    images = _file(tmp_path, {"images": [*_images(cat=3), *_images(dog=8), *_images(cat=5)]}, "images.json")
    file = read_box_file(_file(tmp_path, [_detection(3, 1), _detection(5, 2), _detection(8, 4)]), images, 0.0)
    placed = place(file, _sources("cat.jpg"))
    assert placed.ids == {(0, 0): 3}
    assert placed.boxes[0, 0].xywh_px[:, 0].tolist() == [1, 2]


def test_an_image_list_explains_the_ids_of_detections(tmp_path: Path) -> None:
    images = _file(tmp_path, {"images": _images(cat=3, dog=8)}, "images.json")
    file = read_box_file(_file(tmp_path, [_detection(8, 5), _detection(3, 6)]), images, 0.0)
    placed = place(file, _sources("dog.jpg"))
    assert placed.boxes[0, 0].xywh_px.tolist() == [[5, 2, 30, 40]]
    # Our own predictions.json and images.json are such files: frames are told by their numbers.
    frames = [{"id": 10 + n, "file_name": "walk.mp4", "frame": n} for n in range(3)]
    images = _file(tmp_path, {"images": [*_images(cat=3), *frames]}, "images.json")
    file = read_box_file(_file(tmp_path, [_detection(12, 5), _detection(3, 6)]), images, 0.0)
    placed = place(file, _sources("cat.jpg", "walk.mp4"))
    assert {key: boxes.xywh_px[0, 0] for key, boxes in placed.boxes.items()} == {(1, 2): 5, (0, 0): 6}


def test_ids_are_frame_numbers_of_a_single_video(tmp_path: Path) -> None:
    file = read_box_file(_file(tmp_path, [_detection(4, 5), _detection(0, 6)]), None, 0.0)
    placed = place(file, _sources("walk.mp4"))
    assert {key: boxes.xywh_px[0, 0] for key, boxes in placed.boxes.items()} == {(0, 4): 5, (0, 0): 6}


def test_images_that_are_not_listed_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"images": _images(a=5, b=6), "annotations": [_annotation(1, 5), _annotation(2, 6)]}
    placed = place(read_box_file(_file(tmp_path, content), None, 0.0), _sources("a.jpg", "new.jpg"))
    assert list(placed.boxes) == [(0, 0)]
    assert placed.free_from == 7, "6 is another image's"
    told = capsys.readouterr().err
    assert "1 of 2 images are not listed with the boxes: nobody is looked for in them" in told
    assert "1 of 2 boxes lie on other images and are left out" in told


def test_boxes_without_size_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = [_detection(1), _detection(1, bbox=[1, 1, 0, 5]), _detection(1, bbox=[1, 1, 5, -2])]
    assert len(read_box_file(_file(tmp_path, content), None, 0.0).boxes) == 1
    assert "2 boxes without width or height are left out" in capsys.readouterr().err


def test_names_of_another_machine_are_the_same_images(tmp_path: Path) -> None:
    images = [{"id": 5, "file_name": "C:\\data\\one\\a.jpg"}, {"id": 6, "file_name": "caf\u00e9.jpg"}]
    content = {"images": images, "annotations": [_annotation(1, 5, 10), _annotation(2, 6, 11)]}
    placed = place(read_box_file(_file(tmp_path, content), None, 0.0), _sources("a.jpg", "cafe\u0301.jpg"))
    assert placed.ids == {(0, 0): 5, (1, 0): 6}


def test_categories_are_chosen_by_name_or_number_and_others_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        "images": _images(a=5),
        "annotations": [
            _annotation(1, 5, 10),
            _annotation(2, 5, 11, category_id="2"),
            _annotation(3, 5, 12, iscrowd="1"),
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    path = _file(tmp_path, content)
    with pytest.raises(ValueError, match=r"several categories \(1 dog, 2 cat\); say which are meant: categories="):
        read_box_file(path, None, 0.0)
    found = read_box_file(path, None, 0.0, ["cat"])
    assert (found.boxes, found.category_id) == ([(5, [11.0, 2.0, 30.0, 40.0], 1.0)], 2)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 crowds are left out" in said
    assert "1 of 2 detections have another category (category 1 (dog): 1) than 2 (cat)" in said
    detections = _file(tmp_path, [_detection(1, 5, category_id=0), _detection(1, 6, category_id=2)], "d.json")
    assert read_box_file(detections, None, 0.0, ["0"]).boxes == [(1, [5.0, 2.0, 30.0, 40.0], 0.9)]
    with pytest.raises(
        ValueError, match=r"no detection of category 1 \(person\) among 2 \(category 0: 1, category 2: 1\)"
    ):
        read_box_file(detections, None, 0.0)


def test_categories_of_detections_without_a_list(tmp_path: Path) -> None:
    path = _file(tmp_path, [_detection(1), _detection(2, category_id="person")])
    assert len(read_box_file(path, None, 0.0, ["Person"]).boxes) == 2
    with pytest.raises(ValueError, match=r"categories=\['human'\]: nobody says which numbers .* image_list="):
        read_box_file(path, None, 0.0, ["human"])
    fields: dict[str, Any] = {"checkpoint": "c", "inputs": ["i"], "boxes": "whole_image"}
    assert PredictConfig(**fields, categories=[0]).categories == ("0",)
    assert PredictConfig(**fields, categories="person").categories == ("person",)


def test_crowds_that_are_neither_yes_nor_no_are_refused(tmp_path: Path) -> None:
    content = {"images": _images(a=5), "annotations": [_annotation(7, 5, iscrowd="maybe")]}
    with pytest.raises(ValueError, match=r"the annotation id 7 has iscrowd 'maybe'; it must be 0 or 1"):
        read_box_file(_file(tmp_path, content), None, 0.0)


def test_boxes_are_looked_at_again_once_their_pictures_are_known(tmp_path: Path) -> None:
    """Detections say nothing of the size of images, and frames are known to be there when they were read."""
    sources = _sources("walk.mp4")
    boxes = [_detection(n, bbox=[60, 40, 95, 75]) for n in (0, 1, 2, 9)]
    file = read_box_file(_file(tmp_path, boxes), None, 0.0)
    seen = Seen(place(file, sources), frame_step=2)
    for frame in (0, 2):
        seen.add(Record(0, frame, 100, 80, []))
    [corners] = seen.remarks(file, sources)
    assert corners.endswith("100 % of boxes end outside the image: corners instead of width and height?"), corners
    seen = Seen(place(file, sources), frame_step=1)
    for frame in (0, 1, 2):
        seen.add(Record(0, frame, 1000, 800, []))
    assert seen.remarks(file, sources) == [
        f"boxes={file.path}: 1 boxes lie on pictures that are not there (the first: frame 9 of walk.mp4)"
    ]


def test_boxes_that_look_like_corners_are_remarked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": 5, "file_name": "a.jpg", "width": 100, "height": 80}]
    content = {"images": images, "annotations": [_annotation(n, 5, bbox=[60, 40, 95, 75]) for n in range(3)]}
    read_box_file(_file(tmp_path, content), None, 0.0)
    assert "100 % of boxes end outside the image: corners instead of width and height?" in capsys.readouterr().err


# ---- where they reach


def test_boxes_are_clipped_by_rule_and_dropped_outside() -> None:
    boxes = Boxes.of(
        [((-10.0, 5.0, 60.0, 40.0), 0.5), ((200.0, 5.0, 10.0, 10.0), 0.6), ((-30.0, 0.0, 20.0, 20.0), 0.7)]
    )
    unclipped = boxes.cut(100, 80, "unclipped")
    assert unclipped.xywh_px.tolist() == [[-10, 5, 60, 40]]
    assert unclipped.scores.tolist() == [0.5]
    # SBN: left edge to 0, a pixel less of width and height.
    assert boxes.cut(100, 80, "sbn").xywh_px.tolist() == [[0, 5, 59, 39]]
    assert boxes.cut(100, 80, "mmpose").xywh_px.tolist() == [[0, 5, 50, 40]]


def test_the_whole_image_is_one_box() -> None:
    boxes = whole_image(640, 480)
    assert (boxes.xywh_px.tolist(), boxes.scores.tolist()) == ([[0, 0, 640, 480]], [1.0])


# ---- what is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not valid JSON"),
        ({"people": []}, "holds neither annotations in COCO's layout .* nor detections"),
        (3, "holds neither annotations"),
        ({"annotations": []}, "lists no images"),
        ({"annotations": [], "images": [{"id": "one", "file_name": "a.jpg"}]}, "needs an integer id and a file_name"),
        (["x"], "entry 0 is 'x'; it needs image_id, bbox"),
        ([_detection(1), _detection("1.jpg")], "entry 1 has image_id '1.jpg'"),
        ([_detection(1, bbox=[1, 2, 3])], r"entry 0 has bbox \[1, 2, 3\]"),
        ([_detection(1, bbox=[1, 2, 3, float("nan")])], "entry 0 has bbox"),
        ([_detection(1, score=math.nan)], "entry 0 has score nan"),
    ],
)
def test_what_is_no_file_of_boxes(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_box_file(_file(tmp_path, content), None, 0.0)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"boxes=.*no\.json: there is no such file"):
        read_box_file(tmp_path / "no.json", None, 0.0)
    with pytest.raises(ValueError, match=r"image_list=.*no\.json: there is no such file"):
        read_box_file(_file(tmp_path, []), tmp_path / "no.json", 0.0)


def test_a_box_of_an_unknown_image(tmp_path: Path) -> None:
    content = {"images": _images(a=5), "annotations": [_annotation(1, 5), _annotation(2, 77)]}
    with pytest.raises(
        ValueError, match=r"a box lies on image 77, which is not listed; .*image_list=ANNOTATIONS\.json"
    ):
        place(read_box_file(_file(tmp_path, content), None, 0.0), _sources("a.jpg"))


def test_boxes_of_other_images_only(tmp_path: Path) -> None:
    file = read_box_file(_file(tmp_path, [_detection(3), _detection(4)]), None, 0.0)
    message = (
        r"none of its 2 boxes lies on the images to predict: the first is on image 3, the first to predict is 8\.jpg"
    )
    with pytest.raises(ValueError, match=message):
        place(file, _sources("8.jpg"))
    with pytest.raises(ValueError, match="it holds no box of a person for the images to predict"):
        place(read_box_file(_file(tmp_path, []), None, 0.0), _sources("8.jpg"))


def test_detections_may_call_the_images_by_their_files_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = _sources("cat.jpg", "walk.mp4", "dog.png")
    content = [_detection("dog.png", 1), _detection("C:\\x\\cat.jpg", 2), _detection("elsewhere.jpg", 3)]
    placed = place(read_box_file(_file(tmp_path, content), None, 0.0, (), sources), sources)
    assert placed.ids == {(0, 0): 1, (2, 0): 3}
    assert {key: boxes.xywh_px[:, 0].tolist() for key, boxes in placed.boxes.items()} == {(0, 0): [2], (2, 0): [1]}
    assert "1 of 3 boxes lie on images of other names" in capsys.readouterr().err
    # Images that are called by numbers keep them.
    numbered = _sources("000012.jpg", "7.jpg")
    placed = place(read_box_file(_file(tmp_path, [_detection("7.jpg")]), None, 0.0, (), numbered), numbered)
    assert (placed.ids, list(placed.boxes)) == ({(0, 0): 12, (1, 0): 7}, [(1, 0)])
    message = r"none of its 1 boxes .* first is on image 'x\.jpg', the first to predict is cat\.jpg"
    with pytest.raises(ValueError, match=message):
        read_box_file(_file(tmp_path, [_detection("x.jpg")]), None, 0.0, (), sources)


@pytest.mark.parametrize("names", [("cat.jpg",), ("1.jpg", "sub/01.png"), ("1.jpg", "walk.mp4")])
def test_ids_that_no_name_explains(tmp_path: Path, names: tuple[str, ...]) -> None:
    file = read_box_file(_file(tmp_path, [_detection(1)]), None, 0.0)
    with pytest.raises(ValueError, match=rf"files to predict \({names[0]}, …\) are not numbers .* image_list="):
        place(file, _sources(*names))
