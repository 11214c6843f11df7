"""What processes consume: hours of GPUs and cores, processor time, energy, and their price.

Each process writes its own small file now and then, so that what a killed one took is known too, and work done twice
counts twice. What a run took is the sum over its files.
"""

from __future__ import annotations

import os
import platform as machine
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import Field, field_validator

from efafnet.models.settings import Settings
from efafnet.platform.storage import read_json, write_json

PREFIX = "cost."
"""What the metrics' names begin with in MLflow, which draws names without a slash below all curves."""
NODE_TYPE = "EFAFNET_NODE_TYPE"
"""Variable that names the node's type where the machine does not."""
WRITE_EVERY_S = 30.0
"""Seconds of work that a kill may leave uncounted."""
_PRODUCT = Path("/sys/class/dmi/id/product_name")  # AWS writes the instance's type there


class CostConfig(Settings):
    """What an hour costs. Without prices times and energy are told, and no money."""

    gpu_hour: float | None = Field(default=None, ge=0)
    """Price of an hour of one GPU, with what belongs to it (cores, memory, cooling). Null for none."""
    core_hour: float | None = Field(default=None, ge=0)
    """Price of an hour of one core, for runs without GPUs. Null for none."""
    node_hour: tuple[str, ...] = ()
    """Prices of an hour of whole nodes by their type, TYPE=PRICE (g5.xlarge=1.006), where no price above applies. A
    process pays for its share of the node's GPUs, or of its cores without any. The type is EFAFNET_NODE_TYPE's on the
    node, or what its firmware says, as AWS's does."""
    currency: str = "USD"
    """What prices are in."""

    @field_validator("node_hour")
    @classmethod
    def _priced(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            _price(entry)
        return entries

    def of_node(self, kind: str) -> float | None:
        """Price of an hour of a node of that type."""
        return dict(map(_price, self.node_hour)).get(kind)


def _price(entry: str) -> tuple[str, float]:
    name, _, price = entry.rpartition("=")
    with suppress(ValueError):
        if name and 0 <= float(price) < float("inf"):
            return name, float(price)
    raise ValueError(f"node_hour holds TYPE=PRICE, like g5.xlarge=1.006; got {entry!r}")


@dataclass(frozen=True)
class Node:
    """The machine under a process."""

    kind: str
    gpus: int
    cores: int

    @classmethod
    def here(cls) -> Node:
        """This machine, all of it, whatever part this process may use."""
        kind = os.environ.get(NODE_TYPE, "")
        with suppress(OSError):
            kind = kind or _PRODUCT.read_text(encoding="utf-8", errors="replace").strip()
        return cls(kind, _gpus_here(), os.cpu_count() or 1)


@dataclass(frozen=True)
class Reserved:
    """What a process has to itself."""

    gpus: float
    cores: float

    def per_hour(self, prices: CostConfig, node: Node) -> float | None:
        """What an hour of it costs on ``node``; None where no price applies."""
        if self.gpus and prices.gpu_hour is not None:
            return self.gpus * prices.gpu_hour
        if not self.gpus and prices.core_hour is not None:
            return self.cores * prices.core_hour
        whole = prices.of_node(node.kind)
        if whole is None:
            return None
        share = self.gpus / node.gpus if self.gpus and node.gpus else self.cores / node.cores
        return whole * min(1.0, share)


@dataclass(frozen=True)
class Consumption:
    """What was taken."""

    gpu_s: float = 0.0
    """Seconds of one GPU that was reserved, busy or not."""
    core_s: float = 0.0
    """Seconds of one core that was reserved, busy or not."""
    cpu_s: float = 0.0
    """Processor time that was used, user and system."""
    energy_wh: float | None = None
    """Energy of the GPUs as they count it themselves, watt-hours; None where none does."""
    money: float | None = None
    """In the prices' currency; None where anything had no price."""

    def metrics(self) -> dict[str, float]:
        """As MLflow is told."""
        return {f"{PREFIX}{key}": value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def of_metrics(cls, metrics: Mapping[str, float]) -> Consumption | None:
        """What ``metrics`` made; None where MLflow was told nothing."""
        found = {key: metrics[f"{PREFIX}{key}"] for key in cls.__dataclass_fields__ if f"{PREFIX}{key}" in metrics}
        return cls(**found) if found else None

    def text(self, currency: str) -> str:
        """In words: ``1.50 GPU-hours, 12.0 core-hours (3.1 used), 0.45 kWh, 3.20 USD``."""
        parts = [f"{hours(self.gpu_s)} GPU-hours"] if self.gpu_s else []
        parts.append(f"{hours(self.core_s)} core-hours ({hours(self.cpu_s)} of processor time)")
        if self.energy_wh is not None:
            parts.append(f"{self.energy_wh / 1000:.3g} kWh of the GPUs")
        if self.money is not None:
            parts.append(f"{self.money:.2f} {currency}")
        return ", ".join(parts)

    def per_point(self, points: float, currency: str) -> str:
        """What each of ``points`` gained came to, by the first of money, GPU-hours and core-hours that is known."""
        if self.money is not None:
            return f"{self.money / points:.3g} {currency}"
        return f"{hours(self.gpu_s / points)} GPU-hours" if self.gpu_s else f"{hours(self.core_s / points)} core-hours"


def hours(seconds: float) -> str:
    """Seconds as hours with three digits."""
    return f"{seconds / 3600:.3g}"


def total(parts: Iterable[Consumption]) -> Consumption:
    """The sum; its money is None where a part has no price, its energy where none has any."""
    found = list(parts)
    energy = [part.energy_wh for part in found if part.energy_wh is not None]
    money = [part.money for part in found if part.money is not None]
    return Consumption(
        sum(part.gpu_s for part in found),
        sum(part.core_s for part in found),
        sum(part.cpu_s for part in found),
        sum(energy) if energy else None,
        sum(money) if found and len(money) == len(found) else None,
    )


def consumed(folder: Path) -> Consumption:
    """What all processes took that wrote into ``folder``; nothing where there is none. Damaged files do not count."""
    parts = []
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            parts.append(Consumption(**read_json(file)))
    return total(parts)


class Meter:
    """Measures this process from entering to leaving, and writes to a file of its own every ``WRITE_EVERY_S``.

    What cannot be written is not counted: it costs the work nothing.

    Args:
        folder: of the run's files.
        reserved: what the process has.
        per_hour: what an hour of that costs; None for no price.
        energy_j: reads a counter of the GPU's energy in joules; None where there is none.
    """

    def __init__(
        self, folder: Path, reserved: Reserved, per_hour: float | None, energy_j: Callable[[], float | None]
    ) -> None:
        self._file = folder / f"{machine.node()}-{os.getpid()}-{time.time_ns()}.json"
        self._reserved = reserved
        self._per_hour = per_hour
        self._energy_j = energy_j
        self._over = threading.Event()

    def __enter__(self) -> Meter:
        """Begin to measure."""
        self._began_s, self._began_cpu_s, self._began_j = time.monotonic(), _processor_s(), self._energy_j()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the last figures."""
        self._over.set()
        self._thread.join()
        self._write()

    def so_far(self) -> Consumption:
        """What was taken since the beginning."""
        seconds, now_j = time.monotonic() - self._began_s, self._energy_j()
        joules = None if now_j is None or self._began_j is None else now_j - self._began_j
        return Consumption(
            self._reserved.gpus * seconds,
            self._reserved.cores * seconds,
            _processor_s() - self._began_cpu_s,
            None if joules is None else joules * min(1.0, self._reserved.gpus) / 3600,
            None if self._per_hour is None else self._per_hour * seconds / 3600,
        )

    def _run(self) -> None:
        while not self._over.wait(WRITE_EVERY_S):
            self._write()

    def _write(self) -> None:
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, asdict(self.so_far()))


def _processor_s() -> float:
    """User and system time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# ---- GPUs, as NVIDIA's library knows them


def energy_counter(uuid: str | None) -> Callable[[], float | None]:
    """Return what reads the energy that a GPU took since its driver was loaded, in joules.

    Args:
        uuid: as torch gives it; None for no GPU. GPUs before Volta, and parts of a GPU, do not count.
    """
    if uuid is None:
        return lambda: None

    def read() -> float | None:
        with suppress(Exception):  # NVML's errors are of a class for each, and the library may be missing
            library = _nvml()
            handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}".encode())
            return float(library.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
        return None

    return read


def _gpus_here() -> int:
    with suppress(Exception):
        return int(_nvml().nvmlDeviceGetCount())
    return 0


def _nvml() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml
