"""The optimizer against PyTorch's own, and what it hands to the kernel."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from efafnet.pipelines.training.config_groups import OptimizerConfig
from efafnet.pipelines.training.optimizer import build_optimizer


def network() -> nn.Module:
    """Weights that lie with their channels last, that lie in both orders at once (1x1), and that have no such order."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(5, 4, 4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))
    return layers.append(nn.Linear(6, 2)).to(memory_format=torch.channels_last)


def set_gradients(module: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)


class Updated(TorchDispatchMode):
    """Keeps what the fused kernels are given: parameters, gradients and both moments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lists: list[list[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_fused_adam_", "_fused_adamw_"):
            self.lists += args[:4]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_updates_are_those_of_pytorchs_one_by_one(kind: Literal["adam", "adamw"]) -> None:
    ours, theirs = network(), network()
    optimizer = build_optimizer(OptimizerConfig(kind=kind, lr=0.01, weight_decay=0.1), ours)
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    reference = plain(theirs.parameters(), lr=0.01, weight_decay=0.1, foreach=False)
    for step in range(3):
        for module, each in ((ours, optimizer), (theirs, reference)):
            set_gradients(module, step)
            each.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert a.stride() == b.stride()
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(optimizer.state[a][name], reference.state[b][name])
            assert optimizer.state[a][name].shape == a.shape
    loaded = plain(theirs.parameters(), fused=True)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.param_groups[0].keys() == optimizer.param_groups[0].keys()


def test_a_cpus_kernel_has_no_gradient_to_rearrange() -> None:
    module = network()
    optimizer = build_optimizer(OptimizerConfig(), module)
    set_gradients(module, 0)
    assert not all(p.grad is not None and p.grad.is_contiguous() for p in module.parameters())
    with Updated() as updated:
        optimizer.step()
    assert [len(each) for each in updated.lists] == [len(list(module.parameters()))] * 4
    assert all(tensor.is_contiguous() for each in updated.lists for tensor in each)
