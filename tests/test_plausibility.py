"""Conventions that an exporter got wrong: remarked by share of persons, never refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines.formats.annotations import Annotations
from efafnet.pipelines.formats.coco import parse_coco
from efafnet.pipelines.formats.plausibility import equal_scores, odd_results, plausibility_of
from tests import crop_data

_PATH = Path("a.json")


def _plausible(change: Any, count: int = 4) -> list[str]:
    people = [crop_data.person(n, n % 2 + 1, [10.0, 10, 40, 60]) for n in range(count)]
    for person in people:
        change(person)
    return plausibility_of(parse_coco(crop_data.content(*people, images=2), _PATH), "a.json")


def _corners(person: dict[str, Any]) -> None:
    x, y, width, height = person["bbox"]
    person["bbox"] = [x, y, x + width, y + height]


def _shares(person: dict[str, Any]) -> None:
    person["bbox"] = [value / 100 for value in person["bbox"]]
    person["keypoints"] = [v if n % 3 == 2 else v / 100 for n, v in enumerate(person["keypoints"])]


def _unlabelled(person: dict[str, Any]) -> None:
    """Places without a visibility, as who forgets the third number's meaning writes them."""
    person["num_keypoints"] = 17
    person["keypoints"][2::3] = [0] * 17


def _elsewhere(person: dict[str, Any]) -> None:
    person["bbox"] = [50, 40, 10, 10]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_corners, "0 % of boxes end outside the image, 100 % fit their joints as x1, y1, x2, y2: corners instead of"),
        (_shares, "100 % of boxes lie within 0 to 1: shares, not pixels?"),
        (_elsewhere, "100 % of persons have joints far outside their boxes"),
        (lambda person: person.update(num_keypoints=0), "100 % of persons with joints have num_keypoints 0"),
        (lambda person: person.update(area=1), "100 % of persons have an area of at most 1 px²"),
        (lambda person: person.update(area=2 * 40 * 60), "100 % of persons have an area larger than their box"),
        (lambda person: person.update(bbox=[60, 40, 90, 90]), "100 % of boxes end outside the image"),
        (_unlabelled, "100 % of persons with num_keypoints above 0 have no joint of v above 0"),
        (lambda person: person.update(area=0), "4 of 4 persons have the area 0, by which OKS divides"),
    ],
)
def test_odd_conventions_are_remarked_by_share(change: Any, says: str) -> None:
    assert any(f"a.json: {says}" in remark for remark in _plausible(change))
    assert _plausible(lambda _: None) == []


@pytest.mark.filterwarnings("error")
def test_boxes_of_results_are_looked_at_beside_their_joints() -> None:
    def results(box: list[float]) -> list[dict[str, Any]]:
        return [{"keypoints": crop_data.person(0, 1, [10.0, 10, 40, 60])["keypoints"], "bbox": box}] * 4

    assert odd_results(results([10, 10, 40, 60]), 17) == []
    [corners] = odd_results(results([10, 10, 50, 70]), 17)
    assert "100 % fit their joints as x1, y1, x2, y2: corners instead of width and height?" in corners
    assert odd_results(results([1e308] * 4), 17) == [], "beyond what is believed, and what can be multiplied"
    assert odd_results([{**results([1])[0], "keypoints": None}], 17) == [], "parse_results refuses it"


def test_percent_of_large_images_are_remarked() -> None:
    """Label Studio's own numbers: 31 % and 25 % of 320x240 pixels in place of 100 and 60."""
    content = crop_data.content(*(crop_data.person(n, 1, [31.0, 25, 25, 50]) for n in range(3)))
    content["images"][0] |= {"width": 320, "height": 240}
    [remark] = plausibility_of(parse_coco(content, _PATH), "a.json")
    assert remark == "a.json: all 3 boxes in images of 200 pixels and more end by 100: percent, not pixels?"
    content["annotations"][0]["bbox"] = [76, 25, 25, 50]
    assert "percent" not in " ".join(plausibility_of(parse_coco(content, _PATH), "a.json"))


def test_boxes_that_are_the_whole_image_are_remarked() -> None:
    """Joints 30 pixels apart and 48 high reach over more than half of 100x80, 24 high over less than half both ways."""

    def whole(height: float) -> list[str]:
        people = [crop_data.person(n, 1, [10.0, 10, 40, height]) for n in range(3)]
        for person in people:
            person["bbox"] = [0, 0, 100, 80]
        return plausibility_of(parse_coco(crop_data.content(*people), _PATH), "a.json")

    assert whole(60) == []
    assert whole(30) == [
        "a.json: 100 % of boxes are the whole image, though their joints reach over less than half of it: no persons' "
        "boxes?"
    ]


def test_equal_scores_are_remarked() -> None:
    results = [{"score": score} for score in (1.0, 1.0, 1.0)]
    assert equal_scores(results) == [
        "all 3 results have the score 1.0: AP ranks persons by it, equal ones as they stand"
    ]
    assert equal_scores([*results, {"score": 0.9}]) == []
    assert equal_scores(results[:2]) == [], "two persons may be equally sure"


def test_sigmas_in_percent_are_remarked() -> None:
    content = crop_data.content(crop_data.person(0, 1, [10.0, 10, 40, 60]))
    content["categories"][0] |= {"keypoints": [f"p{n}" for n in range(17)], "flip_pairs": [], "sigmas": [2.6] * 17}
    assert plausibility_of(parse_coco(content, _PATH), "a.json") == [
        "a.json: sigmas go up to 2.6, COCO's to 0.107: with such OKS forgives everything; percent?"
    ]


@pytest.mark.parametrize(
    "file",
    [
        "coco-mini/annotations/person_keypoints_train.json",
        "tiny-coco/test_coco.json",
        "tiny-crowdpose/test_crowdpose.json",
        "tiny-ochuman/test_ochuman.json",
    ],
)
def test_real_annotations_are_plausible(file: str) -> None:
    folder, _, rest = file.partition("/")
    path = crop_data.real_data(folder) / rest
    content: Annotations = parse_coco(json.loads(path.read_text()), path)
    assert plausibility_of(content, path.name) == []
