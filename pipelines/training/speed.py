"""Speed of a run as a share of what its devices could do (MFU), and which worker is the slowest (straggler)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from torch.nn.parallel import DistributedDataParallel

from efafnet.models.cost import multiply_adds
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.platform import machine
from efafnet.platform.peaks import peak_tflops

SLOW = 1.1
"""A worker is named where it computes or waits for this many times the median of all."""


@dataclass(frozen=True)
class Rate:
    """What a step's arithmetic is worth on this run's devices."""

    tflop_per_crop: float
    """Forward, and twice as much backward; a multiply-add is two operations. Auxiliary heads are not counted."""
    peak_tflops: float | None
    """Of one device at the run's precision; None for one whose peak is not known, and for CPUs."""
    workers: int

    @classmethod
    def of(cls, config: TrainConfig, num_joints: int, precision: machine.Precision, context: PlainContext) -> Rate:
        """The rate of a run of ``config``."""
        on_gpu = context.device.type == "cuda"
        return cls(
            6 * multiply_adds(config.network, num_joints, config.input) / 1e12,
            peak_tflops(machine.describe(context.device), precision) if on_gpu else None,
            context.world_size,
        )

    def metrics(self, crops_per_s: float) -> dict[str, float]:
        """TFLOP/s of one device, and its share of the device's peak (MFU)."""
        found = {"speed/tflops_per_device": crops_per_s * self.tflop_per_crop / self.workers}
        if self.peak_tflops is not None:
            found["speed/mfu"] = found["speed/tflops_per_device"] / self.peak_tflops
        return found


@dataclass(frozen=True)
class WorkerTime:
    """Where one worker's time went in a window."""

    compute_ms: float
    """A forward and backward pass, without the exchange of gradients; 0 where it was not measured."""
    wait_share: float
    """Share of the time waiting for data."""


def computing_ms(ddp: DistributedDataParallel | None) -> float:
    """Time of a forward and backward pass on this worker, without waiting for others; DDP measures every 100th."""
    if ddp is None:
        return 0.0
    found = ddp._get_ddp_logging_data()
    return float(found.get("avg_forward_compute_time", 0) + found.get("avg_backward_compute_time", 0)) / 1e6


def slowest(context: PlainContext, own: WorkerTime) -> tuple[dict[str, float], str]:
    """Compare the workers. All call this together; rank 0 gets the figures of the slowest, and a line that names it.

    The line is empty where all are about alike.
    """
    if context.world_size == 1:
        return {}, ""
    times = context.gather(own)
    if not times:
        return {}, ""
    late = max(range(len(times)), key=lambda rank: times[rank].compute_ms)
    hungry = max(range(len(times)), key=lambda rank: times[rank].wait_share)
    figures = {
        "speed/compute_ms": times[0].compute_ms,
        "speed/compute_ms_slowest": times[late].compute_ms,
        "speed/slowest_rank": float(late),
        "speed/data_wait_share_worst": times[hungry].wait_share,
    }
    told = []
    median_ms = statistics.median(t.compute_ms for t in times)
    if times[late].compute_ms > SLOW * median_ms > 0:
        told.append(f"rank {late} computes {times[late].compute_ms:.0f} ms, the median is {median_ms:.0f} ms")
    if times[hungry].wait_share > max(0.1, SLOW * times[0].wait_share):
        told.append(f"rank {hungry} waits {times[hungry].wait_share:.1%} of the time for data")
    return figures, "; ".join(told)
