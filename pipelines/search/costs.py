"""What the networks of a search cost (``search.against``), each found out once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from efafnet.models.cost import multiply_adds
from efafnet.models.network import build_network
from efafnet.pipelines.search.config import Against
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import pick_device
from efafnet.platform.machine import describe
from efafnet.platform.storage import read_json, sha256_json, write_json
from efafnet.tune_spaces.space import Choice, Entry, Settings, Space, grid, grid_size

LATENCIES = "latencies.json"
"""Milliseconds by what was measured, in the search's directory."""
MOST_NETWORKS = 100
"""Networks of a space that are all measured before it is searched; a larger space's are as they are drawn."""
_PASSES = 10


class Costs:
    """What networks cost, each found out once and remembered in the search's directory.

    Args:
        against: the unit.
        num_joints: of the skeleton.
        file: remembers what was measured.
    """

    def __init__(self, against: Against, num_joints: int, file: Path) -> None:
        self._against, self._num_joints, self._file = against, num_joints, file
        self._known: dict[str, float] = read_json(file) if file.exists() else {}

    def of(self, config: TrainConfig) -> float:
        """What one crop costs: multiply-adds in 10^9, or milliseconds."""
        if self._against == "gmac":
            return cost_of(config, self._num_joints, "gmac")
        mark = self._mark(config)
        if mark not in self._known:
            self._known[mark] = cost_of(config, self._num_joints, self._against)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._known)
        return self._known[mark]

    def _mark(self, config: TrainConfig) -> str:
        """The network, its input and what computes it. Elsewhere the same network takes another time."""
        network = sha256_json({"network": config.network.model_dump(mode="json"), "input": str(config.input)})[:12]
        return f"{network}, {self._num_joints} joints, {config.input}, {describe(pick_device(config.device))}"

    def measure(self, space: Space, build: Callable[[Settings], TrainConfig]) -> int | None:
        """Find out what every network of a space costs; returns how many there are, None where they are too many."""
        points = networks_of(space)
        if points is None:
            return None
        configs = {self._mark(config): config for config in map(build, points)}
        for config in configs.values():
            self.of(config)
        return len(configs)


def networks_of(space: Space) -> list[Settings] | None:
    """One point of a space for each of its networks and inputs; None where they are more than ``MOST_NETWORKS``."""
    narrowed = replace(space, entries=_of_network(space.entries), start=())
    count = grid_size(narrowed)
    return grid(narrowed) if count is not None and count <= MOST_NETWORKS else None


def _of_network(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries that decide which network it is, those in the options of others with these."""
    kept = []
    for entry in entries:
        own = entry.key.partition(".")[0] in ("network", "input")
        if isinstance(entry.domain, Choice):
            options = tuple(replace(o, entries=_of_network(o.entries)) for o in entry.domain.options)
            if own or any(option.entries for option in options):
                kept.append(replace(entry, domain=Choice(options)))
        elif own:
            kept.append(entry)
    return tuple(kept)


def cost_of(config: TrainConfig, num_joints: int, against: Against) -> float:
    """What one crop costs: multiply-adds in 10^9, or milliseconds.

    The latency is the shortest of ten forward passes of one crop in float32 in this process, on its GPU if there is
    one: the others were held up by whatever else runs.
    """
    if against == "gmac":
        return multiply_adds(config.network, num_joints, config.input) / 1e9
    device = pick_device(config.device)
    network = build_network(config.network, num_joints).to(device).eval()
    crop = torch.zeros(1, 3, config.input.height, config.input.width, device=device)
    seconds = []
    with torch.inference_mode():
        for _ in range(_PASSES + 2):
            began = time.perf_counter()
            network(crop)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds[2:])
