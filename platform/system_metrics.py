"""What the machine does while a run trains: CPU, memory, disk, network and GPU, under MLflow's own metric names."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from efafnet.platform.mlflow_client import mlflow_client


class SystemMonitor:
    """Samples this machine every ``every_s`` seconds, when asked often enough.

    MLflow's own monitor thread ends for good at the first failed request; this one only measures, and what it
    measures travels through the ``Tracker`` like any other metric.
    """

    def __init__(self, uri: str, run_id: str, every_s: float) -> None:
        self._uri = uri
        self._run_id = run_id
        self._every_s = every_s
        self._due = time.monotonic() + every_s
        self._sensors: list[Any] | None = None
        self._start_s: float | None = None

    def sample(self) -> Iterator[tuple[int, Mapping[str, float]]]:
        """Yield (step, values) if a sample is due; the step is the age of the run in seconds."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._every_s
        if self._sensors is None:
            self._sensors = _sensors()
        values: dict[str, float] = {}
        for sensor in self._sensors:
            with suppress(Exception):  # a sensor that fails must not cost the run anything
                sensor.collect_metrics()
                values |= {f"system/{key}": value for key, value in sensor.aggregate_metrics().items()}
                sensor.clear_metrics()
        if values:
            yield self._age_s(), values

    def _age_s(self) -> int:
        """Return the seconds since the run was created: a resumed run goes on after its earlier samples."""
        if self._start_s is None:
            self._start_s = time.time()
            with suppress(Exception):
                self._start_s = mlflow_client(self._uri).get_run(self._run_id).info.start_time / 1000
        return max(0, round(time.time() - self._start_s))


def _sensors() -> list[Any]:
    """Return MLflow's sensors, the GPU's only where NVIDIA's library finds one."""
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    psutil.cpu_percent()  # its first answer is always 0: the load since the last call
    kinds: tuple[Any, ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
    found = []
    for kind in kinds:
        with suppress(Exception):
            found.append(kind())
    return found
