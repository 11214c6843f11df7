"""A small crop store that a network learns in seconds: four coloured spots per picture, on noise."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.pipelines.crops.file_table import FileRecord, FileTable
from efafnet.pipelines.crops.manifest import Counts, Encoding, Manifest, SourceRecord
from efafnet.pipelines.crops.schema import GROUND_TRUTH_SCHEMA, IMAGES_SCHEMA, REJECTS_SCHEMA, person_schema
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.rundir import LOCK
from efafnet.platform.configuration import apply_overrides, load_preset, resolve, to_yaml
from efafnet.platform.locks import hold
from tests.waiting import LIMIT_S

if TYPE_CHECKING:
    from efafnet.pipelines.training.loop import LoopResult

ROOT = Path(__file__).resolve().parents[1]
SIDE = 64
SIMPLE = (
    *("network.fam=none", "network.fsm=none", "network.ffm=false"),
    *("network.head=deconvolution", "network.auxiliary_stages=[]"),
)
"""The simple baseline, whose step takes a third of EFAFNet's: for what any network does."""
SPOTS = Skeleton(
    name="spots4",
    joints=("red", "green", "blue", "white"),
    flip_pairs=(),
    limbs=((0, 1), (1, 2), (2, 3)),
    sigmas=(0.1, 0.1, 0.1, 0.1),
    upper_body=(0, 1),
)
_COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
_INPUT = InputSize(height=64, width=64)
_SOURCE = SourceRecord(
    data_set="spots",
    annotations="",
    annotations_sha256="",
    images="",
    images_sha256="",
    format="coco",
    box_rule="none",
)


def write_store(path: Path, persons: int = 40, *, seed: int = 0, skeleton: Skeleton = SPOTS, group: int = 8) -> Path:
    """Write a store of ``persons`` pictures of 64x64 pixels, one person each, ``group`` rows per row group."""
    path.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    k = skeleton.num_joints
    joints = generator.integers(12, SIDE - 12, (persons, k, 2)).astype(np.float64)
    rows = [_person(number, joints[number], generator) for number in range(persons)]
    truth = [_annotation(number, joints[number]) for number in range(persons)]
    pictures = [
        {"image_id": n, "data_set": "spots", "file_name": f"{n}.png", "width": SIDE, "height": SIDE}
        for n in range(persons)
    ]
    pq.write_table(
        pa.Table.from_pylist(rows, person_schema(k)),
        path / "persons-00000.parquet",
        row_group_size=group,
        write_page_checksum=True,
    )
    pq.write_table(
        pa.Table.from_pylist(truth, GROUND_TRUTH_SCHEMA), path / "ground_truth.parquet", write_page_checksum=True
    )
    pq.write_table(pa.Table.from_pylist(pictures, IMAGES_SCHEMA), path / "images.parquet", write_page_checksum=True)
    pq.write_table(REJECTS_SCHEMA.empty_table(), path / "rejects.parquet", write_page_checksum=True)
    manifest = _manifest(path, persons, skeleton, group)
    (path / "manifest.json").write_text(manifest.model_dump_json())
    return path


def _person(number: int, joints: np.ndarray[Any, Any], generator: np.random.Generator) -> dict[str, Any]:
    picture = generator.integers(60, 120, (SIDE, SIDE, 3)).astype(np.uint8)
    for index, (x, y) in enumerate(joints.astype(int)):
        picture[y - 3 : y + 4, x - 3 : x + 4] = _COLOURS[index % len(_COLOURS)]
    return {
        "image": picture.tobytes(),
        "crop_width": SIDE,
        "crop_height": SIDE,
        "crop_to_image": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "joints_px": joints.reshape(-1).tolist(),
        "visibility": [2] * len(joints),
        "box_xywh": [4.0, 4.0, 56.0, 56.0],
        "area": 56.0 * 56.0,
        "box_score": 1.0,
        "person_id": number + 1,
        "image_id": number,
        "data_set": "spots",
        "file_name": f"{number}.png",
        "image_width": SIDE,
        "image_height": SIDE,
    }


def _annotation(number: int, joints: np.ndarray[Any, Any]) -> dict[str, Any]:
    keypoints = np.concatenate([joints, np.full((len(joints), 1), 2.0)], axis=1)
    return {
        "annotation_id": number + 1,
        "image_id": number,
        "data_set": "spots",
        "category_id": 1,
        "box_xywh": [4.0, 4.0, 56.0, 56.0],
        "area": 56.0 * 56.0,
        "is_crowd": False,
        "num_keypoints": len(joints),
        "keypoints": keypoints.reshape(-1).tolist(),
    }


def _manifest(path: Path, persons: int, skeleton: Skeleton, group: int) -> Manifest:
    records = {
        file.name: FileRecord(
            name=file.name,
            rows=pq.read_metadata(file).num_rows,
            bytes=file.stat().st_size,
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        for file in sorted(path.glob("*.parquet"))
    }
    manifest = Manifest(
        format_version=1,
        skeleton=skeleton,
        sources=(_SOURCE,),
        envelope=Envelope(inputs=(_INPUT,), half_body=False),
        encoding=Encoding(format="raw"),
        max_oversampling=4.0,
        rows_per_group=group,
        shards=FileTable.of([records["persons-00000.parquet"]]),
        tables=tuple(record for name, record in records.items() if not name.startswith("persons")),
        counts=Counts(images=persons, images_read=persons, annotations=persons, crowds=0, persons=persons, reduced=0),
        rejects={},
        versions={},
        input_digest="",
        digest="",
        page_checksums=True,
    )
    return manifest.model_copy(update={"digest": manifest.content_digest()})


@cache
def _written(persons: int, seed: int) -> dict[str, bytes]:
    """The files of such a store by name: dozens of tests ask for the same."""
    with TemporaryDirectory() as folder:
        return {
            file.name: file.read_bytes() for file in write_store(Path(folder) / "store", persons, seed=seed).iterdir()
        }


def config_of(tmp_path: Path, *overrides: str) -> TrainConfig:
    """Settings of a run of seconds on stores ``train`` and ``val`` at ``tmp_path``, without Ray or MLflow.

    In float32 on one core, so that it is the same run on every machine. Without pictures of its validations, which take
    longer than the rest of it.
    """
    for name, persons in (("train", 40), ("val", 11)):
        if not (tmp_path / name).exists():
            (tmp_path / name).mkdir(parents=True)
            for file, content in _written(persons, len(name)).items():
                (tmp_path / name / file).write_bytes(content)
    paths = [f"data.train={tmp_path}/train", f"data.val={tmp_path}/val", f"runs={tmp_path}/runs"]
    paths += ["precision=fp32", "test.precision=fp32", "worker.cpus=1", "reader.threads=2"]
    paths += ["validation.overlays=0"]
    return resolve(TrainConfig, apply_overrides(load_preset("nano_test"), [*paths, *overrides]))


def sbn_config_of(tmp_path: Path, *overrides: str) -> TrainConfig:
    """As ``config_of``, of the simple baseline."""
    return config_of(tmp_path, *SIMPLE, *overrides)


def trace_of(config: TrainConfig) -> dict[int, tuple[list[int], list[str]]]:
    """Rows and losses of every step, the workers' in order of rank; a step counted twice would have too many."""
    steps: dict[int, tuple[list[int], list[str]]] = {}
    for path in sorted(config.run_dir.glob("trace-rank*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            rows, losses = steps.setdefault(entry["step"], ([], []))
            rows.extend(entry["rows"])
            losses.append(entry["loss"])
    return steps


def newest_step(config: TrainConfig) -> int:
    """The newest checkpoint's step so far; 0 without one."""
    return max((int(path.name[5:]) for path in (config.run_dir / "checkpoints").glob("step-*")), default=0)


def lives(config: TrainConfig) -> list[tuple[int, int]]:
    """Where the run was gone on with: (step, workers) of each restart."""
    log = (config.run_dir / "train.log").read_text() if (config.run_dir / "train.log").exists() else ""
    return [(int(step), int(count)) for step, count in re.findall(r"resuming at step (\d+) .*workers: (\d+)", log)]


def train_until(config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a run in this process as if somebody pressed Ctrl-C after ``step`` steps."""
    from efafnet.pipelines.training import job
    from efafnet.pipelines.training.ray_run import train

    honest = job.Job.count

    def count(self: job.Job, *arguments: Any) -> None:
        if self.progress.step == step:
            raise KeyboardInterrupt
        honest(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(job.Job, "count", count)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def one_of_two(file: Path, rank: int) -> LoopResult:
    """Train the settings in ``file`` as one of two processes that exchange gradients over gloo, without Ray."""
    import torch

    from efafnet.pipelines.training.context import GroupContext
    from efafnet.pipelines.training.loop import run

    torch.distributed.init_process_group("gloo", init_method=f"file://{file}.group", rank=rank, world_size=2)
    try:
        return run(resolve(TrainConfig, load_preset(str(file))), GroupContext(torch.device("cpu")))
    finally:
        torch.distributed.destroy_process_group()


def train_as_two(config: TrainConfig) -> LoopResult:
    """Train in this process and another one, as on two of Ray's workers."""
    file = config.runs / f"{config.name}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(to_yaml(config))
    program = "import sys; from pathlib import Path; from tests import training_cases as cases\n"
    command = [sys.executable, "-c", f"{program}cases.one_of_two(Path(sys.argv[1]), 1)", str(file)]
    other = subprocess.Popen(command, cwd=ROOT)
    try:
        result = one_of_two(file, 0)
        assert other.wait(LIMIT_S) == 0
        return result
    finally:
        other.kill()
        other.wait()


def wait_until_left(run_dir: Path) -> None:
    """Wait until no process trains a run any more: on a cluster it may outlive its driver for a moment."""
    with hold(run_dir / LOCK, wait_s=LIMIT_S):
        pass
