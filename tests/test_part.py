"""Scoring on a part of the images: told, chosen by results or by a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efafnet.pipelines.evaluation.config import ScoringConfig
from efafnet.pipelines.evaluation.score import ScoreConfig, score
from tests.evaluation_cases import evaluate_predictions, random_case, result, written

QUICK = ScoringConfig(bootstrap=50)


def _part_case(tmp_path: Path) -> tuple[Path, Path, dict[str, Any], list[dict[str, Any]]]:
    """Perfect results on the first of three images, and a result in another file on the second."""
    ground_truth, _ = random_case(5, num_images=3)
    annotations = ground_truth["annotations"] = [a for a in ground_truth["annotations"] if a["num_keypoints"]]
    for annotation in annotations:
        annotation["iscrowd"] = 0
    assert {a["image_id"] for a in annotations} == {1, 4, 7}
    perfect = [
        result(a["image_id"], np.reshape(a["keypoints"], (17, 3))[:, :2], 0.9)
        for a in annotations
        if a["image_id"] == 1
    ]
    return written(tmp_path / "r.json", perfect), written(tmp_path / "a.json", ground_truth), ground_truth, perfect


def test_images_without_results_are_told_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, annotations, ground_truth, _ = _part_case(tmp_path)
    files = {"predictions": predictions, "annotations": annotations, "scoring": QUICK}
    share = sum(a["image_id"] == 1 for a in ground_truth["annotations"]) / len(ground_truth["annotations"])
    whole = score(ScoreConfig(**files)).figures
    told = " ".join(capsys.readouterr().err.split())
    assert "2 of 3 images with persons have no result" in told
    assert "images=predicted scores the others alone, images=FILE those it lists" in told
    assert whole["ar"] == pytest.approx(share)
    part = score(ScoreConfig(images="predicted", **files))
    told = " ".join(capsys.readouterr().err.split())
    assert part.figures["ap"] == part.figures["ar"] == 1.0
    assert "images=predicted: scored on 1 of 3 images" in told
    assert "have no result" not in told
    # One image cannot say how far a figure would move.
    assert part.intervals["ap"].approximate


@pytest.mark.parametrize(
    "listing", ["[1, 4]", "1\n4\n", '["1", "4"]', '{"images": [{"id": 1}, {"id": 4}]}', "[1, 4, 99]"], ids=str
)
def test_a_file_lists_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], listing: str) -> None:
    predictions, annotations, ground_truth, perfect = _part_case(tmp_path)
    (tmp_path / "images.txt").write_text(listing)
    elsewhere = written(tmp_path / "other.json", [*perfect, {**perfect[0], "image_id": 7}])
    config = ScoreConfig(
        predictions=predictions, annotations=annotations, images=str(tmp_path / "images.txt"), against=elsewhere,
        scoring=QUICK,
    )  # fmt: skip
    scored = score(config)
    here = {**ground_truth, "images": [{"id": 1}, {"id": 4}]}
    here["annotations"] = [a for a in ground_truth["annotations"] if a["image_id"] in (1, 4)]
    assert scored.figures == evaluate_predictions(perfect, here)
    assert scored.other == scored.figures
    told = " ".join(capsys.readouterr().err.split())
    assert "scored on 2 of 3 images" in told
    assert "1 of 2 images with persons have no result" in told
    assert f"1 of {len(perfect) + 1} results lie on images that are not scored" in told
    assert ("1 of 3 are not among the annotations'" in told) == ("99" in listing)


def test_a_file_lists_the_images_by_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predictions, annotations, ground_truth, _ = _part_case(tmp_path)
    for image in ground_truth["images"]:
        image["file_name"] = f"street {image['id']}.jpg"
    written(annotations, ground_truth)
    scored = {}
    for listing in ("street 1.jpg\r\nstreet 4.jpg\r\n", '["street 1", "/home/ann/street 4.jpg"]', "1 4"):
        (tmp_path / "images.txt").write_text(listing)
        config = ScoreConfig(
            predictions=predictions, annotations=annotations, images=str(tmp_path / "images.txt"), scoring=QUICK
        )
        scored[listing] = score(config).figures
    assert len({repr(figures) for figures in scored.values()}) == 1
    assert "scored on 2 of 3 images" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "images.txt").write_text("street 1.jpg\nstreet 9.jpg\n")
    with pytest.raises(ValueError, match=r"'street 9\.jpg' is no image id; the file is a JSON list"):
        score(config)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("[8, 9]", "none of the 2 images it lists is among the 3 of the annotations"),
        ("[1, 2.5]", "2.5 is no image id; the file is a JSON list of ids, a COCO file with images, or one id a line"),
        (None, "no such file; it is all, predicted, or a file that lists image ids"),
    ],
)
def test_a_file_that_lists_no_images_is_refused(tmp_path: Path, listing: str | None, message: str) -> None:
    predictions, annotations, *_ = _part_case(tmp_path)
    if listing is not None:
        (tmp_path / "images.txt").write_text(listing)
    with pytest.raises(ValueError, match=message):
        score(ScoreConfig(predictions=predictions, annotations=annotations, images=str(tmp_path / "images.txt")))
