"""What a run says of itself: before its first step what it is and where everything lies, at its end what came out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from efafnet.models.cost import network_size
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.bootstrap import Interval
from efafnet.pipelines.evaluation.config import ScoringConfig
from efafnet.pipelines.evaluation.scoring import FIGURE_NAMES, Scored, show
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import pick_device
from efafnet.pipelines.training.costs import cost_of
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.rundir import RunRecord, TrainResult
from efafnet.pipelines.training.validation import SCORES, pictures_of
from efafnet.platform import console, machine
from efafnet.platform.mlflow_pages import page_of
from efafnet.platform.storage import read_json


def introduce(config: TrainConfig, inputs: Inputs) -> None:
    """Say before the first step what is trained on what, for how long, where it lies, how to stop and to go on.

    Its name was said before this. What the devices compute with is said by the workers, once they have agreed on it,
    and where MLflow shows the run once it is there.
    """
    _print_row("data", store_text("train", inputs.train))
    _print_row("", "val: none" if inputs.val is None else store_text("val", inputs.val))
    _print_row("length", _length_text(config, inputs))
    _print_row("workers", _share_text(config))
    _print_row("stop", f"Ctrl-C; the same command goes on from the last checkpoint ({_checkpoints_text(config)})")
    if inputs.val is None:
        console.warn(
            "no data.val: nothing is validated, no checkpoint is the best, and the result has no figure; give "
            "data.val=STORE to see what the network is worth"
        )
    _print_row("network", network_text(config, inputs))


def print_address(record: RunRecord) -> None:
    """Print where MLflow shows the run, if it does."""
    if address := address_of(record):
        _print_row("MLflow", address)


def _print_row(name: str, text: str) -> None:
    console.note(f"  {name:<8} {text}")


def store_text(name: str, store: CropStore) -> str:
    """A store's persons, images and digest, and where it lies."""
    counts = store.manifest.counts
    images = f"{counts.images_read:,} image{'s'[: counts.images_read != 1]}"
    return f"{name}: {store.num_persons:,} persons of {images}, digest {store.digest[:12]}, {store.location}"


def network_text(config: TrainConfig, inputs: Inputs) -> str:
    """The network, what it weighs and what one crop costs; auxiliary heads are not counted."""
    skeleton = inputs.skeleton
    size = network_size(config.network, skeleton.num_joints, config.input)
    sizes = f"{size.params_m:.2f} M parameters, {size.gmac:.3g} GMAC a crop"
    joints = f"{skeleton.num_joints} joints of {skeleton.name}"
    return f"{config.network.short_name} at {config.input} (height x width), {sizes}; {joints}"


def _length_text(config: TrainConfig, inputs: Inputs) -> str:
    plan = inputs.plan(config)
    epochs = plan.epoch(plan.steps)
    text = f"{plan.steps:,} steps of {config.batch_size} crops: {epochs:.4g} epochs"
    if plan.steps < plan.full_steps:
        text += f" (max_samples; epochs={config.epochs:g} would be {plan.full_steps:,} steps)"
    elif f"{epochs:.4g}" != f"{config.epochs:.4g}":
        text += f" ({config.epochs:g}, and the last step is a whole one)"
    if config.max_time_s is not None:
        text += f", at most {console.clock(config.max_time_s)}"
    every = config.validation.every_epochs
    if inputs.val is not None:
        text += "; validated at the end" if every is None else f"; validated every {every:g} epochs and at the end"
    return text


def _share_text(config: TrainConfig) -> str:
    if config.workers == 0:
        return f"none but this process, without Ray, on {machine.describe(pick_device(config.device))}"
    least, more = divmod(config.batch_size, config.workers)
    crops = f"{least} or {least + 1}" if more else f"{least}"
    fewest = f" (as few as {config.worker.fewest} while nodes are missing)" if config.worker.fewest else ""
    return f"{config.workers} of Ray{fewest}, {crops} crops of each batch to each"


def _checkpoints_text(config: TrainConfig) -> str:
    every = config.checkpoint
    parts = (
        ["each epoch" if every.every_epochs == 1 else f"every {every.every_epochs:g} epochs"]
        if every.every_epochs
        else []
    )
    parts += [f"every {every.every_steps} steps"] if every.every_steps else []
    return f"one {' and '.join(parts)}"


def address_of(record: RunRecord) -> str:
    """Where MLflow shows the run, and for a store in a file how to look at it; empty where it is not recorded."""
    if record.mlflow_run_id is None or record.tracking_uri is None:
        return ""
    return page_of(record.tracking_uri, record.mlflow_run_id)


# ---- the end


def conclude(config: TrainConfig, result: TrainResult, record: RunRecord | None) -> None:
    """Show how a run ended: the figures as evaluate prints them, best and last apart, and what one would do next."""
    if result.resumed:
        console.say(f"run {result.run_dir} had ended before; remove it or choose another name=… to train again")
    figures = result.metrics
    names = [name for name in FIGURE_NAMES if name in figures]
    step, pictures = int(figures["step"]), pictures_of(config, int(figures["step"]))
    console.say(f"checkpoint: {result.checkpoint}")
    if names:
        console.say(f"best: step {step}, epoch {figures['epoch']:.4g}, on {config.data.val}")
        show(_scored({name: figures[name] for name in names}, pictures), ScoringConfig())
    if "last/step" in figures:
        console.say(_last_text(figures, names))
    console.say(f"cost: {cost_of(config).text(config.cost.currency)}")
    if pictures.is_dir():
        console.say(f"pictures: {pictures}")
    if record is not None and (address := address_of(record)):
        console.say(f"MLflow: {address}")
    for command in next_commands(config, result):
        console.say(f"next: {command}")


def _scored(figures: dict[str, float], folder: Path) -> Scored:
    """The figures with the intervals that their validation wrote, if it did."""
    file = folder / SCORES
    told = read_json(file).get("intervals", {}) if file.exists() else {}
    return Scored(figures, {name: Interval(**ends) for name, ends in told.items() if name in figures})


def _last_text(figures: Mapping[str, float], names: Sequence[str]) -> str:
    shown = [f"{name} {figures[f'last/{name}']:.4f}" for name in names if f"last/{name}" in figures][:1]
    text = f"last: step {figures['last/step']:.0f}, epoch {figures['last/epoch']:.4g}, "
    text += ", ".join([*shown, f"loss {figures['last/train_loss']:.6f}", f"{figures['last/samples']:,.0f} samples"])
    return text + f" in {console.clock(figures['elapsed_s'])}"


def next_commands(config: TrainConfig, result: TrainResult) -> list[str]:
    """The two commands one would type after a training: measure it, and look at what it finds."""
    store = config.data.val
    run = shlex.quote(str(result.run_dir))
    data = shlex.quote(str(store)) if store else "STORE"
    return [f"efafnet evaluate {run} {data}", f"efafnet predict {run} IMAGES --output predictions boxes=whole_image"]
