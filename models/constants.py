"""Small constant tensors, made once per device.

A tensor made from Python numbers on a GPU is a copy from pageable memory: the host waits for the device, once a call,
and a CUDA graph cannot be captured. Constants made once cost that at the first call only.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


def constant(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`numbers` as a tensor on `device`; the same tensor at each call, which nobody may write to."""
    if torch.compiler.is_exporting():
        # A tensor made while tracing is a place holder: it belongs to that trace, and nobody else may be given it.
        return torch.tensor(numbers, dtype=dtype, device=device)
    return made_once(numbers, dtype, device)


# Without bound: a captured CUDA graph reads a constant's memory for as long as the graph lives. The numbers are shapes,
# skeletons and settings, a handful per process.
@functools.cache
def made_once(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What :func:`constant` keeps for the life of the process."""
    # Else the first call might come from a validation, and what it made could not take part in training.
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)
