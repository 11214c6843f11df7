"""COCO's layout, its relatives, and what is wrong with single entries."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from efafnet.models.skeleton import COCO_17, CROWDPOSE_14
from efafnet.pipelines.formats.annotations import Annotations
from efafnet.pipelines.formats.coco import parse_coco
from efafnet.pipelines.formats.files import read_json
from tests import crop_data

_PATH = Path("a.json")


def _content(*annotations: dict[str, Any], **image: Any) -> dict[str, Any]:
    entry = {"id": 1, "file_name": "1.jpg", "width": 100, "height": 80, **image}
    return {"images": [entry], "annotations": list(annotations), "categories": [crop_data.category()]}


def _person(**changes: Any) -> dict[str, Any]:
    return {**crop_data.person(7, 1, [10.0, 10, 40, 60]), **changes}


def _reject(parsed: Annotations) -> tuple[str, int | None, int]:
    assert not parsed.annotations
    (reject,) = parsed.rejects
    return reject.reason, reject.annotation_id, reject.persons


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": 99}, "unknown_image"),
        ({"bbox": [1, 2, float("nan"), 4]}, "box_invalid"),
        ({"bbox": [1, 2, 3]}, "box_invalid"),
        ({"bbox": None}, "box_invalid"),
        ({"keypoints": [1, 2, 2]}, "keypoints_invalid"),
        ({"keypoints": [1, float("inf"), 2] * 17}, "keypoints_invalid"),
        ({"keypoints": [1, 1, 3] * 17}, "keypoints_invalid"),
        ({"area": float("nan")}, "area_invalid"),
    ],
)
def test_bad_annotations_are_rejected(changes: dict[str, Any], reason: str) -> None:
    assert _reject(parse_coco(_content(_person(**changes)), _PATH)) == (reason, 7, 1)


def test_annotation_without_id_is_rejected() -> None:
    assert _reject(parse_coco(_content(_person(id="seven")), _PATH)) == ("annotation_invalid", None, 1)


def test_second_of_a_duplicate_is_rejected() -> None:
    parsed = parse_coco(_content(_person(), _person(bbox=[0, 0, 5, 5])), _PATH)
    assert [a.box_xywh for a in parsed.annotations] == [(10, 10, 40, 60)]
    assert [(r.reason, r.annotation_id) for r in parsed.rejects] == [("duplicate_annotation_id", 7)]


@pytest.mark.parametrize("image", [{"id": "one"}, {"width": 0}, {"height": -3}, {"file_name": ""}])
def test_bad_image_entries_are_rejected_with_their_persons(image: dict[str, Any]) -> None:
    parsed = parse_coco(_content(_person(), **image), _PATH)
    assert [r.reason for r in parsed.rejects] == ["image_entry_invalid", "unknown_image"]


def test_duplicate_image_id() -> None:
    content = _content(_person())
    content["images"].append({**content["images"][0], "file_name": "2.jpg"})
    parsed = parse_coco(content, _PATH)
    assert [image.file_name for image in parsed.images] == ["1.jpg"]
    assert [r.reason for r in parsed.rejects] == ["duplicate_image_id"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not in COCO's layout"),
        ({"images": []}, "'annotations' is missing"),
        ({"images": {}, "annotations": []}, r"'images' is missing \(it is \{\}, no list\)"),
        ({"shapes": [], "imagePath": "a.jpg"}, "this looks like labelme's file of one image"),
        ([{"data": {}, "annotations": []}], "these look like Label Studio's tasks"),
        ([{"image_id": 1, "keypoints": []}], "these look like COCO results"),
        (
            {"dataset": {"images": [], "annotations": []}},
            "COCO annotations stand under 'dataset': write that object alone",
        ),
        ([{"images": [], "annotations": []}], "it is a list of 1 COCO annotations: write each to a file of its own"),
        ('{"images": []}', r"it is one text: JSON that was written as JSON again\?"),
        ({"items": [], "categories": {}}, "this looks like Datumaro's annotations"),
        ({"images": [], "annotations": [], "categories": []}, "the joints are unknown; no annotation has keypoints"),
        (
            {"images": [], "annotations": [{"keypoints": [1]}], "categories": []},
            "the joints are unknown; give the skeleton, for example skeleton=coco17",
        ),
        (
            {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Nose"}, {"id": 2, "name": "left-eye"}]},
            r"the categories themselves are joints \(Nose, left-eye, …\)",
        ),
    ],
)
def test_what_is_not_coco_is_one_error(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_coco(content, _PATH)


def test_files_that_are_not_json(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_json(tmp_path / "half.json")
    with pytest.raises(ValueError, match="does not exist"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b" \n", "the file is empty"),
        (gzip.compress(b"{}", mtime=0), "it is compressed by gzip: unpack it"),
        (b"PK\x03\x04abc", "it is a ZIP archive: unpack it"),
        ('{"name": "Persön"}'.encode("latin1"), "save it as UTF-8"),
        (b'{"a": 1}\n{"a": 2}\n{"a": 3}\n', "it holds a JSON document in each line: make them one"),
        (b'{"a": 1}\n{"a": 2', "another document follows the first one"),
        (b'{"a": [1, 2', "it may be truncated or another format"),
        (b'{"a": [1],\n }', "the comma before that bracket is one too many"),
        (b'{"a": [1, ], "b": 2}', "the comma before that bracket is one too many"),
        (b"[1][2]", "another document follows the first one: make them one"),
        (lzma.compress(b"{}"), "it is compressed by xz: unpack it"),
        (b"\x28\xb5\x2f\xfdabc", "it is compressed by Zstandard: unpack it"),
        (b"7z\xbc\xaf\x27\x1cabc", "it is a 7z archive: unpack it"),
        (bytes(257) + b"ustar\x0000", "it is a tar archive: unpack it"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, as those of SLEAP"),
        (b"\xff\xd8\xff\xe0abc", r"it is a JPEG image: are two arguments swapped\?"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS: fetch the file itself"),
        (b'<?xml version="1.0"?><annotations/>', "it is XML, as CVAT's and VOC's annotations: export COCO keypoints"),
        (b"<!DOCTYPE html>", "it is XML or HTML: if a server answered"),
        (b"{'images': []}", "it is Python's notation, in single quotes: write it by json.dump"),
        (b"scorer,me\nbodyparts,nose\n", r"it begins with b'scorer,me\\nbodyparts,nose.*another format\?"),
        (b"0 0.5 0.5 0.2 0.3\n", "it begins with b'0 0.5 0.5 0.2 0.3"),
        (b"// exported\n{}", "it begins with b'// exported"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.json is not valid JSON \(.*\); {says}"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ("a.json", "b.json", "a.jpg"),
            r"one for all images: it holds 2 \.json files, as of tools that write one for each",
        ),
        (("a.txt", "b.TXT"), r"it holds 2 \.txt files"),
        (("a.jpg", "b.jpg", "a.json"), r"give a JSON file \(are two arguments swapped\?\)"),
        ((), r"give a JSON file \(are two arguments swapped\?\)"),
    ],
)
def test_a_folder_in_the_place_of_a_file(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    """labelme, OpenPose and YOLO write a file for each image."""
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"is a folder; .*{says}"):
        read_json(tmp_path)


def test_a_list_that_stands_in_a_file_twice_is_not_half_lost(tmp_path: Path) -> None:
    """JSON's readers take the last of two equal keys; files joined by hand have both."""
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [{"id": 1}], "annotations": []}')
    with pytest.raises(ValueError, match=r"a\.json has 'annotations' more than once; join what stands under both"):
        read_json(tmp_path / "a.json")
    # In other objects the same word is their own business.
    (tmp_path / "a.json").write_text('{"info": {"info": 1}, "images": [{"info": 2, "info": 3}]}')
    assert read_json(tmp_path / "a.json") == {"info": {"info": 1}, "images": [{"info": 3}]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes('{"name": "Persön"}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"name": "Persön"}


def test_area_falls_back_to_a_share_of_the_box() -> None:
    """CrowdPose: 0.53 * 40 * 60 = 1272."""
    entry = _person()
    del entry["area"]
    (annotation,) = parse_coco(_content(entry), _PATH).annotations
    assert annotation.area == pytest.approx(1272)


def test_known_skeletons_are_recognised_by_their_joints() -> None:
    content = _content()
    assert parse_coco(content, _PATH).skeleton == COCO_17
    content["categories"] = [{"id": 1, "keypoints": list(CROWDPOSE_14.joints), "skeleton": [[16, 14]]}]
    assert parse_coco(content, _PATH).skeleton == CROWDPOSE_14


def test_a_skeleton_of_its_own_says_what_it_assumes() -> None:
    content = _content()
    joints = ["snout", "left_paw", "right_paw", "tail"]
    content["categories"] = [{"id": 3, "name": "dog", "keypoints": joints, "skeleton": [[1, 2], [1, 3], [1, 4]]}]
    parsed = parse_coco(content, _PATH)
    assert parsed.skeleton.flip_pairs == ((1, 2),)
    assert parsed.skeleton.limbs == ((0, 1), (0, 2), (0, 3))
    assert parsed.skeleton.sigmas == (0.05,) * 4
    assert len(parsed.remarks) == 2
    content["categories"][0].update(sigmas=[0.1, 0.2, 0.2, 0.3], flip_pairs=[[1, 2]])
    told = parse_coco(content, _PATH)
    assert told.skeleton.sigmas == (0.1, 0.2, 0.2, 0.3)
    assert told.remarks == []


def test_joints_of_another_number_than_asked_for() -> None:
    with pytest.raises(ValueError, match=r"17 joints, 'crowdpose14' has 14"):
        parse_coco(_content(), _PATH, CROWDPOSE_14)


def test_other_categories_are_left_alone() -> None:
    parsed = parse_coco(_content(_person(category_id=18)), _PATH)
    assert not parsed.annotations
    assert not parsed.rejects


def test_merged_ids_are_shifted() -> None:
    parsed = parse_coco(_content(_person(), _person(id=8, image_id=99)), _PATH)
    second = parsed.shifted(1)
    assert parsed.shifted(0) is parsed
    assert (second.images[0].image_id, second.annotations[0].annotation_id) == (10**12 + 1, 10**12 + 7)
    assert second.annotations[0].image_id == 10**12 + 1
    assert (second.rejects[0].image_id, second.rejects[0].annotation_id) == (10**12 + 99, 10**12 + 8)
    with pytest.raises(ValueError, match="cannot be merged"):
        parse_coco(_content(_person(id=10**12)), _PATH).shifted(1)


@pytest.mark.parametrize(
    ("file", "persons", "images", "skeleton"),
    [
        ("coco-mini/annotations/person_keypoints_train.json", 172, 40, "coco17"),
        ("tiny-coco/test_coco.json", 14, 4, "coco17"),
        ("tiny-crowdpose/test_crowdpose.json", 5, 2, "crowdpose14"),
        ("tiny-ochuman/test_ochuman.json", 5, 3, "coco17"),
    ],
)
def test_real_files(file: str, persons: int, images: int, skeleton: str) -> None:
    folder, _, rest = file.partition("/")
    path = crop_data.real_data(folder) / rest
    parsed = parse_coco(json.loads(path.read_text()), path)
    assert (len(parsed.annotations), len(parsed.images), parsed.skeleton.name) == (persons, images, skeleton)
    assert parsed.rejects == []
