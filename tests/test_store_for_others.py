"""What other programs find in a crop store: columns that say what they mean, a folder that loads, a short reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from efafnet.models.skeleton import COCO_17
from efafnet.pipelines.crops import file_table, inspect
from efafnet.pipelines.crops import store as store_module
from efafnet.pipelines.crops.card import CARD, column_table, meaning
from efafnet.pipelines.crops.manifest import parse_manifest, sealed
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.schema import GROUND_TRUTH_SCHEMA, IMAGES_SCHEMA, PERSON_SCHEMA, REJECTS_SCHEMA
from efafnet.pipelines.crops.store import GROUND_TRUTH, PERSONS, CropStore, RowGroups
from tests import crop_data

DOCS = Path(__file__).parent.parent / "docs" / "data.md"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CropStore:
    folder = tmp_path_factory.mktemp("others")
    crop_data.write_coco(folder, images=2)
    return run_prepare(crop_data.config(folder))


def test_the_files_say_what_they_hold(store: CropStore) -> None:
    schema = pq.read_schema(store.path / "persons-00000.parquet")
    facts = json.loads(schema.metadata[b"efafnet"])
    assert facts["skeleton"]["joints"] == list(COCO_17.joints)
    assert facts["image"] == store.manifest.encoding.format
    assert meaning(schema.field("visibility")) == "of each joint: 0 not annotated, 1 hidden, 2 visible"
    for name in ("persons-00000", "images", "ground_truth", "rejects"):
        assert all(meaning(field) for field in pq.read_schema(store.path / f"{name}.parquet"))


def test_the_documentation_has_the_same_columns() -> None:
    text = DOCS.read_text()
    for schema in (PERSON_SCHEMA, IMAGES_SCHEMA, GROUND_TRUTH_SCHEMA, REJECTS_SCHEMA):
        assert column_table(schema) in text


def test_the_reader_in_the_documentation_reads_a_person(store: CropStore, monkeypatch: pytest.MonkeyPatch) -> None:
    [program] = [block for block in DOCS.read_text().split("```")[1::2] if "cv2.imdecode" in block]
    lines = [line for line in program.splitlines()[1:] if line]
    assert len(lines) <= 8
    monkeypatch.chdir(store.path.parent)
    assert store.path.name == "store"
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert names["crop"].shape == (names["row"]["crop_height"], names["row"]["crop_width"], 3)
    # The first joint of the fixture's persons stands an eighth of the box's width to the right, a tenth down.
    content = json.loads((store.path.parent / "annotations.json").read_text())
    [first] = [a for a in content["annotations"] if a["id"] == names["row"]["person_id"]]
    x, y, width, height = first["bbox"]
    back = np.array(names["row"]["crop_to_image"]).reshape(2, 3) @ [*names["in_crop"][0], 1]
    np.testing.assert_allclose(back, [x + width / 8, y + height / 10], atol=1e-6)


def test_a_card_names_the_tables(store: CropStore) -> None:
    text = (store.path / CARD).read_text()
    assert text.startswith("---\nconfigs:\n- config_name: persons\n  data_files: persons-*.parquet\n  default: true\n")
    assert column_table(PERSON_SCHEMA) in text


def test_the_folder_loads_with_datasets(store: CropStore, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(store.path), cache_dir=str(tmp_path))["train"]
    assert len(found) == store.num_persons
    assert found[0]["visibility"] == [2] * 17
    images = datasets.load_dataset(str(store.path), "images", cache_dir=str(tmp_path))["train"]
    assert [row["width"] for row in images] == [200, 200]


def test_duckdb_reads_it(store: CropStore) -> None:
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT count(*), min(visibility[1]), max(image_width) FROM '{store.path}/persons-*.parquet'"
    assert duckdb.sql(query).fetchall() == [(store.num_persons, 2, 200)]


def test_many_shards_are_columns_and_mean_the_same(store: CropStore, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = store.manifest
    document = sealed(listed)
    assert isinstance(document["shards"], list)
    monkeypatch.setattr(file_table, "LISTED_UP_TO", 0)
    columns = sealed(listed.model_copy(update={"format_version": 2}))
    assert columns["shards"]["name"] == [record["name"] for record in document["shards"]]
    assert set(columns["shards"]) == {"name", "rows", "bytes", "sha256", "footer_sha256"}
    read = parse_manifest(json.dumps(columns).encode(), "there")
    assert list(read.shards) == list(listed.shards)
    assert list(read.tables) == list(listed.tables)
    assert (read.shards[-1], read.shards[:1]) == (listed.shards[-1], [listed.shards[0]])
    assert read.shards.total_bytes == sum(record.bytes for record in listed.shards)
    # A digit of one file's digest, a column that is too short, one that is missing, a number that is text.
    changes: tuple[dict[str, Any], ...] = (
        {"sha256": ["0" * 64] * len(read.shards)}, {"rows": []}, {"name": None}, {"bytes": ["many"] * len(read.shards)},
    )  # fmt: skip
    for change in changes:
        damaged = {**columns, "shards": {**columns["shards"], **change}}
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            parse_manifest(json.dumps(damaged).encode(), "there")


def test_a_store_of_columns_reads_as_one_of_records(
    store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "store"
    shutil.copytree(store.path, copy)
    monkeypatch.setattr(file_table, "LISTED_UP_TO", 0)
    content = sealed(store.manifest.model_copy(update={"format_version": 2}))
    (copy / "manifest.json").write_text(json.dumps(content))
    opened = CropStore.open(copy)
    assert opened.columns(["person_id"]) == store.columns(["person_id"])
    assert opened.verify() == []
    (copy / "persons-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"persons-00000\.parquet is missing"):
        CropStore.open(copy)


def test_rows_and_parts_are_those_of_the_whole(store: CropStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BATCH_ROWS", 2)
    whole = store.columns(["person_id", "box_xywh"])
    assert store.rows(["person_id"], [4, 0])["person_id"].to_pylist() == whole.take([4, 0])["person_id"].to_pylist()
    parts = list(store.batches(PERSONS, ["person_id", "box_xywh"]))
    assert max(part.num_rows for part in parts) == 2
    assert pa.concat_tables(parts).combine_chunks() == whole.combine_chunks()
    monkeypatch.setattr(inspect, "_MOST_LOOKED_AT", 3)
    thinned = inspect._thinned(store, GROUND_TRUTH, ["annotation_id"])
    assert thinned["annotation_id"].to_pylist() == store.table(GROUND_TRUTH)["annotation_id"].to_pylist()[::2]


def test_percentiles_by_counting() -> None:
    values = np.random.default_rng(0).integers(0, 50, 1000)
    counts = dict(zip(*(column.tolist() for column in np.unique(values, return_counts=True)), strict=True))
    assert inspect.spread(counts) == [f"{v:.0f}" for v in np.percentile(values, (0, 5, 25, 50, 75, 95, 100))]
    assert inspect.spread({7: 1}) == ["7"] * 7


def test_row_groups_are_laid_out_as_they_are_written() -> None:
    groups = RowGroups.of([5, 0, 4, 1], 2)
    assert groups.shard.tolist() == [0, 0, 0, 2, 2, 3]
    assert groups.index.tolist() == [0, 1, 2, 0, 1, 0]
    assert groups.rows.tolist() == [2, 2, 1, 2, 2, 1]
    assert groups.first_row.tolist() == [0, 2, 4, 5, 7, 9]
    assert len(RowGroups.of([], 2)) == 0
