"""Preparing other data sets, several at once, and joints of other names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17, CROWDPOSE_14
from efafnet.pipelines.cli import main
from efafnet.pipelines.crops.annotation_sources import SourceConfig, load_source, named_skeleton
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.reader import TrainReader, read_rows
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.formats.annotations import SOURCE_STRIDE
from efafnet.pipelines.training.inputs import Inputs
from tests import crop_data
from tests.check_wheel import ROOT


def test_sources_are_merged(tmp_path: Path) -> None:
    crop_data.write_coco(tmp_path)
    crop_data.write_coco(tmp_path / "other", images=2, seed=1)
    other = {"annotations": tmp_path / "other" / "annotations.json", "images": tmp_path / "other" / "images"}
    store = run_prepare(crop_data.config(tmp_path, extra_sources=[{**other, "data_set": "second"}]))
    rows = store.columns(["image_id", "data_set", "person_id"]).to_pylist()
    assert len(rows) == 18 + 6
    assert {row["image_id"] for row in rows if row["data_set"] == "second"} == {SOURCE_STRIDE + 1, SOURCE_STRIDE + 2}
    truth = store.ground_truth().to_coco()
    assert len({image["id"] for image in truth["images"]}) == 8
    assert len({annotation["id"] for annotation in truth["annotations"]}) == 24


@pytest.mark.parametrize(
    ("box", "images", "says"),
    [
        ([50, 30, 20, 20], 3, []),
        (
            [50, 30, 70, 50], 3,
            ["d.json: 100 % of boxes lie on an annotated person if read as x1, y1, x2, y2, 0 % as x, y, width, height: "
             "corners instead of width and height?"],
        ),
        (
            [50, 30, 20, 20], 1,
            ["d.json: 2 of 3 images with persons have no detection: their persons count as not found"],
        ),
    ],
)  # fmt: skip
def test_detections_are_looked_at_beside_the_annotations(
    tmp_path: Path, box: list[float], images: int, says: list[str]
) -> None:
    people = [crop_data.person(n, n, [50.0, 30, 20, 20]) for n in (1, 2, 3)]
    entries = [{"id": n, "file_name": f"{n}.jpg", "width": 200, "height": 100} for n in (1, 2, 3)]
    content = {"images": entries, "annotations": people, "categories": [crop_data.category()]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = [{"image_id": n, "category_id": 1, "bbox": box, "score": 0.9} for n in range(1, images + 1)]
    (tmp_path / "d.json").write_text(json.dumps(found))
    config = SourceConfig(annotations=tmp_path / "a.json", images=str(tmp_path), detections=tmp_path / "d.json")
    assert load_source(config, 1).remarks == says


def test_sources_of_other_joints_are_refused(tmp_path: Path) -> None:
    folder = crop_data.real_data("tiny-crowdpose")
    crop_data.write_coco(tmp_path)
    with pytest.raises(ValueError, match="sources cannot be merged"):
        run_prepare(
            crop_data.config(
                tmp_path, extra_sources=[{"annotations": folder / "test_crowdpose.json", "images": folder}]
            )
        )


def _write_arms(folder: Path) -> None:
    """A set of three joints of its own: a head and two hands, one person at (10, 10) of 40 x 60."""
    crop_data.write_coco(folder, images=1, persons=1, seed=1)

    def own(content: dict[str, Any]) -> None:
        names = ["head_top", "L_Hand", "R_Hand"]
        content["categories"] = [{"id": 1, "name": "arms", "keypoints": names, "sigmas": [0.1] * 3}]
        content["annotations"] = [crop_data.person(1, 1, [10.0, 10, 40, 60], num_joints=3)]

    crop_data.edit(folder / "annotations.json", own)


def test_sources_of_other_joints_are_merged_by_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrists from hands; what the source does not annotate is absent, so it weighs nothing and is asked of nobody."""
    crop_data.write_coco(tmp_path, images=1, persons=1)
    _write_arms(tmp_path / "arms")
    wrists = {"left_wrist": "L_Hand", "right_wrist": "R_Hand"}
    arms = {"annotations": tmp_path / "arms" / "annotations.json", "images": tmp_path / "arms" / "images"}
    store = run_prepare(crop_data.config(tmp_path, extra_sources=[{**arms, "joint_map": wrists}]))
    assert store.skeleton == COCO_17
    told = " ".join(capsys.readouterr().err.split())
    assert "2 of its 3 joints are coco17's; it does not annotate nose, left_eye" in told
    assert "head_top are left out" in told
    row = store.columns(["joints_px", "visibility"]).to_pylist()[1]
    places = np.reshape(row["joints_px"], (17, 2))
    # crop_data.person: joint n at x + (n + .5) / 4 of the width, y + .1 of the height.
    assert places[[9, 10]].tolist() == [[25, 16], [35, 16]]
    assert [n for n, v in enumerate(row["visibility"]) if v] == [9, 10]
    truth = store.ground_truth().to_coco()["annotations"][1]
    assert (truth["num_keypoints"], len(truth["keypoints"])) == (2, 51)
    size = InputSize(height=128, width=96)
    reader = TrainReader(store, input_size=size, augmentation=AugmentationConfig(), global_batch=2, seed=0)
    with reader:
        batch = next(iter(reader.batches(0, 1)))
    assert sorted((batch.visibility > 0).sum(dim=1).tolist()) == [2, 17]


def test_the_worked_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/data.md's three sets in small, by its own map and command. AI Challenger's joints are those of its paper."""
    sides = [
        f"{side}_{part}"
        for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        for side in ("left", "right")
    ]
    joints = {"coco": COCO_17.joints, "aic": (*sides, "head_top", "neck"), "crowdpose": CROWDPOSE_14.joints}
    files = {"coco": "person_keypoints_train2017.json", "aic": "aic_train.json", "crowdpose": "train.json"}
    monkeypatch.chdir(tmp_path)
    for folder, names in joints.items():
        annotations, images = crop_data.write_coco(Path(folder), images=1, persons=1)

        def own(content: dict[str, Any], names: tuple[str, ...] = names) -> None:
            content["categories"] = [{"id": 1, "name": "person", "keypoints": names, "sigmas": [0.1] * len(names)}]
            content["annotations"] = [crop_data.person(1, 1, [10.0, 10, 40, 60], num_joints=len(names))]

        crop_data.edit(annotations, own)
        annotations.rename(annotations.with_name(files[folder]))
        images.rename(images.with_name("train2017" if folder == "coco" else "images"))
    section = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("### Sets with other joints")[2]
    joint_map, command = re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)[:2]
    Path("aic.yaml").write_text(joint_map, encoding="utf-8")
    assert main([*shlex.split(command.replace("\\\n", " "))[1:], "workers=0"]) == 0
    store = CropStore.open(Path("crops/three"))
    assert store.skeleton == COCO_17
    seen = [sum(v > 0 for v in row["visibility"]) for row in store.columns(["visibility"]).to_pylist()]
    assert seen == [17, 12, 12], "neither head nor neck is one of COCO's joints"


def test_a_first_source_may_be_mapped_as_well(tmp_path: Path) -> None:
    _write_arms(tmp_path)
    (tmp_path / "map.yaml").write_text("left_wrist: L_Hand\n")
    store = run_prepare(crop_data.config(tmp_path, store_joints="crowdpose14", joint_map=tmp_path / "map.yaml"))
    assert (store.skeleton, store.num_persons) == (CROWDPOSE_14, 1)
    (row,) = store.columns(["visibility"]).to_pylist()
    assert [CROWDPOSE_14.joints[n] for n, v in enumerate(row["visibility"]) if v] == ["left_wrist"]
    assert store.manifest.sources[0].joint_map is not None


def test_joints_of_equal_names_are_mapped(tmp_path: Path) -> None:
    crop_data.write_coco(tmp_path, images=1, persons=1)
    store = run_prepare(crop_data.config(tmp_path, store_joints="crowdpose14", joint_map="by_name"))
    (row,) = store.columns(["visibility", "joints_px"]).to_pylist()
    assert row["visibility"] == [2] * 12 + [0, 0]
    annotated = json.loads((tmp_path / "annotations.json").read_text())["annotations"][0]["keypoints"]
    # COCO's left shoulder is its joint 5, CrowdPose's its first.
    assert row["joints_px"][:2] == annotated[15:17]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"joint_map": "by_name"}, "joint_map needs the joints of the store: give store_joints="),
        ({"joint_map": {"tail": "L_Hand"}}, "the store's coco17 has no joint 'tail'; its joints: nose"),
        ({"joint_map": {"nose": "tail"}}, "the source has no joint 'tail'; its joints: head_top, L_Hand, R_Hand"),
        ({"joint_map": {"nose": "L_Hand", "left_eye": "L_Hand"}}, "joint_map gives 'L_Hand' to several joints"),
        ({"joint_map": "by_name"}, "joint_map names no joint that coco17 and the source share"),
        ({"joint_map": Path("/nowhere.yaml")}, "joint_map=/nowhere.yaml cannot be read"),
        ({}, r"has skeleton 'arms' \(3 joints\), the store 'coco17' .* joint_map="),
    ],
)
def test_maps_that_cannot_be(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    _write_arms(tmp_path)
    joints = {} if "give store_joints" in says else {"store_joints": "coco17"}
    with pytest.raises(ValueError, match=says):
        run_prepare(crop_data.config(tmp_path, **joints, **settings))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "nose: nose\nnose: left_eye\n",
            r"joint_map=.*m\.yaml cannot be read \(key 'nose' appears twice\); give a YAML",
        ),
        ("nose:\tnose\n\tx: y", r"cannot be read \(found character '\\t' that cannot start any token\)"),
        ("- nose\n", r"must be lines of STORE_JOINT: SOURCE_JOINT; got \['nose'\]"),
    ],
)
def test_maps_that_are_no_maps(tmp_path: Path, text: str, says: str) -> None:
    crop_data.write_coco(tmp_path, images=1)
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match=says):
        run_prepare(crop_data.config(tmp_path, store_joints="crowdpose14", joint_map=tmp_path / "m.yaml"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sigmas": None}, r"s\.yaml: sigmas is missing; it is YAML with name, joints, flip_pairs"),
        ({"sigmas": [0.1]}, r"s\.yaml: skeleton 'arms': 3 joints need 3 sigmas; got 1; it is YAML"),
        ({"flip_pairs": [["a", "b"]]}, r"s\.yaml: flip_pairs\.0\.0 = 'a': must be a whole number; it is YAML"),
        (None, r"s\.yaml: its content = 'dataset_info': must be a group of settings; it is YAML"),
    ],
)
def test_skeleton_files_that_are_none(tmp_path: Path, fields: dict[str, Any] | None, says: str) -> None:
    content = {
        "name": "arms", "joints": ["head", "left", "right"], "flip_pairs": [[1, 2]], "limbs": [], "upper_body": [],
        "sigmas": [0.1] * 3,
    } | (fields or {})  # fmt: skip
    (tmp_path / "s.yaml").write_text(
        "dataset_info" if fields is None else json.dumps({k: v for k, v in content.items() if v is not None})
    )
    with pytest.raises(ValueError, match=says):
        named_skeleton(str(tmp_path / "s.yaml"))


def test_images_that_several_sources_share_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, images = crop_data.write_coco(tmp_path, images=2, persons=1)
    again = {"annotations": annotations, "images": str(images)}
    store = run_prepare(crop_data.config(tmp_path, extra_sources=[again]))
    assert store.num_persons == 4
    told = " ".join(capsys.readouterr().err.split())
    assert "2 images (000000.jpg, …) are in several sources: their persons are in the store once for each" in told


def test_ids_that_cannot_be_shifted_are_named_with_their_file(tmp_path: Path) -> None:
    annotations, images = crop_data.write_coco(tmp_path, images=1, persons=1)
    content = json.loads(annotations.read_text())
    content["annotations"][0]["id"] = -5
    (tmp_path / "other.json").write_text(json.dumps(content))
    other = {"annotations": tmp_path / "other.json", "images": str(images)}
    with pytest.raises(ValueError, match=r"other\.json: id -5 cannot be merged: .* 0\.\.999999999999; renumber"):
        run_prepare(crop_data.config(tmp_path, extra_sources=[other]))


@pytest.mark.parametrize(
    ("folder", "annotations", "persons", "joints"),
    [
        ("tiny-crowdpose", "test_crowdpose.json", 4, 14),
        ("tiny-mpii", "test_mpii.json", 5, 16),
        ("tiny-ochuman", "test_ochuman.json", 5, 17),
    ],
)
def test_other_data_sets(tmp_path: Path, folder: str, annotations: str, persons: int, joints: int) -> None:
    data = crop_data.real_data(folder)
    store = run_prepare(crop_data.config(tmp_path, annotations=data / annotations, images=data, out=tmp_path / "out"))
    assert (store.num_persons, store.skeleton.num_joints) == (persons, joints)
    images = store.ground_truth().to_coco()["images"]
    assert all(image["width"] and image["height"] for image in images)


def test_joints_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three joints that no known set has: what is assumed is said, and a mirrored sample swaps the hands."""
    annotations, _ = crop_data.write_coco(tmp_path, images=1, persons=1)

    def own(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 1, "name": "puppet", "keypoints": ["nose", "left_hand", "right_hand"]}]
        content["annotations"] = [crop_data.person(1, 1, [60.0, 40, 60, 80], num_joints=3)]

    crop_data.edit(annotations, own)
    store = run_prepare(crop_data.config(tmp_path))
    said = " ".join(capsys.readouterr().err.split())
    assert "OKS uses 0.05 for every joint" in said
    assert "flip pairs taken from the joints' names: left_hand/right_hand" in said
    assert (store.skeleton.name, store.skeleton.flip_pairs) == ("puppet", ((1, 2),))
    mirrored = AugmentationConfig(flip_probability=1.0, scale_factor=0, rotation_deg=0)
    size = InputSize(height=128, width=96)
    plain, turned = (read_rows(store, [0], input_size=size, augmentation=a) for a in (None, mirrored))
    # Mirrored about the middle of the input; the hand on the left of the picture is now the other one.
    expected = plain.joints_px[0][[0, 2, 1]].numpy() * [-1, 1]
    shift = turned.joints_px[0].numpy() - expected
    np.testing.assert_allclose(shift, [[shift[0, 0], 0]] * 3, atol=1e-4)


def test_mpii_release_keeps_head_sizes_and_its_json_has_none(tmp_path: Path) -> None:
    """PCKh is the figure of a run only where heads are measured."""
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "one.jpg"), crop_data.picture(220, 210, 0))
    release = crop_data.write_mpii_release(tmp_path / "mpii.mat")
    measured = run_prepare(crop_data.config(tmp_path, annotations=release, out=tmp_path / "release"))
    assert measured.columns(["head_size", "box_xywh"]).to_pylist() == [
        {"head_size": 30.0, "box_xywh": [0, 0, 200, 200]}
    ]
    entry = {"image": "one.jpg", "center": [101, 86], "scale": 1.0, "joints": [[50, 60]] * 16, "joints_vis": [1] * 16}
    (tmp_path / "train.json").write_text(json.dumps([entry]))
    plain = run_prepare(crop_data.config(tmp_path, annotations=tmp_path / "train.json", out=tmp_path / "json"))
    assert (measured.has_head_sizes, plain.has_head_sizes) == (True, False)
    assert Inputs(measured, measured).metric == "pckh"
    assert Inputs(measured, plain).metric == "ap"
