"""Channels taken apart and put together, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efafnet.models.layers import join_channels, split_channels

LAYOUTS = (torch.channels_last, torch.contiguous_format)
WIDTHS = (3, 2, 4)


def maps(layout: torch.memory_format, *widths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, width, 4, 5, generator=generator, dtype=torch.float64) for width in widths]
    return [each.contiguous(memory_format=layout).requires_grad_() for each in made]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splitting_and_its_gradient_are_pytorchs(layout: torch.memory_format) -> None:
    (x,) = maps(layout, sum(WIDTHS))
    parts, expected = split_channels(x, WIDTHS), x.split(WIDTHS, dim=1)
    assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))
    towards = [torch.randn_like(part) for part in expected]
    assert torch.equal(*(torch.autograd.grad(each, x, towards)[0] for each in (parts, expected)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_joining_and_its_gradient_are_pytorchs(layout: torch.memory_format) -> None:
    parts = maps(layout, *WIDTHS)
    joined, expected = join_channels(parts), torch.cat(parts, dim=1)
    assert torch.equal(joined, expected)
    assert joined.is_contiguous(memory_format=layout)
    towards = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(each, parts, towards) for each in (joined, expected)), strict=True):
        assert torch.equal(a, b)


def test_with_channels_last_a_cpus_parts_and_their_gradients_lie_together() -> None:
    (x,) = maps(torch.channels_last, sum(WIDTHS))
    assert not any(part.is_contiguous(memory_format=torch.channels_last) for part in x.split(WIDTHS, dim=1))
    gradients: list[Tensor] = []
    parts = split_channels(x, WIDTHS)
    for part in parts:
        part.register_hook(gradients.append)
    join_channels(parts).square().sum().backward()
    assert len(gradients) == len(WIDTHS)
    for each in (*parts, *gradients):
        assert each.is_contiguous(memory_format=torch.channels_last)


def test_joined_types_are_promoted_and_gradients_are_the_parts() -> None:
    """As under autocast, where a resized map stays in float32."""
    half, single = (each.detach().to(dtype).requires_grad_() for each, dtype in zip(
        maps(torch.channels_last, 2, 3), (torch.bfloat16, torch.float32), strict=True))  # fmt: skip
    joined = join_channels((half, single))
    assert joined.dtype == torch.float32
    joined.sum().backward()
    dtypes = [None if each.grad is None else each.grad.dtype for each in (half, single)]
    assert dtypes == [torch.bfloat16, torch.float32]
