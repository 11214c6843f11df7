"""`efafnet score PREDICTIONS ANNOTATIONS`: any results file against any annotations, by the same code as `evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from efafnet.models.settings import Settings
from efafnet.pipelines.evaluation.boxes import box_figures
from efafnet.pipelines.evaluation.columns import Truth
from efafnet.pipelines.evaluation.config import ScoringConfig
from efafnet.pipelines.evaluation.part import PREDICTED, chosen_images, part_of, tell_coverage, within
from efafnet.pipelines.evaluation.results_file import DataFormat, Reference, read_reference, read_results
from efafnet.pipelines.evaluation.scoring import Scored, score_results, show, write_picture
from efafnet.pipelines.formats.categories import CategoryNames
from efafnet.pipelines.formats.plausibility import equal_scores, odd_results, repeated_results
from efafnet.platform import console
from efafnet.platform.storage import atomic_directory, check_output, write_json

_SAMPLE = 1000
"""Results that are looked at for odd conventions, which are the same throughout a file."""


class ScoreConfig(Settings):
    """Measure a results file against annotations."""

    predictions: Path
    """Results in COCO's format (a JSON list); entries with boxes only are scored as a detector's."""
    annotations: Path
    """COCO or CrowdPose annotations (JSON), a crop store, or MPII's gt_valid.mat."""
    format: DataFormat = "auto"
    """Whose figures: COCO's, CrowdPose's (easy, medium, hard), MPII's (PCKh); auto by the annotations' joints."""
    skeleton: str = "auto"
    """auto reads the joints and their sigmas from the annotations; a known name (coco17, mpii16, crowdpose14), a YAML
    file with a skeleton's fields, or a crop store that has them."""
    categories: CategoryNames = ()
    """Names or numbers of the annotations' categories that are persons; by default the only one that lists joints."""
    result_boxes: Literal["use", "ignore"] = "use"
    """Whether a person's area is taken from the results' `bbox`, as COCO's tools do where the first result has one, or
    always from its joints. Matters for AP by size."""
    against: Path | None = None
    """Other results on the same annotations, to compare with: differences with paired intervals."""
    detections: Path | None = None
    """The person boxes behind the predictions (COCO results with `bbox`), whose own AP is added."""
    images: str = "all"
    """Images to score on: all of the annotations', predicted (those with a result), or a file that lists their ids (a
    JSON list, a COCO file, or one id a line)."""
    scoring: ScoringConfig = ScoringConfig()
    as_json: bool = False
    """Print JSON at full precision instead of tables."""
    output: Path | None = None
    """Directory for score.json and errors.png; none for no files."""
    overwrite: bool = False
    """Whether an output that exists is replaced."""


def run_score(config: ScoreConfig) -> None:
    """Score, print, and write what was asked for."""
    if config.output is not None:
        check_output(config.output, overwrite=config.overwrite)
    scored = score(config)
    if config.as_json:
        console.say(json.dumps(scored.to_json(), indent=2))
    else:
        show(scored, config.scoring)
    if config.output is not None:
        with atomic_directory(config.output, overwrite=config.overwrite) as folder:
            write_json(folder / "score.json", {"config": config.model_dump(mode="json"), **scored.to_json()})
            write_picture(scored, folder / "errors.png", config.predictions.name)
        console.note(f"written to {config.output}")


def score(config: ScoreConfig) -> Scored:
    """The figures of a results file. Raises ValueError or OSError for files that do not fit, naming entry and value."""
    reference = read_reference(config.annotations, config.format, config.skeleton, config.categories)
    results = _read_results(config.predictions, reference.truth)
    whole, chosen = reference.truth, chosen_images(config.images, results, reference.truth)
    if len(chosen) < len(whole.image_ids):
        reference = replace(reference, truth=part_of(whole, chosen))
        results = within(results, chosen, whole, str(config.predictions))
        _tell_part(config, reference.truth, whole)
    _tell_ignored(reference)
    remedy = f"; images={PREDICTED} scores the others alone, images=FILE those it lists"
    tell_coverage(results, reference.truth, config.predictions, remedy)
    joints = odd_results(results[:_SAMPLE], reference.truth.skeleton.num_joints)
    for remark in (*joints, *repeated_results(results), *equal_scores(results)):
        console.warn(f"{config.predictions.name}: {remark}")
    others = _others(config, chosen, whole)
    if others is not None:
        tell_coverage(others, reference.truth, f"against={config.against}")
    try:
        scored = _scored(results, others, reference, config)
    except ValueError as error:
        raise ValueError(f"{config.predictions}: {error}") from error
    if scored.figures.get("ap") == 0:
        console.warn(
            f"{config.predictions.name}: no result resembles a person of its image: joints in another order, x and y "
            "exchanged, or pixels of crops or of images of another size?"
        )
    if config.detections is None:
        return scored
    boxes = within(_read_results(config.detections, whole), chosen, whole, str(config.detections))
    tell_coverage(boxes, reference.truth, config.detections)
    try:
        scored.figures.update(box_figures(boxes, reference.truth))
    except ValueError as error:
        raise ValueError(f"{config.detections}: {error}") from error
    return scored


def _read_results(path: Path, truth: Truth) -> list[dict[str, Any]]:
    """Results with the ids of images and categories, also where the file gives their names."""
    entries = read_results(path)
    try:
        return entries if truth.names is None else truth.names.numbered(entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _others(config: ScoreConfig, chosen: NDArray[np.int64], whole: Truth) -> list[dict[str, Any]] | None:
    """The results to compare with, on the chosen images."""
    if config.against is None:
        return None
    return within(_read_results(config.against, whole), chosen, whole, str(config.against))


def _tell_part(config: ScoreConfig, part: Truth, whole: Truth) -> None:
    persons, of = (int((~truth.ignored).sum()) for truth in (part, whole))
    console.warn(
        f"images={config.images}: scored on {len(part.image_ids)} of {len(whole.image_ids)} images, {persons} of {of} "
        "persons; figures of a part are not those of the whole"
    )


def _tell_ignored(reference: Reference) -> None:
    truth = reference.truth
    crowds, lonely = int(truth.crowd.sum()), int((truth.ignored & ~truth.crowd).sum())
    if crowds or lonely:
        console.note(
            f"{len(truth.image)} annotations on {len(truth.image_ids)} images, of which {crowds} crowds and {lonely} "
            "persons without joints need not be found"
        )


def _scored(
    results: list[dict[str, Any]],
    against: list[dict[str, Any]] | None,
    reference: Reference,
    config: ScoreConfig,
) -> Scored:
    if "keypoints" not in results[0] and "bbox" in results[0]:
        if against is not None:
            raise ValueError("results of boxes alone have no joints to compare with against=; leave it out")
        return Scored(box_figures(results, reference.truth))
    if reference.truth.ignored.all():
        total, crowds = len(reference.truth.ignored), int(reference.truth.crowd.sum())
        raise ValueError(
            f"nobody has to be found on these images: of {total} annotations in {config.annotations} {crowds} are "
            "crowds, and the others have no joints (num_keypoints 0)"
        )
    boxed = bool(results[0].get("bbox"))
    if boxed and config.result_boxes == "use" and not reference.by_person:
        console.warn(
            "the results have a bbox field: COCO's tools then take each person's area from it, which moves AP by size; "
            "result_boxes=ignore takes it from the joints"
        )
    elif not boxed and (some := sum(bool(result.get("bbox")) for result in results)):
        console.warn(
            f"{some} of {len(results)} results have a bbox, but the first has none: as by COCO's tools, none is used"
        )
    return score_results(
        results,
        reference,
        config.scoring,
        area_from_box=boxed and config.result_boxes == "use",
        against=against,
    )
