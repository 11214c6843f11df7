"""What devices can compute at most, by name: what a run's rate is measured against."""

from __future__ import annotations

import re

from efafnet.platform.machine import Precision

_PEAKS_TFLOPS: dict[str, tuple[float, float, float]] = {
    "GB200": (2500, 1250, 80),
    "B200": (2250, 1100, 75),
    "H200 NVL": (835.5, 417.8, 60),
    "H200": (989.4, 494.7, 66.9),
    "GH200": (989.4, 494.7, 66.9),
    "H100 NVL": (835.5, 417.8, 60),
    "H100 PCIE": (756.5, 378, 51.2),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312, 156, 19.5),
    "A10G": (70, 35, 31.5),
    "A10": (125, 62.5, 31.2),
    "A30": (165, 82, 10.3),
    "A40": (149.7, 74.8, 37.4),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 6000 ADA": (364.2, 182.1, 91.1),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "RTX 5090": (209.5, 104.8, 104.8),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "V100S": (130, 16.4, 16.4),
    "V100 PCIE": (112, 14, 14),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
}
"""TFLOP/s of dense matrix products in bf16 or fp16 (summed in fp32), TF32 and fp32, from NVIDIA's data sheets and
architecture papers; those of fp16 and fp32 where a device has no bf16 or TF32. A10G: from AWS, whose card it is."""
_COLUMN: dict[Precision, int] = {"bf16": 0, "fp16": 0, "tf32": 1, "fp32": 2}
_NO_MATTER = re.compile(r"NVIDIA|TESLA|GEFORCE|GENERATION|PCIE|SXM[2-5]|HBM\d\w?|\d+GB?")
"""Words of a name that say nothing of the speed: who made it, its form and its memory."""


def peak_tflops(device_name: str, precision: Precision) -> float | None:
    """TFLOP/s that a device of this name, as CUDA says it, reaches at most; None for one that is not known.

    A word that is not understood makes another device of it: a part of one (MIG), a Laptop's, a Ti.
    """
    words = set(device_name.upper().replace("-", " ").split())
    for name in sorted(_PEAKS_TFLOPS, key=lambda known: -len(known.split())):
        known = set(name.split())
        if known <= words and all(_NO_MATTER.fullmatch(word) for word in words - known):
            return _PEAKS_TFLOPS[name][_COLUMN[precision]]
    return None
