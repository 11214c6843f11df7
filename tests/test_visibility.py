"""From the height of a peak to the probability that its joint is visible: the regression, its score, where it goes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.drawing.persons import Pose, _strengths
from efafnet.pipelines.evaluation import visibility
from efafnet.pipelines.evaluation.columns import truth
from efafnet.pipelines.evaluation.config import EvaluateConfig
from efafnet.pipelines.evaluation.evaluate import run_evaluate
from efafnet.pipelines.evaluation.predictions import Predictions
from efafnet.pipelines.evaluation.trained import load_trained
from efafnet.pipelines.evaluation.visibility import (
    Calibration,
    NoCalibrationError,
    PeakMap,
    brier_on,
    brier_score,
    calibrate,
    calibrate_on,
    calibration_of,
    fit,
    pool_adjacent_violators,
    shown_as_sure,
)
from efafnet.pipelines.prediction import Predictor
from efafnet.pipelines.prediction.config import ExportConfig, PredictConfig
from efafnet.pipelines.prediction.exported import describe
from efafnet.pipelines.prediction.pose_predictor import PosePredictor
from efafnet.pipelines.prediction.predict import run_predict
from efafnet.pipelines.prediction.pyfunc import PersonsModel
from efafnet.platform.checkpoint import amend_meta, load_checkpoint, read_meta
from tests import crop_data, prediction_cases

MAP = PeakMap(peaks=(0.0, 0.5), probabilities=(0.25, 0.75), joints=400)
MADE = Calibration(
    own={"nose": PeakMap(peaks=(0.1,), probabilities=(1.0,), joints=1000)}, pooled=MAP, unknown=("left_eye",),
    brier=0.1, brier_base=0.2, persons=40, store="s", flip_test=True,
)  # fmt: skip


# ---- the regression and its score


def test_violators_are_pooled_by_weight() -> None:
    # .8 meets .5 twice: (.8 + 1.0) / 3 = .6; that meets .4 four times: (1.8 + 1.6) / 7.
    found = pool_adjacent_violators(np.array([0.2, 0.8, 0.5, 0.4, 1.0]), np.array([1, 1, 2, 4, 1]))
    np.testing.assert_allclose(found, [0.2, 3.4 / 7, 3.4 / 7, 3.4 / 7, 1.0], rtol=1e-12)


def test_it_is_the_isotonic_regression() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 2, 9, 30):
        values, weights = rng.random(length), rng.integers(1, 9, length)
        # The max-min formula (Barlow et al., theorem 1.4): the largest over beginnings of the smallest over ends.
        expected = [
            max(
                min(np.average(values[s : t + 1], weights=weights[s : t + 1]) for t in range(i, length))
                for s in range(i + 1)
            )
            for i in range(length)
        ]
        np.testing.assert_allclose(pool_adjacent_violators(values, weights), expected, rtol=1e-12)


def test_a_map_by_hand() -> None:
    # Shares at .1, .2, .3, .4: 0/1, 2/2, 0/1, 1/1; the middle two pool to 2/3.
    found = fit(np.array([0.4, 0.2, 0.1, 0.2, 0.3]), np.array([True, True, False, True, False]))
    assert (found.peaks, found.probabilities, found.joints) == ((0.1, 0.2, 0.3, 0.4), (0.0, 0.6667, 0.6667, 1.0), 5)
    # Between levels in proportion, beyond them as at the ends.
    np.testing.assert_allclose(found(np.array([-1.0, 0.15, 0.25, 0.35, 2.0])), [0, 0.33335, 0.6667, 0.83335, 1.0])


def test_a_map_never_falls_and_keeps_only_the_ends_of_its_steps() -> None:
    rng = np.random.default_rng(1)
    peaks = rng.normal(0.5, 0.3, 5000)
    found = fit(peaks, rng.random(5000) < 0.5)
    assert (np.diff(found(np.linspace(-1, 2, 1000))) >= 0).all()
    steps = np.unique(found.probabilities, return_counts=True)[1]
    assert steps.max() <= 2


def test_brier_by_hand() -> None:
    assert brier_score(np.array([0.9, 0.2, 0.6]), np.array([True, False, False])) == pytest.approx(0.41 / 3)


def _made(n: int, k: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Peaks that say exactly how probable it is that their joints are visible."""
    rng = np.random.default_rng(seed)
    peaks = rng.random((n, k))
    return peaks, rng.random((n, k)) < peaks


def _calibrated(peaks: Any, visible: Any, counted: Any, joints: tuple[str, ...]) -> Calibration:
    return calibrate(peaks, visible, counted, np.arange(len(peaks)), joints, store="s", flip_test=False)


def test_probabilities_come_back_and_the_score_is_that_of_the_truth() -> None:
    peaks, visible = _made(6000, 2)
    found = _calibrated(peaks, visible, np.ones_like(visible), ("a", "b"))
    asked = np.array([[0.1, 0.2], [0.5, 0.5], [0.8, 0.9]])
    np.testing.assert_allclose(found.probabilities(asked, ("a", "b")), asked, atol=0.06)
    # Of a probability that is right, the mean of p (1 - p) over all p: 1/6. Of the share alone: 1/4.
    assert found.brier == pytest.approx(1 / 6, abs=0.005)
    assert found.brier_base == pytest.approx(1 / 4, abs=0.003)
    assert set(found.own) == {"a", "b"}


def test_the_score_is_of_persons_not_seen() -> None:
    rng = np.random.default_rng(0)
    # Nothing to learn: what fits its own noise looks better than the share, and is worse on others.
    peaks, visible = rng.random((300, 1)), rng.random((300, 1)) < 0.5
    found = _calibrated(peaks, visible, np.ones_like(visible), ("a",))
    assert brier_score(found.probabilities(peaks, ("a",)), visible) < found.brier_base < found.brier


def test_few_persons_share_one_map_and_nobody_has_none() -> None:
    peaks, visible = _made(150, 3)
    counted = np.ones_like(visible)
    counted[:51, 1] = False  # 99: one less than a map of its own needs
    visible[:, 0] = np.arange(150) >= 10
    counted[:, 2] = False
    found = _calibrated(peaks, visible, counted, ("a", "b", "c"))
    assert (set(found.own), found.unknown, found.pooled.joints, found.persons) == ({"a"}, ("c",), 249, 150)
    said = found.probabilities(np.full((1, 3), 0.5), ("a", "b", "c"))
    assert said[0, 1] == np.float32(found.pooled(np.array(0.5)))
    assert np.isnan(said[0, 2])
    # Hardly ever hidden: nothing to fit a map of its own on.
    visible[:, 0] = np.arange(150) >= 9
    assert set(_calibrated(peaks, visible, counted, ("a", "b", "c")).own) == set()


@pytest.mark.parametrize(("seen", "hidden"), [(100, 99), (500, 19), (0, 500)])
def test_too_little_is_refused_with_its_numbers(seen: int, hidden: int) -> None:
    visible = np.arange(seen + hidden)[:, None] < seen
    with pytest.raises(NoCalibrationError, match=f"{seen} visible and {hidden} hidden"):
        _calibrated(np.zeros(visible.shape), visible, np.ones_like(visible), ("a",))


# ---- what a store says


def _store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CropStore, Predictions]:
    """18 persons in 6 images, and what a network might have found: peaks .9 where joints are visible, .2 elsewhere."""
    monkeypatch.setattr(visibility, "FEWEST_OF_AN_OUTCOME_IN_ALL", 5)
    store = crop_data.make_store(folder)
    people = store.columns(["person_id", "image_id", "box_xywh", "box_score", "joints_px", "visibility"])
    seen = np.array(people["visibility"].to_pylist())
    joints = np.array(people["joints_px"].to_pylist()).reshape(-1, 17, 2)
    peaks = np.where(seen == 2, 0.9, 0.2)
    return store, Predictions.gather(people, np.arange(len(seen)), joints, peaks)


def test_hidden_and_unlabelled_joints_are_not_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, found = _store(tmp_path, monkeypatch)
    reference = truth(store.ground_truth())
    seen = np.full_like(reference.visibility, 2)
    seen[:, 3], seen[::2, 4], seen[:, 5] = 1, 0, 0
    seen[0] = 0  # a person without joints says nothing
    peaks = np.where(seen == 2, 0.9, 0.2)
    place = {int(n): row for row, n in enumerate(reference.annotation_id)}
    order = [place[int(n)] for n in found.person_id]
    calibration = calibrate_on(
        store, replace(found, scores=peaks[order]), replace(reference, visibility=seen), flip_test=True
    )
    # Joint 5 has no label in anybody: not asked for. Joint 3 is labelled, and always hidden.
    assert calibration.unknown == (COCO_17.joints[5],)
    assert (calibration.persons, calibration.pooled.joints) == (17, 17 * 16)
    assert calibration.pooled(np.array([0.2, 0.9])).tolist() == [0.0, 1.0]
    assert (calibration.brier, calibration.store) == (0.0, store.digest)
    # Joints 3 and 4 alone differ in what is seen; 4 in 8 or 9 of 17 persons. On the same persons, by their own shares:
    share = (seen[1:, 4] == 2).mean()
    scores = brier_on(calibration, store, replace(found, scores=peaks[order]), replace(reference, visibility=seen))
    assert scores == pytest.approx((0.0, share * (1 - share) / 16))


def test_a_set_that_never_tells_seen_from_hidden_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, found = _store(tmp_path, monkeypatch)
    reference = truth(store.ground_truth())
    only_ones = replace(reference, visibility=np.minimum(reference.visibility, 1))
    with pytest.raises(NoCalibrationError, match="0 visible and 0 hidden"):
        calibrate_on(store, found, only_ones, flip_test=True)
    assert brier_on(MADE, store, found, only_ones) is None


# ---- where it goes


def test_a_checkpoint_learns_it_and_stays_whole(tmp_path: Path) -> None:
    path = prediction_cases.checkpoint(tmp_path / "checkpoint")
    before = read_meta(path)
    assert load_trained(path, COCO_17).visibility is None
    amend_meta(path, {"visibility": MADE.model_dump(mode="json")})
    after = read_meta(path)
    assert {key: value for key, value in after.items() if key != "visibility"} == before
    assert load_checkpoint(path).meta["step"] == 7
    assert load_trained(path, COCO_17).visibility == MADE
    # What a later version may write is not taken for ours.
    assert calibration_of({"visibility": {"kind": "of tomorrow"}}) is None


def test_weights_that_were_not_validated_have_none(tmp_path: Path) -> None:
    from efafnet.platform.checkpoint import save_checkpoint

    path = prediction_cases.checkpoint(tmp_path / "plain")
    content = load_checkpoint(path)
    save_checkpoint(
        tmp_path / "averaged",
        weights={"network": content.weights["network"], "ema": content.weights["network"]},
        state={},
        config=content.config,
        meta={**content.meta, "visibility": MADE.model_dump(mode="json")},
    )
    assert load_trained(tmp_path / "averaged", COCO_17).visibility == MADE
    assert load_trained(tmp_path / "averaged", COCO_17, weights="network").visibility is None


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = prediction_cases.checkpoint(tmp_path_factory.mktemp("calibrated") / "checkpoint")
    amend_meta(path, {"visibility": MADE.model_dump(mode="json")})
    return path


def test_persons_say_it(calibrated: Path) -> None:
    persons = Predictor.load(calibrated, device="cpu").persons(crop_data.picture(96, 64, 3), [[10, 10, 40, 50]])
    assert persons.visible is not None
    expected = np.interp(persons.joint_scores[0], [0, 0.5], [0.25, 0.75])
    expected[0], expected[COCO_17.joints.index("left_eye")] = 1.0, np.nan
    np.testing.assert_allclose(persons.visible[0], expected, rtol=1e-6)
    [row] = persons.to_coco()
    assert row["keypoints_visible"][:2] == [1.0, None]
    assert row["keypoints_visible"][5] == round(float(persons.visible[0, 5]), 3)
    json.dumps(row, allow_nan=False)
    # So does the function that MLflow serves.
    picture = cv2.imencode(".png", crop_data.picture(96, 64, 3)[:, :, ::-1])[1].tobytes()
    served = PersonsModel(Predictor.load(calibrated, device="cpu"))
    asked = pd.DataFrame({"image": [picture], "boxes": [[[10, 10, 40, 50]]]})
    assert served.predict(asked)["persons"][0][0]["keypoints_visible"] == row["keypoints_visible"]


def test_pictures_show_what_is_rather_visible() -> None:
    pose = Pose(np.zeros((4, 2)), np.array([0.9, 0.1, 0.1, 0.0]), visible=np.array([0.4, 0.6, np.nan, 0.9]))
    assert _strengths(pose, sure_from=0.2) == ["unsure", "sure", "unsure", "absent"]
    assert _strengths(replace(pose, visible=None), sure_from=0.2) == ["sure", "unsure", "unsure", "absent"]
    peaks = np.array([[0.0, 0.3, 0.2, 0.6]])
    names = ("nose", "a", "b", "left_eye")
    assert shown_as_sure(MADE, peaks, names, 0.2).tolist() == [[True, True, False, False]]
    assert shown_as_sure(None, peaks, names, 0.25).tolist() == [[False, True, False, True]]


def test_an_exported_file_carries_it(calibrated: Path, tmp_path: Path) -> None:
    trained = load_trained(calibrated, COCO_17)
    config = ExportConfig(checkpoint=calibrated, out=tmp_path / "n.onnx", flip_test=True)
    facts = describe(trained, COCO_17, config)["visibility"]
    assert facts["fits_this_file"] is True
    assert (facts["own"]["nose"]["probabilities"], facts["pooled"]["peaks"]) == ([1.0], [0.0, 0.5])
    without = config.model_copy(update={"flip_test": False})
    assert describe(trained, COCO_17, without)["visibility"]["fits_this_file"] is False
    assert describe(replace(trained, visibility=None), COCO_17, config)["visibility"] is None


def _predicted(checkpoint: Path, folder: Path) -> list[dict[str, Any]]:
    image = folder / "a.png"
    cv2.imwrite(str(image), crop_data.picture(96, 64, 1))
    config = PredictConfig(checkpoint=checkpoint, inputs=(image,), output=folder / "out", boxes="whole_image")
    return run_predict(config).results


def test_predict_says_it_or_says_that_it_cannot(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [row] = _predicted(calibrated, tmp_path)
    assert row["keypoints_visible"][:2] == [1.0, None]
    assert "calibration" not in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    old = prediction_cases.checkpoint(tmp_path / "older")
    [row] = _predicted(old, tmp_path / "old")
    assert "keypoints_visible" not in row
    told = " ".join(capsys.readouterr().err.split())
    assert f"checkpoint {old} holds no calibration of visibility" in told
    assert "calibrate=true" in told


def test_evaluate_calibrates_an_old_checkpoint_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(visibility, "FEWEST_OF_AN_OUTCOME_IN_ALL", 5)
    store = crop_data.make_store(tmp_path / "s")
    checkpoint = prediction_cases.checkpoint(tmp_path / "checkpoint")
    config = EvaluateConfig.model_validate(
        {
            "checkpoint": checkpoint, "data": str(store.path), "output": tmp_path / "out", "overlays": 0,
            "workers": 0, "scoring": {"bootstrap": 0, "errors": False},
        }
    )  # fmt: skip
    assert run_evaluate(config).visibility is None
    assert "holds no calibration" in " ".join(capsys.readouterr().err.split())
    # Every joint of these persons is visible.
    again = config.model_copy(update={"calibrate": True, "output": tmp_path / "again"})
    with pytest.raises(ValueError, match=r"calibrate=true: crop store .*: 306 visible and 0 hidden"):
        run_evaluate(again)
    assert read_meta(checkpoint).get("visibility") is None
    honest = visibility._known_visibility

    def half_hidden(*arguments: Any) -> Any:
        matched, visible, counted = honest(*arguments)
        return matched, visible & (np.arange(17) % 2 == 0), counted

    monkeypatch.setattr(visibility, "_known_visibility", half_hidden)
    done = run_evaluate(again)
    kept = calibration_of(read_meta(checkpoint))
    assert kept is not None
    assert done.visibility == {
        "visibility_brier": kept.brier, "visibility_brier_base": 0.0, "calibrated_on": store.digest, "persons": 18,
    }  # fmt: skip
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert metrics["visibility"] == done.visibility
    assert f"Brier score {kept.brier:.4f}" in capsys.readouterr().out
    assert len(PosePredictor.load(checkpoint).trained.visibility.pooled.peaks) > 0  # type: ignore[union-attr]
