"""The readers of detections and results from outside: what they take, what they refuse, what they say about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.evaluation.columns import detections, truth
from efafnet.pipelines.formats.categories import Chosen
from efafnet.pipelines.formats.detections import parse_detections
from efafnet.pipelines.formats.images import ImageTable
from efafnet.pipelines.formats.plausibility import odd_scores
from efafnet.pipelines.formats.results import Names, parse_results

_PERSONS = Chosen(frozenset({1}), 1, {1: "person", 18: "dog"})


def _found(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5, **change} for change in changes]


def test_detections_as_exporters_write_them() -> None:
    images = ImageTable([{"id": 1, "file_name": "x/frame_1.jpg"}, {"id": 2, "file_name": "b.jpg"}], named=True)
    entries = _found(
        {"image_id": "1"}, {"image_id": "frame_1"}, {"image_id": "b.jpg"}, {"score": "0.25"}, {"score": None},
        {"category_id": "1"}, {"category_id": "person"}, {"bbox": ["1", "2", "30", "40"]}, {"category_id": 18},
    )  # fmt: skip
    read = parse_detections(entries, "d.json", _PERSONS, images)
    assert read.image_id.tolist() == [1, 1, 2, 1, 1, 1, 1, 1]
    assert read.score.tolist() == [0.5, 0.5, 0.5, 0.25, 1.0, 0.5, 0.5, 0.5]
    assert read.entry.tolist() == list(range(8))
    assert (read.box_xywh_px == [1, 2, 30, 40]).all()
    assert read.remarks == [
        "d.json: 1 of 9 detections have another category (category 18 (dog): 1) than 1 (person) and are left out",
        "d.json: 1 detections have no score; they count as certain (the first has: 'image_id', 'category_id', 'bbox', "
        "'score')",
    ]


def test_bad_detections_are_rejects_with_entry_and_value() -> None:
    entries: list[Any] = _found(
        {"bbox": None}, {"bbox": 3}, {"bbox": [1, 2, 0, 4]}, {"score": "high"}, {"image_id": 2**70}, {"image_id": 3},
        {"category_id": [1]},
    )  # fmt: skip
    read = parse_detections([*entries, 5], "d.json", _PERSONS, ImageTable([{"id": 1, "file_name": "a"}], named=True))
    found = {reject.annotation_id: (reject.reason, reject.detail) for reject in read.rejects}
    assert {entry: reason for entry, (reason, _) in found.items()} == {
        0: "box_invalid", 1: "box_invalid", 2: "box_empty", 3: "detection_invalid", 4: "detection_invalid",
        5: "unknown_image", 6: "detection_invalid", 7: "detection_invalid",
    }  # fmt: skip
    assert found[3][1] == "entry 3 has score 'high'; bbox and score must be finite numbers"
    [absent] = parse_detections([{"image_id": 1, "box": [1, 2, 3, 4]}], "d.json", _PERSONS).rejects
    assert absent.detail == "entry 0 has no bbox (its fields: 'image_id', 'box'); it must be four finite numbers"
    assert found[5][1] == "entry 5 lies on image 3, which is not listed (the first that is: 1, a)"
    with pytest.raises(ValueError, match=r"8 of 8 detections cannot be used: .*entry 5 lies on image 3"):
        read.refuse_rejects()
    with pytest.raises(ValueError, match=r"no detection of category 1 \(person\) among 2 \(category 0: 2\)"):
        parse_detections(_found({"category_id": 0}, {"category_id": 0}), "d.json", _PERSONS)


def test_fields_of_detections_without_a_score_are_told() -> None:
    found = [{"image_id": 1, "bbox": [1, 2, 3, 4], "confidence": 0.5}]
    read = parse_detections(found, "d.json", _PERSONS)
    assert read.score.tolist() == [1.0]
    assert read.remarks == [
        "d.json: 1 detections have no score; they count as certain (the first has: 'image_id', 'bbox', 'confidence')"
    ]


def test_lists_inside_objects_are_found_and_named() -> None:
    with pytest.raises(ValueError, match=r"d\.json is not a detections file: .*; the list under 'predictions' seems"):
        parse_detections({"time": 3, "predictions": _found({})}, "d.json", _PERSONS)
    with pytest.raises(ValueError, match="this looks like OpenPose's file of one picture"):
        parse_detections({"people": []}, "d.json", _PERSONS)


def _result(**changes: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 1, "keypoints": [1.5] * 51, "score": 0.5, **changes}


def test_results_as_others_write_them() -> None:
    odd = _result(image_id="1", category_id="1", score="0.5", keypoints=[["1.5", 1.5, 1.5]] * 17)
    read = parse_results([_result(), odd], COCO_17, (1,))
    assert (read.image_id.tolist(), read.score.tolist()) == ([1, 1], [0.5, 0.5])
    assert (read.keypoints == 1.5).all()
    assert read.box_xywh_px is None


def test_text_that_means_two_images_is_refused() -> None:
    images = [{"id": 1, "file_name": "000000.jpg"}, {"id": 2, "file_name": "000001.jpg"}]
    table = ImageTable(images, named=True)
    # In a file of its own "000001" is the id; in another file it may be either.
    found = table.find("000001")
    assert found is not None
    assert found.image_id == 1
    read = parse_detections(_found({"image_id": "000001"}, {"image_id": "000001.jpg"}), "d.json", _PERSONS, table)
    assert read.image_id.tolist() == [2]
    assert "entry 0 lies on image '000001', which is the id of 000000.jpg and the name of 000001.jpg" in (
        read.rejects[0].detail
    )
    with pytest.raises(ValueError, match=r"image_id '000001' is the id of 000000\.jpg and the name of 000001\.jpg"):
        Names(table, {}).numbered([_result(image_id="000001")])
    assert Names(table, {}).numbered([_result(image_id="0002")])[0]["image_id"] == 2


def test_scores_in_percent_are_remarked() -> None:
    assert odd_scores(np.array([90.0, 40.0, 1.0, 0.5])) == ["50 % of scores are above 1: percent?"]
    assert odd_scores(np.array([1.0, 0.5])) == odd_scores(np.zeros(0)) == []


def test_results_by_name_are_those_by_number() -> None:
    content = {
        "images": [{"id": 7 + n, "file_name": name} for n, name in enumerate(("a/frame_1.jpg", "b/x.jpg", "c/x.jpg"))],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 9, 9], "keypoints": [2, 2, 2] * 17},
        ],
        "categories": [{"id": 3, "name": "person", "keypoints": list(COCO_17.joints)}],
    }  # fmt: skip
    reference = truth(content)
    plain = _result(image_id=7, category_id=3)
    expected = detections([plain], reference)
    for image in ("a/frame_1.jpg", "frame_1.jpg", "frame_1", "007", "/data/a/frame_1.jpg", "C:\\a\\frame_1.jpg"):
        named = [_result(image_id=image, category_id="Person" if image == "007" else "person")]
        assert detections(named, reference).image.tolist() == expected.image.tolist() == [0]
        assert named[0]["image_id"] == image, "what was given is not changed"
    with pytest.raises(ValueError, match=r"got 'x' and 0.5: .*no single image of the annotations is called so"):
        detections([_result(image_id="x", category_id=3)], reference)
    with pytest.raises(ValueError, match="category 'car' is not the person category, 3"):
        detections([_result(image_id=7, category_id="car")], reference)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"keypoints": None}, r"results entry 1: no 'keypoints' \(keypoints is null\)"),
        ({"image_id": 2**70}, r"results entry 1: .*1180591620717411303424 \(does not fit into 64 bits"),
        ({"bbox": None}, "results entry 1: no bbox, though the first entry has one"),
        ({"bbox": [1, 2, 3]}, r"results entry 1: bbox \[1, 2, 3\] is not four finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, r"results entry 1: bbox \[1, 2, -3, 4\] has a negative width or height"),
        ({"keypoints": [10**400] * 51}, "results entry 1: NaN or infinity"),
        (
            {"keypoints": [1.5] * 4 + [None] * 2 + [1.5] * 45},
            "no number at all: None as y of left_eye; a joint that was",
        ),
    ],
)
def test_bad_results_are_named(change: dict[str, Any], says: str) -> None:
    boxed = _result(bbox=[1, 2, 3, 4])
    with pytest.raises(ValueError, match=says):
        parse_results([boxed, {**boxed, **change}], COCO_17, (1,), boxed=True)


def test_only_the_first_three_bad_results_are_shown() -> None:
    with pytest.raises(ValueError, match=r"entry 0: .*entry 1: .*entry 2: .*; and 2 more of 5$") as caught:
        parse_results([_result(score=None)] * 5, COCO_17, (1,))
    assert "entry 3" not in str(caught.value)
