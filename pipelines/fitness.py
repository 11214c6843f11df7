"""What would be chosen on this machine, and why: its arithmetic and its cores, measured; presets that do not fit it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from efafnet.platform import machine
from efafnet.platform.health import Finding
from efafnet.platform.machine import Precision

if TYPE_CHECKING:
    import torch

_CROP = (320, 240)
"""Height and width of the crops that reading is measured with, pixels: a person of COCO, prepared for 256x192."""
_SECONDS = 0.25
_RESNET50_GFLOP = 31.0
"""Forwards and backwards of one crop at 256x192 through EFAFNet with ResNet-50."""
_COCO_PERSONS = 149_813
"""Persons of COCO's train2017 that are trained on."""


def fitness() -> Iterator[Finding]:
    """Measure this machine; two seconds at most on a core of today."""
    import torch

    from efafnet.pipelines.training.context import pick_device

    device = pick_device("auto")
    yield arithmetic(device)
    yield feeding(device)
    yield from misfits(torch.cuda.device_count() if device.type == "cuda" else 0)


def arithmetic(device: torch.device) -> Finding:
    """Time a small step in each precision."""
    chosen = machine.suitable_precision(device)
    tried: tuple[Precision, ...] = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    shares = [f"{name} takes {machine.slowdown(name, device):.2f}" for name in tried]
    found = f"{' and '.join(shares)} times fp32's time on {machine.describe(device)}: precision=auto is {chosen}"
    return Finding("ok", "arithmetic", found)


def feeding(device: torch.device) -> Finding:
    """Compare what the cores prepare with what the device takes."""
    per_core, cores = crops_per_s(), machine.cores()
    precision = machine.suitable_precision(device)
    taken = machine.gflops(precision, device) / _RESNET50_GFLOP
    beside_gpu = device.type == "cuda"
    threads = machine.reading_threads(beside_gpu=beside_gpu)
    if beside_gpu:
        found = f"a core prepares {per_core:.0f} crops/s, {threads} of {cores} read; this GPU takes {taken:.0f} at most"
        if threads * per_core < taken:
            remedy = "expect the GPU to wait for data; more cores per GPU, or a larger network, use it better"
            return Finding("warn", "feeding", found, remedy)
        return Finding("ok", "feeding", found)
    hours = _COCO_PERSONS / (taken * cores) / 3600
    found = (
        f"a core prepares {per_core:.0f} crops/s and trains a ResNet-50 on {taken:.1f}: on {cores} cores "
        f"reader.threads=auto is {threads}, and an epoch of COCO takes {hours:.0f} hours or more"
    )
    return Finding("ok", "feeding", found)


def crops_per_s() -> float:
    """Crops that this thread decodes and warps a second."""
    import cv2
    import numpy as np

    from efafnet.pipelines.crops.decode import CropDecoder
    from efafnet.pipelines.crops.manifest import Encoding

    height, width = _CROP
    # Smooth noise: as many bytes as a photograph of that size, which plain noise is far from.
    noise = cv2.resize(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8), (width, height))
    data = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].reshape(-1)
    decoder, out = CropDecoder(Encoding(format="jpeg")), np.empty((3, 256, 192), np.uint8)
    affine = np.array([[1.2, 0.1, 0.0], [-0.1, 1.2, 0.0]])
    began, count = time.thread_time(), 0
    while (passed := time.thread_time() - began) < _SECONDS or not count:
        decoder.warp_into(decoder.decode(data, width, height), affine, out)
        count += 1
    return count / passed


def misfits(gpus: int) -> Iterator[Finding]:
    """Presets that cannot run on this machine as they are."""
    from efafnet.pipelines.training.config import TrainConfig
    from efafnet.pipelines.training.placement import placed
    from efafnet.platform.capacity import Capacity
    from efafnet.platform.configuration import load_preset, preset_names, resolve

    there = Capacity([{"CPU": float(machine.cores()), "GPU": float(gpus)}], is_local=True)
    for name in preset_names():
        try:
            placed(resolve(TrainConfig, load_preset(name), name), there)
        except ValueError as error:
            found, _, remedy = str(error).partition(";")
            yield Finding("warn", f"preset {name}", found, remedy.strip())
