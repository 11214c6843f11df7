"""The network: shapes, switches, scale at the start, precisions, export; and that every part of it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from efafnet.models.config import HeatmapConfig, LossConfig
from efafnet.models.encoder import Bottleneck, ResidualEncoder
from efafnet.models.fusion import FusionBeforeDecoder
from efafnet.models.heatmaps import encode
from efafnet.models.losses import pose_loss
from efafnet.models.network import EFAFNet, NetworkConfig, PoseOutput, build_network, normalise
from efafnet.models.settings import InputSize
from efafnet.models.variants import SBN

SIZE = InputSize(height=64, width=96)


def _nano(**switches: Any) -> EFAFNet:
    torch.manual_seed(0)
    return build_network(NetworkConfig.model_validate({"encoder": "nano", **switches}), 17)


def _images(count: int = 2, size: InputSize = SIZE) -> Tensor:
    return torch.randn(count, 3, size.height, size.width, generator=torch.Generator().manual_seed(1))


_SWITCHES: list[dict[str, Any]] = [
    {},
    SBN,
    {"base_width": 24},
    {"fam": "width4"},
    {"fam_recurrence": "res2net"},
    {"fam": "none"},
    {"fsm": "none"},
    {"fsm": "cs"},
    {"fsm": "lss", "lss_relu": True},
    {"fsm": "cs_lss"},
    {"fsm": "lss_cs", "fsm_merge": "sum"},
    {"fsm_merge": "literal", "cs_reduction": 2},
    {"fasm_placement": "last_block"},
    {"fasm_placement": "after_stage"},
    {"ffm": False},
    {"ffm": False, "head": "duc_progressive"},
    {"head": "duc_progressive"},
    {"head": "deconvolution"},
    {"head": "deconvolution_duc"},
    {"ffm": False, "head": "deconvolution_duc"},
    {"ffm_order": "before_decoder"},
    {"ffm_order": "before_decoder", "head": "deconvolution"},
    {"ffm_order": "before_decoder", "head": "deconvolution_duc"},
    {"auxiliary_stages": ["c2"]},
    {"auxiliary_stages": []},
]


@pytest.mark.parametrize("switches", _SWITCHES, ids=str)
def test_every_switch_gives_heatmaps_of_its_stride_and_every_parameter_learns(switches: dict[str, Any]) -> None:
    network = _nano(**switches)
    stride = network.config.heatmap_stride
    output = network(_images())
    assert output.heatmaps.shape == (2, 17, SIZE.height // stride, SIZE.width // stride)
    joints = torch.rand(2, 17, 2) * 60
    target = encode(joints, torch.ones(2, 17), SIZE, HeatmapConfig(stride=stride))
    pose_loss(output, target, LossConfig()).per_sample.mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert idle == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_auxiliary_heads_exist_in_training_only_at_their_stages_size() -> None:
    network = _nano(auxiliary_stages=["c2", "c3", "c4", "c5"])
    auxiliary = network(_images()).auxiliary
    sizes = {stage: tuple(maps.shape) for stage, maps in auxiliary.items()}
    assert sizes == {
        "c2": (2, 17, 16, 24), "c3": (2, 17, 8, 12), "c4": (2, 17, 4, 6), "c5": (2, 17, 2, 3),
    }  # fmt: skip
    assert network.eval()(_images()).auxiliary == {}


def test_stages_have_the_published_channels_and_strides() -> None:
    with torch.device("meta"):
        encoder = ResidualEncoder(NetworkConfig())
        features = encoder(torch.empty(2, 3, 256, 192))
    assert [tuple(f.shape[1:]) for f in features] == [(256, 64, 48), (512, 32, 24), (1024, 16, 12), (2048, 8, 6)]


@pytest.mark.parametrize(
    ("placement", "per_stage"),
    [("every_block", [3, 4, 6, 3]), ("last_block", [1, 1, 1, 1]), ("after_stage", [1, 1, 1, 1])],
)
def test_placement_of_the_selection(placement: str, per_stage: list[int]) -> None:
    with torch.device("meta"):
        encoder = ResidualEncoder(NetworkConfig.model_validate({"fasm_placement": placement}))
    stages = [encoder.conv2, encoder.conv3, encoder.conv4, encoder.conv5]
    blocks = [[b for b in stage if isinstance(b, Bottleneck)] for stage in stages]
    assert [sum(b.select is not None for b in stage) for stage in blocks] == per_stage
    assert all(stage[-1].select is not None for stage in blocks)
    extra = 1 if placement == "after_stage" else 0
    assert [len(stage) for stage in blocks] == [3 + extra, 4 + extra, 6 + extra, 3 + extra]


def test_literal_equation_8_adds_the_identity_twice() -> None:
    config = NetworkConfig(encoder="nano", fam="none", fsm_merge="literal")
    block = Bottleneck(config, 64, 16).eval()
    x = torch.randn(1, 64, 4, 4)
    with torch.no_grad():
        f = block.expand(block.aggregate(block.reduce(x)))
        assert block.select is not None
        alpha, beta = block.select.gates["cs"](f), block.select.gates["lss"](f)
        y = x + (f + alpha * f) + (f + beta * f)
        torch.testing.assert_close(block(x), torch.relu(x + y))


def test_fusion_starts_without_effect_on_c5() -> None:
    network = _nano()
    features = network.encoder(_images())
    assert network.fuse is not None
    torch.testing.assert_close(network.fuse.low_to_high(features.c2, features.c5), features.c5)


def test_fusion_before_the_decoder_is_all_in_what_duc_reads_and_duc_emits_the_joints() -> None:
    torch.manual_seed(0)
    network = _nano(ffm_order="before_decoder").eval()
    features = network.encoder(_images())
    fuse = network.fuse
    assert isinstance(fuse, FusionBeforeDecoder)
    assert isinstance(network.predict, nn.Identity)
    assert network.upsample.out_channels == 17
    torch.testing.assert_close(fuse(features.c2, features.c5), features.c5)
    pink, green = fuse.low_to_high.expand[1], fuse.expand[1]
    assert isinstance(pink, nn.BatchNorm2d)
    assert isinstance(green, nn.BatchNorm2d)
    nn.init.ones_(pink.weight)
    nn.init.ones_(green.weight)
    # What reaches the joints is DUC of the fused features, nothing beside it.
    torch.testing.assert_close(network(_images()).heatmaps, network.upsample(fuse(features.c2, features.c5)))
    # A change in one pixel of C2 reaches C5 by the green line alone where the pink one is closed, at the 1/32 of its
    # patch and, through the 3x3 that mixes, of a neighbouring one at most.
    nn.init.zeros_(pink.weight)
    nudged = features.c2.clone()
    nudged[:, :, 12, 12] += 1
    moved = (fuse(nudged, features.c5) - fuse(features.c2, features.c5)).abs().sum(dim=(0, 1)) > 0
    assert moved.nonzero().tolist() == [[1, 1]]


def test_an_order_without_fusion_is_refused() -> None:
    with pytest.raises(ValueError, match="ffm_order=before_decoder orders FFM, but ffm=false"):
        NetworkConfig(ffm=False, ffm_order="before_decoder")


def test_crops_of_a_batch_do_not_see_each_other_in_eval_mode() -> None:
    network = _nano().eval()
    images = _images(3)
    with torch.no_grad():
        together, alone = network(images).heatmaps, network(images[1:2]).heatmaps
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


def test_channels_last_is_the_same_function() -> None:
    network, images = _nano().eval(), _images()
    with torch.no_grad():
        expected = network(images).heatmaps
        network.to(memory_format=torch.channels_last)
        actual = network(images.contiguous(memory_format=torch.channels_last)).heatmaps
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


class _Scales:
    """Standard deviation and finiteness of every module's output during a forward pass."""

    def __init__(self, network: nn.Module) -> None:
        self.std: dict[str, float] = {}
        self.broken: list[str] = []
        for name, module in network.named_modules():
            module.register_forward_hook(lambda _m, _i, output, name=name: self._see(name, output))

    def _see(self, name: str, output: object) -> None:
        if isinstance(output, Tensor):
            self.std[name] = output.float().std().item()
            if not output.isfinite().all():
                self.broken.append(name)


_FORMS: dict[str, dict[str, Any]] = {
    "efafnet": {},
    "sbn": SBN,
    "res2net": {"fam_recurrence": "res2net"},
    "last_block": {"fasm_placement": "last_block"},
    "after_stage": {"fasm_placement": "after_stage"},
}


@pytest.mark.parametrize(
    ("encoder", "form"),
    [
        *(("nano", form) for form in _FORMS),
        ("resnet50", "efafnet"),
        pytest.param("resnet101", "efafnet", marks=[pytest.mark.slow, pytest.mark.no_ray]),
        pytest.param("resnet152", "efafnet", marks=[pytest.mark.slow, pytest.mark.no_ray]),
        pytest.param("resnet152", "sbn", marks=[pytest.mark.slow, pytest.mark.no_ray]),
    ],
)
def test_activations_start_at_a_sane_scale_and_fit_half_precision(encoder: str, form: str) -> None:
    """In the layout that is usual in training; in the other, float16 takes a CPU up to three times as long."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig.model_validate(_FORMS[form] | {"encoder": encoder}), 17)
    network.to(memory_format=torch.channels_last)
    seen = _Scales(network)
    images = _images(2, InputSize(height=64, width=64)).contiguous(memory_format=torch.channels_last)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            heatmaps = network(images).heatmaps
        assert seen.broken == []
        assert max(seen.std.values()) < 20
        assert heatmaps.abs().max().item() < 1


def test_literal_equation_8_does_not_fit_half_precision_in_a_deep_encoder() -> None:
    """Why it is not the default: the doubled identity doubles the scale at every one of 33 blocks."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(encoder="resnet101", fsm_merge="literal", ffm=False), 17)
    seen = _Scales(network)
    with torch.no_grad():
        network(_images(2, InputSize(height=64, width=64)))
    assert max(seen.std.values()) > 65504


def test_bf16_autocast_trains_end_to_end_with_a_float32_loss() -> None:
    network = _nano()
    joints = torch.rand(4, 17, 2) * 60
    target = encode(joints, torch.ones(4, 17), SIZE, HeatmapConfig())
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            output = network(_images(4))
        assert output.heatmaps.dtype == torch.bfloat16
        loss = pose_loss(output, target, LossConfig()).per_sample
        assert loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("switches", [{}, SBN], ids=["efafnet", "sbn"])
def test_exports_with_any_batch_size(switches: dict[str, Any]) -> None:
    network = _nano(**switches).eval()
    batch = torch.export.Dim("batch", min=1, max=256)
    exported = torch.export.export(network, (_images(2),), dynamic_shapes=({0: batch},))
    images = _images(5)
    with torch.no_grad():
        output = exported.module()(images)
        torch.testing.assert_close(output.heatmaps, network(images).heatmaps)
    assert isinstance(output, PoseOutput)


def test_normalise_is_imagenets() -> None:
    images = torch.zeros(1, 3, 1, 2, dtype=torch.uint8)
    images[0, :, 0, 1] = 255
    expected = [[-0.485 / 0.229, 0.515 / 0.229], [-0.456 / 0.224, 0.544 / 0.224], [-0.406 / 0.225, 0.594 / 0.225]]
    torch.testing.assert_close(normalise(images)[0, :, 0], torch.tensor(expected), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"normalise takes uint8 images .* got torch.float32: normalise only once"):
        normalise(torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"fasm_placement": "after_stage", "fam": "none"}, "needs both parts; got fam=none, fsm=parallel"),
        ({"fasm_placement": "last_block", "fsm": "none"}, "set fsm, or fasm_placement=every_block"),
        ({"cs_reduction": 4, "fsm": "lss"}, "cs_reduction=4 sizes CS, which fsm=lss leaves out"),
        ({"lss_relu": True, "fsm": "cs"}, "lss_relu=true belongs to LSS, which fsm=cs leaves out"),
        ({"fam_recurrence": "res2net", "fam": "none"}, "needs FAM, but fam=none"),
        ({"auxiliary_stages": ["c3", "c3"]}, "auxiliary_stages names a stage twice"),
        ({"auxiliary_stages": ["c6"]}, "'c2', 'c3', 'c4' or 'c5'"),
        ({"encoder": "resnet34"}, "'resnet50', 'resnet101', 'resnet152' or 'nano'"),
        ({"base_width": 10}, "multiple of 4"),
        ({"depth": 50}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_combinations_are_refused(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkConfig.model_validate(switches)


def test_a_network_without_joints_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one joint; got num_joints=0"):
        build_network(NetworkConfig(encoder="nano"), 0)


def test_input_size_is_divisible_by_the_encoders_stride() -> None:
    assert InputSize.model_validate("256x192") == InputSize(height=256, width=192)
    with pytest.raises(ValidationError, match="width must be a positive multiple of 32; got 200, try 192 or 224"):
        InputSize.model_validate("256x200")
    with pytest.raises(ValidationError, match="written HEIGHTxWIDTH"):
        InputSize.model_validate("256")
