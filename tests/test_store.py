"""The crop store as a file format: what it holds, what it refuses, what evaluation gets from it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17, CROWDPOSE_14
from efafnet.pipelines.crops import store as store_module
from efafnet.pipelines.crops.config import InspectConfig
from efafnet.pipelines.crops.inspect import run_inspect
from efafnet.pipelines.crops.manifest import content_digest
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.reader import read_rows
from efafnet.pipelines.crops.store import GROUND_TRUTH, IMAGES, PERSON_SCHEMA, REJECTS, CropStore, tell_protection
from efafnet.platform import mirror as mirror_module
from efafnet.platform import storage
from efafnet.platform.storage import UnreadableFileError
from tests import crop_data


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CropStore:
    return crop_data.make_store(tmp_path_factory.mktemp("store"), rows_per_group=4, rows_per_shard=10)


def test_rows_follow_the_schema(store: CropStore) -> None:
    for shard in store.manifest.shards:
        assert pq.read_schema(store.path / shard.name).equals(PERSON_SCHEMA)
        metadata = pq.ParquetFile(store.path / shard.name).metadata
        assert metadata.num_rows == shard.rows
        sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        assert all(size == 4 for size in sizes[:-1])
    assert [shard.rows for shard in store.manifest.shards] == [9, 9]


def test_a_row_worked_out(tmp_path: Path) -> None:
    """Box (20, 30, 60, 80) in 200x160 loses a pixel each way; its joints and ids are as annotated."""
    annotations, _ = crop_data.write_coco(tmp_path, images=1, persons=1)
    entry = crop_data.person(41, 1, [20.0, 30, 60, 80])
    entry["keypoints"][2], entry["keypoints"][5] = 0, 1
    crop_data.edit(annotations, lambda content: content.update(annotations=[entry]))
    made = run_prepare(crop_data.config(tmp_path))
    (row,) = made.columns([name for name in PERSON_SCHEMA.names if name != "image"]).to_pylist()
    assert row["box_xywh"] == [20, 30, 59, 79]
    assert row["area"] == pytest.approx(0.6 * 60 * 80)
    assert row["visibility"] == [0, 1] + [2] * 15
    # Second joint of the first row of four: x = 20 + 60 * 1.5 / 4, y = 30 + 80 * 0.5 / 5.
    assert row["joints_px"][2:4] == [42.5, 38.0]
    assert (row["person_id"], row["image_id"], row["file_name"]) == (41, 1, "000000.jpg")
    assert (row["image_width"], row["image_height"], row["box_score"]) == (200, 160, 1.0)
    assert (row["crowd_index"], row["head_size"], row["data_set"]) == (None, None, "annotations")
    # The crop starts on the 16-pixel grid and is clipped to the image.
    zoom_x, shear, x, _, zoom_y, y = row["crop_to_image"]
    assert (zoom_x, shear, zoom_y) == (1, 0, 1)
    assert (x % 16, y % 16) == (0, 0)
    assert x + row["crop_width"] <= 200
    assert y + row["crop_height"] <= 160


def test_reopening_needs_every_file(store: CropStore, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        target = tmp_path / name
        target.mkdir()
        for file in store.path.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        return target

    missing = copy("missing")
    (missing / "persons-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"persons-00001.parquet is missing"):
        CropStore.open(missing)
    short = copy("short")
    (short / "images.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"images.parquet has 1 bytes instead of \d+"):
        CropStore.open(short)
    newer = copy("newer")
    crop_data.edit(newer / "manifest.json", lambda content: content.update(format_version=99))
    with pytest.raises(ValueError, match="format version 99, this code reads 1"):
        CropStore.open(newer)
    for text in ("{", "[]", '{"format_version": 1}'):
        (newer / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json is damaged"):
            CropStore.open(newer)


def test_a_store_in_object_storage_reads_like_a_local_one(
    store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables come when it is opened, a shard when it is read; the copy is a store by itself."""
    monkeypatch.setenv("EFAFNET_CACHE", str(tmp_path / "cache"))
    remote = CropStore.open(store.path.as_uri())
    assert (remote.location, remote.digest) == (store.path.as_uri(), store.digest)
    assert remote.path.parent == tmp_path / "cache"
    assert not list(remote.path.glob("persons-*"))
    assert remote.ground_truth().to_coco() == store.ground_truth().to_coco()
    size = InputSize(height=64, width=64)
    ours, theirs = (read_rows(each, [1, 8], input_size=size) for each in (remote, store))
    np.testing.assert_array_equal(ours.images, theirs.images)
    assert [path.name for path in remote.path.glob("persons-*")] == ["persons-00000.parquet"]
    again = CropStore.open(remote.path)
    assert again.columns(["person_id"]).equals(store.columns(["person_id"]))
    assert again.verify() == []


def test_errors_of_a_store_in_object_storage(store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFAFNET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"nowhere is not a crop store: it holds no manifest.json"):
        CropStore.open((tmp_path / "nowhere").as_uri())
    shutil.copytree(store.path, tmp_path / "remote")
    shard = tmp_path / "remote" / "persons-00001.parquet"
    shard.write_bytes(bytes(shard.stat().st_size))
    remote = CropStore.open((tmp_path / "remote").as_uri())
    with pytest.raises(ValueError, match=r"persons-00001.parquet has sha256 \w+ instead of \w+: it was damaged"):
        remote.verify()
    with pytest.raises(UnreadableFileError, match=r"remote: persons-00001.parquet cannot be read \(.*it was damaged"):
        read_rows(remote, [10], input_size=InputSize(height=64, width=64))


def test_a_store_on_a_share_is_read_through_a_local_copy_where_one_is_wanted(
    store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share, cache = tmp_path / "share" / "st", tmp_path / "cache"
    shutil.copytree(store.path, share)
    monkeypatch.setattr(store_module, "is_on_network", lambda path: "/share/" in str(path))
    size = InputSize(height=64, width=64)

    def pixels(opened: CropStore) -> np.ndarray:
        return np.asarray(read_rows(opened, [1, 8], input_size=size).images)

    here = pixels(CropStore.open(share))
    assert not cache.exists(), "nobody asked for copies"
    monkeypatch.setenv("EFAFNET_CACHE", str(cache))
    opened = CropStore.open(share)
    np.testing.assert_array_equal(pixels(opened), here)
    assert [path.name for path in cache.glob("st-*/persons-*")] == ["persons-00000.parquet"], "what was read"
    assert (opened.path, opened.location) == (share, str(share))
    assert opened.verify() == []
    (share / "persons-00000.parquet").write_bytes(bytes((share / "persons-00000.parquet").stat().st_size))
    np.testing.assert_array_equal(pixels(CropStore.open(share)), here)
    assert len(opened.verify()) == 1, "the store itself is looked at, not the copy"
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(mirror_module, "free_bytes", lambda _path: 0)
    shutil.rmtree(cache)
    (share / "persons-00000.parquet").write_bytes((store.path / "persons-00000.parquet").read_bytes())
    np.testing.assert_array_equal(pixels(CropStore.open(share)), here)
    assert "are free; set EFAFNET_CACHE to a directory on a larger disk; crop store" in capsys.readouterr().err


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no manifest.json; make one with: efafnet prepare"):
        CropStore.open(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        CropStore.open(tmp_path / "nowhere")


def test_another_skeleton_is_refused(store: CropStore) -> None:
    assert CropStore.open(store.path, expect_skeleton=COCO_17).skeleton == COCO_17
    with pytest.raises(ValueError, match=r"'coco17' \(17 joints\), but 'crowdpose14' \(14 joints\) is needed"):
        CropStore.open(store.path, expect_skeleton=CROWDPOSE_14)


def test_verify_finds_a_changed_byte_and_a_changed_manifest(tmp_path: Path) -> None:
    made = crop_data.make_store(tmp_path)
    assert made.verify() == []
    shard = made.path / made.manifest.shards[0].name
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert [problem.split(":")[0] for problem in made.verify()] == ["persons-00000.parquet"]
    crop_data.edit(made.path / "manifest.json", lambda content: content["envelope"].update(padding=2.0))
    with pytest.raises(ValueError, match=r"manifest.json is damaged \(its digest does not match its content\)"):
        CropStore.open(made.path)


def test_reading_notices_a_changed_bit_wherever_it_lies(store: CropStore, tmp_path: Path) -> None:
    """Every 9973rd byte of every file, and of its last 3,000 every 97th: pages and footers alike."""
    shutil.copytree(store.path, tmp_path / "st")
    whole = {name: store.table(name) for name in (GROUND_TRUTH, IMAGES, REJECTS)}
    persons = store.columns(PERSON_SCHEMA.names)
    noticed = unread = 0
    for record in (*store.manifest.shards, *store.manifest.tables):
        file, content = tmp_path / "st" / record.name, (store.path / record.name).read_bytes()
        for place in (*range(0, len(content), 9973), *range(len(content) - 3000, len(content), 97)):
            if place < 0:
                continue
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            file.write_bytes(changed)
            again = CropStore.open(tmp_path / "st")
            try:
                found = (
                    again.columns(PERSON_SCHEMA.names) if record in store.manifest.shards else again.table(record.name)
                )
            except UnreadableFileError as error:
                noticed += record.name in str(error)
            else:
                assert found.equals(whole.get(record.name, persons)), place
                unread += 1  # the four letters that begin the file, statistics, and the like
        file.write_bytes(content)
    assert noticed > 10 * unread


def test_every_line_of_a_manifest_is_covered(store: CropStore, tmp_path: Path) -> None:
    document = json.loads((store.path / "manifest.json").read_text())
    shutil.copytree(store.path, tmp_path / "st")
    for key in set(document) - {"document_sha256", "format_version"}:
        changed = json.loads((store.path / "manifest.json").read_text())
        value = changed[key]
        changed[key] = {} if isinstance(value, dict) else [] if isinstance(value, list) else "7" * 64
        if key == "rejects":
            changed[key] = {"no_joints": 3}
        if key in ("rows_per_group", "max_oversampling", "page_checksums"):
            changed[key] = not value if key == "page_checksums" else value * 2
        (tmp_path / "st" / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=r"st: manifest.json is damaged"):
            CropStore.open(tmp_path / "st")


def test_a_later_versions_keys_are_passed_over(store: CropStore, tmp_path: Path) -> None:
    """A key more, on top and inside, as a later version of the same format would write it, with its digests."""
    shutil.copytree(store.path, tmp_path / "st")
    document = json.loads((store.path / "manifest.json").read_text())
    document["fresh"] = {"a": 1}
    document["skeleton"]["colour"] = "red"
    document["shards"][0]["rows_per_page"] = 5
    document["sources"][0]["licence"] = "CC"
    del document["document_sha256"]
    document["digest"] = content_digest(document)
    document["document_sha256"] = storage.sha256_json(document)
    (tmp_path / "st" / "manifest.json").write_text(json.dumps(document))
    again = CropStore.open(tmp_path / "st")
    assert again.skeleton == store.skeleton
    assert again.verify() == []
    assert again.digest == document["digest"] != store.digest, "what a key says counts, known or not"
    remote = (tmp_path / "st").as_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFAFNET_CACHE", str(tmp_path / "cache"))
        assert CropStore.open(CropStore.open(remote).path).verify() == [], "the copy keeps them"


def test_stores_from_before_check_sums_are_read_and_say_so(
    store: CropStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the first version wrote them: neither digest of the document, nor footers, nor check sums of pages."""
    shutil.copytree(store.path, tmp_path / "st")
    document = json.loads((store.path / "manifest.json").read_text())
    for record in (*document["shards"], *document["tables"]):
        file = tmp_path / "st" / record["name"]
        pq.write_table(pq.read_table(file), file, row_group_size=4, compression="none")
        record.update(bytes=file.stat().st_size, sha256=storage.sha256_file(file))
        del record["footer_sha256"]
    del document["document_sha256"], document["page_checksums"]
    document["digest"] = content_digest(document)
    (tmp_path / "st" / "manifest.json").write_text(json.dumps(document))
    old = CropStore.open(tmp_path / "st")
    assert old.verify() == []
    assert old.columns(PERSON_SCHEMA.names).equals(store.columns(PERSON_SCHEMA.names))
    tell_protection(store)
    assert capsys.readouterr().err == ""
    tell_protection(old)
    assert "st has no check sums inside its files: damage is noticed by efafnet inspect only" in capsys.readouterr().err
    run_inspect(InspectConfig(store=str(old.path), crops=0))
    assert "none: reading does not notice damage" in capsys.readouterr().out


def _evaluate(ground_truth: dict[str, Any], results: list[dict[str, Any]], sigmas: tuple[float, ...]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = ground_truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.array(evaluation.stats)


@pytest.mark.parametrize(
    "file",
    ["coco-mini/annotations/person_keypoints_train.json", "tiny-coco/test_coco.json", "tiny-ochuman/test_ochuman.json"],
)
def test_ground_truth_evaluates_as_the_source_file(file: str, tmp_path: Path) -> None:
    """AP of noisy predictions, crowds, ignored persons and areas included: equal to the last bit."""
    folder, _, rest = file.partition("/")
    annotations = crop_data.real_data(folder) / rest
    images = crop_data.real_data(folder) / ("images" if folder == "coco-mini" else "")
    made = run_prepare(crop_data.config(tmp_path, annotations=annotations, images=images, out=tmp_path / "out"))
    source = json.loads(annotations.read_text())
    rng = np.random.default_rng(0)
    results = [
        {
            "image_id": a["image_id"],
            "category_id": 1,
            "keypoints": (np.array(a["keypoints"]) + rng.normal(0, 0.08 * a["area"] ** 0.5, 51)).tolist(),
            "score": float(rng.uniform()),
        }
        for a in source["annotations"]
    ]
    ours = _evaluate(made.ground_truth().to_coco(), results, COCO_17.sigmas)
    theirs = _evaluate(source, results, COCO_17.sigmas)
    np.testing.assert_array_equal(ours, theirs)
    assert theirs[0] < 0.9


def test_crowdpose_ground_truth(tmp_path: Path) -> None:
    """The official tool's area, 0.53 w h, and each image's crowd index."""
    folder = crop_data.real_data("tiny-crowdpose")
    annotations = folder / "test_crowdpose.json"
    made = run_prepare(crop_data.config(tmp_path, annotations=annotations, images=folder, out=tmp_path / "out"))
    source = json.loads(annotations.read_text())
    truth = made.ground_truth().to_coco()
    assert [image["crowdIndex"] for image in truth["images"]] == [image["crowdIndex"] for image in source["images"]]
    for ours, theirs in zip(truth["annotations"], source["annotations"], strict=True):
        assert ours["area"] == pytest.approx(0.53 * theirs["bbox"][2] * theirs["bbox"][3])
        assert ours["keypoints"] == theirs["keypoints"]
        assert ours["bbox"] == theirs["bbox"]
    assert truth["categories"][0]["keypoints"] == list(CROWDPOSE_14.joints)
