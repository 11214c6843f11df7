"""Preparing: rejects with reasons, outputs that are whole or absent, equal bytes from equal input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from efafnet.models.settings import InputSize
from efafnet.pipelines.crops import shard_writing, shards
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.reader import EvalReader, TrainReader
from efafnet.pipelines.crops.store import REJECTS, CropStore
from efafnet.platform import cluster
from tests import crop_data, rays

_ROOT = Path(__file__).resolve().parents[1]


def _rejects(store: CropStore) -> list[tuple[str, int | None, int | None]]:
    return [(r["reason"], r["image_id"], r["annotation_id"]) for r in store.table(REJECTS).to_pylist()]


def _damage(images: Path) -> dict[str, str]:
    """Ten images damaged in ten ways, and the reason each must be rejected for."""
    whole = (images / "000000.jpg").read_bytes()
    png = cv2.imencode(".png", crop_data.picture(80, 64, 1))[1].tobytes()
    contents: dict[str, tuple[bytes | None, str]] = {
        "000001.jpg": (None, "image_missing"),
        "000002.jpg": (b"", "image_unreadable"),
        "000003.jpg": (b"<html>not found</html>", "image_unreadable"),
        "000004.jpg": (whole[: len(whole) // 2], "image_truncated"),
        "000005.jpg": (whole[:-2], "image_truncated"),
        "000006.jpg": (whole[:2] + bytes(400) + whole[402:], "image_corrupt"),
        "000007.jpg": (whole[: len(whole) // 2] + b"\xff\x8f" + whole[len(whole) // 2 + 2 :], "image_corrupt"),
        "000008.jpg": (png[: len(png) // 2], "image_truncated"),
        "000009.jpg": (png[:-50] + bytes(10) + png[-40:], "image_corrupt"),
        "000010.jpg": (cv2.imencode(".jpg", crop_data.picture(40, 32, 2))[1].tobytes(), "image_size_differs"),
    }
    for name, (content, _) in contents.items():
        (images / name).unlink()
        if content is not None:
            (images / name).write_bytes(content)
    return {name: reason for name, (_, reason) in contents.items()}


def test_five_percent_damaged_in_ten_ways_are_rejected_and_nothing_else(tmp_path: Path) -> None:
    """200 pictures, ten of them damaged, under the ordinary limit of 5 %."""
    _, images = crop_data.write_coco(tmp_path, images=200, persons=2, size=(80, 64))
    settings = {"rows_per_shard": 50, "max_reject_share": 0.05}
    sound = run_prepare(crop_data.config(tmp_path, out=tmp_path / "sound", **settings))
    expected = _damage(images)
    store = run_prepare(crop_data.config(tmp_path, **settings))
    found = store.table(REJECTS).to_pylist()
    assert {reject["file_name"]: reject["reason"] for reject in found} == expected
    assert all(reject["persons"] == 2 and reject["detail"] for reject in found)
    assert store.num_persons == 2 * (200 - 10)
    names = ["image", "person_id", "joints_px", "crop_to_image"]
    kept = {row["person_id"]: row for row in store.columns(names).to_pylist()}
    before = {row["person_id"]: row for row in sound.columns(names).to_pylist()}
    assert all(before[number] == row for number, row in kept.items())
    # Ground truth keeps the persons whose images are lost, so that AP does not rise.
    assert len(store.ground_truth().to_coco()["annotations"]) == 400


def test_bad_persons_are_rejected(tmp_path: Path) -> None:
    annotations, _ = crop_data.write_coco(tmp_path, images=2, persons=1)

    def spoil(content: dict[str, Any]) -> None:
        def add(number: int, **changes: Any) -> None:
            content["annotations"].append({**crop_data.person(number, 1, [10.0, 10, 50, 60]), **changes})

        add(1, bbox=[10, 10, -5, 60])
        add(2, bbox=[10, 10, 0, 60])
        add(3, bbox=[10, 10, float("nan"), 60])
        add(4, bbox=[300, 10, 50, 60])
        add(5, bbox=[-80, 10, 50, 60])
        add(6, area=0)
        add(7, keypoints=[0] * 51, num_keypoints=0)
        add(8, image_id=77)
        add(100)
        add(9, iscrowd=1)

    crop_data.edit(annotations, spoil)
    store = run_prepare(crop_data.config(tmp_path))
    assert sorted(_rejects(store), key=str) == sorted(
        [
            ("box_invalid", 1, 1),
            ("box_invalid", 1, 2),
            ("box_invalid", 1, 3),
            ("area_invalid", 1, 6),
            ("no_joints", 1, 7),
            ("unknown_image", 77, 8),
            ("duplicate_annotation_id", 1, 100),
            ("box_outside_image", 1, 4),
            ("box_outside_image", 1, 5),
        ],
        key=str,
    )
    assert sorted(store.columns(["person_id"])["person_id"].to_pylist()) == [100, 200]
    assert store.manifest.counts.crowds == 1
    kept = [annotation["id"] for annotation in store.ground_truth().to_coco()["annotations"]]
    assert sorted(kept) == [1, 2, 4, 5, 6, 7, 9, 100, 200]


def test_too_many_rejects_stop_the_job(tmp_path: Path) -> None:
    _, images = crop_data.write_coco(tmp_path, images=6, persons=3)
    (images / "000002.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"3 of 18 persons are rejected, more than max_reject_share=0.1 allows: image_missing 3"
    ):
        run_prepare(crop_data.config(tmp_path, max_reject_share=0.1))
    assert crop_data.left_behind(tmp_path) == []
    assert run_prepare(crop_data.config(tmp_path, max_reject_share=0.17)).num_persons == 15


def test_persons_without_joints_do_not_count_as_faults(tmp_path: Path) -> None:
    annotations, _ = crop_data.write_coco(tmp_path)

    def forget(content: dict[str, Any]) -> None:
        for annotation in content["annotations"][:15]:
            annotation["keypoints"] = [0] * 51

    crop_data.edit(annotations, forget)
    store = run_prepare(crop_data.config(tmp_path, max_reject_share=0.0))
    assert store.manifest.rejects == {"no_joints": 15}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not in COCO's layout"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "keypoints": ["a"]}]}',
            "there are no annotations",
        ),
    ],
)
def test_input_that_is_nothing_is_one_error(tmp_path: Path, content: str, message: str) -> None:
    crop_data.write_coco(tmp_path, images=1)
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        run_prepare(crop_data.config(tmp_path))
    assert crop_data.left_behind(tmp_path) == []


def test_missing_inputs_are_one_error(tmp_path: Path) -> None:
    crop_data.write_coco(tmp_path, images=1)
    with pytest.raises(ValueError, match=r"nowhere.json does not exist"):
        run_prepare(crop_data.config(tmp_path, annotations=tmp_path / "nowhere.json"))
    with pytest.raises(ValueError, match=r"image folder .* does not exist"):
        run_prepare(crop_data.config(tmp_path, images=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="'coco18' is neither auto"):
        run_prepare(crop_data.config(tmp_path, skeleton="coco18"))


def test_every_image_lost_is_one_error(tmp_path: Path) -> None:
    _, images = crop_data.write_coco(tmp_path, images=2)
    for path in images.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="every person was rejected"):
        run_prepare(crop_data.config(tmp_path))
    assert crop_data.left_behind(tmp_path) == []


def test_an_existing_store_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = crop_data.make_store(tmp_path)
    written = (first.path / "manifest.json").stat().st_mtime_ns
    again = run_prepare(crop_data.config(tmp_path))
    assert again.digest == first.digest
    assert (again.path / "manifest.json").stat().st_mtime_ns == written
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["settings", "annotations", "image"])
def test_another_store_is_not_replaced_unless_told(tmp_path: Path, change: str) -> None:
    first = crop_data.make_store(tmp_path)
    before = crop_data.files_in(first.path)
    settings: dict[str, Any] = {}
    if change == "settings":
        settings["envelope"] = {"padding": 1.4}
    elif change == "annotations":
        crop_data.edit(tmp_path / "annotations.json", lambda content: content["annotations"].__delitem__(0))
    else:
        cv2.imwrite(str(tmp_path / "images" / "000003.jpg"), crop_data.picture(200, 160, 999))
    with pytest.raises(
        ValueError, match="of other input or settings; name another output, or replace it with overwrite=true"
    ):
        run_prepare(crop_data.config(tmp_path, **settings))
    assert crop_data.files_in(first.path) == before
    second = run_prepare(crop_data.config(tmp_path, overwrite=True, **settings))
    assert second.digest != first.digest
    assert crop_data.left_behind(tmp_path) == ["store"]


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    crop_data.write_coco(tmp_path, images=1)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists and is not empty"):
        run_prepare(crop_data.config(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write output"):
        run_prepare(crop_data.config(tmp_path, out=tmp_path / "file" / "store"))
    assert (tmp_path / "store" / "mine.txt").read_text() == "keep"


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    first = crop_data.make_store(tmp_path, rows_per_shard=5)
    second = run_prepare(crop_data.config(tmp_path, out=tmp_path / "again", rows_per_shard=5))
    assert crop_data.files_in(first.path) == crop_data.files_in(second.path)


def test_few_images_are_prepared_without_a_ray_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rays.refuse(monkeypatch, cluster)
    crop_data.write_coco(tmp_path, images=9)
    monkeypatch.setattr(shard_writing, "FEW_IMAGES", 9)
    here, alone = (run_prepare(crop_data.config(tmp_path, out=tmp_path / f"{n}", workers=n)).path for n in (None, 0))
    assert crop_data.files_in(here) == crop_data.files_in(alone)
    assert capsys.readouterr().err.count("9 images: in this process") == 1


@pytest.mark.parametrize(("workers", "few", "running"), [(None, 8, False), (None, 9, True), (1, 9, False)])
def test_more_images_or_a_ray_that_is_there_or_tasks_that_are_wanted_take_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None, few: int, running: bool
) -> None:
    rays.refuse(monkeypatch, cluster, running=running)
    crop_data.write_coco(tmp_path, images=9)
    monkeypatch.setattr(shard_writing, "FEW_IMAGES", few)
    with pytest.raises(OSError, match="Ray was wanted"):
        run_prepare(crop_data.config(tmp_path, workers=workers))


def test_the_next_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that dies of something else than its input leaves finished shards, and the next one makes equal bytes."""
    crop_data.write_coco(tmp_path)
    whole = crop_data.files_in(run_prepare(crop_data.config(tmp_path, out=tmp_path / "whole", rows_per_shard=5)).path)
    written: list[int] = []
    real = shards.write_shard

    def failing(settings: Any, index: int, entries: Any, directory: Path) -> Any:
        if index == 3:
            raise OSError(28, "No space left on device")
        written.append(index)
        return real(settings, index, entries, directory)

    monkeypatch.setattr(shard_writing, "write_shard", failing)
    with pytest.raises(OSError, match="No space left"):
        run_prepare(crop_data.config(tmp_path, rows_per_shard=5))
    assert not (tmp_path / "store").exists()
    assert "the same command continues" in capsys.readouterr().err

    def counting(settings: Any, index: int, entries: Any, directory: Path) -> Any:
        written.append(index)
        return real(settings, index, entries, directory)

    monkeypatch.setattr(shard_writing, "write_shard", counting)
    store = run_prepare(crop_data.config(tmp_path, rows_per_shard=5))
    assert written == list(range(len(store.manifest.shards)))
    assert crop_data.files_in(store.path) == whole
    assert crop_data.left_behind(tmp_path) == ["store", "whole"]


def test_detections_give_the_boxes(tmp_path: Path) -> None:
    """Boxes outside the image and of low score stay, unclipped; joints are absent, so training is refused."""
    crop_data.write_coco(tmp_path, images=2)
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": [-5.5, 10, 80, 90], "score": 0.75},
        {"image_id": 2, "category_id": 1, "bbox": [3, 4, 50, 60], "score": 0.01},
        {"image_id": 9, "category_id": 1, "bbox": [3, 4, 50, 60], "score": 0.5},
        {"image_id": 2, "category_id": 1, "bbox": [3, 4, 0, 60], "score": 0.5},
        {"image_id": 2, "category_id": 7, "bbox": [3, 4, 10, 60], "score": 0.5},
    ]
    (tmp_path / "det.json").write_text(json.dumps(detections))
    store = run_prepare(crop_data.config(tmp_path, detections=tmp_path / "det.json"))
    rows = store.columns(["person_id", "box_xywh", "box_score", "visibility", "area"]).to_pylist()
    assert [(row["person_id"], row["box_xywh"], row["box_score"]) for row in rows] == [
        (0, [-5.5, 10, 80, 90], 0.75),
        (1, [3, 4, 50, 60], 0.01),
    ]
    assert rows[0]["visibility"] == [0] * 17
    assert rows[0]["area"] == 7200
    assert sorted(_rejects(store), key=str) == [("box_invalid", 2, 3), ("unknown_image", None, 2)]
    assert len(store.ground_truth().to_coco()["annotations"]) == 6
    size = InputSize(height=128, width=96)
    with EvalReader(store, input_size=size) as reader:
        assert next(iter(reader.batches())).rows.tolist() == [0, 1]
    with pytest.raises(ValueError, match="prepared from detections"):
        TrainReader(store, input_size=size, augmentation=AugmentationConfig(), global_batch=1, seed=0)


def _tag(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, "JPEG", quality=95, exif=exif)


def test_orientation_is_a_setting_and_tags_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Turned by 180 degrees, a crop of one box is the other picture's; by 90, the sizes agree once turned."""
    annotations, images = crop_data.write_coco(tmp_path, images=3, persons=1)
    for number, orientation in enumerate((1, 3, 6)):
        _tag(images / f"{number:06d}.jpg", orientation)

    def turn(content: dict[str, Any]) -> None:
        content["images"][2].update(width=160, height=200)

    crop_data.edit(annotations, turn)
    stored = run_prepare(crop_data.config(tmp_path, out=tmp_path / "stored"))
    assert "2 of 3 images carry an orientation tag and are taken as stored" in capsys.readouterr().err
    (reject,) = stored.table(REJECTS).to_pylist()
    assert reject["reason"] == "image_size_differs"
    assert "they agree once it is turned by its orientation tag: orientation=upright" in reject["detail"]
    upright = run_prepare(crop_data.config(tmp_path, out=tmp_path / "upright", orientation="upright"))
    assert "2 of 3 images were turned upright" in capsys.readouterr().err
    assert (stored.num_persons, upright.num_persons) == (2, 3)
    assert upright.manifest.sources[0].orientation == "upright"
    crops = upright.columns(["image", "crop_to_image"]).to_pylist()
    shown = ImageOps.exif_transpose(Image.open(images / "000002.jpg"))
    assert shown is not None
    crop = cv2.imdecode(np.frombuffer(crops[2]["image"], np.uint8), cv2.IMREAD_COLOR)
    assert crop is not None
    left, top = (round(crops[2]["crop_to_image"][n]) for n in (2, 5))
    expected = np.asarray(shown)[top : top + crop.shape[0], left : left + crop.shape[1]]
    assert np.abs(crop[:, :, ::-1].astype(int) - expected).mean() < 3


def test_names_of_another_machine_are_found_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, _ = crop_data.write_coco(tmp_path, images=4, persons=1)

    def rename(content: dict[str, Any]) -> None:
        for image, prefix in zip(content["images"], ("C:\\data\\", "", "/other/images/", "x\\"), strict=True):
            image["file_name"] = prefix + image["file_name"]
        content["images"][3]["file_name"] = "x\\000000.jpg"

    crop_data.edit(annotations, rename)
    store = run_prepare(crop_data.config(tmp_path))
    # The last one would be the first one's file: neither is guessed.
    assert store.columns(["file_name"])["file_name"].to_pylist() == ["000001.jpg", "000002.jpg"]
    assert "1 images are found under another spelling" in capsys.readouterr().err
    assert {r["reason"] for r in store.table(REJECTS).to_pylist()} == {"image_missing"}


def test_flat_boxes_can_be_widened(tmp_path: Path) -> None:
    """A line of 50 px at least 20 px thick: 20 x 50 about its middle, of area .53 * 20 * 50 = 530."""
    annotations, _ = crop_data.write_coco(tmp_path, images=1, persons=1)

    def flatten(content: dict[str, Any]) -> None:
        content["annotations"][0].update(bbox=[80, 40, 0, 50], area=0)

    crop_data.edit(annotations, flatten)
    with pytest.raises(
        ValueError, match=r"box_invalid 1 \(000000\.jpg: annotation 100: .*got 0 x 50; least_box_px=PIXELS"
    ):
        run_prepare(crop_data.config(tmp_path))
    store = run_prepare(crop_data.config(tmp_path, least_box_px=20, box_rule="unclipped"))
    (row,) = store.columns(["box_xywh", "area"]).to_pylist()
    assert (row["box_xywh"], row["area"]) == ([70, 40, 20, 50], pytest.approx(530))


def test_a_rule_that_leaves_no_pixel_of_a_box_is_named(tmp_path: Path) -> None:
    annotations, _ = crop_data.write_coco(tmp_path, images=1, persons=1)
    crop_data.edit(annotations, lambda content: content["annotations"][0].update(bbox=[80, 40, 0.5, 0.5]))
    with pytest.raises(
        ValueError, match=r"box \[80.*0\.5\] has no pixel left by box_rule=sbn; box_rule=unclipped keeps"
    ):
        run_prepare(crop_data.config(tmp_path))


def test_detections_may_name_images_by_their_files(tmp_path: Path) -> None:
    crop_data.write_coco(tmp_path, images=2)
    found = [{"image_id": name, "category_id": "1", "bbox": [3, 4, 50, 60], "score": "0.5"} for name in ("000000", 2)]
    found[0]["image_id"] = "000001.jpg"
    (tmp_path / "det.json").write_text(json.dumps(found))
    store = run_prepare(crop_data.config(tmp_path, detections=tmp_path / "det.json"))
    assert store.columns(["image_id"])["image_id"].to_pylist() == [2, 2]


def test_grey_images(tmp_path: Path) -> None:
    _, images = crop_data.write_coco(tmp_path, images=1, persons=1)
    cv2.imwrite(str(images / "000000.jpg"), crop_data.picture(200, 160, 0)[:, :, 0])
    store = run_prepare(crop_data.config(tmp_path))
    with EvalReader(store, input_size=InputSize(height=128, width=96)) as reader:
        (batch,) = list(reader.batches())
    np.testing.assert_array_equal(batch.images[:, 0].numpy(), batch.images[:, 2].numpy())
