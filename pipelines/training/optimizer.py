"""The optimizer of a run: Adam or AdamW, fused on every device."""

from __future__ import annotations

from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from efafnet.pipelines.training.config_groups import OptimizerConfig


class FusedAdam(torch.optim.Adam):
    """PyTorch's fused Adam, which on a CPU is handed the tensors in the order in which they lie in memory.

    PyTorch's kernel makes a copy of each gradient in NCHW order that it then does not use (``fused_adam_kernel`` up to
    2.14). For convolutions with channels last that rearranges the whole gradient, and takes longer than the update. A
    view with the channels behind has no other order to be copied to; the arithmetic is element by element, the same.

    PyTorch wraps these methods to keep its compiler out of them, and loads the compiler for that, which takes about a
    second of each process that trains. Nothing here is compiled, so they are taken without their wrapping.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """Collect what is updated: parameters, gradients and moments, each in a list."""
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        updated = lists[:4]
        for index, tensors in enumerate(zip(*updated, strict=True)):
            if all(_only_channels_last(tensor) for tensor in tensors):
                for each, tensor in zip(updated, tensors, strict=True):
                    each[index] = tensor.movedim(1, -1)
        return has_complex


def _only_channels_last(t: Tensor) -> bool:
    on_cpu = t.device.type == "cpu"
    return on_cpu and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def build_optimizer(config: OptimizerConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer over all parameters; fused, because one kernel per tensor is slow everywhere."""
    return FusedAdam(
        network.parameters(),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        decoupled_weight_decay=config.kind == "adamw",
        fused=True,
    )
