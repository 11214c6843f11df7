"""Constructed ground truths and results for the tests of evaluation, and the plain pycocotools they are held to."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efafnet.models.skeleton import COCO_17, Skeleton
from efafnet.pipelines.crops.store import GroundTruth
from efafnet.pipelines.evaluation.columns import detections, truth
from efafnet.pipelines.evaluation.config import TestConfig
from efafnet.pipelines.evaluation.matching import match
from efafnet.pipelines.evaluation.metrics import curves, summary
from efafnet.pipelines.evaluation.predictions import person_scores, results_of_columns

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_json(name: str) -> Any:
    """A file of the real sample data; skips the test where it is absent."""
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip(f"the real sample data are not here: {path}")
    return json.loads(path.read_text())


def written(path: Path, content: Any) -> Path:
    """The file, with that content as JSON."""
    path.write_text(json.dumps(content))
    return path


def case_files(place: Path) -> tuple[Path, Path]:
    """Results and annotations of a constructed case (``random_case(0)``) as files."""
    ground_truth, results = random_case(0)
    return written(place / "results.json", results), written(place / "annotations.json", ground_truth)


def category(skeleton: Skeleton = COCO_17) -> dict[str, Any]:
    return {"id": 1, "name": "person", "keypoints": list(skeleton.joints), "skeleton": []}


def person(number: int, image: int, keypoints: Any, box: Sequence[float], **fields: Any) -> dict[str, Any]:
    """An annotation with the given joints (K, 3); area is 0.6 of the box's."""
    values = np.asarray(keypoints)
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": list(box),
        "area": 0.6 * box[2] * box[3],
        "iscrowd": 0,
        "keypoints": values.reshape(-1).tolist(),
        "num_keypoints": int((values[:, 2] > 0).sum()),
        **fields,
    }


def result(image: int, joints: Any, score: float, joint_scores: Any = 1.0) -> dict[str, Any]:
    joints = np.asarray(joints, float)
    scores = np.broadcast_to(np.asarray(joint_scores, float), joints.shape[:1])
    keypoints = np.column_stack([joints[:, :2], scores])
    return {"image_id": image, "category_id": 1, "keypoints": keypoints.reshape(-1).tolist(), "score": float(score)}


def random_case(
    seed: int, *, num_images: int = 12, ties: bool = True, skeleton: Skeleton = COCO_17
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Crowded images: crowds, persons without joints, exact hits, duplicates, equal scores, empty images."""
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 1, "width": 640, "height": 480} for i in range(num_images)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    k = skeleton.num_joints
    for image in images:
        for _ in range(rng.integers(0, 7)):
            x, y = rng.uniform(0, 300, 2)
            w, h = rng.uniform(10, 400, 2)
            visibility = rng.integers(0, 3, k) if rng.random() > 0.15 else np.zeros(k, int)
            joints = np.column_stack([rng.integers(x, x + w + 1, k), rng.integers(y, y + h + 1, k), visibility])
            crowd = int(rng.random() < 0.1)
            annotations.append(person(len(annotations) + 1, image["id"], joints, (x, y, w, h), iscrowd=crowd))
            for _ in range(rng.integers(0, 7)):
                spread = rng.choice([0, 1, 5, 20])
                guess = joints[:, :2] + rng.normal(0, 1, (k, 2)) * spread
                results.append(result(image["id"], guess, round(rng.random(), 1 if ties else 9), rng.random(k)))
    return {"images": images, "annotations": annotations, "categories": [category(skeleton)]}, results


def pycocotools_stats(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], sigmas: Sequence[float] = COCO_17.sigmas
) -> list[float]:
    """The ten keypoint figures by the original tool."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {**ground_truth, "annotations": [dict(a) for a in ground_truth["annotations"]]}
        reference.createIndex()
        tool = COCOeval(reference, reference.loadRes([dict(r) for r in results]), "keypoints")
        tool.params.kpt_oks_sigmas = np.array(sigmas)
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return [float(v) for v in tool.stats]


def evaluate_predictions(
    results: Sequence[Mapping[str, Any]],
    ground_truth: GroundTruth | Mapping[str, Any],
    *,
    skeleton: Skeleton | None = None,
) -> dict[str, float]:
    """COCO's ten figures of results on all images of a store's ground truth, or of one in COCO's layout."""
    reference = truth(ground_truth, skeleton)
    return summary(curves(match(reference, detections(results, reference))))


def published_predictions(
    annotations: Sequence[Mapping[str, Any]], scale: tuple[float, float], skeleton: Skeleton = COCO_17
) -> list[dict[str, Any]]:
    """The predictions behind the published figures of the tiny sets: true joints times ``scale``, really scored.

    Joint score .8·visibility, box score .98, area 1.25w·1.25h, joint threshold .2, OKS-NMS at .9.
    """
    keypoints = np.array([a["keypoints"] for a in annotations], float).reshape(len(annotations), -1, 3)
    joint_scores = (keypoints[:, :, 2] * 0.8).astype(np.float32)
    boxes = np.array([a["bbox"] for a in annotations])
    return results_of_columns(
        image_id=np.array([a["image_id"] for a in annotations]),
        joints_px=keypoints[:, :, :2] * np.array(scale),
        joint_scores=joint_scores,
        scores=person_scores(joint_scores, np.full(len(annotations), 0.98, np.float32), threshold=0.2),
        area_px2=boxes[:, 2] * boxes[:, 3] * 1.25**2,
        sigmas=skeleton.sigmas,
        test=TestConfig(nms="oks", nms_threshold=0.9),
    )


def pycocotools_boxes(ground_truth: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> list[float]:
    """box_ap, box_ap_50, box_ap_75, box_ap_medium, box_ap_large, box_ar by the original tool."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {**ground_truth, "annotations": [dict(a) for a in ground_truth["annotations"]]}
        reference.createIndex()
        tool = COCOeval(reference, reference.loadRes([dict(b) for b in boxes]), "bbox")
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return [float(tool.stats[i]) for i in (0, 1, 2, 4, 5, 8)]
