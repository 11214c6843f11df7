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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from efafnet.models.settings import Settings
from efafnet.pipelines.synth.version import drawing_digest
from efafnet.platform import console, interruption, machine
from efafnet.platform.configuration import absolute_paths
from efafnet.platform.interruption import report_stop, was_terminated
from efafnet.platform.locks import LockHeldError, hold
from efafnet.platform.mlflow_pages import TRAINING_VIEW, UI
from efafnet.platform.provenance import processor
from efafnet.platform.storage import make_directory, read_json, write_json

_RECORD = "demo.json"
_LOCK = "lock"

MEASURED = ((100_000, 0.52), (150_000, 0.55), (487_000, 0.62))
"""Samples, and the AP that the demo's recipe reached with them on unseen people: the first two are demos of eight
minutes on two CPUs, the last is training alone, on 5,000 pictures in one process (docs/training.md)."""

_EVALUATION_S, _REPORT_S = 20.0, 8.0
"""Seconds of these stages, one process each: twice their CPU seconds on a core with AVX-512 (7.2 and 4.0), and more; in
a longer demo they take no longer."""
_SEARCH_SHARE, _SEARCH_S = 0.15, (50.0, 120.0)
"""Share of the minutes that is kept for the search, and the fewest and the most seconds: trials have an end."""
_AROUND_TRAINING_S = 35.0
"""Starting Ray's workers, their imports, the last validation and the upload to MLflow: seconds beside the loop's."""
_AROUND_SEARCH_S = 50.0
"""The same of a search, with the validations of six trials."""
_PICTURES_PER_MINUTE = 500
"""Pictures to learn from. With 2,000 of them AP stands still at .51 from 210,000 samples on (docs/training.md)."""
_TRIALS = 6
_LEAST_TRAINING_S = 60.0
_TRIAL_SAMPLES = (800, 8000)
"""Fewest samples that tell trials apart, and more than a search needs here."""


class DemoConfig(Settings):
    """The whole road on synthetic people: draw, prepare, train, evaluate, search, report."""

    out: Path = Path("demo")
    """Directory of everything the demo makes. What an interrupted demo finished there is not done again."""
    size: Literal["full", "small"] = "full"
    """full: trains to a useful network in `minutes`. small: a minute, to see that all works."""
    minutes: float = Field(default=8, ge=4)
    """Minutes on the clock for all stages of the full size: training takes what the others leave."""
    seed: int = Field(default=0, ge=0)
    """Seed of the people, of the training and of the search."""


@dataclass(frozen=True)
class Stage:
    """One stage: its name, what it is for, its command lines, and how to say what came out."""

    name: str
    purpose: str
    commands: Callable[[Clock], tuple[tuple[str, ...], ...]]
    """The command lines, given what the clock says when the stage begins."""
    result: Callable[[], str]


@dataclass(frozen=True)
class Clock:
    """The demo's budget of time."""

    total_s: float
    """Seconds for all stages together."""
    spent_s: float
    """Seconds of the finished stages."""

    @property
    def training_s(self) -> float:
        """Seconds of the training loop: what is left of the total once the stages after it have theirs."""
        fewest, most = _SEARCH_S
        search = min(most, max(fewest, _SEARCH_SHARE * self.total_s))
        left = self.total_s - self.spent_s - _AROUND_TRAINING_S - _EVALUATION_S - search - _REPORT_S
        return float(max(_LEAST_TRAINING_S, round(left)))

    def trial_samples(self, samples_per_s: float) -> int:
        """Samples of each trial so that six of them, half of which end half-way, fit before the report."""
        left = self.total_s - self.spent_s - _REPORT_S - _AROUND_SEARCH_S
        fewest, most = _TRIAL_SAMPLES
        return int(min(most, max(fewest, left * samples_per_s / (0.75 * _TRIALS) // 100 * 100)))


class DemoError(ValueError):
    """A stage failed; the message names it and its command."""


def run_demo(config: DemoConfig) -> None:
    """Run all stages that are not done yet and tell what happened.

    Raises:
        ValueError: the directory holds another demo or something else, or another process runs a demo there.
        DemoError: a stage failed.
    """
    config = absolute_paths(config)
    _check_place(config)
    make_directory(config.out)
    try:
        with hold(config.out / _LOCK):
            _run_stages(config)
    except LockHeldError as held:
        raise ValueError(
            f"{config.out}: {held.holder} runs a demo there; wait until it has ended, or name another directory"
        ) from None


def _run_stages(config: DemoConfig) -> None:
    record = _open_record(config)
    done: list[dict[str, Any]] = record["stages"]
    stages = stages_of(config)
    for number, stage in enumerate(stages[len(done) :], start=len(done) + 1):
        console.say()
        console.say(f"── {number}/{len(stages)} {stage.name}: {stage.purpose}", style="bold")
        began = time.monotonic()
        try:
            for command in _commands(config, record, stage):
                run_command(stage.name, command)
        except KeyboardInterrupt as stop:
            report_stop(stop, f"to go on with stage {number} of {len(stages)}, {stage.name}: {_again(config)}")
            raise
        except DemoError as error:
            raise DemoError(f"{error}. To go on there: {_again(config)}") from None
        done.append({"stage": stage.name, "seconds": time.monotonic() - began, "result": stage.result()})
        write_json(config.out / _RECORD, record)
    tell(config, done)


def _commands(config: DemoConfig, record: dict[str, Any], stage: Stage) -> Sequence[Sequence[str]]:
    """The command lines of a stage; those of one that was interrupted are given again to the letter."""
    begun: dict[str, list[list[str]]] = record["begun"]
    if stage.name not in begun:
        clock = Clock(60 * config.minutes, sum(entry["seconds"] for entry in record["stages"]))
        begun[stage.name] = [list(command) for command in stage.commands(clock)]
        write_json(config.out / _RECORD, record)
    return begun[stage.name]


def _again(config: DemoConfig) -> str:
    given = {"size": config.size, "minutes": f"{config.minutes:g}", "seed": config.seed}
    words = [f"{name}={value}" for name, value in given.items() if name in config.model_fields_set]
    return shlex.join(["efafnet", "demo", str(config.out), *words])


def _check_place(config: DemoConfig) -> None:
    """Raise ValueError for a directory of other things, before anything is written there."""
    out = config.out
    if out.is_dir() and not (out / _RECORD).exists() and any(path.name != _LOCK for path in out.iterdir()):
        raise ValueError(f"{out} exists and holds no demo; name a directory that does not exist yet")


def _open_record(config: DemoConfig) -> dict[str, Any]:
    """What an earlier, interrupted demo did here; ValueError where that is another demo."""
    file = config.out / _RECORD
    identity = {"size": config.size, "minutes": config.minutes, "seed": config.seed}
    if not file.exists():
        begun: dict[str, Any] = {
            "settings": identity, "drawing": drawing_digest(), "out": str(config.out), "begun": {}, "stages": []
        }  # fmt: skip
        write_json(file, begun)
        return begun
    record: dict[str, Any] = read_json(file)
    if record.get("drawing") != drawing_digest():
        raise ValueError(f"{config.out} holds a demo of another version; name another directory, or remove it")
    if record["settings"] != identity:
        raise ValueError(f"{config.out} holds a demo with {record['settings']}; name another directory, or remove it")
    # The command lines of stages that were begun name the place where they were.
    place = record.get("out", str(config.out))
    if place != str(config.out) and len(record["stages"]) < len(stages_of(config)):
        raise ValueError(
            f"{config.out} holds a demo that was begun in {place} and is not finished; move it back, or name another "
            "directory"
        )
    return record


def stages_of(config: DemoConfig) -> list[Stage]:
    """The stages in the order the data flows."""
    out, small = config.out, config.size == "small"
    people, tracking = out / "people", f"sqlite:///{out}/mlflow.db"
    pictures = round(_PICTURES_PER_MINUTE * config.minutes)
    images = ("images.train=60", "images.val=20") if small else (f"images.train={pictures}", "images.val=400")
    synth = ("synth", str(people), "people=clear", *images, f"seed={config.seed}", "overwrite=true")
    prepare = tuple(
        ("prepare", f"{people}/annotations/{split}.json", f"{people}/images/{split}", str(_store(out, split)),
         "envelope.inputs=[96x64, 128x96]")
        for split in ("train", "val")
    )  # fmt: skip
    base = ("synth_nano", f"data.train={_store(out, 'train')}", f"data.val={_store(out, 'val')}", f"runs={out}/runs",
            f"seed={config.seed}", f"tracking.uri={tracking}", "tracking.experiment=demo",
            *(("network.base_width=8",) if small else ()))  # fmt: skip
    evaluate = ("evaluate", f"{out}/runs/efafnet", str(_store(out, "val")), f"output={out}/evaluation",
                "overwrite=true", "mlflow=true")  # fmt: skip
    report = ("report", f"out={out}/report.html", f"uri={tracking}", "experiment=demo", "title=The demo's runs")

    def train(clock: Clock) -> tuple[tuple[str, ...], ...]:
        budget: tuple[str, ...] = ("max_samples=480", "validation.every_epochs=4")
        if not small:
            budget = (f"max_time_s={clock.training_s:.0f}", "epochs=1000", "validation.every_epochs=6")
        return (("train", *base, "name=efafnet", *budget),)

    # From the trained network: from scratch, so few samples teach nothing, and the search would rank noise. Each trial
    # in one process, which the next one takes over: so short a training would spend its time on starting workers.
    def tune(clock: Clock) -> tuple[tuple[str, ...], ...]:
        # One after the other: the second process would import for longer than a trial takes.
        trials: tuple[str, ...] = ("max_samples=192", "search.trials=3", "search.validations=2", "search.concurrency=1")
        if not small:
            samples = clock.trial_samples(_speed(_final(out)))
            trials = (f"max_samples={samples}", f"search.trials={_TRIALS}", "search.validations=2", "search.grace=0.5")
        return (("tune", "demo", *base, "name=search", f"init={out}/runs/efafnet", "workers=0",
                 "tracking.system_metrics_every_s=null", f"search.seed={config.seed}", *trials),)  # fmt: skip

    return [
        Stage("synth", "draw people and annotate them", lambda _: (synth,), lambda: _people(out)),
        Stage("prepare", "cut one crop per person, many with Ray Data", lambda _: prepare, lambda: _crops(out)),
        Stage("train", "EFAFNet on two workers, with Ray Train", train, lambda: _training(out)),
        Stage("evaluate", "measure it on people it never saw", lambda _: (evaluate,),
              lambda: _evaluation(out)),
        Stage("tune", "search how best to train on, with Ray Tune and Optuna", tune, lambda: _search(out)),
        Stage("report", "compare all runs in one page", lambda _: (report,), lambda: str(out / "report.html")),
    ]  # fmt: skip


def run_command(stage: str, command: Sequence[str]) -> None:
    """Run one command of this program in a process of its own, its output on this terminal.

    Raises:
        DemoError: it failed; its own message has been shown.
        KeyboardInterrupt: it was interrupted, and had time to close what it was at.
    """
    console.say("$ efafnet " + shlex.join(command), style="cyan")
    arguments = [sys.executable, "-m", "efafnet.pipelines", *command]
    # In a process group of its own: a signal reaches it once, from here, and leaves it time to end in order.
    with subprocess.Popen(arguments, process_group=0, stderr=console.error_descriptor()) as running:
        try:
            code = running.wait()
        except KeyboardInterrupt as stop:
            running.send_signal(signal.SIGTERM if was_terminated(stop) else signal.SIGINT)
            # A little less than both have: whatever blocks there, how to go on is said here.
            with suppress(subprocess.TimeoutExpired):
                running.wait(0.8 * interruption.GRACE_S)
            raise
    if code:
        raise DemoError(f"the stage {stage} ended with exit code {code}; its message stands above")


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


def _final(out: Path) -> dict[str, float]:
    found: dict[str, float] = read_json(out / "runs" / "efafnet" / "result.json")["metrics"]
    return found


def _speed(figures: dict[str, float]) -> float:
    return figures["last/samples"] / figures["elapsed_s"]


def _training(out: Path) -> str:
    figures = _final(out)
    precision = read_json(out / "runs" / "efafnet" / "run.json")["identity"]["precision"]
    return (
        f"AP {figures['ap']:.3f} after {figures['last/samples']:.0f} samples: {_speed(figures):.0f}/s with validation, "
        f"in {precision}"
    )


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
    rows.append(["all", f"{total:.0f} s", f"on {machine.cores()} cores ({processor()})"])
    console.table(["stage", "time", "result"], rows, title=f"the demo in {out}")
    metrics = read_json(out / "evaluation" / "metrics.json")
    persons = read_json(_store(out, "val") / "manifest.json")["counts"]["persons"]
    console.say(verdict(config.size, metrics["figures"]["ap"], persons, _final(out)["last/samples"]))
    console.say(f"pictures:  {out}/evaluation/best.jpg, worst.jpg, errors.png; the people: {out}/people/images/val")
    console.say(f"report:    {out}/report.html")
    console.say(f"best trial as a preset:  efafnet train {shlex.quote(f'{out}/runs/search/best.yaml')}")
    serving = f"mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{out}/mlflow.db')}"
    console.say(f"MLflow:    {UI}/#/experiments/1/runs?{TRAINING_VIEW} after: {serving}")


def verdict(size: str, ap: float, persons: int, samples: float) -> str:
    """Say what the network reached, and what more would bring."""
    reached = f"validation AP {ap:.3f} on {persons} people that training never saw"
    if size == "small":
        return f"{reached}: this size trains for seconds and shows only that the road is open"
    figures = ", ".join(f"{measured:.2f} after {count:,}" for count, measured in MEASURED)
    return (
        f"{reached}, after {samples:,.0f} samples (measured elsewhere: {figures}; more minutes= draw more people and "
        "train longer). The network "
        "is EFAFNet without FASM, whose many small kernels make a CPU's step 15 to 45 % longer: in minutes, the lost "
        "samples are worth more than what it adds. network.fam=26w4s network.fsm=parallel bring it back."
    )
