"""The settings of a check, apart from the code that needs torch and OpenCV."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from efafnet.pipelines.training.config import TrainConfig


class CheckConfig(TrainConfig):
    """A training to be checked before it is begun: its settings, and how long the check may take."""

    name: str = "check"
    """Name of the training to be checked; nothing is written under it."""
    out: Path = Path("check")
    """Directory of the pictures; where it exists, check-2, check-3, … beside it."""
    persons: int = Field(default=16, ge=2, le=64)
    """Persons that the network is overfitted to, as they are and mirrored: twice as many samples in each step."""
    limit_s: float = Field(default=60, gt=0)
    """Longest time of learning, in seconds. A network of which a CPU would not do 150 steps in it is stood in for by a
    nano one: it is the data that is checked."""
