from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from efafnet.models.skeleton import CROWDPOSE_14
from efafnet.pipelines.evaluation.columns import detections, truth
from efafnet.pipelines.evaluation.config import CrowdSplit
from efafnet.pipelines.evaluation.crowdpose import crowdpose_figures
from efafnet.pipelines.evaluation.matching import match
from efafnet.pipelines.evaluation.results_file import read_reference
from tests.evaluation_cases import evaluate_predictions, published_predictions, random_case, shared_json


def test_tiny_crowdpose_gives_the_official_tools_figures() -> None:
    annotations = shared_json("tiny-crowdpose/test_crowdpose.json")
    reference = truth(annotations)
    perfect = published_predictions(annotations["annotations"], (1.0, 1.0), CROWDPOSE_14)
    figures = crowdpose_figures(match(reference, detections(perfect, reference)), reference)
    assert reference.skeleton == CROWDPOSE_14
    assert figures["ap"] == 1.0
    assert figures["ap_crowd_easy"] == -1.0
    assert figures["ap_crowd_medium"] == 1.0
    assert figures["ap_crowd_hard"] == -1.0
    assert "ap_large" not in figures


def test_area_is_053_of_the_box_where_annotations_hold_none() -> None:
    ground_truth, _ = random_case(0, skeleton=CROWDPOSE_14)
    annotation = ground_truth["annotations"][0]
    del annotation["area"]
    _, _, w, h = annotation["bbox"]
    assert truth(ground_truth).area_px2[0] == h * w * 0.53


def test_an_area_in_the_file_is_not_crowdposes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The official tool (crowdposetools, use_area=False) never looks at it; a file scored as COCO's is."""
    ground_truth, results = random_case(11, num_images=10, skeleton=CROWDPOSE_14)
    for image in ground_truth["images"]:
        image["crowdIndex"] = 0.5
    bare, given = tmp_path / "bare.json", tmp_path / "given.json"
    for annotation in ground_truth["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    given.write_text(json.dumps(ground_truth))
    for annotation in ground_truth["annotations"]:
        del annotation["area"]
    bare.write_text(json.dumps(ground_truth))
    references = [read_reference(path) for path in (bare, given)]
    assert [r.format for r in references] == ["crowdpose", "crowdpose"]
    np.testing.assert_array_equal(references[0].truth.area_px2, references[1].truth.area_px2)
    told = f"given.json: the area of {len(ground_truth['annotations'])} annotations is not used"
    assert told in " ".join(capsys.readouterr().err.split())
    expected, found = (
        crowdpose_figures(match(r.truth, detections(results, r.truth)), r.truth)["ap"] for r in references
    )
    as_coco = read_reference(given, "coco").truth
    assert found == expected < evaluate_predictions(results, json.loads(given.read_text()))["ap"]
    assert as_coco.area_px2.sum() == pytest.approx(references[0].truth.area_px2.sum() / 0.53)


@pytest.mark.parametrize(("split", "boundary"), [("tool", 0.2), ("paper", 0.1)])
def test_each_class_is_ap_of_its_images_alone(split: CrowdSplit, boundary: float) -> None:
    indices = [0.0, 0.09999, 0.1, 0.15, 0.19999, 0.2, 0.5, 0.79999, 0.8, 1.0]
    ground_truth, results = random_case(11, num_images=10, skeleton=CROWDPOSE_14)
    for image, crowding in zip(ground_truth["images"], indices, strict=True):
        image["crowdIndex"] = crowding
    reference = truth(ground_truth)
    figures = crowdpose_figures(match(reference, detections(results, reference)), reference, split)
    easy = [i for i in indices if i < boundary]
    medium = [i for i in indices if boundary <= i < 0.8]
    for name, members in (("easy", easy), ("medium", medium), ("hard", [0.8, 1.0])):
        ids = {i["id"] for i in ground_truth["images"] if i["crowdIndex"] in members}
        alone = {
            **ground_truth,
            "images": [i for i in ground_truth["images"] if i["id"] in ids],
            "annotations": [a for a in ground_truth["annotations"] if a["image_id"] in ids],
        }
        expected = evaluate_predictions([r for r in results if r["image_id"] in ids], alone)["ap"]
        assert figures[f"ap_crowd_{name}"] == expected
    assert figures["ap"] == evaluate_predictions(results, ground_truth)["ap"]


def test_images_without_a_crowd_index_are_an_error() -> None:
    ground_truth, results = random_case(0, skeleton=CROWDPOSE_14)
    reference = truth(ground_truth)
    with pytest.raises(ValueError, match=r"image 1 has no crowdIndex: .* score with format=coco"):
        crowdpose_figures(match(reference, detections(results, reference)), reference)
