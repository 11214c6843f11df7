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

IMAGES = SplitCounts(train=1800, val=400)
"""Pictures to train on, and to validate on."""


def synthetic_people(config: TrainConfig, images: SplitCounts = IMAGES) -> DataConfig:
    """Stores of synthetic people under ``runs``, for every input that the paper's rows need at this scale."""
    people, stores = config.runs / "synthetic" / "people", config.runs / "synthetic" / f"crops-{config.input}"
    console.note(f"no data.train and data.val given: {images.train} + {images.val} synthetic pictures, {stores}")
    if not people.exists():
        run_synth(SynthConfig(out=people, images=images, seed=0))
    sizes = {scaled_input(variant.input, config) for variant in VARIANTS.values()}
    envelope = Envelope(inputs=tuple(sorted({config.input, *sizes}, key=_order)))
    for split in ("train", "val"):
        _prepare(people, stores / split, split, envelope, config)
    return DataConfig(train=stores / "train", val=stores / "val")


def _order(size: InputSize) -> tuple[int, int]:
    return size.height, size.width


def _prepare(people: Path, out: Path, split: str, envelope: Envelope, config: TrainConfig) -> None:
    if not out.exists():
        annotations, images = people / "annotations" / f"{split}.json", people / "images" / split
        run_prepare(
            PrepareConfig(annotations=annotations, images=images, out=out, envelope=envelope, cluster=config.cluster)
        )
