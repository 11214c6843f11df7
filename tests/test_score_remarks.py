"""What score says of results and annotations that it can measure and that are not as they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from efafnet.models.skeleton import CROWDPOSE_14
from efafnet.pipelines.evaluation.config import ScoringConfig
from efafnet.pipelines.evaluation.score import ScoreConfig, score
from tests.evaluation_cases import case_files, random_case, written

QUICK = ScoringConfig(bootstrap=0, errors=False)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Results and annotations of a constructed case."""
    return case_files(tmp_path)


def test_crowd_indices_of_some_images_alone_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ground_truth, results = random_case(0, skeleton=CROWDPOSE_14)
    for image in ground_truth["images"][1:]:
        image["crowdIndex"] = 0.5
    tree: dict[str, Any] = {
        "predictions": written(tmp_path / "r.json", results),
        "annotations": written(tmp_path / "a.json", ground_truth),
        "scoring": QUICK,
    }
    assert "ap_crowd_hard" not in score(ScoreConfig(**tree)).figures
    said = " ".join(capsys.readouterr().err.split())
    assert f"a.json: 1 of {len(ground_truth['images'])} images have no crowdIndex: scored as COCO, by areas" in said


def test_results_in_shares_of_the_image_are_remarked(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, results = random_case(0)
    for entry in results:
        entry["keypoints"] = [value / 1000 for value in entry["keypoints"]]
    score(ScoreConfig(predictions=written(tmp_path / "shares.json", results), annotations=files[1], scoring=QUICK))
    assert "shares.json: 100 % of results have all joints within 0 to 1: shares, not pixels?" in capsys.readouterr().err
    score(ScoreConfig(predictions=files[0], annotations=files[1], scoring=QUICK))
    assert "shares" not in capsys.readouterr().err


def test_results_that_repeat_others_or_resemble_nobody_are_remarked(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, results = random_case(0)
    twice = written(tmp_path / "twice.json", [*results, *results])
    score(ScoreConfig(predictions=twice, annotations=files[1], scoring=QUICK))
    assert "twice.json: 50 % of results repeat another one" in capsys.readouterr().err
    for entry in results:
        entry["keypoints"] = [value + 5000 for value in entry["keypoints"]]
    score(ScoreConfig(predictions=written(tmp_path / "far.json", results), annotations=files[1], scoring=QUICK))
    said = capsys.readouterr().err
    assert "far.json: no result resembles a person of its image: joints in another order" in said
    assert "repeat" not in said


def test_what_is_not_covered_is_told_of_every_file(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground_truth, results = random_case(0)
    first = min(entry["image_id"] for entry in results)
    part = written(tmp_path / "part.json", [entry for entry in results if entry["image_id"] == first])
    boxes = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.5}
        for a in ground_truth["annotations"]
        if a["image_id"] == first
    ]
    found = written(tmp_path / "boxes.json", boxes)
    tree: dict[str, Any] = {"annotations": files[1], "scoring": QUICK}
    score(ScoreConfig(predictions=files[0], against=part, detections=found, **tree))
    said = " ".join(capsys.readouterr().err.split())
    assert f"against={part}: " in said
    assert f"{found}: " in said
    assert said.count("images with persons have no result, and their persons count as not found") == 2
    others = sorted({image["id"] for image in ground_truth["images"]} - {first})
    listed = written(tmp_path / "others.json", others)
    with pytest.raises(
        ValueError, match=rf"part\.json: none of its \d+ results lies on the {len(others)} images to sc"
    ):
        score(ScoreConfig(predictions=part, images=str(listed), **tree))
    nowhere = written(tmp_path / "nowhere.json", [{**entry, "image_id": 10**6} for entry in results])
    with pytest.raises(ValueError, match=r"images = predicted: no result lies on .*the first is on image 1000000"):
        score(ScoreConfig(predictions=nowhere, images="predicted", **tree))


def test_boxes_that_find_nobody_or_count_for_nothing_are_remarked(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground_truth, results = random_case(0)
    people = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    corners = [
        {"image_id": a["image_id"], "category_id": 1, "score": 0.5,
         "bbox": [x + 500, y + 500, x + w + 500, y + h + 500]}
        for a in people for x, y, w, h in [a["bbox"]]
    ]  # fmt: skip
    for annotation in people:
        annotation["bbox"] = [annotation["bbox"][0] + 500, annotation["bbox"][1] + 500, *annotation["bbox"][2:]]
    moved = written(tmp_path / "moved.json", ground_truth)
    tree: dict[str, Any] = {"scoring": QUICK}
    done = score(ScoreConfig(predictions=written(tmp_path / "c.json", corners), annotations=moved, **tree))
    assert done.figures["box_ap"] == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the boxes: 100 % of boxes lie on an annotated person if read as x1, y1, x2, y2, 0 % as x, y," in said
    some = [results[0], *({**entry, "bbox": [1, 1, 9, 9]} for entry in results[1:])]
    score(ScoreConfig(predictions=written(tmp_path / "some.json", some), annotations=files[1], **tree))
    said = " ".join(capsys.readouterr().err.split())
    assert f"{len(some) - 1} of {len(some)} results have a bbox, but the first has none" in said


def test_images_that_are_not_used_are_told(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground_truth, _ = random_case(0)
    count = len(ground_truth["images"])
    ground_truth["images"] += [{**ground_truth["images"][0], "file_name": "other.jpg"}, {"id": 0.5}]
    annotations = written(tmp_path / "twice.json", ground_truth)
    score(ScoreConfig(predictions=files[0], annotations=annotations, scoring=QUICK))
    said = " ".join(capsys.readouterr().err.split())
    assert f"twice.json: 2 of {count + 2} images are left out: image_entry_invalid 1 (image id 0.5 " in said
    assert "duplicate_image_id 1 (other.jpg: image id 1 is already taken by another image)" in said
