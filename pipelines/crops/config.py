"""The settings of reading and looking at crop stores, apart from the code that needs OpenCV and Arrow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from efafnet.models.settings import Settings
from efafnet.platform.mirror import Location


class ReaderConfig(Settings):
    """How a store is read. None of these settings changes what a sample looks like."""

    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads that decode and warp, of each process that reads. auto: beside a GPU one per core of the worker but one,
    16 at most; on a CPU one for every four that compute."""
    read_threads: int = Field(default=1, ge=1)
    """Threads that read Parquet, of each process that reads. More help where the store is remote."""
    prefetch_batches: int = Field(default=4, ge=1)
    """Batches prepared ahead of the consumer, in each process that reads."""
    read_ahead_batches: int = Field(default=16, ge=0)
    """Batches beyond the prepared ones whose crops are already being read, in each process that reads."""
    shuffle_groups: int = Field(default=48, ge=1)
    """Row groups shuffled together, fewer where their crops would take more than 256 MiB (raw crops do). A worker that
    reads alone holds up to twice this many; unlike the others, this setting changes the order of the samples."""


class InspectConfig(Settings):
    """Which store to look at, and how."""

    store: Location
    """Directory of the crop store, or its address: s3://…, gs://…; or an exported network's file, .onnx or .pt2."""
    sheet: Path | None = None
    """File for the contact sheet, .jpg or .png; by default STORE-sheet.jpg beside the store, or here where the store
    has an address or nothing can be written beside it."""
    crops: int = Field(default=24, ge=0)
    """Persons on the contact sheet, drawn at random; 0 for none."""
    augmented: bool = False
    """Show augmented training samples (COCO's settings, within the store's envelope) instead of plain crops."""
    seed: int = 0
    """Chooses the persons."""
    verify: bool = True
    """Read every byte and compare digests."""
