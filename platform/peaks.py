"""What devices can compute at most, by name: what a run's rate is measured against."""

from __future__ import annotations

from efafnet.platform.machine import Precision

_PEAKS_TFLOPS: dict[str, tuple[float, float, float]] = {
    "B200": (2250, 1125, 75),
    "H200": (989.4, 494.7, 66.9),
    "GH200": (989.4, 494.7, 66.9),
    "H100 NVL": (835.5, 417.8, 60),
    "H100 PCIe": (756.5, 378, 51.2),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312, 156, 19.5),
    "A10G": (70, 35, 31.5),
    "A10": (125, 62.5, 31.2),
    "A30": (165, 82, 10.3),
    "A40": (149.7, 74.8, 37.4),
    "RTX A6000": (154.8, 77.4, 38.7),
    "RTX 6000 Ada": (364.2, 182.1, 91.1),
    "L40S": (362, 183, 91.6),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30.3),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 3090": (71, 35.6, 35.6),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
}
"""TFLOP/s of dense matrix products in bf16 or fp16 (summed in fp32), TF32 and fp32, from NVIDIA's data sheets; those of
fp16 and fp32 where a device has no bf16 or TF32. A10G: from AWS, whose card it is."""
_COLUMN: dict[Precision, int] = {"bf16": 0, "fp16": 0, "tf32": 1, "fp32": 2}


def peak_tflops(device_name: str, precision: Precision) -> float | None:
    """TFLOP/s that a device of this name, as CUDA says it, reaches at most; None for one that is not known."""
    words = device_name.replace("-", " ").split()
    for name in sorted(_PEAKS_TFLOPS, key=lambda known: -len(known.split())):
        if set(name.split()) <= set(words):
            return _PEAKS_TFLOPS[name][_COLUMN[precision]]
    return None
