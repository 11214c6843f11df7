"""What a run consumes: hours of GPUs and cores, energy, money. Each of its processes measures its own part."""

from __future__ import annotations

import torch

from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.consumption import Consumption, Meter, Node, Reserved, consumed, energy_counter

FOLDER = "consumption"
"""Where a run's processes write, in its directory."""


def metered(config: TrainConfig, device: torch.device) -> Meter:
    """A meter for this process, which trains or validates for the run on ``device``."""
    reserved = reserved_for(config, device)
    uuid = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    return Meter(config.run_dir / FOLDER, reserved, reserved.per_hour(config.cost, Node.here()), energy_counter(uuid))


def reserved_for(config: TrainConfig, device: torch.device) -> Reserved:
    """What one process of the run has: a worker's share on Ray, else one device and the threads of this process."""
    on_ray = config.workers > 0
    gpus = 0.0 if device.type != "cuda" else config.worker.gpus if on_ray else 1.0
    cpus = config.worker.cpus
    return Reserved(gpus, float(cpus) if on_ray and cpus != "auto" else float(torch.get_num_threads()))


def cost_of(config: TrainConfig) -> Consumption:
    """What the run took so far, over all its processes and restarts."""
    return consumed(config.run_dir / FOLDER)
