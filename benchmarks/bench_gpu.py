"""All that is to be seen on a GPU, in one call of a quarter of an hour: what is right there, and how fast it is.

    python -m benchmarks.bench_gpu [--only tests step compiled run] [--json NOW.json]

Four parts, each by programs of its own, so that what fails costs its own part only:

tests   the forms for GPUs against the plain ones; graphs, compiled steps and exchanged gradients against the step as
        written; that no step waits for the host. Some four minutes, most of them for compiling.
step    `benchmarks.bench_step`: where a step goes, part by part and in every setting. Under four minutes.
compiled  the compared networks compiled, by the same program. Some three minutes.
run     EFAFNet R50 on drawn people, trained for a minute in a plain process, then by a Ray worker, then by one that
        launches its steps as CUDA graphs: samples a second, beside those of bench_step's bare step. Some five minutes.

A machine that is lent for minutes may do one part a call. Ends with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_step import Table
from benchmarks.record import Record, add_option, recorded
from efafnet.pipelines.training.monitor import PASSING
from efafnet.platform import console

TESTS = ("test_on_gpu", "test_fsm_kernels", "test_aligned", "test_resampling")
BATCH = 128
BARE = f"efafnet_r50_256x192, bf16, channels_last, {BATCH} crops"
"""What bench_step calls the step that the runs are compared with."""
RUNS = {
    "plain process": ("workers=0",),
    "Ray worker": ("workers=1", "cluster.address=local"),
    "Ray worker, CUDA graphs": ("workers=1", "cluster.address=local", "compute.graph=on"),
}
PEOPLE = ("image_size=480x360", "images.train=2000", "images.val=0")
_SETTLED = 2
"""Lines of a run's log that are passed over: until then libraries choose their algorithms and queues are filled."""


def program(*words: str) -> None:
    """Run a program of this project and show what it says; raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", *words], check=True)


def tests() -> None:
    """Run the tests that see a GPU where there is one."""
    program("pytest", "-q", *(f"tests/{name}.py" for name in TESTS))


def step(folder: Path, record: Record, *tables: Table) -> None:
    """Run bench_step for these tables and take over its figures."""
    program("benchmarks.bench_step", "--only", *tables, "--json", str(folder / "step.json"))
    record.figures.update(Record.read(folder / "step.json").figures)


def settings_of(folder: Path, name: str, seconds: int) -> list[str]:
    """The words of a run after ``train``: without validations, and with a checkpoint at its end only."""
    number = list(RUNS).index(name)
    return [
        "coco_r50_256x192", f"data.train={folder}/crops", f"runs={folder}/runs", f"name=run-{number}",
        f"max_time_s={seconds}", f"batch_size={BATCH}", "compute.compile=off", "checkpoint.every_epochs=null",
        "checkpoint.every_steps=1000000", "log_every_steps=20", "tracking.enabled=false", *RUNS[name],
    ]  # fmt: skip


def run(folder: Path, seconds: int, record: Record) -> None:
    """Draw people, train on them in every way, print the speeds."""
    efafnet = ("efafnet.pipelines",)
    people = folder / "people"
    program(*efafnet, "synth", str(people), *PEOPLE)
    annotations, images = people / "annotations" / "train.json", people / "images" / "train"
    program(*efafnet, "prepare", str(annotations), str(images), str(folder / "crops"), "workers=0")
    bare = record.figures.get(BARE)
    bare_per_s = None if bare is None else BATCH / (min(bare.values) / 1000)
    rows: list[list[object]] = []
    for number, name in enumerate(RUNS):
        program(*efafnet, "train", *settings_of(folder, name, seconds))
        found = rates((folder / "runs" / f"run-{number}" / "train.log").read_text(encoding="utf-8"))
        record.add(f"EFAFNet R50, {name}", "samples/s", found, more_is_better=True)
        per_s = statistics.median(found)
        rows.append([name, f"{per_s:.0f}", "" if bare_per_s is None else f"{per_s / bare_per_s:.2f}"])
    console.table(["run", "samples/s", "of the bare step"], rows, title=f"EFAFNet R50, batch {BATCH}")


def rates(log: str) -> list[float]:
    """Samples a second in the lines of a run's log, once it has settled.

    Raises:
        ValueError: there are no such lines.
    """
    lines = [line for line in log.splitlines() if line.startswith(PASSING)]
    found = [float(match[1]) for line in lines if (match := re.search(r"(\d+) samples/s", line))]
    if not found:
        raise ValueError("the run's log holds no line with samples/s")
    return found[_SETTLED:] or found[-1:]


def main() -> None:
    """Run the parts and say which failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("tests", "step", "compiled", "run")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to run; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="length of each training run")
    add_option(parser)
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        console.say("bench_gpu needs a GPU, and torch sees none here: nothing was run")
        return
    failed: list[str] = []
    with recorded("bench_gpu", given, torch.device("cuda", 0)) as record, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls: dict[str, Callable[[], None]] = {
            "tests": tests,
            "step": lambda: step(folder, record, "parts", "modes"),
            "compiled": lambda: step(folder, record, "compiled"),
            "run": lambda: run(folder, given.seconds, record),
        }
        for part in given.only:
            try:
                calls[part]()
            except (subprocess.CalledProcessError, OSError, ValueError) as error:
                console.warn(f"{part} failed: {str(error).splitlines()[0][:200]}")
                failed.append(part)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
