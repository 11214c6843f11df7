"""`efafnet evaluate CHECKPOINT DATA`: predict a crop store with a trained network, measure, and show the results."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efafnet.pipelines.crops.protocols import departures, described
from efafnet.pipelines.crops.store import GROUND_TRUTH, CropStore
from efafnet.pipelines.evaluation.boxes import box_figures
from efafnet.pipelines.evaluation.columns import PERSON_CATEGORY, truth
from efafnet.pipelines.evaluation.config import EvaluateConfig, TestConfig, WorkersConfig
from efafnet.pipelines.evaluation.gallery import write_galleries
from efafnet.pipelines.evaluation.part import tell_coverage
from efafnet.pipelines.evaluation.predictions import Predictions, coco_results
from efafnet.pipelines.evaluation.results_file import Reference, read_reference
from efafnet.pipelines.evaluation.scoring import Scored, score_results, show, write_picture
from efafnet.pipelines.evaluation.store_prediction import predict_here, predict_with_ray
from efafnet.pipelines.evaluation.trained import Trained, load_trained, open_store
from efafnet.pipelines.evaluation.visibility import (
    META,
    NoCalibrationError,
    brier_on,
    calibrate_on,
    shown_as_sure,
)
from efafnet.platform import console
from efafnet.platform.checkpoint import amend_meta
from efafnet.platform.cluster import connect
from efafnet.platform.provenance import code_version
from efafnet.platform.ray_data import is_little
from efafnet.platform.storage import atomic_directory, check_output, write_json, write_text

PREDICTIONS = "predictions.json"
METRICS = "metrics.json"
ERRORS = "errors.png"
FEW_PERSONS = 1000
"""Persons that this process predicts by itself where no Ray is there or named. A Ray of its own, and actors that have
imported torch, take some 12 s and 20 CPU seconds: a small network is done before, and a large one, whose convolutions
fill all cores or a GPU here too, soon after."""
_OF_TESTING = ("test.", "heatmap.decoding", "box_rule")
"""What of a protocol a test can depart from, by the start of the keys."""


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    scored: Scored
    """Figures, intervals, mistakes."""
    predictions: Predictions
    """Every person of the store, before rescoring and suppression, in order of rows."""
    results: list[dict[str, Any]]
    """COCO results: what the figures were computed from."""
    trained: Trained
    """The network."""
    test: TestConfig
    """How it was tested."""
    visibility: dict[str, Any] | None
    """Brier scores of the probabilities that joints are visible, and whence these are; None without a calibration."""
    precision: str
    """The arithmetic that ``test.precision`` came to."""
    seconds: dict[str, float]
    """Duration of each stage."""


def run_evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate, write everything to ``config.output``, print the figures."""
    store = open_store(config.data)
    check_output(config.output, overwrite=config.overwrite)
    evaluation = evaluate(config, store)
    with atomic_directory(config.output, overwrite=config.overwrite) as folder:
        _write(folder, config, store, evaluation)
    _tell(config, store, evaluation)
    if config.mlflow:
        _log(config, store, evaluation)
    return evaluation


def evaluate(config: EvaluateConfig, store: CropStore) -> Evaluation:
    """Predict every person of ``store`` and measure; writes nothing.

    Raises ValueError or OSError for a checkpoint that is damaged or does not fit, and where no worker can be had.
    """
    trained = _prepared(config, store)
    test = trained.test
    workers = _workers(config, store)
    if not workers.without_ray:
        # Before the clock starts: a local Ray takes longer to start than a small store to predict.
        connect(workers.cluster)
    began = time.monotonic()
    if workers.without_ray:
        predicted = predict_here(trained, store, test, workers)
    else:
        predicted = predict_with_ray(trained, store, test, workers, config.weights)
    predictions, ended = predicted.persons, time.monotonic()
    reference = read_reference(store.path)
    if config.calibrate:
        trained = _calibrated(trained, store, predictions, reference)
    results = _results(predictions, reference, trained, test, store)
    scored = _score(results, predictions, reference, config, store)
    visibility = _visibility(trained, store, predictions, reference)
    measured = time.monotonic()
    seconds = {"predict": ended - began, "measure": measured - ended}
    return Evaluation(scored, predictions, results, trained, test, visibility, predicted.precision, seconds)


def _workers(config: EvaluateConfig, store: CropStore) -> WorkersConfig:
    """Who predicts, with few persons decided."""
    workers, persons = config.workers, store.num_persons
    here = workers.count is None and is_little(persons, FEW_PERSONS, "person", workers.cluster)
    return workers.model_copy(update={"count": 0}) if here else workers


def _prepared(config: EvaluateConfig, store: CropStore) -> Trained:
    """The network and how it is tested, with the command line's wishes over the checkpoint's."""
    trained = load_trained(config.checkpoint, store.skeleton, weights=config.weights, expected=config.network)
    if config.mlflow and not trained.meta.get("mlflow_run_id"):
        raise ValueError(f"mlflow=true: checkpoint {trained.path} was written without an MLflow run; leave mlflow out")
    return trained.tested_as(config.test)


def _calibrated(trained: Trained, store: CropStore, predictions: Predictions, reference: Reference) -> Trained:
    """The network with a calibration from this store, which its checkpoint holds from now on.

    Raises ValueError where the store says too little, OSError where the checkpoint cannot be written.
    """
    try:
        found = calibrate_on(store, predictions, reference.truth, flip_test=trained.test.flip_test)
    except NoCalibrationError as error:
        raise ValueError(f"calibrate=true: crop store {store.path}: {error}") from error
    amend_meta(trained.path, {META: found.model_dump(mode="json")})
    return replace(trained, visibility=found)


def _visibility(
    trained: Trained, store: CropStore, predictions: Predictions, reference: Reference
) -> dict[str, Any] | None:
    """How good the probabilities that joints are visible are on this store; None where nobody can say."""
    found = trained.visibility
    if found is None:
        return None
    # On the very persons it was fitted on, what it said of images left out counts.
    own = found.store == store.digest
    scores = (found.brier, found.brier_base) if own else brier_on(found, store, predictions, reference.truth)
    if scores is None:
        return None
    names = ("visibility_brier", "visibility_brier_base")
    return {**dict(zip(names, scores, strict=True)), "calibrated_on": found.store, "persons": found.persons}


def _results(
    predictions: Predictions, reference: Reference, trained: Trained, test: TestConfig, store: CropStore
) -> list[dict[str, Any]]:
    return coco_results(
        predictions,
        skeleton=store.skeleton,
        input_size=trained.input_size,
        padding=trained.padding,
        test=test,
        by_person=reference.by_person,
        visible=trained.visible(predictions.scores, store.skeleton),
    )


def _score(
    results: list[dict[str, Any]],
    predictions: Predictions,
    reference: Reference,
    config: EvaluateConfig,
    store: CropStore,
) -> Scored:
    tell_coverage(results, reference.truth, store.path)
    scored = score_results(results, reference, config.scoring)
    if scored.figures.get("ap") == 0:
        console.warn("no prediction resembles a person of its image: an untrained network, or other joints or boxes?")
    if not store.has_annotated_boxes and not reference.by_person:
        scored.figures.update(box_figures(_boxes(predictions), reference.truth))
    return scored


def _boxes(predictions: Predictions) -> list[dict[str, Any]]:
    columns = (predictions.image_id, predictions.box_xywh_px, predictions.box_score)
    return [
        {"image_id": int(image), "category_id": PERSON_CATEGORY, "bbox": box.tolist(), "score": float(score)}
        for image, box, score in zip(*columns, strict=True)
    ]


def _write(folder: Path, config: EvaluateConfig, store: CropStore, done: Evaluation) -> None:
    category = store.table(GROUND_TRUTH)["category_id"].to_pylist()[:1] or [PERSON_CATEGORY]
    results = [{**entry, "category_id": category[0]} for entry in done.results]
    # On one line: with indentation, the results of COCO's validation images would take five million.
    write_text(folder / PREDICTIONS, json.dumps(results, separators=(",", ":")) + "\n")
    visibility = {} if done.visibility is None else {"visibility": done.visibility}
    write_json(folder / METRICS, {**done.scored.to_json(), **visibility, **_circumstances(config, store, done)})
    write_picture(done.scored, folder / ERRORS, f"{done.trained.path.name} on {store.path.name}")
    if config.overlays:
        write_galleries(
            folder,
            store,
            done.predictions,
            truth(store.ground_truth()),
            count=config.overlays,
            input_size=done.trained.input_size,
            padding=done.trained.padding,
            sure=shown_as_sure(
                done.trained.visibility,
                done.predictions.scores,
                store.skeleton.joints,
                done.test.joint_score_threshold,
            ),
        )


def _circumstances(config: EvaluateConfig, store: CropStore, done: Evaluation) -> dict[str, Any]:
    """What the figures belong to."""
    trained = done.trained
    return {
        "checkpoint": {"path": str(trained.path), **trained.meta},
        "protocol": _protocol(store, done),
        "store": {"path": str(store.path), "digest": store.digest, "persons": store.num_persons},
        "precision": done.precision,
        "test": {**done.test.model_dump(mode="json"), "heatmap": trained.heatmap.model_dump(mode="json")},
        "settings": config.model_dump(mode="json"),
        "code": code_version(),
        "seconds": done.seconds,
    }


def _protocol(store: CropStore, done: Evaluation) -> str:
    """The protocol the network was trained under, and where this test of it departs from that protocol."""
    trained = done.trained
    under = trained.meta.get("protocol") or described(trained.config, (), trained.skeleton)
    tested = trained.config | {
        "test": done.test.model_dump(mode="json"),
        "heatmap": trained.heatmap.model_dump(mode="json"),
    }
    departing = departures(tested, store.manifest.sources, trained.skeleton)
    of_testing = [f"{key}={text}" for key, text in departing.items() if key.startswith(_OF_TESTING)]
    return f"{under}; tested with {', '.join(of_testing)}" if of_testing else under


def _tell(config: EvaluateConfig, store: CropStore, done: Evaluation) -> None:
    number, seconds = store.num_persons, done.seconds["predict"]
    persons = console.counted(number, "person")
    step = done.trained.meta.get("step")
    console.say(f"{done.trained.path} (step {step}) on {store.path}: {persons}, {store.skeleton.name}")
    console.say(f"protocol: {_protocol(store, done)}")
    show(done.scored, config.scoring)
    _tell_visibility(store, done)
    rate = f"{persons} predicted in {seconds:.1f} s ({number / seconds:.3g}/s, {done.precision})"
    console.say(f"{rate}; files in {config.output}")


def _tell_visibility(store: CropStore, done: Evaluation) -> None:
    done.trained.tell_visibility()
    if done.visibility is None:
        if done.trained.visibility is not None:
            console.note(f"{store.path} does not say which joints are visible: no Brier score")
        return
    brier, base = done.visibility["visibility_brier"], done.visibility["visibility_brier_base"]
    where = "on images left out of it" if done.visibility["calibrated_on"] == store.digest else "calibrated elsewhere"
    console.say(f"visible or not: Brier score {brier:.4f} ({where}); by each joint's share {base:.4f}")


def _log(config: EvaluateConfig, store: CropStore, done: Evaluation) -> None:
    """Add figures and files to the run that wrote the checkpoint; what MLflow does not take is told."""
    from efafnet.platform.tracking import Tracker, prepare_tracking

    uri = prepare_tracking(config.tracking_uri or (done.trained.config.get("tracking") or {}).get("uri"))
    place = f"evaluation/{store.path.name}"
    # Without a slash: MLflow draws such figures below the curves, and these are one point each.
    key = f"evaluation.{store.path.name}"
    figures = {f"{key}.{name}": value for name, value in done.scored.figures.items() if value >= 0}
    brier = {key: value for key, value in (done.visibility or {}).items() if key.startswith("visibility_")}
    figures |= {f"{key}.{name}": value for name, value in brier.items()}
    tracker = Tracker(uri, done.trained.meta["mlflow_run_id"], spill=config.output / "unlogged.jsonl")
    tracker.log_metrics(figures, int(done.trained.meta.get("step", 0)))
    for name in (METRICS, PREDICTIONS, ERRORS, "best.jpg", "worst.jpg"):
        if (config.output / name).exists():
            tracker.log_artifact(config.output / name, place)
    tracker.close(timeout_s=120)
    console.note(f"logged to MLflow run {done.trained.meta['mlflow_run_id']} under {place}")
