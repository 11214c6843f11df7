"""What a run is known by: which of its settings make it another run, and which may change while it stays the same.

Every setting of a training run is in exactly one of three lists; a new one that is in none fails a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IDENTITY = (
    "network", "input", "init", "fork", "imagenet", "augmentation", "heatmap", "loss", "optimizer", "schedule",
    "batch_size", "epochs", "max_samples", "max_time_s", "seed", "resample", "precision", "compute.sync_batch_norm",
    "reader.shuffle_groups", "test.flip_test", "test.precision", "test.joint_score_threshold", "test.nms",
    "test.nms_threshold", "validation.metric",
)  # fmt: skip
"""What changes a run's figures: another value is another run."""
CHANGEABLE = (
    "compute.channels_last", "compute.compile", "compute.gradients", "compute.graph", "compute.micro_batch",
    "test.batch_size", "validation.every_epochs", "validation.patience", "validation.overlays", "validation.where",
)  # fmt: skip
"""What may change when a run is resumed, and is printed then: it moves figures by rounding, by what batch norm sees at
once, or by when the run is looked at."""
INCIDENTAL = (
    # A protocol's name changes nothing beyond the settings it stands for; data is named by its content.
    "protocol", "name", "runs", "data", "device", "workers", "worker", "cluster", "reader", "checkpoint", "tracking",
    "log_every_steps", "trace", "profile", "validation.wait_s", "cost",
)  # fmt: skip
"""Where a run happens, and what is written down about it."""

ADDED = {
    "fork": None,
    "resample": "none",
    "network.ffm_order": "around_decoder",
    "augmentation.shift_factor": 0.0,
    "augmentation.shift_probability": 0.0,
    "augmentation.distribution": "clipped_normal",
}
"""Settings that came later, at the values under which a run is what it was without them."""


def chosen(flat: Mapping[str, Any], groups: tuple[str, ...]) -> dict[str, Any]:
    """The settings of ``flat`` (dotted keys) that ``groups`` names, each by itself or by a group it is in."""
    return {key: value for key, value in flat.items() if any(is_in(key, group) for group in groups)}


def is_in(key: str, group: str) -> bool:
    """Whether a dotted key is ``group`` or inside it."""
    return key == group or key.startswith(f"{group}.")
