"""Who holds the network while it predicts: this process, or actors on a Ray cluster, each with its cores or its GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from efafnet.models.settings import Settings
from efafnet.platform.cluster import ClusterConfig


@dataclass(frozen=True)
class Crew:
    """The actors of one pass."""

    count: int
    """Number of actors."""
    gpu: bool
    """Whether each has a GPU."""


class ActorsConfig(Settings):
    """What each of the processes that predict gets."""

    count: int | None = Field(default=None, ge=1)
    """Actors that hold the network; none for one per GPU, or on CPUs for as many as leave a core for reading."""
    cpus: float = Field(default=1, gt=0)
    """CPU cores of each actor; also the threads of its arithmetic."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU per actor (or for this process): auto takes it where there is one."""
    cluster: ClusterConfig = ClusterConfig()
    """Which Ray."""

    @property
    def threads(self) -> int:
        """Threads of an actor's arithmetic."""
        return max(1, int(self.cpus))

    def device_here(self) -> torch.device:
        """The device of this process; ValueError where a GPU is asked for that is not there."""
        if self.gpu == "yes" and not torch.cuda.is_available():
            raise ValueError("workers.gpu=yes: this machine has no GPU that torch can use; set workers.gpu=auto")
        return torch.device("cuda" if self.gpu != "no" and torch.cuda.is_available() else "cpu")

    def crew(self, cpus: float, gpus: float) -> Crew:
        """The actors on a cluster of ``cpus`` CPU slots and ``gpus`` GPUs; ValueError as for ``device_here``."""
        if self.gpu == "yes" and not gpus:
            raise ValueError("workers.gpu=yes: the cluster has no GPU; set workers.gpu=auto")
        gpu = self.gpu != "no" and gpus >= 1
        usual = int(gpus) if gpu else max(1, int((cpus - 1) // self.cpus))
        return Crew(self.count or usual, gpu)
