"""`efafnet synth` as a whole: COCO's layout, honest labels, determinism, bad options, kills."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines import cli
from efafnet.pipelines.synth.dataset import SPLITS, SynthConfig, _number_of_workers, run_synth
from efafnet.pipelines.synth.version import drawing_digest
from efafnet.platform.configuration import ConfigurationError, apply_overrides, resolve
from efafnet.platform.storage import OutputExistsError, UnwritableError
from tests.processes import program
from tests.waiting import LIMIT_S, wait_for

ROOT = Path(__file__).resolve().parents[1]


def _config(out: Path, *overrides: str) -> SynthConfig:
    return resolve(SynthConfig, apply_overrides({"out": str(out)}, list(overrides)), "synth")


def _files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "set"
    run_synth(_config(out, "images.train=60", "images.val=4", "seed=3", "workers=1"))
    return out


@pytest.fixture(scope="module")
def train(made: Path) -> COCO:
    return COCO(str(made / "annotations" / "train.json"))


def _people(coco: COCO) -> list[dict[str, Any]]:
    return [a for a in coco.dataset["annotations"] if not a["iscrowd"]]


def _points(annotation: dict[str, Any]) -> NDArray[np.float64]:
    return np.array(annotation["keypoints"], dtype=np.float64).reshape(17, 3)


def test_the_layout_is_coco_s(made: Path, train: COCO) -> None:
    assert sorted(p.name for p in made.iterdir()) == ["annotations", "images"]
    assert sorted(p.name for p in (made / "annotations").iterdir()) == ["train.json", "val.json"]
    document = json.loads((made / "annotations" / "val.json").read_text())
    assert list(document) == ["info", "licenses", "categories", "images", "annotations"]
    category = document["categories"][0]
    assert (category["id"], category["name"], category["supercategory"]) == (1, "person", "person")
    assert tuple(category["keypoints"]) == COCO_17.joints
    # The first limbs of COCO's own category, which counts from 1.
    assert category["skeleton"][:4] == [[16, 14], [14, 12], [17, 15], [15, 13]]
    for split, count in (("train", 60), ("val", 4)):
        assert len(list((made / "images" / split).iterdir())) == count
    for image in train.dataset["images"]:
        pixels = cv2.imread(str(made / "images" / "train" / image["file_name"]))
        assert pixels is not None
        assert pixels.shape == (image["height"], image["width"], 3) == (240, 320, 3)
        assert 0 <= image["crowdIndex"] < 5
    keys = {"id", "image_id", "category_id", "bbox", "area", "segmentation", "keypoints", "num_keypoints", "iscrowd"}
    assert all(set(a) == keys for a in train.dataset["annotations"])
    ids = [a["id"] for a in train.dataset["annotations"]]
    assert len(set(ids)) == len(ids)


def test_perfect_predictions_score_one(train: COCO) -> None:
    results = [
        {"image_id": a["image_id"], "category_id": 1, "keypoints": a["keypoints"], "score": 1.0}
        for a in _people(train)
        if a["num_keypoints"]
    ]
    judged = copy.deepcopy(train)  # COCOeval writes into it
    evaluation = COCOeval(judged, judged.loadRes(results), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    # AP, AP50, AP75, medium, large: all groups are there and all are found.
    np.testing.assert_allclose(evaluation.stats[:5], 1.0)


def test_areas_and_boxes_are_those_of_the_pixels_that_show(train: COCO) -> None:
    for annotation in train.dataset["annotations"]:
        runs = train.annToRLE(annotation)
        assert annotation["area"] == mask_utils.area(runs)
        np.testing.assert_allclose(annotation["bbox"], mask_utils.toBbox(runs), atol=0.01)
        x, y, w, h = annotation["bbox"]
        assert annotation["area"] <= w * h
        assert x >= 0
        assert y >= 0
        assert x + w <= 320
        assert y + h <= 240


def test_nobody_s_pixels_are_somebody_else_s(train: COCO) -> None:
    for image_id in train.getImgIds():
        masks = [train.annToMask(a) for a in train.loadAnns(train.getAnnIds(imgIds=image_id))]
        assert max(int(np.sum(masks, axis=0).max()) if masks else 0, 0) <= 1


def test_visible_joints_lie_on_the_person_and_in_the_box(train: COCO) -> None:
    checked = 0
    for annotation in _people(train):
        points = _points(annotation)
        visible = points[points[:, 2] == 2, :2]
        x, y, w, h = annotation["bbox"]
        # Half a pixel between pixel centres and the box's corner, and a twentieth of rounding.
        assert (visible >= (x - 0.55, y - 0.55)).all()
        assert (visible <= (x + w - 0.45, y + h - 0.45)).all()
        mask = np.pad(train.annToMask(annotation), 1)
        for column, row in np.floor(visible + 0.5).astype(int):
            assert mask[row : row + 3, column : column + 3].any()
            checked += int(mask[row + 1, column + 1])
    total = sum(int((_points(a)[:, 2] == 2).sum()) for a in _people(train))
    assert checked > 0.995 * total


def test_flags_counts_and_coordinates_agree(train: COCO) -> None:
    for annotation in train.dataset["annotations"]:
        points = _points(annotation)
        assert set(points[:, 2]) <= {0.0, 1.0, 2.0}
        assert annotation["num_keypoints"] == (points[:, 2] > 0).sum()
        assert (points[points[:, 2] == 0] == 0).all()
        inside = points[points[:, 2] > 0, :2]
        assert (inside >= -0.5).all()
        assert (inside < (319.55, 239.55)).all()
        if annotation["iscrowd"] or annotation["area"] < 32 * 32:
            assert annotation["num_keypoints"] == 0


def test_the_people_are_as_varied_as_those_of_coco(train: COCO) -> None:
    people = [a for a in _people(train) if a["num_keypoints"]]
    areas = np.array([a["area"] for a in people])
    visibility = np.concatenate([_points(a)[:, 2] for a in people])
    share = np.bincount(visibility.astype(int), minlength=3) / len(visibility)
    # Both of COCO's classes that have joints; in pictures half as high as COCO's, few people are large.
    assert np.mean((areas >= 32**2) & (areas < 96**2)) > 0.6
    assert np.mean(areas >= 96**2) > 0.02
    # COCO train2017: about half of the joints of labelled people are visible, a tenth hidden.
    assert 0.4 < share[2] < 0.7
    assert 0.05 < share[1] < 0.18
    per_image = np.bincount([a["image_id"] for a in _people(train)], minlength=61)[1:]
    assert {1, 2, 3, 4} <= set(per_image.tolist())
    heights = np.array([a["bbox"][3] for a in people])
    assert heights.min() < 75
    assert heights.max() > 200
    # Whole people and pieces of them: of 154 of COCO, .36 have twelve labelled joints or more, .22 at most five.
    labelled = np.array([a["num_keypoints"] for a in people])
    assert np.mean(labelled >= 12) > 0.36
    assert np.mean(labelled <= 5) > 0.1


def test_faces_front_and_back_views_all_occur(train: COCO) -> None:
    views = {"front": 0, "back": 0, "profile": 0}
    for annotation in _people(train):
        v = _points(annotation)[:, 2]
        if v[5] and v[6]:
            views["front"] += bool(v[0] == v[1] == v[2] == 2)
            views["back"] += bool(v[0] == v[1] == v[2] == 0 and (v[3] or v[4]))
            views["profile"] += bool(v[0] == 2 and (v[1] == 2) != (v[2] == 2))
    assert all(count >= 5 for count in views.values()), views


@pytest.mark.parametrize(
    ("wanted", "images", "workers"),
    [("null", 4400, 8), ("null", 399, 7), ("null", 80, 1), ("null", 49, 0), ("2", 1, 2)],
)
def test_few_images_are_drawn_by_few_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, images: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    config = _config(tmp_path, "images.train=1", f"images.val={images - 1}", f"workers={wanted}")
    assert _number_of_workers(config) == workers


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    options = ("images.train=9", "images.val=4", "seed=11", "image_size=128x160")
    for name, workers in (("one", 0), ("two", 2)):
        run_synth(_config(tmp_path / name, *options, f"workers={workers}"))
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert len(_files(tmp_path / "one")) == 9 + 4 + 2


def test_other_seeds_give_other_pictures_and_more_images_begin_with_the_same(tmp_path: Path) -> None:
    small = ("images.val=1", "image_size=96x128", "workers=1")
    run_synth(_config(tmp_path / "a", "images.train=2", "seed=1", *small))
    run_synth(_config(tmp_path / "b", "images.train=4", "seed=1", *small))
    run_synth(_config(tmp_path / "c", "images.train=2", "seed=2", *small))
    a, b, c = (_files(tmp_path / name) for name in "abc")
    first, second = (f"images/train/{i:012d}.jpg" for i in range(2))
    assert a[first] == b[first]
    assert a[second] == b[second]
    assert a[first] != c[first]
    assert a[first] != a[second]
    assert a["images/val/000000000000.jpg"] != a[first]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("crowding=1.5", ("crowding", "1.5", "at most 1")),
        ("occlusion=-0.1", ("occlusion", "-0.1")),
        ("people_per_image=4-1", ("people_per_image", "fewest (4)", "swap")),
        ("people_per_image=many", ("people_per_image", "FEWEST-MOST", "many")),
        ("people_per_image=0-2", ("people_per_image.fewest", "0")),
        ("image_size=320", ("image_size", "320")),
        ("image_size=10x10", ("image_size", "96", "10")),
        ("image_size=tall", ("image_size", "HEIGHTxWIDTH", "tall")),
        ("images.train=-1", ("images.train", "-1")),
        ("images.test=5", ("images.test", "images.train")),
        ("people=many", ("people", "clear", "crowd", "many")),
        ("close_ups=2", ("close_ups", "2")),
        ("seed=-1", ("seed", "-1")),
        ("seed=x", ("seed", "x")),
        ("workers=-2", ("workers", "-2")),
        ("crowd=0.5", ("crowd", "crowding")),
    ],
)
def test_bad_options_are_one_clear_error(tmp_path: Path, override: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        _config(tmp_path / "out", override)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()


def test_no_images_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least one image"):
        _config(tmp_path / "out", "images.train=0", "images.val=0")


def test_an_output_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep me")
    options = ("images.train=1", "images.val=0", "image_size=96x96", "workers=1")
    with pytest.raises(OutputExistsError, match="overwrite=true"):
        run_synth(_config(out, *options))
    assert (out / "mine.txt").read_text() == "keep me"
    run_synth(_config(out, *options, "overwrite=true"))
    assert not (out / "mine.txt").exists()
    assert set(_files(out)) == {"annotations/train.json", "annotations/val.json", "images/train/000000000000.jpg"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_output_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match="file"):
        run_synth(_config(tmp_path / "file" / "out", "images.train=1", "workers=1"))


def test_settings_that_do_not_change_the_pictures_are_not_in_the_files(made: Path) -> None:
    info = json.loads((made / "annotations" / "train.json").read_text())["info"]
    settings = info["settings"]
    assert (settings["seed"], settings["people"]) == (3, "coco")
    assert info["drawing"] == drawing_digest()
    assert not {"out", "workers", "overwrite"} & set(settings)


def test_the_command_line_draws_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    options = ["images.train=2", "images.val=1", "image_size=96x128", "workers=1"]
    assert cli.main(["synth", str(out), *options]) == 0
    assert "medium %" in capsys.readouterr().out
    assert set(SPLITS) == {p.name for p in (out / "images").iterdir()}
    assert cli.main(["synth", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert "overwrite=true" in error
    assert "Traceback" not in error


def _start(out: Path) -> subprocess.Popen[str]:
    command = program("synth", str(out), "images.train=4000", "workers=2")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    drawn = f".{out.name}.partial-*/**/images/train/*.jpg"
    wait_for("picture", lambda: list(out.parent.glob(drawn)), lambda: process.poll() is not None)
    return process


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_killed_worker_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    process = _start(tmp_path / "out")
    os.kill(_workers(process)[0].pid, signal.SIGKILL)
    _, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert "a drawing process died" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_killed_parent_leaves_no_output_and_no_workers(tmp_path: Path) -> None:
    process = _start(tmp_path / "out")
    workers = _workers(process)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=LIMIT_S)
    wait_for("end of the workers", lambda: not any(worker.is_running() for worker in workers))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.no_ray
def test_ctrl_c_stops_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    process = _start(tmp_path / "out")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
