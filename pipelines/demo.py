"""``efafnet demo``: the whole road on synthetic people, each stage by its own command, so that they meet in files only.

A demo that was interrupted goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from efafnet.models.settings import Settings
from efafnet.platform import console
from efafnet.platform.configuration import absolute_paths
from efafnet.platform.interruption import told, was_terminated
from efafnet.platform.storage import make_directory, read_json, write_json

TARGET_AP = 0.55
"""Validation AP that the full demo should reach on people it never trained on. It reached .25 when last measured."""
_RECORD = "demo.json"


class DemoConfig(Settings):
    """The whole road on synthetic people: draw, prepare, train, evaluate, search, report."""

    out: Path = Path("demo")
    """Directory of everything the demo makes. What an interrupted demo finished there is not done again."""
    size: Literal["full", "small"] = "full"
    """full: trains to a useful network, under ten minutes on two CPU cores. small: a minute, to see that all works."""
    seed: int = Field(default=0, ge=0)
    """Seed of the people, of the training and of the search."""


@dataclass(frozen=True)
class Amounts:
    """How much of everything a size means."""

    images: tuple[int, int]
    """Pictures to train on, and to validate on."""
    train: tuple[str, ...]
    """Settings of the training."""
    tune: tuple[str, ...]
    """Settings of the search."""


AMOUNTS = {
    "full": Amounts(
        images=(5400, 400),
        train=("max_samples=120000", "validation.every_epochs=4"),
        tune=("max_samples=4000", "search.trials=6", "search.validations=2", "search.grace=0.5"),
    ),
    "small": Amounts(
        images=(60, 20),
        train=("network.base_width=8", "max_samples=960", "validation.every_epochs=4"),
        tune=("network.base_width=8", "max_samples=480", "search.trials=3", "search.validations=2"),
    ),
}


@dataclass(frozen=True)
class Stage:
    """One stage: its name, what it is for, its command lines, and how to say what came out."""

    name: str
    purpose: str
    commands: tuple[tuple[str, ...], ...]
    result: Callable[[], str]


class DemoError(ValueError):
    """A stage failed; the message names it and its command."""


def run_demo(config: DemoConfig) -> None:
    """Run all stages that are not done yet and tell what happened."""
    config = absolute_paths(config)
    record = _open_record(config)
    stages = stages_of(config)
    done: list[dict[str, Any]] = record["stages"]
    for number, stage in enumerate(stages, start=1):
        if number <= len(done):
            continue
        console.say()
        console.say(f"── {number}/{len(stages)} {stage.name}: {stage.purpose}", style="bold")
        began = time.monotonic()
        for command in stage.commands:
            run_command(stage.name, command)
        done.append({"stage": stage.name, "seconds": time.monotonic() - began, "result": stage.result()})
        write_json(config.out / _RECORD, record)
    tell(config, done)


def _open_record(config: DemoConfig) -> dict[str, Any]:
    """What an earlier, interrupted demo did here.

    Raises:
        ValueError: the directory holds another demo, or something else.
    """
    file, identity = config.out / _RECORD, {"size": config.size, "seed": config.seed}
    if file.exists():
        record: dict[str, Any] = read_json(file)
        if record["settings"] != identity:
            raise ValueError(
                f"{config.out} holds a demo with {record['settings']}; name another directory, or remove it"
            )
        return record
    if config.out.is_dir() and any(config.out.iterdir()):
        raise ValueError(f"{config.out} exists and holds no demo; name a directory that does not exist yet")
    make_directory(config.out)
    record = {"settings": identity, "stages": []}
    write_json(file, record)
    return record


def stages_of(config: DemoConfig) -> list[Stage]:
    """The stages in the order the data flows."""
    out, amounts = config.out, AMOUNTS[config.size]
    people, tracking = out / "people", f"sqlite:///{out}/mlflow.db"
    images = (f"images.train={amounts.images[0]}", f"images.val={amounts.images[1]}")
    prepare = [
        ("prepare", f"{people}/annotations/{split}.json", f"{people}/images/{split}", str(_store(out, split)),
         "envelope.inputs=[96x64, 128x96]")
        for split in ("train", "val")
    ]  # fmt: skip
    base = ("synth_nano", f"data.train={_store(out, 'train')}", f"data.val={_store(out, 'val')}", f"runs={out}/runs",
            f"seed={config.seed}", f"tracking.uri={tracking}", "tracking.experiment=demo")  # fmt: skip
    evaluate = ("evaluate", f"{out}/runs/efafnet", str(_store(out, "val")), f"output={out}/evaluation",
                "overwrite=true", "mlflow=true")  # fmt: skip
    # From the trained network: from scratch, so few samples teach nothing, and the search would rank noise. Each trial
    # in one process, which the next one takes over: so short a training would spend its time on starting workers.
    tune = ("tune", "demo", *base, "name=search", f"init={out}/runs/efafnet", "workers=0",
            "tracking.system_metrics_every_s=null", f"search.seed={config.seed}", *amounts.tune)  # fmt: skip
    report = ("report", f"out={out}/report.html", f"uri={tracking}", "experiment=demo", "title=The demo's runs")
    return [
        Stage("synth", "draw people and annotate them",
              (("synth", str(people), "people=clear", *images, f"seed={config.seed}", "overwrite=true"),),
              lambda: _people(out)),
        Stage("prepare", "cut one crop per person, with Ray Data", tuple(prepare), lambda: _crops(out)),
        Stage("train", "EFAFNet on two workers, with Ray Train",
              (("train", *base, "name=efafnet", *amounts.train),), lambda: _training(out)),
        Stage("evaluate", "measure it on people it never saw, with Ray Data", (evaluate,), lambda: _evaluation(out)),
        Stage("tune", "search how best to train on, with Ray Tune and Optuna", (tune,), lambda: _search(out)),
        Stage("report", "compare all runs in one page", (report,), lambda: str(out / "report.html")),
    ]  # fmt: skip


def run_command(stage: str, command: Sequence[str]) -> None:
    """Run one command of this program in a process of its own, its output on this terminal.

    Raises:
        DemoError: it failed; its own message has been shown.
    """
    console.say("$ efafnet " + shlex.join(command), style="cyan")
    # In a process group of its own: a signal reaches it once, from here, and leaves it time to end in order.
    with subprocess.Popen([sys.executable, "-m", "efafnet.pipelines", *command], process_group=0) as running:
        try:
            code = running.wait()
        except KeyboardInterrupt as stop:
            running.send_signal(signal.SIGTERM if was_terminated(stop) else signal.SIGINT)
            running.wait()
            told(stop, f"the same demo command goes on with the stage {stage}")
            raise
    if code:
        raise DemoError(
            f"the stage {stage} ended with exit code {code}; its message stands above. "
            "The same demo command goes on from here"
        )


# ---- what came out, read from the files of each stage


def _store(out: Path, split: str) -> Path:
    return out / "crops" / split


def _people(out: Path) -> str:
    parts = []
    for split in ("train", "val"):
        content = read_json(out / "people" / "annotations" / f"{split}.json")
        parts.append(f"{split}: {len(content['annotations'])} people in {len(content['images'])} pictures")
    return "; ".join(parts)


def _crops(out: Path) -> str:
    parts = []
    for split in ("train", "val"):
        manifest = read_json(_store(out, split) / "manifest.json")
        rejects = ", ".join(f"{count} {reason}" for reason, count in manifest["rejects"].items()) or "none"
        parts.append(f"{split}: {manifest['counts']['persons']} persons, left out: {rejects}")
    return "; ".join(parts)


def _training(out: Path) -> str:
    figures = read_json(out / "runs" / "efafnet" / "result.json")["metrics"]
    speed = figures["samples"] / figures["elapsed_s"]
    return f"AP {figures['ap']:.3f} after {figures['samples']:.0f} samples ({speed:.0f}/s with validation)"


def _evaluation(out: Path) -> str:
    figures = read_json(out / "evaluation" / "metrics.json")["figures"]
    return f"AP {figures['ap']:.3f}, AP50 {figures['ap_50']:.3f}, AP75 {figures['ap_75']:.3f}, AR {figures['ar']:.3f}"


def _search(out: Path) -> str:
    result = read_json(out / "runs" / "search" / "result.json")
    ends = ", ".join(f"{count} {end}" for end, count in result["trials"].items() if count)
    if result["best_trial"] is None:
        return f"{ends}; no trial ran to its end"
    return f"{ends}; best: trial {result['best_trial']}, AP {result['best_value']:.3f}, {result['best_name']}"


def tell(config: DemoConfig, done: Sequence[dict[str, Any]]) -> None:
    """Print what happened, what the network reached, and where to look."""
    out = config.out
    console.say()
    rows = [[entry["stage"], f"{entry['seconds']:.0f} s", entry["result"]] for entry in done]
    total = sum(entry["seconds"] for entry in done)
    console.table(["stage", "time", "result"], [*rows, ["all", f"{total:.0f} s", ""]], title=f"the demo in {out}")
    ap = read_json(out / "evaluation" / "metrics.json")["figures"]["ap"]
    persons = read_json(_store(out, "val") / "manifest.json")["counts"]["persons"]
    console.say(verdict(config.size, ap, persons))
    console.say(f"report:    {out}/report.html")
    console.say(f"pictures:  {out}/evaluation/best.jpg, worst.jpg")
    console.say(f"best trial as a preset:  efafnet train {out}/runs/search/best.yaml")
    console.say(f"MLflow:    mlflow ui --backend-store-uri sqlite:///{out}/mlflow.db")


def verdict(size: str, ap: float, persons: int) -> str:
    """Say honestly what the network reached."""
    told = f"validation AP {ap:.3f} on {persons} people that training never saw"
    if size == "small":
        return f"{told}: this size trains for seconds and shows only that the road is open"
    if ap < TARGET_AP:
        return f"{told}: BELOW the target of {TARGET_AP}. Known: so short a training does not reach it on these people"
    return f"{told} (target {TARGET_AP})"
