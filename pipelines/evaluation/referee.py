"""The original tool, pycocotools, for whoever wants its word instead of ours. Ours is held to it by the tests."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from efafnet.pipelines.evaluation.columns import Truth
from efafnet.pipelines.evaluation.metrics import METRIC_NAMES, NO_PERSONS


def pycocotools_figures(results: Sequence[Mapping[str, Any]], truth: Truth) -> dict[str, float]:
    """The figures of ``evaluate_predictions`` as pycocotools computes them, several times slower, prints swallowed.

    The results must have been checked (see ``columns.detections``): the tool stops at bad ones with bare assertions.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not results:
        # The tool cannot load an empty list; nothing found is nothing right.
        return {name: 0.0 if (~truth.ignored).any() else NO_PERSONS for name in METRIC_NAMES}
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = _dataset(truth)
        reference.createIndex()
        tool = COCOeval(reference, reference.loadRes([dict(r) for r in results]), "keypoints")
        tool.params.kpt_oks_sigmas = np.array(truth.skeleton.sigmas)
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return dict(zip(METRIC_NAMES, (float(v) for v in tool.stats), strict=True))


def _dataset(truth: Truth) -> dict[str, Any]:
    keypoints = np.concatenate([truth.joints_px, truth.visibility[..., None]], axis=2).reshape(len(truth.image), -1)
    labelled = (truth.visibility > 0).sum(axis=1)
    annotations = [
        {
            "id": number + 1,  # the tool takes a match with annotation 0 for none
            "image_id": int(truth.image_ids[truth.image[number]]),
            "category_id": truth.category_id,
            "bbox": truth.box_xywh_px[number].tolist(),
            "area": float(truth.area_px2[number]),
            "iscrowd": int(truth.crowd[number]),
            "keypoints": keypoints[number].tolist(),
            "num_keypoints": 0 if truth.ignored[number] else int(labelled[number]),
        }
        for number in range(len(truth.image))
    ]
    category = {"id": truth.category_id, "name": "person", "keypoints": list(truth.skeleton.joints), "skeleton": []}
    return {"images": [{"id": int(i)} for i in truth.image_ids], "annotations": annotations, "categories": [category]}
