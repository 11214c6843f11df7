"""What `bench_gpu` asks other programs for, and what it reads of what they say; the GPU itself is not here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_gpu, bench_step
from benchmarks.bench_gpu import BARE, BATCH, PEOPLE, RUNS, TESTS, rates, settings_of
from efafnet.models.variants import variant
from efafnet.pipelines.synth.dataset import SynthConfig
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.monitor import ProgressLine
from efafnet.pipelines.training.schedule import Plan
from efafnet.pipelines.training.state import Progress
from efafnet.platform.configuration import apply_overrides, load_preset, resolve

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", RUNS)
def test_its_runs_are_of_one_batch_and_nothing_stops_them(name: str, tmp_path: Path) -> None:
    preset, *words = settings_of(tmp_path, name, 60)
    config = resolve(TrainConfig, apply_overrides(load_preset(preset), words))
    assert (config.batch_size, config.max_time_s, config.data.val) == (BATCH, 60, None)
    assert config.run_dir == tmp_path / "runs" / f"run-{list(RUNS).index(name)}"
    assert config.workers == (0 if name == "plain process" else 1)
    assert (config.compute.graph == "on") == ("graphs" in name)
    assert str(config.network) == str(variant("efafnet_r50_256x192").network)


def test_what_it_names_is_there() -> None:
    drawn = resolve(SynthConfig, apply_overrides({"out": "people"}, PEOPLE))
    assert (drawn.image_size.height, drawn.image_size.width, drawn.images.val) == (480, 360, 0)
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in TESTS)
    network, mode, crops = BARE.partition(", ")[0], bench_step.PARTS_MODE.name, f"{BATCH} crops"
    assert network in bench_step.NETWORKS
    assert f"{network}, {mode}, {crops}" == BARE


def test_speeds_are_read_from_the_lines_of_a_run_that_has_settled() -> None:
    def line(per_s: float) -> str:
        metrics = {"train/loss": 0.1, "train/lr": 1e-3, "speed/samples_per_s": per_s, "speed/data_wait_share": 0.0}
        text = ProgressLine().text(Progress(step=10, elapsed_s=1.0), Plan(100, 100, 10.0, 10.0), metrics, force=True)
        assert text is not None
        return text

    log = "precision: bf16, on a card: 999 samples/s\n"
    with pytest.raises(ValueError, match="no line with samples/s"):
        rates(log)
    assert rates(log + line(400.4)) == [400]
    assert rates(log + "\n".join(map(line, (10, 20, 2999.6, 3100)))) == [3000, 3100]


def test_without_a_gpu_it_says_so_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_gpu"])
    monkeypatch.setattr(bench_gpu, "program", lambda *_: pytest.fail("a program was run"))
    bench_gpu.main()
    assert "needs a GPU" in capsys.readouterr().out
