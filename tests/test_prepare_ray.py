"""Preparing through Ray: equal bytes whatever the CPUs; killed on the way, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from efafnet.pipelines.crops.prepare import run_prepare
from tests import crop_data
from tests.holds import Holds
from tests.training_cases import ROOT
from tests.waiting import wait_for

pytestmark = pytest.mark.slow


def _command(folder: Path) -> list[str]:
    """A process that prepares ``folder`` with a Ray of one CPU."""
    given = {
        "annotations": str(folder / "annotations.json"),
        "images": str(folder / "images"),
        "out": str(folder / "store"),
        "cluster": {"address": "local", "num_cpus": 1},
        "rows_per_shard": 8,
    }
    code = (
        "import json, sys\n"
        "from efafnet.pipelines.crops.prepare import PrepareConfig, run_prepare\n"
        "run_prepare(PrepareConfig.model_validate(json.loads(sys.argv[1])))"
    )
    return [sys.executable, "-c", code, json.dumps(given)]


@pytest.mark.usefixtures("ray_local")
def test_bytes_do_not_depend_on_how_many_cpus_work(tmp_path: Path) -> None:
    """By one task at a time, by one on each of four CPUs, and without Ray."""
    crop_data.write_coco(tmp_path, images=12)
    one, four, alone = (
        run_prepare(crop_data.config(tmp_path, rows_per_shard=8, workers=workers, out=tmp_path / name))
        for workers, name in ((1, "one"), (None, "four"), (0, "alone"))
    )
    assert crop_data.files_in(one.path) == crop_data.files_in(four.path) == crop_data.files_in(alone.path)


def test_killed_while_preparing(tmp_path: Path) -> None:
    """SIGKILL of the whole process group in the middle: no store; the same command continues and makes equal bytes."""
    crop_data.write_coco(tmp_path, images=20)
    whole = crop_data.files_in(run_prepare(crop_data.config(tmp_path, out=tmp_path / "whole", rows_per_shard=8)).path)
    holds = Holds(tmp_path / "holds")
    holds.after_shards(3)
    process = subprocess.Popen(
        _command(tmp_path),
        cwd=ROOT, env=holds.environment(), start_new_session=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        finished = ".store.prepare-*/*.json"
        wait_for("three pieces", lambda: len(list(tmp_path.glob(finished))) >= 3, lambda: process.poll() is not None)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "store").exists()
    assert 3 <= len(list(tmp_path.glob(finished))) < 10, "of ten pieces"
    store = run_prepare(crop_data.config(tmp_path, rows_per_shard=8))
    assert crop_data.files_in(store.path) == whole
    assert crop_data.left_behind(tmp_path) == ["holds", "store", "whole"]
