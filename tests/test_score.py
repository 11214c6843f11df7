from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efafnet.models.skeleton import COCO_17, CROWDPOSE_14
from efafnet.pipelines.evaluation.config import ScoringConfig
from efafnet.pipelines.evaluation.metrics import METRIC_NAMES
from efafnet.pipelines.evaluation.score import ScoreConfig, run_score, score
from tests import crop_data
from tests.evaluation_cases import (
    case_files,
    evaluate_predictions,
    published_predictions,
    pycocotools_boxes,
    pycocotools_stats,
    random_case,
    result,
    shared_json,
    written,
)

QUICK = ScoringConfig(bootstrap=50)


def _by_pycocotools(annotations: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    return dict(zip(METRIC_NAMES, pycocotools_stats(annotations, results), strict=True))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Results and annotations of a constructed case."""
    return case_files(tmp_path)


def test_the_published_figures_of_tiny_coco_from_files(tmp_path: Path) -> None:
    annotations = shared_json("tiny-coco/test_coco.json")
    results = published_predictions(annotations["annotations"], (0.98, 1.02))
    paths = written(tmp_path / "r.json", results), written(tmp_path / "a.json", annotations)
    figures = score(ScoreConfig(predictions=paths[0], annotations=paths[1])).figures
    for tool in (figures, _by_pycocotools(annotations, results)):
        assert tool["ap"] == 0.5287458745874587
        assert tool["ap_medium"] == 0.42475247524752474
        assert tool["ap_large"] == 0.6219554455445544


def test_a_bbox_field_moves_ap_by_size_and_can_be_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With boxes in the results COCO's tools read areas from them: medium persons score .4168 instead of .4248."""
    annotations = shared_json("tiny-coco/test_coco.json")
    results = published_predictions(annotations["annotations"], (0.98, 1.02))
    boxes = {a["id"]: a["bbox"] for a in annotations["annotations"]}
    boxed = []
    for entry in results:
        joints = np.reshape(entry["keypoints"], (17, 3))[:, :2] / (0.98, 1.02)
        person = min(
            annotations["annotations"],
            key=lambda a: float(np.abs(np.reshape(a["keypoints"], (17, 3))[:, :2] - joints).sum()),
        )
        boxed.append({**entry, "bbox": boxes[person["id"]]})
    files = {
        "predictions": written(tmp_path / "r.json", boxed),
        "annotations": written(tmp_path / "a.json", annotations),
    }
    used, ignored = score(ScoreConfig(**files)).figures, score(ScoreConfig(**files, result_boxes="ignore")).figures
    assert "bbox field" in capsys.readouterr().err
    for tool in (used, _by_pycocotools(annotations, boxed)):
        assert tool["ap_medium"] == 0.4168316831683168
        assert tool["ap"] == 0.5287458745874587
    for tool in (ignored, _by_pycocotools(annotations, results)):
        assert tool["ap_medium"] == 0.42475247524752474


def test_tiny_crowdpose_is_recognised(tmp_path: Path) -> None:
    annotations = shared_json("tiny-crowdpose/test_crowdpose.json")
    results = published_predictions(annotations["annotations"], (1.0, 1.0), CROWDPOSE_14)
    figures = score(
        ScoreConfig(
            predictions=written(tmp_path / "r.json", results),
            annotations=written(tmp_path / "a.json", annotations),
            scoring=QUICK,
        )
    ).figures
    assert [figures[f"ap{c}"] for c in ("", "_crowd_easy", "_crowd_medium", "_crowd_hard")] == [1.0, -1.0, 1.0, -1.0]


def test_tables_json_and_files(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ground_truth, results = random_case(0)
    out = tmp_path / "out"
    config = ScoreConfig(predictions=files[0], annotations=files[1], scoring=QUICK, output=out)
    run_score(config)
    printed = capsys.readouterr().out
    expected = evaluate_predictions(results, ground_truth)
    assert f"{expected['ap']:.4f}" in printed
    assert "95 % interval" in printed
    assert "inversion" in printed
    written = json.loads((out / "score.json").read_text())
    assert written["figures"] == expected
    assert written["intervals"]["ap"]["low"] < expected["ap"] < written["intervals"]["ap"]["high"]
    assert written["config"]["scoring"]["bootstrap"] == 50
    assert (out / "errors.png").stat().st_size > 10_000
    run_score(config.model_copy(update={"output": None, "as_json": True}))
    assert json.loads(capsys.readouterr().out)["figures"] == expected


def test_an_output_that_exists_is_refused_before_any_work_and_replaced_when_told(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    config = ScoreConfig(predictions=files[0], annotations=files[1], scoring=QUICK, output=out)
    with pytest.raises(ValueError, match="exists and is not empty"):
        run_score(config)
    assert (out / "mine.txt").read_text() == "precious"
    run_score(config.model_copy(update={"overwrite": True}))
    assert not (out / "mine.txt").exists()


def test_comparison_with_other_results(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ground_truth, results = random_case(0)
    worse = [r for i, r in enumerate(results) if i % 3]
    other = written(tmp_path / "other.json", worse)
    scored = score(ScoreConfig(predictions=files[0], annotations=files[1], against=other, scoring=QUICK))
    assert scored.other == evaluate_predictions(worse, ground_truth)
    expected_difference = scored.figures["ap_50"] - scored.other["ap_50"]
    run_score(ScoreConfig(predictions=files[0], annotations=files[1], against=other, scoring=QUICK))
    assert f"{expected_difference:+.4f}" in capsys.readouterr().out
    difference = scored.figures["ap"] - scored.other["ap"]
    assert scored.difference["ap"].low <= difference <= scored.difference["ap"].high


def test_detector_boxes_score_as_pycocotools_scores_them(tmp_path: Path) -> None:
    annotations = shared_json("tiny-coco/test_coco.json")
    boxes = shared_json("tiny-coco/test_coco_det_AP_H_56.json")
    paths = written(tmp_path / "boxes.json", boxes), written(tmp_path / "a.json", annotations)
    figures = score(ScoreConfig(predictions=paths[0], annotations=paths[1])).figures
    expected = pycocotools_boxes(annotations, boxes)
    assert list(figures.values()) == expected
    assert 0.5 < figures["box_ap"] < 1.0
    results = written(tmp_path / "r.json", published_predictions(annotations["annotations"], (0.98, 1.02)))
    both = score(ScoreConfig(predictions=results, annotations=paths[1], detections=paths[0], scoring=QUICK)).figures
    assert both["box_ap"] == figures["box_ap"]
    assert both["ap"] == 0.5287458745874587


@pytest.mark.parametrize("seed", range(10))
def test_box_figures_equal_pycocotools_with_crowds_and_ties(seed: int, tmp_path: Path) -> None:
    ground_truth, _ = random_case(seed)
    rng = np.random.default_rng(seed)
    boxes = [
        {
            "image_id": a["image_id"],
            "category_id": 1,
            "bbox": (np.array(a["bbox"]) * rng.normal(1, 0.05, 4)).tolist(),
            "score": round(float(rng.random()), 1),
        }
        for a in ground_truth["annotations"]
        for _ in range(2)
    ]
    figures = score(
        ScoreConfig(
            predictions=written(tmp_path / "b.json", [*boxes, {**boxes[0], "category_id": 3}]),
            annotations=written(tmp_path / "a.json", ground_truth),
        )
    ).figures
    assert list(figures.values()) == pycocotools_boxes(ground_truth, boxes)


def _mpii_mat(path: Path, true: np.ndarray[Any, Any]) -> Path:
    """The layout of gt_valid.mat: coordinates from 1, head boxes of diagonal 50, so heads of 30 px."""
    num = len(true)
    corners = np.zeros((2, 2, num))
    corners[1] = np.array([30.0, 40.0])[:, None]
    crop_data.save_mat(
        path,
        {
            "pos_gt_src": np.moveaxis(true + 1.0, 0, -1),
            "jnt_missing": np.zeros((16, num)),
            "headboxes_src": corners,
        },
    )
    return path


def test_mpii_against_its_mat_file_in_order_or_by_person(tmp_path: Path) -> None:
    true = np.random.default_rng(0).uniform(50, 500, (4, 16, 2))
    annotations = _mpii_mat(tmp_path / "gt_valid.mat", true)
    predicted = true.copy()
    predicted[0, :, 0] += 14.9  # within half a head of 30 px
    predicted[1, :, 0] += 15.1
    results = [result(i, joints, 1.0) for i, joints in enumerate(predicted)]
    scored = score(ScoreConfig(predictions=written(tmp_path / "r.json", results), annotations=annotations))
    assert scored.figures["pckh"] == 0.75
    assert scored.figures["pckh_01"] == 0.5
    named = [{**r, "person_id": i} for i, r in enumerate(results)][::-1]
    again = score(ScoreConfig(predictions=written(tmp_path / "n.json", named), annotations=annotations))
    assert again.figures == scored.figures
    with pytest.raises(ValueError, match=r"r2.json: PCKh needs exactly one result for each of the 4 annotated persons"):
        score(ScoreConfig(predictions=written(tmp_path / "r2.json", results[:3]), annotations=annotations))


def test_what_cannot_be_compared_is_refused_and_not_left_out(files: tuple[Path, Path], tmp_path: Path) -> None:
    joints = np.full((1, 16, 2), 100.0)
    annotations = _mpii_mat(tmp_path / "gt_valid.mat", joints)
    found = written(tmp_path / "r.json", [result(0, joints[0], 1.0)])
    with pytest.raises(ValueError, match=r"r.json: PCKh has no intervals, so nothing is compared with against="):
        score(ScoreConfig(predictions=found, annotations=annotations, against=found))
    box = {"image_id": random_case(0)[1][0]["image_id"], "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1.0}
    boxes = written(tmp_path / "boxes.json", [box])
    with pytest.raises(ValueError, match=r"boxes.json: results of boxes alone have no joints to compare"):
        score(ScoreConfig(predictions=boxes, annotations=files[1], against=boxes))


def test_a_skeleton_of_its_own_is_read_as_prepare_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two joints 5 px off with sigma .1 and area 2500: OKS exp(-25 / (2 * .2^2 * 2500)) = .8825, right at 8 of 10."""
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 50], "area": 2500}
    annotation |= {"keypoints": [10, 10, 2, 30, 30, 2]}
    own = {"id": 3, "name": "pair", "keypoints": ["L_end", "R_end"], "sigmas": [0.1, 0.1], "skeleton": [[1, 2]]}
    content = {"images": [{"id": 1}], "annotations": [annotation], "categories": [own]}
    entry = {"image_id": 1, "category_id": 3, "score": 1.0, "keypoints": [15, 10, 1, 35, 30, 1]}
    paths = {"predictions": written(tmp_path / "r.json", [entry]), "annotations": written(tmp_path / "a.json", content)}
    assert score(ScoreConfig(**paths, scoring=QUICK)).figures["ar"] == pytest.approx(0.8)
    assert "flip pairs taken from the joints' names: L_end/R_end" in capsys.readouterr().err
    # Wider sigmas of a skeleton file: OKS exp(-25 / (2 * .4^2 * 2500)) = .969, right at all ten.
    wide = {"name": "pair", "joints": ["L_end", "R_end"], "sigmas": [0.2, 0.2], "flip_pairs": [[0, 1]], "limbs": []}
    skeleton = written(tmp_path / "wide.yaml", {**wide, "upper_body": []})
    assert score(ScoreConfig(**paths, skeleton=str(skeleton), scoring=QUICK)).figures["ar"] == 1.0
    with pytest.raises(ValueError, match=r"'three' is neither auto, coco17.* nor a YAML file or a crop store"):
        score(ScoreConfig(**paths, skeleton="three"))


def test_nobody_to_find_is_an_error_and_not_a_figure(files: tuple[Path, Path], tmp_path: Path) -> None:
    ground_truth, _ = random_case(0)
    for n, annotation in enumerate(ground_truth["annotations"]):
        annotation |= {"iscrowd": 1} if n < 30 else {"num_keypoints": 0}
    annotations = written(tmp_path / "nobody.json", ground_truth)
    with pytest.raises(
        ValueError,
        match=r"nobody has to be found .*: of 36 annotations in .*nobody\.json 30 are crowds, and the others",
    ):
        score(ScoreConfig(predictions=files[0], annotations=annotations, scoring=QUICK))


def test_nothing_is_measured_on_annotations_of_another_category(files: tuple[Path, Path], tmp_path: Path) -> None:
    ground_truth, _ = random_case(0)
    for annotation in ground_truth["annotations"]:
        annotation["category_id"] = 0
    annotations = written(tmp_path / "zero.json", ground_truth)
    with pytest.raises(
        ValueError, match=r"zero\.json: no annotation is a person: .*\(category 0: 36\) than 1 \(person\)"
    ):
        score(ScoreConfig(predictions=files[0], annotations=annotations))


def test_custom_skeletons_by_name(tmp_path: Path) -> None:
    ground_truth, results = random_case(0)
    del ground_truth["categories"]
    paths = {
        "predictions": written(tmp_path / "r.json", results),
        "annotations": written(tmp_path / "a.json", ground_truth),
        "scoring": QUICK,
    }
    with pytest.raises(ValueError, match=r"a.json: no category lists its keypoints, .* skeleton=coco17"):
        score(ScoreConfig(**paths))
    expected = evaluate_predictions(results, ground_truth, skeleton=COCO_17)
    assert score(ScoreConfig(**paths, skeleton="coco17")).figures == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no results: there is nothing to score"),
        ({"annotations": []}, "holds annotations, not results; usage"),
        ({"a": 1}, "not in COCO's results format"),
        ([1], "not in COCO's results format"),
        ([{"image_id": 1}], r"results entry 0: no 'keypoints'"),
        ([{"image_id": 1, "category_id": 1, "score": 1.0, "keypoints": [0.0] * 50}], "50 keypoint values"),
        ([{"image_id": 2, "category_id": 1, "score": 1.0, "keypoints": [0.0] * 51}], "image 2 is not among the 12"),
        ([{"image_id": 1, "category_id": 1, "score": 1.0, "bbox": [0, 0, -1, 2]}], "width and height above 0"),
        ([{"image_id": 1, "category_id": 1, "score": float("nan"), "bbox": [0, 0, 1, 2]}], "finite numbers"),
        ([{"image_id": 9, "category_id": 1, "score": 1, "bbox": [0, 0, 1, 2]}], "detection 0: image 9 is not among"),
        (
            [{"image_id": 1, "category_id": 7, "score": 1, "bbox": [0, 0, 1, 2]}],
            r"no detection of category 1 \(person\)",
        ),
    ],
)
def test_bad_predictions(content: Any, message: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    bad = written(tmp_path / "bad.json", content)
    with pytest.raises(ValueError, match=f"bad.json.*{message}"):
        score(ScoreConfig(predictions=bad, annotations=files[1]))


def test_bad_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results file .*nowhere\.json does not exist"):
        score(ScoreConfig(predictions=tmp_path / "nowhere.json", annotations=files[1]))
    (tmp_path / "torn.json").write_text('[{"image_id":')
    with pytest.raises(ValueError, match=r"torn\.json is not valid JSON"):
        score(ScoreConfig(predictions=tmp_path / "torn.json", annotations=files[1]))
    with pytest.raises(ValueError, match=r"results\.json is not in COCO's layout"):
        score(ScoreConfig(predictions=files[0], annotations=files[0]))
    (tmp_path / "gt.mat").write_text("no matlab")
    with pytest.raises(ValueError, match=r"gt.mat is not MPII's gt_valid.mat"):
        score(ScoreConfig(predictions=files[0], annotations=tmp_path / "gt.mat"))
    with pytest.raises(ValueError, match="is not a crop store"):
        score(ScoreConfig(predictions=files[0], annotations=tmp_path))
