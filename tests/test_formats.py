"""The readers of files from outside: what they take, what they refuse, and what they say about it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17, pairs_by_name
from efafnet.pipelines.formats import values
from efafnet.pipelines.formats.coco import parse_coco
from efafnet.pipelines.formats.files import read_json
from efafnet.pipelines.formats.names import name_parts, tails
from efafnet.pipelines.formats.rejects import Reject, explained
from tests import crop_data

_PATH = Path("a.json")


# ---- single values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7), (7.0, 7), ("7", 7), ("000007", 7), (" 7 ", 7), ("7.0", 7), ("-7", -7), (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)), (2**63, None), ("9" * 25, None), (7.5, None), (True, None), (None, None),
        (math.nan, None), (math.inf, None), ("seven", None), ("7a", None), ("", None), ([7], None), ({}, None),
        ("\u0667", None),
    ],
)  # fmt: skip
def test_integers(value: Any, expected: int | None) -> None:
    assert values.integer(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0), (1.5, 1.5), ("1.5", 1.5), ("-1e3", -1000.0), (".5", 0.5), (10**400, None), (math.nan, None),
        (-math.inf, None), ("nan", None), ("inf", None), ("1e9999", None), ("1_0", None), ("", None), (True, None),
        (None, None), ([1], None),
    ],
)  # fmt: skip
def test_numbers(value: Any, expected: float | None) -> None:
    assert values.number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, False), (1, True), (True, True), ("0", False), ("1", True), ("False", False), (None, False), (1.0, True)]
    + [(value, None) for value in (2, "maybe", [0], math.nan)],
)
def test_flags(value: Any, expected: bool | None) -> None:
    """bool("0") is True: text is read, not tested for being there."""
    assert values.flag(value) is expected


def test_rows_of_numbers_at_once_equal_those_one_by_one() -> None:
    rows: list[Any] = [[1, 2.5], [3, 4], None, [1], [1, None], [1, "2"], [1, True], [1, math.nan], [1, 10**400], "12"]
    table, sound = values.number_rows(rows, 2)
    assert sound.tolist() == [True, True, *[False] * 8]
    assert table[:2].tolist() == [[1, 2.5], [3, 4]]
    assert not table[2:].any()
    plain, all_sound = values.number_rows(rows[:2], 2)
    assert (plain.tolist(), all_sound.tolist()) == ([[1, 2.5], [3, 4]], [True, True])
    assert values.number_rows([], 2)[0].shape == (0, 2)


def test_deep_nesting_and_endless_digits_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(ValueError, match=r"deep\.json .*nested too deep"):
        read_json(path)
    path.write_text("1" * 5000)
    with pytest.raises(ValueError, match=r"deep\.json is not valid JSON"):
        read_json(path)
    with pytest.raises(ValueError, match="is a folder; give a JSON file"):
        read_json(tmp_path)


# ---- annotations


def _person(number: int = 7, **changes: Any) -> dict[str, Any]:
    return {**crop_data.person(number, 1, [10.0, 10, 40, 60]), **changes}


def _as_text(value: Any) -> Any:
    """Every number of an annotation as the text that an exporter might write."""
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return str(value) if isinstance(value, int | float) else value


def test_numbers_written_as_text_and_whole_floats_are_the_same_annotation() -> None:
    plain = parse_coco(crop_data.content(_person()), _PATH)
    text = crop_data.content({name: _as_text(value) for name, value in _person().items()}, id="1.0")
    text["images"][0].update(id="0001", width="100", height=80.0)
    read = parse_coco(text, _PATH)
    assert (read.annotations, read.images, read.rejects) == (plain.annotations, plain.images, [])
    nested = _person(keypoints=np.reshape(_person()["keypoints"], (17, 3)).tolist())
    assert parse_coco(crop_data.content(nested), _PATH).annotations == plain.annotations


def test_null_is_absent() -> None:
    nulls = _person(area=None, iscrowd=None, num_keypoints=None, category_id=None, head_size=None)
    absent = {name: value for name, value in nulls.items() if value is not None}
    (annotation,) = parse_coco(crop_data.content(nulls), _PATH).annotations
    assert parse_coco(crop_data.content(absent), _PATH).annotations == [annotation]
    assert (annotation.area, annotation.is_crowd, annotation.num_keypoints) == (60.0 * 40.0 * 0.53, False, 17)
    without = parse_coco(crop_data.content(_person(keypoints=None, num_keypoints=None)), _PATH).annotations[0]
    assert (without.num_keypoints, set(without.keypoints)) == (0, {0.0})
    content = crop_data.content(_person())
    content["images"][0].update(width=None, height=80)
    assert (parse_coco(content, _PATH).images[0].width, parse_coco(content, _PATH).images[0].height) == (None, None)


def test_absent_joints_may_lie_anywhere() -> None:
    keypoints = [*_person()["keypoints"][:48], None, math.nan, 0]
    (annotation,) = parse_coco(crop_data.content(_person(keypoints=keypoints)), _PATH).annotations
    assert annotation.keypoints[48:] == (0.0, 0.0, 0.0)
    assert annotation.keypoints[:48] == tuple(_person()["keypoints"][:48])


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_joint_of_which_nothing_is_said_is_absent(nothing: float | None) -> None:
    keypoints = [*[nothing] * 3, *_person()["keypoints"][3:]]
    (annotation,) = parse_coco(crop_data.content(_person(keypoints=keypoints, num_keypoints=None)), _PATH).annotations
    assert annotation.keypoints[:3] == (0.0, 0.0, 0.0)
    assert annotation.num_keypoints == 16
    # A place that is said makes it a joint with its visibility missing.
    keypoints[0] = 12.0
    (reject,) = parse_coco(crop_data.content(_person(keypoints=keypoints)), _PATH).rejects
    assert f"has v={nothing} at joint 0 (nose); v must be 0" in reject.detail


def test_fractions_of_visibility_are_annotated_joints_and_told() -> None:
    """COCO-WholeBody has v = .73; AI Challenger's 3 means not annotated, so nothing above 2 is guessed."""
    keypoints = _person()["keypoints"]
    keypoints[2], keypoints[5] = 0.73, 1.2
    parsed = parse_coco(crop_data.content(_person(keypoints=keypoints)), _PATH)
    assert parsed.annotations[0].keypoints[2::3] == (2.0,) * 17
    (remark,) = parsed.remarks
    assert "2 joints have a visibility between 0, 1 and 2 (the first: v=0.73 at nose of annotation 7)" in remark
    keypoints[2] = 3
    (reject,) = parse_coco(crop_data.content(_person(keypoints=keypoints)), _PATH).rejects
    assert reject.detail == (
        "annotation 7 has v=3 at joint 0 (nose); v must be 0 (absent), 1 (hidden) or 2 (visible). AI Challenger "
        "writes 3 for absent joints: make it 0"
    )


def test_missing_annotation_ids_are_numbered_and_told() -> None:
    persons = [_person(number) for number in (2, 9, 9)]
    del persons[1]["id"]
    persons[2]["id"] = None
    parsed = parse_coco(crop_data.content(*persons), _PATH)
    assert [a.annotation_id for a in parsed.annotations] == [2, 1, 3]
    assert "2 annotations have no id and are numbered" in parsed.remarks[0]


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"id": 2**64}, "annotation_invalid", "id 18446744073709551616 (does not fit into 64 bits; renumber)"),
        ({"id": True}, "annotation_invalid", "annotation id True (true or false; it must be an integer)"),
        ({"category_id": [1]}, "annotation_invalid", "annotation 0: category_id [1] (a list; it must be an integer)"),
        ({"image_id": "frame_1"}, "unknown_image", "annotation 7 lies on image 'frame_1', which is not listed"),
        ({"bbox": [1, 2, 1e308, 4]}, "box_invalid", "annotation 7 has bbox [1, 2, 1e+308, 4]"),
        ({"bbox": 5}, "box_invalid", "annotation 7 has bbox 5; it must be four finite numbers"),
        ({"area": "large"}, "area_invalid", "annotation 7 has area 'large'; it must be a finite number"),
        ({"area": 10**400}, "area_invalid", "annotation 7 has area 1000"),
        ({"area": -5}, "area_invalid", "annotation 7 has area -5; it must be a finite number, 0 or more"),
        ({"category_id": "rider"}, "annotation_invalid", "it must be an integer); the categories are: 1 (person)"),
        ({"keypoints": [{"x": 1}] * 17}, "keypoints_invalid", "has 17 keypoint values ({'x': 1}, …); skeleton coco17"),
        ({"iscrowd": "maybe"}, "annotation_invalid", "annotation 7 has iscrowd 'maybe'; it must be 0 or 1"),
        ({"num_keypoints": True}, "annotation_invalid", "annotation 7 has num_keypoints True"),
        ({"image_id": [1]}, "unknown_image", "annotation 7 has image_id [1] (a list; it must be an integer)"),
        ({"keypoints": [1, 2, 2] * 26}, "keypoints_invalid", "17 joints): 26 joints? The category's keypoints must"),
        ({"keypoints": {"nose": [1, 2]}}, "keypoints_invalid", "annotation 7 has keypoints {'nose': [1, 2]}"),
        ({"keypoints": [1e300, 1, 2] * 17}, "keypoints_invalid", "has x=1e+300, y=1 at joint 0 (nose)"),
        ({"keypoints": [math.nan, 1, 2] * 17}, "keypoints_invalid", "both must be finite numbers, or v 0 where it is"),
        ({"keypoints": [1, 2] * 17}, "keypoints_invalid", "17 joints): x and y without visibility?"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_entry_and_value(changes: dict[str, Any], reason: str, says: str) -> None:
    parsed = parse_coco(crop_data.content(_person(**changes)), _PATH)
    assert not parsed.annotations
    (reject,) = parsed.rejects
    assert (reject.reason, reject.persons) == (reason, 1)
    assert says in reject.detail


def test_a_field_that_is_not_there_is_told_with_those_that_are() -> None:
    content = crop_data.content(
        {"id": 7, "image_id": 1, "box": [1, 2, 3, 4]}, {"id": 8, "img": 1, "bbox": [1, 2, 3, 4]}
    )
    content["images"].append({"id": 2, "path": "/x/2.jpg"})
    assert [reject.detail for reject in parse_coco(content, _PATH).rejects] == [
        "image 2 has no file_name (its fields: 'id', 'path')",
        "annotation 7 has no bbox (its fields: 'id', 'image_id', 'box'); it must be four finite numbers",
        "annotation 8 has no image_id (its fields: 'id', 'img', 'bbox')",
    ]


def test_a_file_under_two_ids_is_told() -> None:
    content = crop_data.content(_person(), images=2)
    assert parse_coco(content, _PATH).remarks == []
    content["images"].append({**content["images"][0], "id": 9})
    assert parse_coco(content, _PATH).remarks == [
        "a.json: 1 files are listed under several ids (1.jpg: 1 and 9): their persons count once for each"
    ]
    # Who only measures needs no names.
    for image in content["images"]:
        del image["file_name"]
    assert parse_coco(content, _PATH, named=False).remarks == []


def test_names_that_no_file_can_have_are_refused() -> None:
    content = crop_data.content(_person())
    for name in ("a\ud800.jpg", "a\0.jpg", 5):
        content["images"][0]["file_name"] = name
        assert parse_coco(content, _PATH).rejects[0].reason == "image_entry_invalid"


# ---- categories


def _two(**second: Any) -> dict[str, Any]:
    content = crop_data.content(
        _person(1), _person(2, category_id=2), _person(3, category_id="rider"), _person(4, category_id=5)
    )
    content["categories"].append({"id": 2, "name": "rider", "keypoints": list(COCO_17.joints), **second})
    return content


def test_several_categories_with_joints_are_chosen_by_name_and_told() -> None:
    with pytest.raises(
        ValueError, match=r"a\.json has keypoints in several categories \(1 person, 2 rider\); .*categories="
    ):
        parse_coco(_two(), _PATH)
    assert [a.annotation_id for a in parse_coco(_two(), _PATH, categories=["rider"]).annotations] == [2, 3]
    both = parse_coco(_two(), _PATH, categories=["person", "2"])
    assert [(a.annotation_id, a.category_id) for a in both.annotations] == [(1, 1), (2, 2), (3, 2)]
    assert both.category_ids == {1, 2}
    assert "1 of 4 annotations have another category (category 5: 1) than 1 (person), 2 (rider)" in both.remarks[0]
    with pytest.raises(ValueError, match=r"has no category 'horse'; its categories are: 1 person, 2 rider"):
        parse_coco(_two(), _PATH, categories=["horse"])
    # As written, else alone so in another case.
    assert len(parse_coco(_two(), _PATH, categories=["Rider"]).annotations) == 2
    assert len(parse_coco(_two(name="Person"), _PATH, categories=["person"]).annotations) == 1
    with pytest.raises(ValueError, match="has no category 'PERSON'"):
        parse_coco(_two(name="Person"), _PATH, categories=["PERSON"])
    with pytest.raises(ValueError, match="person, rider have other joints each"):
        parse_coco(_two(keypoints=["nose"]), _PATH, categories=["person", "rider"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sigmas": [None, 0.05, 0.05]}, r"'sigmas' of the category 'person' must be 3 numbers above 0.*got \[None"),
        ({"sigmas": 3}, "'sigmas' of the category 'person' must be 3 numbers"),
        ({"sigmas": [0.1, 0.1, -1]}, "'sigmas' of the category"),
        ({"flip_pairs": [[1, 2, 3]]}, r"'flip_pairs' of the category 'person' must be pairs .*got \[1, 2, 3\]"),
        ({"flip_pairs": [["left_paw", "nose"]]}, "'flip_pairs' of the category"),
        ({"flip_pairs": 7}, "'flip_pairs' of the category"),
        ({"skeleton": [[1, 9]]}, r"'skeleton' of the category 'person' must be pairs .* numbers 1 to 3; got \[1, 9\]"),
        ({"skeleton": [[0, 3]]}, r"'skeleton' of the category 'person' must be pairs .* numbers 0 to 2; got \[0, 3\]"),
        ({"upper_body": [5]}, "'upper_body' of the category 'person' must be a list of joints"),
        ({"keypoints": ["a", "a"]}, "joint names must be present and unique"),
        ({"keypoints": "snout"}, "'keypoints' of the category 'person' must be a list of joint names; got 'snout'"),
        ({"keypoints": [["a"]]}, "'keypoints' of the category 'person' must be a list of joint names"),
        ({"id": "first"}, "the category 'person' has the id 'first' .text; it must be an integer"),
    ],
)  # fmt: skip
def test_bad_fields_of_a_category_are_one_error(fields: dict[str, Any], says: str) -> None:
    content = crop_data.content(**{"keypoints": ["snout", "left_paw", "right_paw"], "skeleton": [], **fields})
    with pytest.raises(ValueError, match=f"a.json.*{says}"):
        parse_coco(content, _PATH)


def test_a_zero_proves_that_limbs_count_from_zero() -> None:
    fields: dict[str, Any] = {"keypoints": ["a", "b", "c", "d"], "sigmas": [0.1] * 4, "flip_pairs": []}
    from_zero = parse_coco(crop_data.content(**fields, skeleton=[[0, 1], [1, 2], [2, 3]]), _PATH)
    assert from_zero.skeleton.limbs == ((0, 1), (1, 2), (2, 3))
    assert from_zero.remarks == ["a.json: the limbs of its skeleton count joints from 0, and are taken so"]
    for limbs in ([[1, 2], [2, 3], [3, 4]], [["a", "b"], ["b", "c"], ["c", "d"]]):
        from_one = parse_coco(crop_data.content(**fields, skeleton=limbs), _PATH)
        assert (from_one.skeleton.limbs, from_one.remarks) == (((0, 1), (1, 2), (2, 3)), [])


@pytest.mark.parametrize("spelled", [str.title, str.upper, lambda n: n.replace("left_", "L_").replace("right_", "R_")])
def test_known_joints_in_another_spelling_are_known(spelled: Any) -> None:
    """Their sigmas count: OKS with .05 for every joint is another figure."""
    parsed = parse_coco(crop_data.content(keypoints=[spelled(name) for name in COCO_17.joints]), _PATH)
    assert parsed.skeleton == COCO_17
    assert parsed.remarks == ["a.json: its joints are those of coco17 in another spelling, and taken for them"]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left_eye", "right_eye"), ("L_Eye", "R_Eye"), ("l_eye", "r_eye"), ("LEye", "REye"), ("hand.L", "hand.R"),
        ("knee_l", "knee_r"), ("leftHand", "rightHand"), ("LEFT_HAND", "RIGHT_HAND"), ("EyeLeft", "EyeRight"),
        ("Left Eye", "Right Eye"), ("left-eye", "right-eye"), ("L_F_Paw", "R_F_Paw"), ("lknee", "rknee"),
        ("kneeL", "kneeR"), ("LF_paw", "RF_paw"), ("lefthand", "righthand"), ("eye_l_1", "eye_r_1"),
        ("左眼", "右眼"), ("手_左", "手_右"), ("Rückseite_L", "Rückseite_R"), ("глаз L", "глаз R"),
    ],
)  # fmt: skip
def test_sides_in_names(left: str, right: str) -> None:
    assert pairs_by_name(["tail", right, "heel", left]) == ((3, 1),)


def test_names_that_only_look_alike_are_no_pair() -> None:
    assert pairs_by_name(["heel", "tail", "nose", "ear", "leg", "l_eye"]) == ()
    assert pairs_by_name(["linkes Auge", "Nase", "rechtes Auge"]) == ((0, 2),)
    assert pairs_by_name(["main droite", "oeil droit", "main gauche", "oeil gauche"]) == ((2, 0), (3, 1))
    assert pairs_by_name(["ojo_izquierdo", "ojo_derecho", "왼쪽눈", "오른쪽눈", "левый глаз", "правый глаз"]) == (
        (0, 1),
        (2, 3),
        (4, 5),
    )
    assert pairs_by_name(["Rückseite_L", "Rücken", "нос", "хвост"]) == ()
    left_and_right_toes = ["left_l_toe", "right_l_toe", "left_r_toe", "right_r_toe"]
    assert pairs_by_name(left_and_right_toes) == ((0, 1), (2, 3))


# ---- saying it


def test_a_file_that_fails_everywhere_is_explained() -> None:
    """Reason, count, three examples with file, entry and value, remedy; causes before consequences."""
    rejects = [Reject("unknown_image", f"annotation {n} lies on image 'x', which is not listed") for n in range(5)]
    rejects += [Reject("image_entry_invalid", "image id 'x' (text; it must be an integer)", persons=0)]
    assert explained(rejects) == (
        "image_entry_invalid 1 (image id 'x' (text; it must be an integer)) -> give every image an integer id and a "
        "file_name; unknown_image 5 (annotation 0 lies on image 'x', which is not listed | annotation 1 lies on image "
        "'x', which is not listed | annotation 2 lies on image 'x', which is not listed | …) -> give the annotations "
        "and the list of images that belong together"
    )


# ---- names of files


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sub\\dir\\b.jpg", ("sub", "dir", "b.jpg")),
        ("C:\\data\\b.jpg", ("data", "b.jpg")),
        ("/home/ann/images/b.jpg", ("home", "ann", "images", "b.jpg")),
        ("https://host/coco/a%20b.jpg?x=1", ("coco", "a b.jpg")),
        ("./b.jpg", ("b.jpg",)),
        ("cafe\u0301.jpg", ("caf\u00e9.jpg",)),
    ],
)
def test_names_of_other_machines(name: str, parts: tuple[str, ...]) -> None:
    assert name_parts(name) == parts
    assert tails(name)[-1] == parts[-1:]


def test_encoded_names_are_also_looked_for_as_what_they_mean() -> None:
    assert tails("a/my%20image.jpg ") == [
        ("a", "my%20image.jpg "), ("my%20image.jpg ",), ("a", "my image.jpg"), ("my image.jpg",),
    ]  # fmt: skip
    assert tails("a/b.jpg") == [("a", "b.jpg"), ("b.jpg",)]
