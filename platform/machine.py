"""What this machine is and what suits it: the arithmetic of its devices and the cores a process may use.

Whoever needs to know asks here, when a run starts and where it computes; presets and defaults say ``auto``.
Imports torch only when asked, for the command line's help needs these names too.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from efafnet.platform import console

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""Arithmetic of a network: float32; float32 whose products are rounded to TF32 (GPUs from Ampere on; elsewhere plain
float32); bfloat16 or float16 under autocast with float32 weights."""
WantedPrecision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]

_FROM_SAFEST: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
_MOST_READERS = 16
"""With 14 the fastest GPU that was measured did not wait for data (16 cores, ResNet-50, bf16)."""
_WORTH_IT = 0.9
"""bf16 is chosen on a CPU where it takes at most this share of float32's time. Measured shares are about .55 where the
hardware computes it, and 2.6 to 13 where it is emulated."""
_SLOW = 1.1
"""A precision is said to be slow where it takes more than this times as long as float32."""


# ---- arithmetic


def precision_for(wanted: WantedPrecision, device: torch.device) -> Precision:
    """What ``wanted`` comes to on a device: ``auto`` becomes what suits it, all else stays what it is."""
    return suitable_precision(device) if wanted == "auto" else wanted


def checked_precision(wanted: WantedPrecision, device: torch.device) -> Precision:
    """As ``precision_for``, and a warning where what is asked for fights the device."""
    precision = precision_for(wanted, device)
    doubt = None if wanted == "auto" else drawback(precision, device)
    if doubt is not None:
        console.warn(f"precision = {precision}: {doubt}")
    return precision


def suitable_precision(device: torch.device) -> Precision:
    """bf16 where the device computes it in hardware; else fp16 on a GPU and fp32 on a CPU."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # oneDNN says no where bf16 needs AVX-512 that is not there. Its yes is not enough: it also emulates in AVX-512.
    return "bf16" if _onednn_takes_bf16() and slowdown("bf16", device) <= _WORTH_IT else "fp32"


def common_precision(suggestions: Iterable[Precision]) -> Precision:
    """What suits all devices of a run, of what suits each: workers that train together compute alike."""
    return min(suggestions, key=_FROM_SAFEST.index)


def drawback(precision: Precision, device: torch.device) -> str | None:
    """Say what speaks against a precision on a device, with the measured factor; None for nothing."""
    if precision in ("fp32", suitable_precision(device)):
        return None
    if precision == "tf32":
        return None if device.type == "cuda" else "tf32 is plain fp32 on a CPU"
    factor = slowdown(precision, device)
    if factor <= _SLOW:
        return None
    name = "GPU" if device.type == "cuda" else "CPU"
    return f"a small step in {precision} takes {factor:.1f} times as long as in fp32 on this {name}"


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute a forward pass in ``precision``, then go back to what was set before."""
    import torch

    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    set_float32(precision)
    try:
        with autocast(precision, device):
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass in ``precision``. That of float32's products is ``set_float32``'s business."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


def set_float32(precision: Precision) -> None:
    """Let float32 products on GPUs be TF32 or not, in this process: torch's own default differs between layers.

    By the flags that torch's compiler reads as well: it refuses to go on where some were set by their newer names.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def expect_constant_shapes() -> None:
    """Let cuDNN try its algorithms once per shape, in this process: worth it where few shapes come again and again."""
    import torch

    torch.backends.cudnn.benchmark = True


def _onednn_takes_bf16() -> bool:
    import torch

    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def slowdown(precision: Precision, device: torch.device) -> float:
    """How many times as long as in fp32 a small step takes in ``precision``, measured (once per process)."""
    return _step_s(precision, device) / _step_s("fp32", device)


def gflops(precision: Precision, device: torch.device) -> float:
    """GFLOP/s of a small step in ``precision``, measured (once per process): on a GPU, or on one core of a CPU."""
    count, channels, side = _step_size(device)
    # Two convolutions, of nine and of one multiply-add per weight; backwards costs twice as much again.
    return 3 * 2 * (9 + 1) * channels**2 * side**2 * count / _step_s(precision, device) / 1e9


@lru_cache(maxsize=16)
def _step_s(precision: Precision, device: torch.device) -> float:
    import torch

    threads = torch.get_num_threads()
    # One, for those of a busy machine wait for each other for many times as long as a step takes.
    torch.set_num_threads(1)
    try:
        step = _small_step(device)
        return _seconds(lambda: step(precision), device)
    finally:
        torch.set_num_threads(threads)


def _step_size(device: torch.device) -> tuple[int, int, int]:
    """Crops, channels and side of the maps of a small step."""
    return (64, 128, 64) if device.type == "cuda" else (8, 64, 24)


def _small_step(device: torch.device) -> Callable[[Precision], None]:
    """Forwards and backwards through a block of a residual network; some milliseconds on a core."""
    import torch
    from torch import nn

    count, channels, side = _step_size(device)
    with torch.random.fork_rng(devices=[]):
        block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        ).to(device)
        block = block.to(memory_format=torch.channels_last)
        images = torch.randn(count, channels, side, side).to(device).contiguous(memory_format=torch.channels_last)

    def step(precision: Precision) -> None:
        with torch.enable_grad(), autocast(precision, device):
            heatmaps = block(images)
        heatmaps.float().square().sum().backward()

    return step


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    """Shortest of four, after one to warm up: on a CPU this thread's own time, whatever else the machine does."""
    import torch

    clock = time.perf_counter if device.type == "cuda" else time.thread_time

    def once() -> float:
        began = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - began

    once()
    return min(once() for _ in range(4))


def describe(device: torch.device) -> str:
    """Name a device as a user knows it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU thread{'s'[: torch.get_num_threads() != 1]}"


# ---- cores


def cores(control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores this process may use: those of its affinity mask, fewer where a container's quota is smaller."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota(control_group))))


def reading_threads(*, beside_gpu: bool) -> int:
    """Threads that read crops for this process.

    A core prepares 850 to 1,100 crops a second, a GPU takes 1,500 to 5,000 in a ResNet-50 and more in smaller networks:
    it gets all cores but one. A core that trains takes 40 to 250, so on CPUs one reader feeds four of them.
    """
    import torch

    given = min(cores(), torch.get_num_threads())
    return max(1, min(_MOST_READERS, given - 1)) if beside_gpu else max(1, given // 4)


def has_core_beside(device: torch.device) -> bool:
    """Whether work beside the networks on ``device`` finds a core that they do not fill.

    On a GPU they leave the cores alone. On a CPU each pass fills as many as torch has threads, and these wait for each
    other: one that shares its core with other work holds up all, which costs more than the other work takes by itself.
    By default torch has a thread for every physical core, so a core is free where each counts as two, or where fewer
    threads are given (``OMP_NUM_THREADS``, the ``cpus`` of an actor).
    """
    import torch

    return device.type != "cpu" or torch.get_num_threads() < cores()


def _quota(control_group: Path) -> float:
    """Cores' worth of time that the container may take (cgroup v2 ``cpu.max``: microseconds per period)."""
    try:
        allowed, period = (control_group / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if allowed == "max" else int(allowed) / int(period)
