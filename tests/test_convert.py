"""Published weights: each tensor has one name there and one here; the checkpoint made of them is used as any other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from efafnet.models.network import build_network
from efafnet.models.network_config import HRNetConfig, NetworkConfig
from efafnet.models.pose_network import PoseNetwork
from efafnet.models.published_poses import load_published, published_name
from efafnet.models.variants import VARIANTS
from efafnet.pipelines.cli import main
from efafnet.pipelines.prediction.pose_predictor import PosePredictor
from efafnet.platform.checkpoint import load_checkpoint

SMALL = HRNetConfig(kind="hrnet", width=4, modules=(1, 1, 1), blocks=1)
NARROW = VARIANTS["sbn_r50_256x192"].network.model_copy(update={"base_width": 8})
"""The baseline with all of its tensors, an eighth as wide."""


def published(network: PoseNetwork, prefix: str = "") -> dict[str, torch.Tensor]:
    """A network's tensors under their published names, each of its own values."""
    named = {}
    for number, (name, tensor) in enumerate(network.state_dict().items()):
        other = published_name(name)
        assert other is not None, name
        assert prefix + other not in named, other
        named[prefix + other] = torch.full_like(tensor, number + 1)
    return named


def hrnet_names(modules: tuple[int, int, int] = (1, 4, 3)) -> set[str]:
    """The convolutions of HRNet as its repository names them, written down from its pose_hrnet.py."""
    names = {"conv1", "conv2", "final_layer", "transition1.0.0", "transition1.1.0.0", "transition2.2.0.0",
             "transition3.3.0.0", "layer1.0.downsample.0"}  # fmt: skip
    names |= {f"layer1.{block}.conv{n}" for block in range(4) for n in (1, 2, 3)}
    for stage, count in zip((2, 3, 4), modules, strict=True):
        for module in range(count):
            here = f"stage{stage}.{module}"
            names |= {f"{here}.branches.{b}.{n}.conv{c}" for b in range(stage) for n in range(4) for c in (1, 2)}
            for to in range(1 if (stage, module) == (4, count - 1) else stage):
                names |= {f"{here}.fuse_layers.{to}.{b}.0" for b in range(to + 1, stage)}
                names |= {f"{here}.fuse_layers.{to}.{b}.{k}.0" for b in range(to) for k in range(to - b)}
    return names


def test_hrnet_has_the_names_of_its_repository() -> None:
    with torch.device("meta"):
        network = build_network(HRNetConfig(kind="hrnet"), 17)
    convolutions = [name for name, tensor in network.state_dict().items() if tensor.ndim == 4]
    assert {str(published_name(name)).removesuffix(".weight") for name in convolutions} == hrnet_names()


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ("stem.1.1.running_var", "bn2.running_var"),
        ("stage1.0.identity.1.bias", "layer1.0.downsample.1.bias"),
        ("stages.1.2.branches.1.3.second.1.weight", "stage3.2.branches.1.3.bn2.weight"),
        ("stages.2.0.paths.3.0.2.1.bias", "stage4.0.fuse_layers.3.0.2.1.bias"),
        ("encoder.conv5.2.expand.0.weight", "layer4.2.conv3.weight"),
        ("upsample.7.running_mean", "deconv_layers.7.running_mean"),
        ("predict.bias", "final_layer.bias"),
        ("auxiliary.c3.0.weight", None),
    ],
)
def test_names(own: str, theirs: str | None) -> None:
    assert published_name(own) == theirs


@pytest.mark.parametrize("prefix", ["", "backbone.", "keypoint_head."])
def test_every_tensor_finds_its_place(prefix: str) -> None:
    for config in (SMALL, NARROW):
        network = build_network(config, 5)
        given = published(network, prefix)
        load_published(network, given, "w.pth")
        for number, (name, tensor) in enumerate(network.state_dict().items()):
            if not name.endswith("num_batches_tracked"):
                assert bool((tensor == number + 1).all()), name


def test_weights_of_another_network_are_refused() -> None:
    given = published(build_network(SMALL, 5))

    def refused(config: HRNetConfig | NetworkConfig, joints: int, message: str, **changed: torch.Tensor | None) -> None:
        tensors = {name: tensor for name, tensor in {**given, **changed}.items() if tensor is not None}
        with pytest.raises(ValueError, match=re.escape(message)):
            load_published(build_network(config, joints), tensors, "w.pth")

    refused(SMALL, 4, "final_layer.weight is (5, 4, 1, 1), the network's predict.weight (4, 4, 1, 1)")
    refused(
        SMALL,
        5,
        "1 tensors of the network are not in it, first stem.0.0.weight (conv1.weight)",
        **{"conv1.weight": None},
    )
    refused(SMALL, 5, "1 of its tensors have no place, first extra", extra=torch.zeros(1))
    refused(SMALL, 5, "bn1.bias holds NaN", **{"bn1.bias": torch.full((64,), torch.nan)})
    refused(NetworkConfig(encoder="nano", base_width=8), 5, "w.pth: the weights of another network: ")


def test_a_converted_file_is_used_like_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    network = build_network(SMALL, 17).eval()
    tensors = {str(published_name(name)): tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    words = ["convert", str(tmp_path / "w.pth"), "hrnet_w32_256x192", str(tmp_path / "out"), "input=64x64"]
    small = ["network.width=4", "network.modules=[1, 1, 1]", "network.blocks=1"]
    assert main([*words, *small]) == 0
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert f"{parameters / 1e6:.2f} M parameters, coco17, input 64x64" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "out", with_state=False).meta["converted_from"] == "w.pth"
    predictor = PosePredictor.load(tmp_path / "out")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.to(memory_format=torch.channels_last)(images).heatmaps
        assert torch.equal(predictor.trained.network(images).heatmaps, expected)
    assert main([*words, *small]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "other")]) == 2
    assert "the weights of another network" in capsys.readouterr().err
