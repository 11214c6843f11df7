"""What Ray, MLflow and checkpoints cost a training run, how long it takes to start, and what a second worker gains.

    python -m benchmarks.bench_training

Synthetic people are drawn and prepared first. Then runs of the same samples in the same batches take turns, each in new
processes: the bare loop (no Ray, no MLflow, one checkpoint at the end); the loop of `efafnet train workers=1` (Ray
Train, MLflow, a checkpoint an epoch); the same with two workers. Speed is samples over the seconds of the loop, its
first step and its checkpoints included. Last, the command's time to its first step, and the cost of a checkpoint of
EFAFNet R50.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.record import Record, add_option, recorded
from efafnet.models.cost import network_cost
from efafnet.pipelines.training import loop
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.config_groups import CheckpointConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.inputs import open_inputs
from efafnet.pipelines.training.preparation import build_trainee
from efafnet.pipelines.training.ray_run import train
from efafnet.pipelines.training.state import Checkpoints, Progress
from efafnet.platform import console
from efafnet.platform.cluster import ClusterConfig, connect
from efafnet.platform.configuration import apply_overrides, load_preset, resolve

BARE = ("workers=0", "tracking.enabled=false", "checkpoint.every_epochs=9999")
ARMS = {"bare loop": BARE, "train, 1 worker": ("workers=1",), "train, 2 workers": ("workers=2",)}
"""The first is what the others are compared with."""


def efafnet(*words: str) -> None:
    """Run a command of this program quietly."""
    subprocess.run([sys.executable, "-m", "efafnet.pipelines", *words], check=True, stdout=subprocess.DEVNULL)


def make_store(folder: Path) -> Path:
    """Draw people and cut their crops."""
    people, store = folder / "people", folder / "crops"
    efafnet("synth", str(people), "images.train=300", "images.val=20")
    annotations, images = people / "annotations" / "train.json", people / "images" / "train"
    efafnet("prepare", str(annotations), str(images), str(store), "envelope.inputs=[96x64, 128x96]")
    return store


def config_of(folder: Path, store: Path, *settings: str) -> TrainConfig:
    """A run without validation on the store."""
    places = (f"data.train={store}", f"runs={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db")
    return resolve(TrainConfig, apply_overrides(load_preset("synth_nano"), [*places, *settings]))


def samples_per_s(config: TrainConfig) -> float:
    """Train a run and return its speed."""
    if config.workers:
        metrics = train(config).metrics
    else:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        # A new process, as Ray's worker is one: what is done once for each process counts for both.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            metrics = pool.submit(bare_run, config).result()
    return metrics["last/samples"] / metrics["elapsed_s"]


def bare_run(config: TrainConfig) -> dict[str, float]:
    """Train in this process and return the last figures."""
    torch.set_num_threads(1)
    return loop.run(config, _Silent(torch.device("cpu"))).metrics


class _Silent(PlainContext):
    def say(self, line: str) -> None:
        """Say nothing."""


def compare(folder: Path, store: Path, samples: int, rounds: int, record: Record) -> None:
    """Let the arms take turns and print their speeds."""
    speeds: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(rounds):
        for number, (name, settings) in enumerate(ARMS.items()):
            run = config_of(folder, store, f"name=turn{turn}-{number}", f"max_samples={samples}", *settings)
            speeds[name].append(samples_per_s(run))
    base = speeds["bare loop"]
    for name, found in speeds.items():
        record.add(name, "samples/s", found, more_is_better=True)
    rows = []
    for name, found in speeds.items():
        ratios = [mine / bare for mine, bare in zip(found, base, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([name, f"{statistics.median(found):.0f}", f"{statistics.median(ratios):.3f}", spread])
    console.table(["run", "samples/s", "times bare, median of the turns", "of the turns"], rows)


def first_step_s(folder: Path, store: Path, workers: int) -> float:
    """Seconds from the command to the first finished step."""
    words = [f"workers={workers}", f"name=start{workers}-{time.monotonic_ns()}", "max_samples=128", "log_every_steps=1"]
    config = config_of(folder, store, *words)
    words += [f"data.train={store}", f"runs={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    command = [sys.executable, "-m", "efafnet.pipelines", "train", "synth_nano", "cluster.address=local", *words]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = config.run_dir / "train.log"
    while not (log.exists() and "step 1/" in log.read_text()):
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} failed")
        time.sleep(0.02)
    seconds = time.monotonic() - began
    process.wait()
    return seconds


def checkpoint_cost(folder: Path, store: Path, rounds: int, record: Record) -> None:
    """Print what a checkpoint of EFAFNet R50 with Adam and a moving average costs."""
    wide = ("network={encoder: resnet50}", "input=256x192", "optimizer.ema_decay=0.999", "name=large")
    config = config_of(folder, store, *wide)
    inputs, context = open_inputs(config_of(folder, store)), PlainContext(torch.device("cpu"))
    trainee = build_trainee(config, inputs, context)
    for parameter in trainee.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainee.optimizer.step()
    checkpoints = Checkpoints(folder / "large", CheckpointConfig())
    stops, writes = [], []
    for step in range(1, rounds + 1):
        began = time.perf_counter()
        checkpoints.save(trainee, Progress(step=step), {}, {}, final=False)
        stops.append(time.perf_counter() - began)
        checkpoints.wait()
        writes.append(time.perf_counter() - began)
    checkpoints.close()
    record.add("checkpoint, training stops", "s", stops)
    record.add("checkpoint, until it is whole", "s", writes)
    size = sum(file.stat().st_size for file in checkpoints.all()[-1].iterdir()) / 1e6
    parameters = network_cost(config.network, inputs.skeleton.num_joints, config.input).params_m
    console.say(
        f"checkpoint of EFAFNet R50 ({parameters:.1f} M parameters, {size:.0f} MB): training stops for "
        f"{statistics.median(stops):.2f} s, the file is whole after {statistics.median(writes):.2f} s"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=7680, help="samples of each run")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each run")
    add_option(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with recorded("bench_training", given) as record, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder)
        checkpoint_cost(folder, store, given.rounds, record)
        starts = {w: [first_step_s(folder, store, w) for _ in range(given.rounds)] for w in (0, 1)}
        for workers, found in starts.items():
            record.add(f"to the end of the first step, workers={workers}", "s", found)
        shown = ", ".join(f"workers={w}: {statistics.median(found):.1f} s" for w, found in starts.items())
        console.say(f"from the command to the end of the first step, median of {given.rounds}: {shown}")
        connect(ClusterConfig(address="local", num_cpus=2))
        compare(folder, store, given.samples, given.rounds, record)


if __name__ == "__main__":
    main()
