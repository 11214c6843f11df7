"""Small data sets and stores for tests, written to a temporary folder. Nothing here starts Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from efafnet.models.skeleton import COCO_17, Skeleton
from efafnet.pipelines.crops.manifest import footer_sha256, sealed
from efafnet.pipelines.crops.prepare import PrepareConfig, run_prepare
from efafnet.pipelines.crops.store import CropStore
from efafnet.platform.storage import sha256_file, write_json

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


def real_data(name: str) -> Path:
    """Folder of real data, or skip."""
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"real data {name} is not on this machine")
    return folder


def picture(width: int, height: int, seed: int) -> np.ndarray[Any, Any]:
    """Smooth random colours (h, w, 3) uint8: like a photograph, JPEG stores it well."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth.astype(int) + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def read_picture(path: Path) -> np.ndarray[Any, Any]:
    """A picture file as OpenCV's (h, w, 3) uint8, its pixels as stored."""
    found = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert found is not None
    return found


def category(skeleton: Skeleton = COCO_17) -> dict[str, Any]:
    """COCO category of ``skeleton``."""
    limbs = [[a + 1, b + 1] for a, b in skeleton.limbs]
    return {"id": 1, "name": "person", "keypoints": list(skeleton.joints), "skeleton": limbs}


def person(number: int, image_id: int, box: list[float], num_joints: int = 17, visible: int = 2) -> dict[str, Any]:
    """An annotation with joints spread over its box."""
    x, y, width, height = box
    keypoints: list[float] = []
    for joint in range(num_joints):
        keypoints += [x + width * (joint % 4 + 0.5) / 4, y + height * (joint // 4 + 0.5) / 5, visible]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "bbox": box,
        "area": 0.6 * width * height,
        "iscrowd": 0,
        "num_keypoints": num_joints,
        "keypoints": keypoints,
    }


def content(*annotations: dict[str, Any], images: int = 1, **fields: Any) -> dict[str, Any]:
    """A COCO file of ``annotations`` on images of 100x80 pixels; ``fields`` are the category's."""
    return {
        "images": [{"id": n + 1, "file_name": f"{n + 1}.jpg", "width": 100, "height": 80} for n in range(images)],
        "annotations": list(annotations),
        "categories": [{**category(), **fields}],
    }


def write_coco(
    folder: Path, images: int = 6, persons: int = 3, size: tuple[int, int] = (200, 160), seed: int = 0
) -> tuple[Path, Path]:
    """A COCO set of ``images`` pictures with ``persons`` each: annotation file and image folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    width, height = size
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [category()]}
    for number in range(images):
        name = f"{number:06d}.jpg"
        cv2.imwrite(str(folder / "images" / name), picture(width, height, seed * 1000 + number))
        content["images"].append({"id": number + 1, "file_name": name, "width": width, "height": height})
        for index in range(persons):
            w, h = rng.uniform(0.2, 0.5) * width, rng.uniform(0.3, 0.7) * height
            box = [round(float(v), 2) for v in (rng.uniform(0, width - w), rng.uniform(0, height - h), w, h)]
            content["annotations"].append(person(100 * (number + 1) + index, number + 1, box))
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json", folder / "images"


def edit(path: Path, change: Any) -> None:
    """Apply ``change`` to the content of a JSON file."""
    content = json.loads(path.read_text())
    result = change(content)
    path.write_text(json.dumps(content if result is None else result))


def replace_shard(store: CropStore, table: pa.Table) -> None:
    """Put ``table`` in the place of the store's first shard, with digests that say it was written so."""
    shard = store.manifest.shards[0]
    path = store.path / shard.name
    pq.write_table(table, path, row_group_size=store.manifest.rows_per_group, write_page_checksum=True)
    size, digest, footer = path.stat().st_size, sha256_file(path), footer_sha256(path)
    changed = shard.model_copy(update={"bytes": size, "sha256": digest, "footer_sha256": footer})
    manifest = store.manifest.model_copy(update={"shards": (changed, *store.manifest.shards[1:])})
    write_json(store.path / "manifest.json", sealed(manifest))


def config(folder: Path, **settings: Any) -> PrepareConfig:
    """Settings that prepare ``folder``'s set into ``folder/store`` in this process, whatever the share of rejects."""
    given = {
        "annotations": folder / "annotations.json",
        "images": folder / "images",
        "out": folder / "store",
        "workers": 0,
        "max_reject_share": 1.0,
        **settings,
    }
    return PrepareConfig.model_validate(given)


def make_store(folder: Path, images: int = 6, persons: int = 3, **settings: Any) -> CropStore:
    """A prepared store of a small COCO set."""
    write_coco(folder, images, persons)
    return run_prepare(config(folder, **settings))


def _struct(**fields: Any) -> np.ndarray[Any, Any]:
    """A MATLAB struct of one element."""
    made = np.empty((1, 1), dtype=[(name, object) for name in fields])
    for name, value in fields.items():
        made[name][0, 0] = value
    return made


def _structs(*elements: dict[str, Any]) -> np.ndarray[Any, Any]:
    made = np.empty((1, len(elements)), dtype=[(name, object) for name in elements[0]])
    for n, element in enumerate(elements):
        for name, value in element.items():
            made[name][0, n] = value
    return made


def save_mat(path: Path, content: dict[str, Any]) -> None:
    """Write a MATLAB file. Few tests do, and scipy takes a while to import."""
    import scipy.io

    scipy.io.savemat(path, content)


def write_mpii_release(path: Path) -> Path:
    """MPII's .mat with one person (two joints, one hidden; a head box of 30x40) in one.jpg, and a test image."""
    points = _structs(
        {"x": 51.0, "y": 61.0, "id": 9.0, "is_visible": np.array([])},
        {"x": 31.0, "y": 41.0, "id": 0.0, "is_visible": "0"},
    )
    head = {"x1": 10.0, "y1": 20.0, "x2": 40.0, "y2": 60.0}
    person = {"scale": 1.0, "objpos": _struct(x=101.0, y=86.0), "annopoints": _struct(point=points), **head}
    annolist = _structs(
        {"image": _struct(name="one.jpg"), "annorect": _structs(person)},
        {"image": _struct(name="two.jpg"), "annorect": _structs({"scale": 1.0, "objpos": _struct(x=1.0, y=1.0)})},
    )
    save_mat(path, {"RELEASE": _struct(annolist=annolist, img_train=np.array([[1, 0]]))})
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def left_behind(folder: Path) -> list[str]:
    """Names beside the input of ``write_coco``."""
    return sorted(path.name for path in folder.iterdir() if path.name not in {"images", "annotations.json"})
