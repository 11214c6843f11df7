"""What synthetic people are like, and what they teach: their shares beside real ones, and AP on real photographs.

    python -m benchmarks.bench_people shares --annotations person_keypoints_val2017.json
    python -m benchmarks.bench_people photographs --annotations FILE --images FOLDER --samples 100000
    python -m benchmarks.bench_people recipes --kinds clear --samples 40000 --recipes augmentation.padding=1.0
    python -m benchmarks.bench_people step

shares: people of each kind are drawn and counted; with --annotations, a COCO file of real ones stands beside them.
photographs: a nano network (preset synth_nano, one process) is trained on drawn people alone, and measured on unseen
ones of its kind and, by annotated boxes, on the real persons. This is the judge of every decision about the drawing.
Beside it stands what needs no network: every joint where it lies in the median box of the people trained on.
recipes: the demo's network trained in other ways on the same people: AP on unseen ones after equal samples, then after
equal processor time, by what the first runs took; the first is the preset. Spaces separate the settings of a recipe.
step: samples per second of processor time of that network's training step, by its parts, arithmetic and batch.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.bench_step import CPU_MODES, measure
from benchmarks.record import Record, add_option, recorded
from efafnet.models.network_config import NetworkConfig
from efafnet.models.settings import InputSize
from efafnet.models.variants import variant
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.pipelines.crops.prepare import PrepareConfig, run_prepare
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.columns import Truth, truth
from efafnet.pipelines.evaluation.config import EvaluateConfig
from efafnet.pipelines.evaluation.evaluate import Evaluation, run_evaluate
from efafnet.pipelines.evaluation.matching import NOBODY, oks_of_persons
from efafnet.pipelines.evaluation.oks import oks_of_pairs
from efafnet.pipelines.evaluation.predictions import Predictions
from efafnet.pipelines.evaluation.scoring import Scored
from efafnet.pipelines.synth.census import census, crowd_shares, records_of
from efafnet.pipelines.synth.dataset import SynthConfig, run_synth
from efafnet.pipelines.synth.kinds import People
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.costs import cost_of
from efafnet.pipelines.training.ray_run import train
from efafnet.platform import console
from efafnet.platform.configuration import apply_overrides, load_preset, resolve

ENVELOPE = Envelope(inputs=(InputSize(height=96, width=64),))


def draw(folder: Path, kind: People, seed: int, train: int, val: int) -> Path:
    """Draw a set."""
    out = folder / f"{kind}-{seed}"
    images = {"train": train, "val": val}
    run_synth(SynthConfig.model_validate({"out": out, "people": kind, "seed": seed, "images": images}))
    return out


def cut(folder: Path, name: str, annotations: Path, images: Path) -> Path:
    """Prepare a store."""
    out = folder / name
    run_prepare(PrepareConfig(annotations=annotations, images=images, out=out, envelope=ENVELOPE, workers=0))
    return out


def shares(given: argparse.Namespace, folder: Path, record: Record) -> None:  # noqa: ARG001 (nothing is better)
    """Print what the people of each kind are like."""
    found = {}
    for kind in given.kinds:
        file = draw(folder, kind, given.seed, given.pictures, 0) / "annotations" / "train.json"
        found[kind] = records_of(json.loads(file.read_text()))
    if given.annotations is not None:
        found[given.annotations.name] = records_of(json.loads(given.annotations.read_text()))
    columns = [census(records) for records in found.values()]
    rows = [[name, *(f"{column[name]:.3g}" for column in columns)] for name in columns[0]]
    rows.append(["pictures by fifths of the crowd index", *(_fifths(crowd_shares(r)) for r in found.values())])
    console.table(["share or median", *found], rows)


def _fifths(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def photographs(given: argparse.Namespace, folder: Path, record: Record) -> None:
    """Train on each kind and print AP on unseen people of the kind, and on real persons."""
    if given.annotations is None or given.images is None:
        raise SystemExit("photographs needs --annotations and --images of real persons")
    real = cut(folder, "real", given.annotations, given.images)
    rows = []
    for kind in given.kinds:
        learn, unseen = stores(given, folder, kind)
        config = trained(given, folder, kind, learn, given.samples, given.settings)
        for name, store in (("unseen people of the kind", unseen), ("the photographs", real)):
            evaluation = measured(folder, config.run_dir, store)
            scored = evaluation.scored
            # AP alone says little of a few persons whom the network hardly finds.
            told = [ap_of(scored), *(f"{scored.figures[figure]:.3f}" for figure in ("ap_50", "ar"))]
            own, median = mean_oks(evaluation.predictions, store), mean_oks_of_median(learn, store)
            rows.append([kind, f"{given.samples:,}", name, *told, f"{own:.3f}", f"{median:.3f}"])
            record.add(f"{kind}, {name}", "AP", [scored.figures["ap"]], more_is_better=True)
            record.add(f"{kind}, {name}", "mean OKS", [own], more_is_better=True)
    figures = ("AP", "AP50", "AR", "mean OKS", "of median places")
    console.table(["trained on", "samples", "measured on", *figures], rows)


def mean_oks(predictions: Predictions, store: Path) -> float:
    """Mean OKS of the persons of a store, each by its annotated box."""
    oks, person = oks_of_persons(predictions, truth_in(store), annotated_boxes=True)
    return float(oks[person != NOBODY].mean())


def mean_oks_of_median(learn: Path, store: Path) -> float:
    """The same if every joint lay where it lies, of the people in ``learn``, in the median box: without a look."""
    known, asked = truth_in(learn), truth_in(store)
    corner, sides = known.box_xywh_px[:, None, :2], known.box_xywh_px[:, None, 2:]
    seen = known.visibility[..., None] > 0
    place = np.nanmedian(np.where(seen, (known.joints_px - corner) / sides, np.nan), axis=0)
    guessed = asked.box_xywh_px[:, None, :2] + place * asked.box_xywh_px[:, None, 2:]
    oks = oks_of_pairs(
        guessed, asked.joints_px, asked.visibility, asked.area_px2, asked.box_xywh_px, asked.skeleton.sigmas
    )
    return float(oks[~asked.ignored].mean())


def truth_in(store: Path) -> Truth:
    """The annotated persons of a store."""
    return truth(CropStore.open(store).ground_truth())


def recipes(given: argparse.Namespace, folder: Path, record: Record) -> None:
    """Print AP of each recipe after equal samples, and after the processor time that the preset took for them."""
    learn, unseen = stores(given, folder, given.kinds[0])
    told, first_s = [], 0.0
    for number, recipe in enumerate(("", *given.recipes)):
        samples = given.samples
        for turn in ("samples", "processor time") if number else ("samples",):
            config = trained(given, folder, f"{number}-{turn[:4]}", learn, samples, recipe.split())
            spent_s = cost_of(config).cpu_s
            first_s = first_s or spent_s
            scored, name = measured(folder, config.run_dir, unseen).scored, recipe or "the preset"
            told.append([name, f"{samples:,}", f"{spent_s:.0f}", f"{samples / spent_s:.0f}", ap_of(scored)])
            record.add(f"{name}, equal {turn}", "AP", [scored.figures["ap"]], more_is_better=True)
            samples = round(samples * first_s / spent_s)
    console.table(["recipe", "samples", "processor seconds", "samples/s of them", "AP, unseen people"], told)


def stores(given: argparse.Namespace, folder: Path, kind: People) -> tuple[Path, Path]:
    """Stores of people of a kind to train on, and of others of it."""
    drawn = draw(folder, kind, given.seed, given.pictures, 0)
    fresh = draw(folder, kind, given.seed + 1, 0, 400)
    learn = cut(folder, f"{kind}-train", drawn / "annotations/train.json", drawn / "images/train")
    return learn, cut(folder, f"{kind}-val", fresh / "annotations/val.json", fresh / "images/val")


def trained(
    given: argparse.Namespace, folder: Path, name: str, learn: Path, samples: int, settings: Sequence[str]
) -> TrainConfig:
    """Train the nano network in this process; return the run's settings."""
    words = [
        f"name={name}", f"runs={folder}/runs", f"data.train={learn}", "workers=0", "epochs=1000",
        f"max_samples={samples}", "tracking.enabled=false", f"seed={given.seed}", *settings,
    ]  # fmt: skip
    config = resolve(TrainConfig, apply_overrides(load_preset("synth_nano"), words))
    train(config)
    return config


def ap_of(scored: Scored) -> str:
    """AP with its interval."""
    interval = scored.intervals["ap"]
    return f"{scored.figures['ap']:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def measured(folder: Path, run: Path, store: Path) -> Evaluation:
    """What a run's network predicts on a store, and the figures of it with their 95 % intervals."""
    words = {"checkpoint": run, "data": store, "output": folder / "evaluation", "overwrite": True}
    config = EvaluateConfig.model_validate({**words, "workers": 0})
    return run_evaluate(config)


def step(given: argparse.Namespace, folder: Path, record: Record) -> None:  # noqa: ARG001 (draws nothing)
    """Print samples per second of processor time of one thread."""
    torch.set_num_threads(1)
    nano = replace(variant("efafnet_r50_256x192"), input=InputSize(height=96, width=64))
    networks = {
        "FFM and DUC": NetworkConfig(encoder="nano", fam="none", fsm="none"),
        "EFAFNet": NetworkConfig(encoder="nano"),
    }
    rows = [replace(nano, name=name, network=network) for name, network in networks.items()]
    told = []
    for count in (16, 32, 64):
        for mode in CPU_MODES:
            told += [
                [count, *line[:5]] for line in measure(rows, mode, count, given.steps, torch.device("cpu"), record)
            ]
    columns = ["batch", "network", "arithmetic", "step (ms)", "times the first", "samples/s"]
    console.table(columns, told, title="96x64, width 16, one thread, processor time")


WHAT: dict[str, Callable[[argparse.Namespace, Path, Record], None]] = {
    "shares": shares, "photographs": photographs, "recipes": recipes, "step": step,
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*WHAT], nargs="?", default="shares")
    parser.add_argument("--kinds", nargs="+", choices=get_args(People), default=list(get_args(People)))
    parser.add_argument("--pictures", type=int, default=800, help="pictures of each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the people and of the training")
    parser.add_argument("--annotations", type=Path, help="COCO-style annotations of real persons")
    parser.add_argument("--images", type=Path, help="their images")
    parser.add_argument("--samples", type=int, default=100_000, help="samples to train on")
    parser.add_argument("--settings", nargs="+", default=[], help="further settings of the training: optimizer.lr=5e-3")
    parser.add_argument("--recipes", nargs="+", default=[], help="settings of each recipe beside the preset, in quotes")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed")
    add_option(parser)
    given = parser.parse_args()
    with (
        recorded("bench_people", given) as record,
        tempfile.TemporaryDirectory(prefix="efafnet-bench-") as folder,
    ):
        WHAT[given.what](given, Path(folder), record)


if __name__ == "__main__":
    main()
