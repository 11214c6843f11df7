"""Preparing through Ray: equal bytes whatever the CPUs; killed on the way, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines.crops.prepare import run_prepare
from tests import crop_data
from tests.holds import Holds
from tests.training_cases import ROOT
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.slow


def _command(folder: Path, out: str, cpus: int, **settings: Any) -> list[str]:
    """A process that prepares ``folder`` with Ray."""
    given = {
        "annotations": str(folder / "annotations.json"),
        "images": str(folder / "images"),
        "out": str(folder / out),
        "cluster": {"address": "local", "num_cpus": cpus},
        "rows_per_shard": 8,
        **settings,
    }
    code = (
        "import json, sys\n"
        "from efafnet.pipelines.crops.prepare import PrepareConfig, run_prepare\n"
        "run_prepare(PrepareConfig.model_validate(json.loads(sys.argv[1])))"
    )
    return [sys.executable, "-c", code, json.dumps(given)]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_bytes_do_not_depend_on_the_number_of_cpus(tmp_path: Path) -> None:
    """On one CPU, on the four of the Ray that tests share, and without Ray."""
    crop_data.write_coco(tmp_path, images=12)
    subprocess.run(_command(tmp_path, "with1", 1), check=True, cwd=ROOT, timeout=LIMIT_S)
    four, alone = (
        run_prepare(crop_data.config(tmp_path, rows_per_shard=8, workers=workers, out=tmp_path / name))
        for workers, name in ((None, "with4"), (0, "alone"))
    )
    assert crop_data.files_in(tmp_path / "with1") == crop_data.files_in(four.path) == crop_data.files_in(alone.path)


def test_killed_while_preparing(tmp_path: Path) -> None:
    """SIGKILL of the whole process group in the middle: no store; the same command continues and makes equal bytes."""
    crop_data.write_coco(tmp_path, images=60, size=(900, 700))
    whole = crop_data.files_in(run_prepare(crop_data.config(tmp_path, out=tmp_path / "whole", rows_per_shard=8)).path)
    holds = Holds(tmp_path / "holds")
    holds.after_shards(3)
    process = subprocess.Popen(
        _command(tmp_path, "store", 1),
        cwd=ROOT, env=holds.environment(), start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        finished = ".store.prepare-*/*.json"
        wait_for("three pieces", lambda: len(list(tmp_path.glob(finished))) >= 3, lambda: process.poll() is not None)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "store").exists()
    assert 3 <= len(list(tmp_path.glob(finished))) < 23
    store = run_prepare(crop_data.config(tmp_path, rows_per_shard=8))
    assert crop_data.files_in(store.path) == whole
    assert crop_data.left_behind(tmp_path) == ["holds", "store", "whole"]
