"""FAM on aligned channels against its narrow form."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from efafnet.models import aligned, fsm_fused
from efafnet.models.encoder import Bottleneck
from efafnet.models.network import build_network
from efafnet.models.network_config import NetworkConfig
from efafnet.models.variants import variant
from tests.step_transfers import network_on, stand_in_gpu

WIDTH = 24  # a split of 24 * 26 // 64 = 9 channels, computed as 16


def _block(*, recurrence: str = "literal", stride: int = 1, first: bool = False) -> Bottleneck:
    torch.manual_seed(0)
    config = NetworkConfig.model_validate({"encoder": "nano", "base_width": WIDTH, "fam_recurrence": recurrence})
    block = Bottleneck(config, 2 * WIDTH, WIDTH, stride=stride, first=first).double()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Not the identity they start as.
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return block.to(memory_format=torch.channels_last)


def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligned, "is_faster", lambda *_: True)


_FORMS = pytest.mark.parametrize(
    ("recurrence", "stride", "first"),
    [("literal", 1, False), ("literal", 2, True), ("res2net", 1, False), ("res2net", 1, True), ("res2net", 2, True)],
)


@_FORMS
@pytest.mark.parametrize("training", [True, False])
def test_values_gradients_and_running_statistics_are_the_narrow_forms(
    recurrence: str, stride: int, first: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = _block(recurrence=recurrence, stride=stride, first=first).train(training)
    x = torch.randn(3, 2 * WIDTH, 6, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

    def outcomes(block: Bottleneck) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        y = block(x)
        y.square().sum().backward()
        gradients = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
        return {"y": y, **gradients}, dict(block.named_buffers())

    other = copy.deepcopy(block)
    narrow = outcomes(block)
    _wide(monkeypatch)
    wide = outcomes(other)
    assert narrow[0].keys() == wide[0].keys()
    assert len(narrow[0]) == 1 + len(list(block.parameters()))
    for name, wanted in narrow[0].items():
        torch.testing.assert_close(wide[0][name], wanted, rtol=1e-12, atol=1e-12, msg=name)
    for name, wanted in narrow[1].items():
        torch.testing.assert_close(wide[1][name], wanted, rtol=1e-12, atol=1e-12, msg=name)
    if training:
        assert wide[1]["reduce.1.num_batches_tracked"] == 1


def test_float32_agrees_to_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    block = _block().float()
    x = torch.randn(3, 2 * WIDTH, 6, 4).contiguous(memory_format=torch.channels_last)
    narrow = block(x)
    _wide(monkeypatch)
    torch.testing.assert_close(block(x), narrow, rtol=1e-5, atol=1e-5)


def test_the_convolutions_really_are_aligned_and_the_added_channels_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    _wide(monkeypatch)
    seen: list[Tensor] = []
    convolve = torch.nn.functional.conv2d

    def conv2d(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x)
        y: Tensor = convolve(x, *rest)
        return y

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    block = _block()
    block(torch.randn(2, 2 * WIDTH, 6, 4, dtype=torch.float64))
    # The first 1x1, three G's, the last 1x1 (the identity's own convolution calls no function of F).
    assert [x.shape[1] for x in seen[:5]] == [2 * WIDTH, 16, 16, 16, 64]
    for x in seen[1:5]:
        splits = x.view(2, -1, 16, 6, 4)
        assert not splits[:, :, 9:].any()
        assert splits[:, :, :9].any()


def test_training_keeps_the_two_forms_together_and_stores_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    config = NetworkConfig.model_validate({"encoder": "nano"})  # splits of 6, 13, 26 and 52 channels
    torch.manual_seed(0)
    one = build_network(config, 3).double()
    other = copy.deepcopy(one)
    names = list(one.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    def trained(network: nn.Module) -> dict[str, Tensor]:
        # Adam divides by the gradient's size: a small eps would magnify 1e-16 where a gradient is nearly nothing.
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-2, eps=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            network(images).heatmaps.square().sum().backward()
            optimizer.step()
        return network.state_dict()

    narrow = trained(one)
    _wide(monkeypatch)
    wide = trained(other)
    assert list(wide) == names
    for name, wanted in narrow.items():
        torch.testing.assert_close(wide[name], wanted, rtol=1e-9, atol=1e-11, msg=name)


def test_it_is_taken_on_a_gpu_in_half_precision_only() -> None:
    fam = _block().aggregate
    aligned_fam = Bottleneck(NetworkConfig(fam="width4"), 64, 64).aggregate
    assert not aligned.is_faster(fam, torch.zeros(1, dtype=torch.bfloat16))  # type: ignore[arg-type]
    with stand_in_gpu() as gpu:
        half, full = (torch.zeros(1, dtype=dtype, device=gpu.device) for dtype in (torch.bfloat16, torch.float32))
        assert aligned.is_faster(fam, half)  # type: ignore[arg-type]
        assert not aligned.is_faster(fam, full)  # type: ignore[arg-type]
        assert not aligned.is_faster(aligned_fam, half)  # type: ignore[arg-type]
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(fam))
        assert not aligned.is_faster(synchronised, half)


def test_a_network_in_half_precision_on_a_gpu_copies_nothing() -> None:
    with stand_in_gpu() as gpu:
        row = variant("efafnet_nano")
        network = network_on(gpu.device, row).bfloat16()
        images = torch.zeros(2, 3, 64, 64, device=gpu.device, dtype=torch.bfloat16)
        gpu.transfers.clear()
        network(images.contiguous(memory_format=torch.channels_last)).heatmaps.sum().backward()
        assert gpu.transfers == []
        assert all(
            p.grad is not None and p.grad.shape == p.shape
            for name, p in network.named_parameters()
            if not name.startswith("auxiliary.")
        )


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_compiled_bottleneck_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    _wide(monkeypatch)
    block = _block()
    other = copy.deepcopy(block)
    x = torch.randn(3, 2 * WIDTH, 6, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-12, atol=1e-12)
    for (name, wanted), found in zip(block.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_compiler_sees_one_graph_of_the_forms_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which forms a block takes is decided while it is traced: here on tensors without values that say they lie on a
    GPU, under its autocast."""
    monkeypatch.setattr(fsm_fused, "_tried", lambda *_: True)
    graphs: list[list[str]] = []

    def backend(traced: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append([getattr(node.target, "__name__", str(node.target)) for node in traced.graph.nodes])
        return traced.forward

    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    config = NetworkConfig.model_validate({"encoder": "nano", "base_width": WIDTH})
    try:
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        with FakeTensorMode(allow_non_fake_inputs=True):
            with torch.device("cuda"):  # left for the call: every operation would be traced through it
                block, x = Bottleneck(config, 2 * WIDTH, WIDTH), torch.empty(2, 2 * WIDTH, 8, 6)
            y = torch.compile(block, backend=backend, fullgraph=True)(x)
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
    assert y.dtype == torch.bfloat16
    (names,) = graphs
    assert "_foreach_copy_" in names, "aligned splits bring running statistics back"
    assert any("autograd_function" in name for name in names), "FSM by its kernels"
    assert "max" not in names, "and not in its plain form"
