"""The data of a study that names none: synthetic people, drawn and prepared once."""

from __future__ import annotations

from pathlib import Path

from efafnet.models.settings import InputSize
from efafnet.models.variants import VARIANTS
from efafnet.pipelines.crops.envelope import Envelope
from efafnet.pipelines.crops.prepare import PrepareConfig, run_prepare
from efafnet.pipelines.study.scale import scaled_input
from efafnet.pipelines.synth.dataset import SplitCounts, SynthConfig, run_synth
from efafnet.pipelines.training.config import DataConfig, TrainConfig
from efafnet.platform import console
from efafnet.platform.configuration import digest

IMAGES = SplitCounts(train=1800, val=400)
"""Pictures to train on, and to validate on."""


def synthetic_people(config: TrainConfig, images: SplitCounts = IMAGES) -> DataConfig:
    """Stores of clear synthetic people under ``runs``, for every input that the paper's rows need at this scale.

    The directory is named by all that decides what is drawn: settings and the program's drawing code. So what was drawn
    by other settings or another version stays where it is, for the studies that used it, and serves no new one.
    """
    synth = SynthConfig(out=config.runs, people="clear", images=images, seed=0)
    folder = config.runs / "synthetic" / f"clear-{synth.digest()}"
    synth = synth.model_copy(update={"out": folder / "people"})
    console.note(f"no data.train and data.val given: {images.train} + {images.val} synthetic pictures, {folder}")
    _tell_of_others(folder)
    if not synth.out.exists():
        run_synth(synth)
    sizes = {scaled_input(variant.input, config) for variant in VARIANTS.values()}
    envelope = Envelope(inputs=tuple(sorted({config.input, *sizes}, key=_order)))
    stores = folder / f"crops-{config.input}-{digest(envelope)[:8]}"
    for split in ("train", "val"):
        _prepare(synth.out, stores / split, split, envelope, config)
    return DataConfig(train=stores / "train", val=stores / "val")


def _tell_of_others(folder: Path) -> None:
    if not folder.parent.is_dir():
        return
    others = sorted(path.name for path in folder.parent.iterdir() if path.is_dir() and path != folder)
    if others and not folder.exists():
        console.note(
            f"{folder.parent} holds people drawn by other settings or another version of this program "
            f"({', '.join(others)}): not used; remove them when no study needs them"
        )


def _order(size: InputSize) -> tuple[int, int]:
    return size.height, size.width


def _prepare(people: Path, out: Path, split: str, envelope: Envelope, config: TrainConfig) -> None:
    # An existing store is compared with what is asked for: the same is used, another one is an error that says so.
    annotations, images = people / "annotations" / f"{split}.json", people / "images" / split
    run_prepare(
        PrepareConfig(annotations=annotations, images=images, out=out, envelope=envelope, cluster=config.cluster)
    )
