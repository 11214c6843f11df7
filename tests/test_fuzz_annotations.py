"""Two thousand mutated files of annotations, detections, results: read, or refused in one sentence, no traceback.

The files go the way they go in prepare, score and predict, without pixels; some of them all the way to a store.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from efafnet.pipelines.crops import finish
from efafnet.pipelines.crops.annotation_sources import SourceConfig, load_source
from efafnet.pipelines.crops.plan import plan_shards
from efafnet.pipelines.crops.prepare import run_prepare
from efafnet.pipelines.crops.schema import GROUND_TRUTH_SCHEMA, IMAGES_SCHEMA, REJECTS_SCHEMA
from efafnet.pipelines.evaluation.score import ScoreConfig, score
from efafnet.pipelines.prediction.media import Source
from efafnet.pipelines.prediction.person_boxes import place, read_box_file
from tests import crop_data

_DEEP: list[Any] = []
for _ in range(60):
    _DEEP = [_DEEP]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, 2.0, -0.0, 1e308, -1e308, 10**400, 2**31, 2**63, -(2**63), 2**64, math.nan,
    math.inf, "", "7", "0007", "1.0", "nan", "x", "\ud800", "a\0b", "../a.jpg", "C:\\a.jpg", [], {}, [[]], [1],
    [[1, 2]], [None] * 4, [1, 2, 3, 4], ["1", "2", "3", "4"], {"a": 1}, _DEEP,
)  # fmt: skip


def _value(rng: np.random.Generator) -> Any:
    return copy.deepcopy(VALUES[rng.integers(len(VALUES))])


def mutated(content: Any, rng: np.random.Generator) -> Any:
    """``content``, of which one to three places were replaced by odd values, removed, or repeated."""
    for _ in range(rng.integers(1, 4)):
        parent, key = _place(content, rng)
        kind = rng.random()
        if parent is None:
            return _value(rng)
        if kind < 0.75:
            parent[key] = _value(rng)
        elif kind < 0.9:
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
    return content


def _place(content: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """A random place in a tree: its container and its key."""
    parent, key, node = None, None, content
    while isinstance(node, list | dict) and node and (parent is None or rng.random() < 0.8):
        # The root itself, now and then.
        if parent is None and rng.random() < 0.01:
            break
        key = rng.integers(len(node)) if isinstance(node, list) else list(node)[rng.integers(len(node))]
        parent, node = node, node[key]
    return parent, key


def _read(what: str, action: Callable[[], object], path: Path) -> bool:
    """Whether it was read; anything but one sentence about it fails the test."""
    try:
        action()
    except (ValueError, OSError) as error:
        message = str(error)
        assert "\n" not in message, (what, path.read_text(), message)
        assert 10 < len(message) < 2500, (what, path.read_text(), message)
        return False
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}: {path.read_text()[:3000]}") from error
    return True


def _to_tables(config: SourceConfig) -> None:
    """What prepare does with a file before and after it looks at pixels: everything must fit Arrow's types."""
    source = load_source(config, 0)
    plan_shards([source], 100)
    for rows, schema in (
        (finish._ground_truth_rows([source]), GROUND_TRUTH_SCHEMA),
        (finish._image_rows([source], []), IMAGES_SCHEMA),
        (finish._reject_rows([source], []), REJECTS_SCHEMA),
    ):
        pa.Table.from_pylist(rows, schema=schema)


def _annotations() -> dict[str, Any]:
    """Two images, a person, a crowd, a person without joints, another category; joints of its own."""
    joints = ["snout", "left_paw", "right_paw"]
    people = [crop_data.person(n, n % 2 + 1, [10.0, 12, 40, 50], num_joints=3) for n in range(4)]
    people[1].update(iscrowd=1)
    people[2].update(keypoints=[0] * 9, num_keypoints=0)
    people[3].update(category_id=2)
    own = {
        "id": 1, "name": "dog", "keypoints": joints, "skeleton": [[1, 2], [1, 3]], "sigmas": [0.1] * 3,
        "flip_pairs": [[1, 2]], "upper_body": [0],
    }  # fmt: skip
    images = [{"id": n, "file_name": f"00000{n}.jpg", "width": 80, "height": 64} for n in (1, 2)]
    return {"images": images, "annotations": people, "categories": [own, {"id": 2, "name": "cat"}]}


def _results() -> list[dict[str, Any]]:
    shared = {"category_id": 1, "keypoints": [20.0, 20, 1] * 3, "bbox": [1, 2, 30, 40]}
    return [{"image_id": n % 2 + 1, "score": 0.5, **shared} for n in range(4)]


def _mpii() -> list[dict[str, Any]]:
    joints = [[float(3 * j + 1), float(2 * j + 1)] for j in range(16)]
    return [
        {"image": f"00000{n}.jpg", "center": [31.0, 25.0], "scale": 0.2, "joints": joints, "joints_vis": [1] * 16}
        for n in (1, 2)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files, and the images they are about."""
    path = tmp_path_factory.mktemp("fuzz")
    crop_data.write_coco(path, images=3, persons=1, size=(80, 64))
    (path / "sound.json").write_text(json.dumps(_annotations()))
    (path / "results.json").write_text(json.dumps(_results()))
    return path


def _scored(folder: Path, **files: str) -> Callable[[], object]:
    names = {"predictions": "results.json", "annotations": "sound.json", **files}
    paths = {name: folder / file for name, file in names.items()}
    return lambda: score(ScoreConfig(**paths, scoring={"bootstrap": 0, "errors": False}))


def _config(folder: Path, **files: str) -> SourceConfig:
    paths = {name: folder / file for name, file in files.items()}
    return SourceConfig(**{"annotations": folder / "sound.json", **paths}, images=str(folder / "images"))


_SOURCES = [Source(n, Path(f"/data/00000{n + 1}.jpg"), False, 1) for n in range(2)]


@pytest.mark.parametrize(("seed", "count"), [(0, 500), (1, 500)])
def test_mutated_annotations(folder: Path, seed: int, count: int) -> None:
    rng, path = np.random.default_rng(seed), folder / f"mutated{seed}.json"
    read = 0
    for number in range(count):
        path.write_text(json.dumps(mutated(_annotations(), rng)))
        read += _read("prepare", lambda: _to_tables(_config(folder, annotations=path.name)), path)
        read += _read("score", _scored(folder, annotations=path.name), path)
        read += _read("predict", lambda: place(read_box_file(path, None, 0.0), _SOURCES), path)
        if number % 50 == 0:
            store = folder / f"store{seed}-{number}"
            _read("store", lambda: run_prepare(crop_data.config(folder, annotations=path, out=store)), path)  # noqa: B023
    assert read > count, "most mutations hurt one entry only"


def test_mutated_detections(folder: Path) -> None:
    rng, path = np.random.default_rng(2), folder / "detections.json"
    for _ in range(300):
        path.write_text(
            json.dumps(mutated([{k: v for k, v in r.items() if k != "keypoints"} for r in _results()], rng))
        )
        _read("prepare", lambda: _to_tables(_config(folder, detections=path.name)), path)
        _read("score", _scored(folder, predictions=path.name), path)
        _read("predict", lambda: place(read_box_file(path, None, 0.1), _SOURCES), path)


def test_mutated_results(folder: Path) -> None:
    rng, path = np.random.default_rng(3), folder / "predictions.json"
    for _ in range(400):
        path.write_text(json.dumps(mutated(_results(), rng)))
        _read("score", _scored(folder, predictions=path.name), path)


def test_mutated_mpii(folder: Path) -> None:
    rng, path = np.random.default_rng(4), folder / "mpii.json"
    for _ in range(300):
        path.write_text(json.dumps(mutated(_mpii(), rng)))
        _read("prepare", lambda: _to_tables(_config(folder, annotations=path.name)), path)
