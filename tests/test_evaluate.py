"""From a checkpoint on disk to figures, files and pictures; with and without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from efafnet.models.network import NetworkConfig, build_network
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17, CROWDPOSE_14, MPII_16, Skeleton
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.reader import EvalReader
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation import evaluate as evaluation
from efafnet.pipelines.evaluation.config import EvaluateConfig, WorkersConfig
from efafnet.pipelines.evaluation.crop_view import CropView
from efafnet.pipelines.evaluation.evaluate import evaluate, run_evaluate
from efafnet.pipelines.evaluation.predictions import Predictions
from efafnet.pipelines.evaluation.score import ScoreConfig, score
from efafnet.pipelines.evaluation.store_prediction import _batch_of
from efafnet.pipelines.evaluation.trained import load_trained
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.loop import run
from efafnet.platform.checkpoint import save_checkpoint
from efafnet.platform.configuration import apply_overrides, resolve
from tests import crop_data, rays, training_cases
from tests.evaluation_cases import SHARED_DATA, evaluate_predictions, pycocotools_boxes

NANO = NetworkConfig(encoder="nano", base_width=8)


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on spots that left a checkpoint with a figure worth comparing, and its stores."""
    folder = tmp_path_factory.mktemp("trained")
    run(training_cases.config_of(folder, "epochs=4", "validation.every_epochs=null"), PlainContext(torch.device("cpu")))
    return folder


def _checkpoint(
    path: Path, skeleton: Skeleton = COCO_17, weights: Mapping[str, Any] | None = None, **meta: Any
) -> Path:
    """A checkpoint of an untrained nano network, as training writes it."""
    torch.manual_seed(0)
    network = build_network(NANO, skeleton.num_joints)
    config = {
        "network": NANO.model_dump(mode="json"),
        "input": {"height": 64, "width": 64},
        "heatmap": {"sigma_px": 1.0},
        "augmentation": {"padding": 1.25},
        "test": {"batch_size": 5},
    }
    save_checkpoint(
        path,
        weights=weights or {"network": network.state_dict()},
        state={},
        config=config,
        meta={"skeleton": skeleton.name, "step": 7, **meta},
    )
    return path


def _config(checkpoint: Path, data: Path, output: Path, *overrides: str) -> EvaluateConfig:
    tree = {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "output": str(output),
        "workers": 0,
        "scoring": {"bootstrap": 20},
        "overlays": 3,
    }
    return resolve(EvaluateConfig, apply_overrides(tree, overrides))


def test_a_saved_checkpoint_gives_the_figures_of_the_validation_that_wrote_it(
    trained_run: Path, tmp_path: Path
) -> None:
    run_dir = trained_run / "runs" / "nano_test"
    meta = json.loads((run_dir / "best" / "meta.json").read_text())
    done = evaluate(_config(run_dir, trained_run / "val", tmp_path), CropStore.open(trained_run / "val"))
    assert done.trained.path == (run_dir / "best").resolve()
    validated = {name: value for name, value in meta["metrics"].items() if name in done.scored.figures}
    assert len(validated) == 10
    assert done.scored.figures == validated
    assert validated["ap"] > 0.05


def test_what_is_written(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    config = _config(trained_run / "runs" / "nano_test", trained_run / "val", out)
    done = run_evaluate(config)
    names = {"predictions.json", "metrics.json", "errors.png", "best.jpg", "worst.jpg"}
    assert {p.name for p in out.iterdir()} == names
    results = json.loads((out / "predictions.json").read_text())
    store = CropStore.open(trained_run / "val")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["figures"] == evaluate_predictions(results, store.ground_truth())
    assert metrics["intervals"]["ap"]["low"] <= metrics["figures"]["ap"] <= metrics["intervals"]["ap"]["high"]
    assert metrics["store"] == {"path": str(store.path), "digest": store.digest, "persons": 11}
    assert metrics["checkpoint"]["step"] == done.trained.meta["step"]
    assert metrics["test"]["heatmap"]["encoding"] == "quantised"
    again = score(ScoreConfig(predictions=out / "predictions.json", annotations=store.path, scoring=config.scoring))
    assert again.figures == metrics["figures"]
    picture = cv2.imread(str(out / "worst.jpg"))
    assert picture is not None
    assert picture.shape[1] > 600
    printed = capsys.readouterr().out
    assert f"{metrics['figures']['ap']:.4f}" in printed
    assert "11 persons predicted" in printed


@pytest.mark.parametrize(
    ("workers", "few", "running", "takes_ray"),
    [
        (None, 11, False, False),
        (None, 10, False, True),
        (None, 11, True, True),
        (1, 11, False, True),
    ],
)
def test_few_persons_need_no_ray_of_their_own(
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int | None,
    few: int,
    running: bool,
    takes_ray: bool,
) -> None:
    """Eleven persons: in this process where they are few, no Ray is there, and no number of actors is given."""
    rays.refuse(monkeypatch, evaluation, running=running)
    monkeypatch.setattr(evaluation, "FEW_PERSONS", few)
    config = _config(trained_run / "runs" / "nano_test", trained_run / "val", tmp_path)
    config = config.model_copy(update={"workers": WorkersConfig(count=workers)})
    with pytest.raises(OSError, match="Ray was wanted") if takes_ray else nullcontext():
        assert len(evaluate(config, CropStore.open(trained_run / "val")).predictions) == 11
    assert ("11 persons: in this process" in capsys.readouterr().err) == (not takes_ray)


def test_flip_test_decoding_and_suppression_can_be_changed(trained_run: Path, tmp_path: Path) -> None:
    place = (trained_run / "runs" / "nano_test", trained_run / "val", tmp_path)
    store = CropStore.open(trained_run / "val")
    plain = evaluate(_config(*place, "test.flip_test=false", "test.decoding=argmax"), store)
    assert not plain.test.flip_test
    # Without refinement every joint lies on the grid of stride 4: 64 input pixels for 70 (56 * 1.25) of the image.
    grid = (plain.predictions.joints_px + 3.0) / (70 / 64) / 4
    assert np.allclose(grid, grid.round(), atol=1e-6)
    usual = evaluate(_config(*place), store)
    assert usual.test.flip_test
    assert not np.array_equal(usual.predictions.joints_px, plain.predictions.joints_px)


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
@pytest.mark.parametrize("udp", [False, True])
def test_rays_tasks_see_the_very_crops_that_validation_sees(tmp_path: Path, encoding: str, udp: bool) -> None:
    store = crop_data.make_store(tmp_path, images=4, persons=3, encoding={"format": encoding})
    size = InputSize(height=128, width=96)
    with EvalReader(store, input_size=size, padding=1.25, batch_size=100, udp=udp) as reader:
        expected = next(iter(reader.batches()))
    view = CropView(store.manifest.encoding, size, 1.25, udp)
    rows = pq.read_table(store.path / store.manifest.shards[0].name)
    # A slice with an offset, as Ray Data hands them out.
    found = _batch_of(view(rows).slice(3, 5), size, store.skeleton)
    assert torch.equal(found.images, expected.images[3:8])
    assert torch.equal(found.input_to_image, expected.input_to_image[3:8])


def test_detected_boxes_name_their_own_ap(tmp_path: Path) -> None:
    if not (SHARED_DATA / "tiny-coco").is_dir():
        pytest.skip(f"the real sample data are not here: {SHARED_DATA}")
    data = SHARED_DATA / "tiny-coco"
    annotations = json.loads((data / "test_coco.json").read_text())
    boxes = json.loads((data / "test_coco_det_AP_H_56.json").read_text())
    settings = crop_data.config(
        tmp_path,
        annotations=data / "test_coco.json",
        images=data,
        detections=data / "test_coco_det_AP_H_56.json",
    )
    store = run_prepare(settings)
    done = run_evaluate(_config(_checkpoint(tmp_path / "c"), store.path, tmp_path / "out"))
    assert len(done.predictions) == 118
    persons = [b for b in boxes if b["category_id"] == 1]
    expected = pycocotools_boxes(annotations, persons)
    assert [done.scored.figures[f"box_{n}"] for n in ("ap", "ap_50", "ap_75")] == pytest.approx(expected[:3], abs=1e-9)
    assert (tmp_path / "out" / "worst.jpg").exists()


def test_crowdpose_is_scored_by_crowding(tmp_path: Path) -> None:
    data = SHARED_DATA / "tiny-crowdpose"
    if not data.is_dir():
        pytest.skip(f"the real sample data are not here: {data}")
    store = run_prepare(crop_data.config(tmp_path, annotations=data / "test_crowdpose.json", images=data))
    checkpoint = _checkpoint(tmp_path / "c", CROWDPOSE_14)
    figures = evaluate(_config(checkpoint, store.path, tmp_path / "out"), store).scored.figures
    assert figures["ap_crowd_easy"] == figures["ap_crowd_hard"] == -1.0
    assert figures["ap"] == figures["ap_crowd_medium"] >= 0.0


def _mpii_store(path: Path, head_size_px: float | None) -> CropStore:
    training_cases.write_store(path, 6, skeleton=MPII_16)
    table = pq.read_table(path / "ground_truth.parquet")
    heads = pa.array([head_size_px] * table.num_rows, pa.float64())
    place = table.schema.get_field_index("head_size")
    pq.write_table(table.set_column(place, table.schema.field(place), heads), path / "ground_truth.parquet")
    manifest = json.loads((path / "manifest.json").read_text())
    for record in manifest["tables"]:
        record["bytes"] = (path / record["name"]).stat().st_size
    (path / "manifest.json").write_text(json.dumps(manifest))
    return CropStore.open(path)


def test_mpii_is_scored_by_pckh_where_heads_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = _checkpoint(tmp_path / "c", MPII_16)
    # A head of 20 images: whatever is predicted lies within half of it. One of a hundredth pixel: nothing does.
    for size, expected in ((20 * 64.0, 1.0), (0.01, 0.0)):
        store = _mpii_store(tmp_path / f"store-{size}", size)
        done = run_evaluate(_config(checkpoint, store.path, tmp_path / f"out-{size}"))
        assert (done.scored.figures["pckh"], done.scored.figures["pckh_knee"]) == (expected, expected)
        results = json.loads((tmp_path / f"out-{size}" / "predictions.json").read_text())
        assert sorted(r["person_id"] for r in results) == [1, 2, 3, 4, 5, 6]
        again = score(ScoreConfig(predictions=tmp_path / f"out-{size}" / "predictions.json", annotations=store.path))
        assert again.figures == done.scored.figures
    store = _mpii_store(tmp_path / "headless", None)
    assert "ap" in evaluate(_config(checkpoint, store.path, tmp_path / "out"), store).scored.figures
    assert "holds no head sizes, so no PCKh" in capsys.readouterr().err


def _error(config: EvaluateConfig) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        run_evaluate(config)
    assert not config.output.exists()
    return str(caught.value)


def test_a_store_of_another_skeleton(trained_run: Path, tmp_path: Path) -> None:
    message = _error(_config(_checkpoint(tmp_path / "c"), trained_run / "val", tmp_path / "out"))
    assert "was trained for skeleton 'coco17', the crop store holds 'spots4' (4 joints)" in message


def test_a_checkpoint_of_another_architecture_names_the_switches(trained_run: Path, tmp_path: Path) -> None:
    place = (trained_run / "runs" / "nano_test", trained_run / "val", tmp_path / "out")
    message = _error(_config(*place, "network.ffm=false", "network.encoder=resnet50", "network.fam=26w4s"))
    assert "network.encoder='nano' instead of 'resnet50', network.ffm=True instead of False" in message
    assert "network.fam" not in message
    assert "network.fam: " in _error(_config(*place, "network.fam=width9"))
    assert "network.fan: " in _error(_config(*place, "network.fan=none"))
    same = evaluate(_config(*place, "network.ffm=true"), CropStore.open(trained_run / "val"))
    assert same.trained.settings == NANO
    message = _error(_config(*place, "network.kind=hrnet", "network.width=48"))
    assert "holds another network: network.kind='efafnet' instead of 'hrnet'; name the checkpoint" in message
    assert "network.width: is no setting of network.kind=efafnet" in _error(_config(*place, "network.width=48"))


def test_the_protocol_is_told_with_what_the_test_changes(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((_checkpoint(tmp_path / "c", training_cases.SPOTS) / "config.json").read_text())
    save_checkpoint(
        tmp_path / "d",
        weights={"network": build_network(NANO, 4).state_dict()},
        state={},
        config=config | {"protocol": "sbn"},
        meta={"skeleton": training_cases.SPOTS.name, "step": 7, "protocol": "sbn, with differences: epochs=9 (140)"},
    )
    place = (trained_run / "val", tmp_path / "out")
    run_evaluate(_config(tmp_path / "d", *place, "test.nms=none", "overlays=0"))
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"]
    # The batch size of a test changes nothing; the store of this test has boxes of no rule.
    assert told == ("sbn, with differences: epochs=9 (140); tested with test.nms=none (oks), box_rule=none (sbn)")
    assert f"protocol: {told}" in " ".join(capsys.readouterr().out.split())


def test_weights_that_do_not_fit_or_are_not_numbers_or_not_there(tmp_path: Path) -> None:
    store = crop_data.make_store(tmp_path, images=2)
    other = build_network(NANO.model_copy(update={"base_width": 16}), 17).state_dict()
    message = _error(_config(_checkpoint(tmp_path / "a", weights={"network": other}), store.path, tmp_path / "out"))
    assert "holds the weights of another network" in message
    broken = build_network(NANO, 17).state_dict()
    next(iter(broken.values())).fill_(torch.nan)
    message = _error(_config(_checkpoint(tmp_path / "b", weights={"network": broken}), store.path, tmp_path / "out"))
    assert "1 of" in message
    assert "NaN or infinity" in message
    message = _error(_config(_checkpoint(tmp_path / "c"), store.path, tmp_path / "out", "weights=ema"))
    assert "holds no weights 'ema', only network; set weights=best" in message


def test_the_moving_average_is_preferred(tmp_path: Path) -> None:
    networks = [build_network(NANO, 17).state_dict() for _ in range(2)]
    path = _checkpoint(tmp_path / "c", weights={"network": networks[0], "ema": networks[1]})
    key = "predict.weight" if "predict.weight" in networks[0] else next(iter(networks[0]))
    for choice, expected in (("best", 1), ("ema", 1), ("network", 0)):
        trained = load_trained(path, COCO_17, weights=choice)  # type: ignore[arg-type]
        assert torch.equal(trained.network.state_dict()[key], networks[expected][key])


def test_what_is_not_there_or_in_the_way(trained_run: Path, tmp_path: Path) -> None:
    run_dir, val = trained_run / "runs" / "nano_test", trained_run / "val"
    assert "does not exist" in _error(_config(tmp_path / "nothing", val, tmp_path / "out"))
    assert "is not a crop store" in _error(_config(run_dir, tmp_path / "nothing", tmp_path / "out"))
    message = _error(_config(run_dir, val, tmp_path / "out", "mlflow=true"))
    assert "was written without an MLflow run" in message
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists and is not empty"):
        run_evaluate(_config(run_dir, val, tmp_path / "full"))
    (tmp_path / "file").write_text("")
    assert "cannot write output" in _error(_config(run_dir, val, tmp_path / "file" / "out"))
    run_evaluate(_config(run_dir, val, tmp_path / "full", "overwrite=true", "overlays=0", "scoring.errors=false"))
    assert {p.name for p in (tmp_path / "full").iterdir()} == {"predictions.json", "metrics.json"}


def test_a_damaged_crop_is_named(tmp_path: Path) -> None:
    store = crop_data.make_store(tmp_path, images=2)
    shard = store.path / store.manifest.shards[0].name
    table = pq.read_table(shard)
    images = table["image"].to_pylist()
    images[1] = images[1][: len(images[1]) // 3]
    damaged = table.set_column(0, table.schema.field("image"), [images])
    view = CropView(store.manifest.encoding, InputSize(height=64, width=64), 1.25, False)
    person = table["person_id"][1].as_py()
    with pytest.raises(ValueError, match=f"the crop of person {person} cannot be read: .*prepare it again"):
        view(damaged)


def _same(a: Predictions, b: Predictions) -> None:
    assert np.array_equal(a.rows, b.rows)
    assert np.allclose(a.joints_px, b.joints_px, atol=1e-3)
    assert np.allclose(a.scores, b.scores, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors")  # a store so small is one block
@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_ray_data_gives_what_one_process_gives(trained_run: Path, tmp_path: Path) -> None:
    place = (trained_run / "runs" / "nano_test", trained_run / "train", tmp_path / "out")
    store = CropStore.open(trained_run / "train")
    here = evaluate(_config(*place, "test.batch_size=16"), store)
    ray = evaluate(_config(*place, "test.batch_size=16", "workers=2"), store)
    _same(here.predictions, ray.predictions)
    assert ray.scored.figures == pytest.approx(here.scored.figures, abs=1e-6)
    assert here.scored.figures["ap"] > 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_damaged_store_ends_a_distributed_evaluation_with_one_error(tmp_path: Path) -> None:
    store = crop_data.make_store(tmp_path, images=3, encoding={"format": "jpeg"})
    shard = store.path / store.manifest.shards[0].name
    content = bytearray(shard.read_bytes())
    start = content.find(b"\xff\xd8\xff")
    content[start : start + 3] = b"\x00\x00\x00"
    shard.write_bytes(bytes(content))
    message = _error(_config(_checkpoint(tmp_path / "c"), store.path, tmp_path / "out", "workers=1"))
    assert "cannot be read" in message
    assert "prepare it again" in message


@pytest.mark.slow
def test_figures_and_files_reach_the_run_in_mlflow(tmp_path: Path) -> None:
    from efafnet.platform.mlflow_client import mlflow_client
    from efafnet.platform.tracking import create_run, prepare_tracking

    uri = prepare_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = create_run(uri, "test", "trained")
    store = crop_data.make_store(tmp_path, images=3)
    checkpoint = _checkpoint(tmp_path / "c", mlflow_run_id=run_id)
    done = run_evaluate(_config(checkpoint, store.path, tmp_path / "out", "mlflow=true", f"tracking_uri={uri}"))
    client = mlflow_client(uri)
    metric = client.get_metric_history(run_id, "evaluation.store.ap")[0]
    assert (metric.value, metric.step) == (done.scored.figures["ap"], 7)
    names = {entry.path for entry in client.list_artifacts(run_id, "evaluation/store")}
    assert {f"evaluation/store/{n}" for n in ("metrics.json", "predictions.json", "worst.jpg")} <= names
