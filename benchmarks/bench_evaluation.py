"""Time to score keypoint results at the size of COCO's validation set: pycocotools, faster-coco-eval and this project.

    python -m benchmarks.bench_evaluation

5,000 images, 2,693 of them with 11,004 annotated persons (6,352 with joints), 104,125 predictions on persons and off
them, constructed with COCO's spread of sizes. Every tool reads the same two JSON files. Also: a bootstrap interval from
1,000 resamplings of the images, and the error analysis.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.record import Record, add_option, recorded
from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.evaluation.bootstrap import bootstrap
from efafnet.pipelines.evaluation.columns import detections, truth
from efafnet.pipelines.evaluation.errors_taxonomy import analyse
from efafnet.pipelines.evaluation.matching import match
from efafnet.pipelines.evaluation.metrics import METRIC_NAMES, curves, summary
from efafnet.platform import console

IMAGES, IMAGES_WITH_PERSONS = 5000, 2693
PERSONS, PERSONS_WITH_JOINTS = 11004, 6352
PREDICTIONS = 104125


def construct(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write ``annotations.json`` and ``results.json``."""
    rng = np.random.default_rng(seed)
    # Every image with persons has one; the rest fall where they fall, so that some images are crowded as in COCO.
    crowding = rng.exponential(size=IMAGES_WITH_PERSONS)
    more = rng.choice(IMAGES_WITH_PERSONS, PERSONS - IMAGES_WITH_PERSONS, p=crowding / crowding.sum())
    annotations = _annotations(rng, np.concatenate([np.arange(IMAGES_WITH_PERSONS), more]))
    category = {"id": 1, "name": "person", "keypoints": list(COCO_17.joints), "skeleton": []}
    images = [{"id": i + 1, "width": 640, "height": 480} for i in range(IMAGES)]
    content = {"images": images, "annotations": annotations, "categories": [category]}
    paths = folder / "annotations.json", folder / "results.json"
    paths[0].write_text(json.dumps(content))
    paths[1].write_text(json.dumps(_results(rng, annotations)))
    return paths


def _annotations(rng: np.random.Generator, images: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    with_joints = np.zeros(len(images), bool)
    with_joints[rng.permutation(len(images))[:PERSONS_WITH_JOINTS]] = True
    found = []
    for number, image in enumerate(images.tolist()):
        # Areas of COCO's persons spread over three powers of ten.
        height = float(np.clip(np.exp(rng.normal(4.6, 0.8)), 12, 470))
        width = height * rng.uniform(0.3, 0.8)
        x, y = rng.uniform(0, 640 - width), rng.uniform(0, 480 - height)
        visibility = rng.choice(3, 17, p=[0.35, 0.1, 0.55]) if with_joints[number] else np.zeros(17, int)
        joints = np.column_stack([rng.uniform(x, x + width, 17), rng.uniform(y, y + height, 17)]).round()
        joints[visibility == 0] = 0
        found.append(
            {
                "id": number + 1,
                "image_id": image + 1,
                "category_id": 1,
                "bbox": [x, y, width, height],
                "area": 0.6 * width * height,
                "iscrowd": int(not with_joints[number] and rng.random() < 0.05),
                "keypoints": np.column_stack([joints, visibility]).astype(int).reshape(-1).tolist(),
                "num_keypoints": int((visibility > 0).sum()),
            }
        )
    return found


def _results(rng: np.random.Generator, annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some twenty predictions an image: one good one per person with joints, others poor or of nobody."""
    found = []
    for annotation in annotations:
        if annotation["num_keypoints"]:
            joints = np.reshape(annotation["keypoints"], (17, 3))[:, :2].astype(float)
            spread = np.sqrt(annotation["area"]) * rng.choice([0.02, 0.05, 0.15], p=[0.5, 0.3, 0.2])
            found.append(_result(rng, annotation["image_id"], joints + rng.normal(0, spread, (17, 2)), 0.5))
    for image in (np.arange(PREDICTIONS - len(found)) % IMAGES).tolist():
        place, size = rng.uniform(0, 400, 2), rng.uniform(20, 200)
        found.append(_result(rng, image + 1, place + rng.uniform(0, size, (17, 2)), 0.0))
    order = rng.permutation(len(found))
    return [found[i] for i in order]


def _result(rng: np.random.Generator, image: int, joints: Any, bonus: float) -> dict[str, Any]:
    keypoints = np.column_stack([joints, rng.random(17)]).astype(np.float32).astype(float)
    score = float(np.float32(bonus + 0.5 * rng.random()))
    return {"image_id": image, "category_id": 1, "keypoints": keypoints.reshape(-1).tolist(), "score": score}


Timed = tuple[list[float], float, float]
"""Figures, CPU seconds to load, CPU seconds to evaluate."""


def by_pycocotools(annotations: Path, results: Path) -> Timed:
    """The original tool."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(annotations))
        found = reference.loadRes(str(results))
        loaded = time.process_time()
        tool = COCOeval(reference, found, "keypoints")
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return [float(v) for v in tool.stats], loaded - began, time.process_time() - loaded


def by_faster_coco_eval(annotations: Path, results: Path) -> Timed:
    """The same in C++."""
    from faster_coco_eval import COCO, COCOeval_faster

    began = time.process_time()
    reference = COCO(str(annotations))
    found = reference.loadRes(str(results))
    loaded = time.process_time()
    tool = COCOeval_faster(reference, found, "keypoints", print_function=lambda *_: None)
    tool.run()
    return [float(v) for v in tool.stats[:10]], loaded - began, time.process_time() - loaded


def by_efafnet(annotations: Path, results: Path) -> Timed:
    """What `efafnet score` and validation run."""
    began = time.process_time()
    content = json.loads(annotations.read_bytes())
    entries = json.loads(results.read_bytes())
    loaded = time.process_time()
    reference = truth(content)
    figures = summary(curves(match(reference, detections(entries, reference))))
    return list(figures.values()), loaded - began, time.process_time() - loaded


TOOLS: dict[str, Callable[[Path, Path], Timed]] = {
    "pycocotools": by_pycocotools,
    "faster-coco-eval": by_faster_coco_eval,
    "efafnet": by_efafnet,
}


def compare(annotations: Path, results: Path, repeats: int, record: Record) -> None:
    """Print a table of the best time of each tool, and whether its figures are pycocotools' to the last bit."""
    rows: list[list[object]] = []
    expected: list[float] = []
    plain_s = 0.0
    for name, run in TOOLS.items():
        outcomes = [run(annotations, results) for _ in range(repeats)]
        figures = outcomes[0][0]
        load_s, evaluate_s = min(o[1] for o in outcomes), min(o[2] for o in outcomes)
        record.add(f"load, {name}", "CPU s", [outcome[1] for outcome in outcomes])
        record.add(f"evaluate, {name}", "CPU s", [outcome[2] for outcome in outcomes])
        if not expected:
            expected, plain_s = figures, evaluate_s
        off = max(abs(a - b) for a, b in zip(figures, expected, strict=True))
        equal = "to the last bit" if figures == expected else f"within {off:.0e}"
        ratio = f"{plain_s / evaluate_s:.1f}"
        rows.append([name, f"{load_s:.2f}", f"{evaluate_s:.2f}", ratio, f"{figures[0]:.4f}", equal])
    columns = ["tool", "load (s)", "evaluate (s)", "times faster", "AP", "figures equal pycocotools'"]
    title = f"{PREDICTIONS} predictions, {PERSONS} persons, {IMAGES} images; CPU seconds, best of {repeats}"
    console.table(columns, rows, title=title)
    console.say(", ".join(f"{name} {value:.4f}" for name, value in zip(METRIC_NAMES, expected, strict=True)))


def analyses(annotations: Path, results: Path, repeats: int, record: Record) -> None:
    """Print what else a scoring computes, and how long it takes."""
    reference = truth(json.loads(annotations.read_bytes()))
    found = detections(json.loads(results.read_bytes()), reference)
    table = match(reference, found)
    bootstrap_s, errors_s = [], []
    for _ in range(repeats):
        began = time.process_time()
        interval = bootstrap(table, replicates=1000)["ap"]
        resampled = time.process_time()
        errors = analyse(reference, found)
        bootstrap_s.append(resampled - began)
        errors_s.append(time.process_time() - resampled)
    record.add("interval of AP", "CPU s", bootstrap_s)
    record.add("error analysis", "CPU s", errors_s)
    ends = f"{interval.low:.4f} to {interval.high:.4f}"
    console.table(
        ["beside the figures", "CPU s", "result"],
        [
            [
                "95 % interval of AP, 1000 resamplings",
                f"{min(bootstrap_s):.2f}",
                ends,
            ],
            ["error analysis", f"{min(errors_s):.2f}", f"{errors.matched} of {errors.persons} persons found"],
        ],
    )


def main() -> None:
    """Construct, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each tool; the best counts")
    add_option(parser)
    given = parser.parse_args()
    with recorded("bench_evaluation", given) as record, tempfile.TemporaryDirectory() as folder:
        annotations, results = construct(Path(folder))
        console.note(f"results file of {results.stat().st_size / 2**20:.0f} MiB written")
        compare(annotations, results, given.repeats, record)
        analyses(annotations, results, given.repeats, record)


if __name__ == "__main__":
    main()
