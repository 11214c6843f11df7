"""Several crop stores as one: persons, ids, tables, digests; what cannot be joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efafnet.models.settings import InputSize
from efafnet.pipelines.cli import main
from efafnet.pipelines.crops.join import JoinConfig, run_join
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.reader import read_rows
from efafnet.pipelines.crops.store import CropStore
from tests import crop_data

_SIZE = InputSize(height=64, width=64)
_STRIDE = 10**12


def _store(folder: Path, seed: int, change: Any = None, **settings: Any) -> CropStore:
    """Six persons of two images, in shards of three and row groups of two."""
    annotations, _ = crop_data.write_coco(folder, images=2, persons=3, seed=seed)
    if change is not None:
        crop_data.edit(annotations, change)
    return run_prepare(crop_data.config(folder, rows_per_group=2, rows_per_shard=3, **settings))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[CropStore]:
    return [_store(tmp_path_factory.mktemp("store"), seed) for seed in (1, 2, 3)]


def _join(out: Path, *stores: CropStore) -> CropStore:
    run_join(JoinConfig(stores=tuple(str(store.path) for store in stores), output=out))
    return CropStore.open(out)


def test_a_joined_store_is_its_stores_one_after_the_other(
    stores: list[CropStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [str(store.path) for store in stores]
    assert main(["join", *places, "--output", str(tmp_path / "all")]) == 0
    assert f"{tmp_path / 'all'}: 18 persons of 3 stores, coco17" in " ".join(capsys.readouterr().out.split())
    joined = CropStore.open(tmp_path / "all")
    assert joined.verify() == []
    samples = read_rows(joined, range(18), input_size=_SIZE)
    apart = [read_rows(store, range(6), input_size=_SIZE) for store in stores]
    assert np.array_equal(samples.images, np.concatenate([each.images for each in apart]))
    assert np.array_equal(samples.joints_px, np.concatenate([each.joints_px for each in apart]))
    ids = joined.columns(["person_id", "image_id"])
    own = [100, 101, 102, 200, 201, 202]
    assert ids["person_id"].to_pylist() == [n + shift * _STRIDE for shift in (0, 1, 2) for n in own]
    assert ids["image_id"].to_pylist() == [n + shift * _STRIDE for shift in (0, 1, 2) for n in (1, 1, 1, 2, 2, 2)]
    truth = joined.ground_truth().to_coco()
    assert [image["id"] for image in truth["images"]] == [
        1,
        2,
        _STRIDE + 1,
        _STRIDE + 2,
        2 * _STRIDE + 1,
        2 * _STRIDE + 2,
    ]
    assert {a["image_id"] for a in truth["annotations"]} == {image["id"] for image in truth["images"]}
    assert (joined.manifest.counts.persons, joined.manifest.counts.images) == (18, 6)
    assert len(joined.manifest.sources) == 3


def test_the_first_stores_shards_stay_and_the_others_keep_their_row_groups(
    stores: list[CropStore], tmp_path: Path
) -> None:
    joined = _join(tmp_path / "both", stores[0], stores[1])
    first = stores[0].manifest.shards
    assert [shard.sha256 for shard in joined.manifest.shards[: len(first)]] == [shard.sha256 for shard in first]
    assert [shard.rows for shard in joined.manifest.shards] == [3, 3, 3, 3]
    assert joined.row_groups.first_row.tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    # Joined once more, a store of two sources shifts what follows by two.
    again = _join(tmp_path / "again", joined, stores[2])
    assert again.columns(["image_id"])["image_id"].to_pylist()[-1] == 2 * _STRIDE + 2
    at_once = _join(tmp_path / "at_once", *stores)
    assert [shard.sha256 for shard in again.manifest.shards] == [shard.sha256 for shard in at_once.manifest.shards]
    assert again.table("ground_truth.parquet").equals(at_once.table("ground_truth.parquet"))


def test_rejects_are_kept_and_counted(stores: list[CropStore], tmp_path: Path) -> None:
    def flat(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [5, 5, 0, 0]

    joined = _join(tmp_path / "joined", stores[0], _store(tmp_path / "flat", 4, flat))
    assert joined.manifest.rejects == {"box_invalid": 1}
    [row] = joined.table("rejects.parquet").to_pylist()
    assert (row["annotation_id"], row["image_id"]) == (_STRIDE + 100, _STRIDE + 1)


def _large(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["id"] += _STRIDE


def _named_joints(content: dict[str, Any]) -> None:
    content["categories"][0]["keypoints"] = [f"p{n}" for n in range(17)]


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (None, {"encoding": {"format": "png"}}, r"encoding\.format is png there and jpeg here; prepare it again"),
        (None, {"envelope": {"padding": 1.4}}, r"envelope\.padding is 1\.4 there and 1\.3 here"),
        (_named_joints, {}, r"skeleton\.name is person there and coco17 here; .*store_joints= and a joint_map"),
        (_large, {}, r"annotation_id|person_id 10000000001\d\d cannot be joined: .*give this store first"),
    ],
)
def test_stores_that_were_not_prepared_alike(
    stores: list[CropStore], tmp_path: Path, change: Any, settings: dict[str, Any], says: str
) -> None:
    other = _store(tmp_path / "other", 5, change, **settings)
    with pytest.raises(ValueError, match=says):
        _join(tmp_path / "joined", stores[0], other)
    assert crop_data.left_behind(tmp_path) == ["other"]


def test_one_store_or_the_same_twice_is_refused(stores: list[CropStore], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="join takes two stores or more: efafnet join STORE STORE"):
        _join(tmp_path / "joined", stores[0])
    with pytest.raises(ValueError, match=r"are the same store; join takes each once"):
        _join(tmp_path / "joined", stores[0], stores[1], stores[0])
    (tmp_path / "there").write_text("")
    with pytest.raises(ValueError, match="is a file or a link"):
        _join(tmp_path / "there", stores[0], stores[1])
