"""Time of one training step and its memory: SBN, EFAFNet and HRNet-W32 side by side, 256x192, the trainer's own step.

    python -m benchmarks.bench_step [--json NOW.json]
    python -m benchmarks.bench_step --only compiled
    python -m benchmarks.bench_step --count

A step is target, forward, loss, backward and Adam, on random crops that lie on the device. The networks take turns and
each one's fastest step counts: whatever else the machine does falls on all of them, and only adds. A CPU is measured
with one thread, in processor time; with more (--threads), in wall time, which means something on an idle machine only:
threads that wait for each other lose a time slice to every other program. On a GPU each network is also measured in
plainer and in further settings, and a table before them shows where a step goes: the baseline with one part of EFAFNet
each, and EFAFNet without one of its forms for GPUs each, by the clock, in kernels, and as a CUDA graph. All that ends
within four minutes: what would not fit is left out and said to be, compiling, which comes last, first of all. ``--only
compiled`` measures that alone, beside the same arithmetic as written. The device's own matrix product stands beside
them.

``--count`` counts the operators of a step by part on tensors without values: nearly its kernels, on any machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from benchmarks import step_parts
from benchmarks.record import Record, add_option, recorded
from efafnet.models.cost import network_cost
from efafnet.models.network import build_network
from efafnet.models.skeleton import COCO_17
from efafnet.models.variants import Variant, variant
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.config_groups import ComputeConfig, OptimizerConfig
from efafnet.pipelines.training.optimizer import build_optimizer
from efafnet.pipelines.training.step import Trainee, train_step
from efafnet.platform import console, machine
from efafnet.platform.machine import Precision

NETWORKS = ("sbn_r50_256x192", "efafnet_r50_256x192", "hrnet_w32_256x192")
"""The first is what the others are compared with."""


@dataclass(frozen=True)
class Mode:
    """How the hardware computes."""

    name: str
    precision: Precision
    compute: ComputeConfig


_PLAIN = ComputeConfig(channels_last=False)
CPU_MODES = (Mode("fp32", "fp32", ComputeConfig()), Mode("bf16", "bf16", ComputeConfig()))
GPU_MODES = (
    Mode("tf32, NCHW", "tf32", _PLAIN),
    Mode("tf32, channels_last", "tf32", ComputeConfig()),
    Mode("bf16, NCHW", "bf16", _PLAIN),
    Mode("bf16, channels_last", "bf16", ComputeConfig()),
    Mode("bf16, channels_last, compiled", "bf16", ComputeConfig(compile="default")),
)
PARTS_MODE = GPU_MODES[3]
COUNTED_MODE = Mode("fp32, channels_last", "fp32", ComputeConfig())
BUDGET_S = 230
"""Seconds on a GPU in which everything must end that can be left out."""
COMPILING_S = 140
"""Seconds that compiling the first two networks took on an H200."""
MEASURING_S = 25
"""Seconds that a part, or a mode of all networks, may take: cuDNN tries its algorithms on each new shape."""
Table = Literal["parts", "modes", "compiled"]
TABLES: tuple[Table, ...] = ("parts", "modes", "compiled")
"""What is measured on a GPU, in this order."""


def random_batch(count: int, row: Variant, device: torch.device) -> Batch:
    """Crops of noise with all joints annotated."""
    generator = torch.Generator().manual_seed(0)
    height, width, joints = row.input.height, row.input.width, COCO_17.num_joints
    return Batch(
        images=torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator),
        joints_px=torch.rand(count, joints, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0]),
        visibility=torch.full((count, joints), 2, dtype=torch.uint8),
        rows=torch.arange(count),
        input_to_image=torch.eye(2, 3, dtype=torch.float64).repeat(count, 1, 1),
    ).to(device)


def trainee_of(row: Variant, mode: Mode, count: int, device: torch.device) -> Trainee:
    """The network as the training loop would hold it, in one process."""
    memory_format = torch.channels_last if mode.compute.channels_last else torch.contiguous_format
    module = build_network(row.network, COCO_17.num_joints).to(device).to(memory_format=memory_format)
    optimizing = OptimizerConfig()
    return Trainee(
        module=module,
        wrapped=cast(nn.Module, torch.compile(module, dynamic=False)) if mode.compute.compile == "default" else module,
        optimizer=build_optimizer(optimizing, module),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        ema=None,
        input_size=row.input,
        heatmap=row.heatmap,
        loss=row.loss,
        optimizing=optimizing,
        compute=mode.compute,
        precision=mode.precision,
        seed=0,
        global_batch=count,
        rank=0,
        world_size=1,
        device=device,
    )


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Time of one step, the GPU's work included: processor time of a single CPU thread, else wall time."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    began = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


def peak_gib(step: Callable[[], object], row: Variant, count: int, device: torch.device) -> float:
    """Memory of a step: its peak on a GPU; on a CPU, where allocations are not counted, the activations it keeps."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        seconds(step, device)
        return torch.cuda.max_memory_allocated(device) / 2**30
    return count * network_cost(row.network, COCO_17.num_joints, row.input).saved_bytes / 2**30


def measure(
    rows: list[Variant], mode: Mode, count: int, steps: int, device: torch.device, record: Record
) -> list[list[object]]:
    """Table rows of one mode: the networks in turns, their fastest step, and its ratio to the first network's."""
    machine.set_float32(mode.precision)
    trainees = [trainee_of(row, mode, count, device) for row in rows]
    batches = [random_batch(count, row, device) for row in rows]
    calls = [
        lambda trainee=trainee, batch=batch: train_step(trainee, batch, 0, 1e-4)
        for trainee, batch in zip(trainees, batches, strict=True)
    ]
    times: list[list[float]] = [[] for _ in rows]
    for call in calls:
        for _ in range(2 if device.type == "cuda" else 1):
            seconds(call, device)
    for _ in range(steps):
        for call, found in zip(calls, times, strict=True):
            found.append(seconds(call, device))
    for row, found in zip(rows, times, strict=True):
        record.add(f"{row.name}, {mode.name}, {count} crops", "ms/step", [1000 * value for value in found])
    fastest = [min(found) for found in times]
    told: list[list[object]] = []
    for row, call, step_s in zip(rows, calls, fastest, strict=True):
        cost = network_cost(row.network, COCO_17.num_joints, row.input)
        # Forward, and twice as much backward; a multiply-add is two operations.
        rate = 6 * cost.multiply_adds * count / step_s / 1e12
        memory = peak_gib(call, row, count, device)
        record.add(f"{row.name}, kept activations", "MB a crop", [cost.saved_bytes / 1e6], exact=True)
        told.append(
            [row.name, mode.name, f"{1000 * step_s:.0f}", f"{step_s / fastest[0]:.2f}", f"{count / step_s:.1f}",
             f"{cost.gmac:.2f}", f"{rate:.2f}", f"{memory:.2f}"]
        )  # fmt: skip
    return told


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(seconds(lambda: a @ b, device) for _ in range(10))
    return float(2 * size**3 / best / 1e12)


def modes_table(
    rows: list[Variant], count: int, steps: int, device: torch.device, until: float, record: Record,
    only: Sequence[Table] = TABLES,
) -> list[list[object]]:  # fmt: skip
    """Table rows of all modes; compiling, a minute a network, only for the two that are compared. What would
    not end in time is not run, unless nothing else was asked for."""
    told: list[list[object]] = []
    for mode in gpu_modes(only) if device.type == "cuda" else CPU_MODES:
        compiled = mode.compute.compile == "default"
        compared = rows[:2] if compiled or "modes" not in only else rows
        needed_s = COMPILING_S if compiled else MEASURING_S
        if device.type == "cuda" and "modes" in only and time.perf_counter() > until - needed_s:
            told += [[row.name, mode.name, "not run", *[""] * 5] for row in compared]
        else:
            try:
                told += measure(compared, mode, count, steps, device, record)
            except Exception as error:
                # What a card cannot do costs its own rows only.
                told += [[row.name, mode.name, _failure(error), *[""] * 5] for row in compared]
    return told


def gpu_modes(only: Sequence[Table]) -> list[Mode]:
    """The modes of the wanted tables; compiling alone is measured beside the same arithmetic as written."""
    compiled = [mode for mode in GPU_MODES if mode.compute.compile == "default"]
    plain = [mode for mode in GPU_MODES if mode.compute.compile != "default"]
    if "compiled" not in only:
        return plain
    return (plain if "modes" in only else [PARTS_MODE]) + compiled


def _failure(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:80]}"


def parts_table(count: int, device: torch.device, until: float, record: Record) -> list[list[object]]:
    """Table rows of the parts in bf16 and channels_last, each with its kernels' time over the baseline's; of those that
    would not end in time their names."""
    told: list[list[object]] = []
    baseline: dict[int, float] = {}
    for part in step_parts.parts(count):
        if time.perf_counter() > until - MEASURING_S:
            told.append([part.row.name, part.count, "not run", *[""] * 5])
            continue
        try:
            trainee, batch = trainee_of(part.row, PARTS_MODE, part.count, device), _batch_of(part, device)
            found = step_parts.measured(part, trainee, batch)
            graphed_ms = step_parts.graphed_ms(part, trainee, batch)
        except Exception as error:
            told.append([part.row.name, part.count, _failure(error), *[""] * 5])
            continue
        over = found["kernels_ms"] - baseline.setdefault(part.count, found["kernels_ms"])
        told.append(
            [part.row.name, part.count, *(f"{found[key]:.1f}" for key in ("wall_ms", "back_to_back_ms", "kernels_ms")),
             int(found["kernels"]), f"{over:+.1f}", f"{graphed_ms:.1f}"]
        )  # fmt: skip
        name = f"{part.row.name}, {part.count} crops"
        record.add(f"{name}, kernels", "ms/step", [found["kernels_ms"]])
        record.add(f"{name}, as a CUDA graph", "ms/step", [graphed_ms])
        del trainee, batch
        torch.cuda.empty_cache()
    return told


def _batch_of(part: step_parts.Part, device: torch.device) -> Batch:
    return random_batch(part.count, part.row, device)


def counts_table(record: Record) -> list[list[object]]:
    """Table rows of the operators of a step, without a GPU."""
    meta, told = torch.device("meta"), []
    for part in step_parts.parts(2):
        if part.count == 2:
            trainee = trainee_of(part.row, COUNTED_MODE, 2, meta)
            operators = step_parts.counted(part, trainee, _batch_of(part, meta))
            record.add(part.row.name, "operators", [operators], exact=True)
            told.append([part.row.name, operators])
    return told


def main() -> None:
    """Measure and print."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=None, help="crops per step; 4 on a CPU, 128 on a GPU")
    parser.add_argument("--steps", type=int, default=None, help="measured steps; 7 on a CPU, 10 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU; 1 is measured in processor time")
    # Not among the settings where it is not given: records from before it can still be compared.
    parser.add_argument(
        "--only", nargs="+", choices=TABLES, default=argparse.SUPPRESS, help="tables of a GPU; all by default"
    )
    parser.add_argument("--count", action="store_true", help="only count a step's operators by part; needs no GPU")
    add_option(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    with recorded("bench_step", given, device) as record:
        if given.count:
            title = "operators of a step, a GPU's forms; casts and optimizer left out"
            console.table(["network", "operators"], counts_table(record), title=title)
        else:
            tables(given, device, began + BUDGET_S, record)


def tables(given: argparse.Namespace, device: torch.device, until: float, record: Record) -> None:
    """Print what is measured on a device."""
    on_gpu = device.type == "cuda"
    count, steps = given.batch or (128 if on_gpu else 4), given.steps or (10 if on_gpu else 7)
    only: Sequence[Table] = getattr(given, "only", TABLES)
    if on_gpu:
        # As the trainer does: cuDNN tries its algorithms at the first step of each network.
        machine.expect_constant_shapes()
        machine.set_float32(PARTS_MODE.precision)
    if on_gpu and "parts" in only:
        columns = ["network", "crops", "wall (ms)", "back to back (ms)", "kernels (ms)", "kernels",
                   "kernels over SBN (ms)", "as a CUDA graph (ms)"]  # fmt: skip
        told = parts_table(count, device, until, record)
        console.table(columns, told, title="a step by part, bf16, channels_last")
    if on_gpu and not {"modes", "compiled"} & set(only):
        return
    memory = "peak GiB" if on_gpu else "kept activations, fp32, GiB"
    columns = ["network", "arithmetic", "step (ms)", "times SBN", "crops/s", "GMAC", "TFLOP/s", memory]
    networks = [variant(name) for name in NETWORKS]
    rows = modes_table(networks, count, steps, device, until, record, only)
    console.table(columns, rows, title=f"training step, {count} crops")
    rates = ", ".join(f"{str(d)[6:]} {ceiling(device, d):.2f}" for d in (torch.float32, torch.bfloat16))
    console.say(f"{machine.describe(device)}, torch {torch.__version__}; matrix product, TFLOP/s: {rates}")


if __name__ == "__main__":
    main()
