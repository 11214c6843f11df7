"""ImageNet weights: the encoder computes what the published networks compute, and wrong files are refused."""

from __future__ import annotations

import urllib.error
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision  # type: ignore[import-untyped]
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from efafnet.models.config import InitialisationConfig
from efafnet.models.initialisation import InitialisationReport, initialise
from efafnet.models.network import EFAFNet, NetworkConfig, build_network
from efafnet.models.variants import SBN

_RES2NET = {"fam": "26w4s", "fam_recurrence": "res2net"}


def _network(**switches: Any) -> EFAFNet:
    return build_network(NetworkConfig.model_validate(switches), 17)


def _shake_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give batch norms values that matter, so that a norm in the wrong place shows."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
            tensor.uniform_(0.8, 1.2, generator=generator)
        elif "running_mean" in name or ("bn" in name and name.endswith("bias")):
            tensor.uniform_(-0.1, 0.1, generator=generator)
    return tensors


@lru_cache(maxsize=2)
def _resnet(depth: str) -> nn.Module:
    """Not to be changed: several tests take it."""
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, depth)(weights=None, zero_init_residual=False)
    _shake_norms(model.state_dict())
    return model.eval()


def hollow_resnet(depth: str) -> dict[str, Tensor]:
    """What a ResNet's file holds, by name and shape."""
    with torch.device("meta"):
        tensors = getattr(torchvision.models, depth)(weights=None).state_dict()
    return _hollow(tensors)


def _hollow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same names and shapes that store a single zero each: whether a file fits is asked before any
    value."""
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in tensors.items()}


def _blank(**switches: Any) -> EFAFNet:
    """A network of ones, for what shows where something else comes from: to draw it takes longer than all the rest."""
    with torch.device("meta"):
        network = _network(**switches)
    network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.fill_(1)
    return network


@cache
def _refusing(**switches: Any) -> EFAFNet:
    """A network to which nothing may happen: tests of the same switches take the same."""
    return _blank(**switches)


def _published_features(model: Any, images: Tensor) -> list[Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        features.append(x)
    return features


def _load(network: EFAFNet, path: Path) -> InitialisationReport:
    report = initialise(network, InitialisationConfig(weights=path))
    assert report is not None
    return report


def _saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("depth", "wrap"),
    [
        ("resnet50", dict),
        ("resnet101", lambda t: {"state_dict": {f"module.{name}": value for name, value in t.items()}}),
    ],
)
def test_the_baselines_encoder_is_torchvisions_resnet(tmp_path: Path, depth: str, wrap: Any) -> None:
    model = _resnet(depth)
    network = _blank(encoder=depth, **SBN).eval()
    report = _load(network, _saved(tmp_path, wrap(model.state_dict())))
    assert report.complete
    assert report.taken_parameters == report.encoder_parameters
    # Everything but the classifier.
    assert report.unused == ("fc.weight", "fc.bias")
    assert report.encoder_parameters == sum(p.numel() for p in model.parameters()) - 2048 * 1000 - 1000
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(network.encoder(images), _published_features(model, images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


class _Res2NetBlock:
    """Res2Net's bottleneck (26w x 4s), evaluated from a state dict by its published description."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str, *, stride: int, first: bool) -> None:
        self.t, self.p, self.stride, self.first = tensors, prefix, stride, first

    def _conv_bn(self, x: Tensor, conv: str, bn: str, **kwargs: Any) -> Tensor:
        x = F.conv2d(x, self.t[f"{self.p}.{conv}.weight"], **kwargs)
        mean, var, weight, bias = (
            self.t[f"{self.p}.{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        splits = F.relu(self._conv_bn(x, "conv1", "bn1")).chunk(4, dim=1)
        outputs: list[Tensor] = []
        for i in range(3):
            # In the first block of a stage nothing is passed on; elsewhere from the second split on.
            inside = splits[i] if i == 0 or self.first else outputs[-1] + splits[i]
            y = self._conv_bn(inside, f"convs.{i}", f"bns.{i}", stride=self.stride, padding=1)
            outputs.append(F.relu(y))
        outputs.append(F.avg_pool2d(splits[3], 3, self.stride, 1) if self.first else splits[3])
        y = self._conv_bn(torch.cat(outputs, dim=1), "conv3", "bn3")
        shortcut = self._conv_bn(x, "downsample.0", "downsample.1", stride=self.stride) if self.first else x
        return F.relu(y + shortcut)


@lru_cache(maxsize=2)
def _res2net_tensors() -> dict[str, Tensor]:
    """A Res2Net-50 26w x 4s state dict with random values, under its published names. Not to be changed."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}

    def add(conv: str, bn: str, out: int, inner: int, kernel: int) -> None:
        scale = (inner * kernel**2) ** -0.5
        tensors[f"{conv}.weight"] = scale * torch.randn(out, inner, kernel, kernel, generator=generator)
        for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            tensors[f"{bn}.{part}"] = torch.full((out,), value)
        tensors[f"{bn}.num_batches_tracked"] = torch.tensor(0)

    add("conv1", "bn1", 64, 3, 7)
    channels = 64
    for stage, (count, planes) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        width = planes * 26 // 64
        for i in range(count):
            block = f"layer{stage}.{i}"
            add(f"{block}.conv1", f"{block}.bn1", 4 * width, channels, 1)
            for j in range(3):
                add(f"{block}.convs.{j}", f"{block}.bns.{j}", width, width, 3)
            add(f"{block}.conv3", f"{block}.bn3", 4 * planes, 4 * width, 1)
            if i == 0:
                add(f"{block}.downsample.0", f"{block}.downsample.1", 4 * planes, channels, 1)
            channels = 4 * planes
    tensors |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    return _shake_norms(tensors)


def test_res2net_weights_give_res2nets_features(tmp_path: Path) -> None:
    tensors = _res2net_tensors()
    # The published Res2Net-50 26w x 4s has 25.70 M parameters, 2.05 M of them in the classifier.
    total = sum(t.numel() for n, t in tensors.items() if "running" not in n and "num_b" not in n)
    assert f"{total / 1e6:.2f}" == "25.70"
    network = _blank(fsm="none", **_RES2NET).eval()
    report = _load(network, _saved(tmp_path, tensors))
    assert report.complete
    assert report.kind == "res2net"
    assert report.encoder_parameters == total - 2_049_000
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = network.encoder(x)
        x = F.conv2d(x, tensors["conv1.weight"], stride=2, padding=3)
        mean, var, weight, bias = (tensors[f"bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.max_pool2d(F.relu(F.batch_norm(x, mean, var, weight, bias)), 3, 2, 1)
        for stage, count in enumerate((3, 4, 6, 3), start=1):
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                x = _Res2NetBlock(tensors, f"layer{stage}.{i}", stride=stride, first=i == 0)(x)
            torch.testing.assert_close(ours[stage - 1], x, atol=1e-3, rtol=1e-4)


def test_what_fits_of_a_plain_resnet_is_taken_and_the_rest_is_said(tmp_path: Path) -> None:
    network = _blank()
    before = {name: t.clone() for name, t in network.encoder.state_dict().items()}
    report = _load(network, _saved(tmp_path, _resnet("resnet50").state_dict()))
    # Stem and the four shortcuts: 2.8 M; the aggregated 26w x 4s blocks have other widths throughout.
    assert 2.75e6 < report.taken_parameters < 2.85e6
    assert not report.complete
    summary = report.summary()
    assert "took 25 of" in summary
    assert "(2.79 of 26.20 M parameters)" in summary
    assert "random: reduce x" in summary
    after = network.encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in report.taken if not torch.equal(before[name], after[name])}
    assert set(report.taken) & set(report.left) == set()
    # A norm is never taken without its convolution.
    assert not any(".expand." in name for name in report.taken)


def test_selection_modules_stay_random_beside_a_whole_resnet(tmp_path: Path) -> None:
    network = _blank(**SBN | {"fsm": "parallel"})
    report = _load(network, _saved(tmp_path, _resnet("resnet50").state_dict()))
    assert {name.split(".")[2] for name in report.left} == {"select"}
    assert report.taken_parameters == 23_508_032


def test_safetensors_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(_resnet("resnet50").state_dict(), path)
    assert _load(_blank(**SBN), path).complete


def test_without_a_source_nothing_happens_and_no_network_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used without being asked for")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    assert initialise(_network(encoder="nano"), InitialisationConfig()) is None


def test_a_failed_download_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", unreachable)
    with pytest.raises(
        OSError, match=r"ResNet50_Weights.IMAGENET1K_V1 failed .*no route.*give a file as imagenet\.weights=FILE"
    ):
        initialise(_blank(**SBN), InitialisationConfig(download=True))
    with pytest.raises(ValueError, match=r"^imagenet\.download=true: there are no ImageNet weights for encoder=nano"):
        initialise(_network(encoder="nano"), InitialisationConfig(download=True))


def _broken_resnet() -> dict[str, Tensor]:
    tensors = hollow_resnet("resnet50")
    tensors["layer3.2.conv2.weight"] = tensors["layer3.2.conv2.weight"].clone()
    tensors["layer3.2.conv2.weight"][0, 0, 0, 0] = float("nan")
    return tensors


def _hollow_res2net() -> dict[str, Tensor]:
    return _hollow(_res2net_tensors())


@pytest.mark.parametrize(
    ("content", "switches", "message"),
    [
        (lambda: hollow_resnet("resnet101"), SBN, "its depth is resnet101, the network's encoder=resnet50"),
        (lambda: hollow_resnet("resnet34"), SBN, "a ResNet without bottlenecks"),
        (lambda: hollow_resnet("wide_resnet50_2"), SBN, "a resnet of another width"),
        (lambda: hollow_resnet("resnet50"), SBN | {"base_width": 32}, "a resnet of another width"),
        (_broken_resnet, SBN, r"1 tensors hold NaN or infinity, first layer3.2.conv2.weight"),
        (
            _hollow_res2net,
            {},
            "Res2Net weights need fam=26w4s fam_recurrence=res2net; the network has fam=26w4s",
        ),
        (_hollow_res2net, SBN, "the network has fam=none"),
        (lambda: {"conv1.0.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}, {}, "deep stem"),
        (lambda: {"embed.weight": torch.zeros(3)}, {}, r"neither a torchvision ResNet nor a Res2Net \(it holds embed"),
        (lambda: torch.zeros(3), {}, "holds a Tensor, not named tensors"),
        (dict, {}, "it holds no tensors at all"),
    ],
)
def test_a_file_of_the_wrong_kind_is_refused(
    tmp_path: Path, content: Any, switches: dict[str, Any], message: str
) -> None:
    network = _refusing(**switches)
    before = {name: tensor.clone() for name, tensor in network.encoder.conv1.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        _load(network, _saved(tmp_path, content()))
    assert all(torch.equal(network.encoder.conv1.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=rf"^imagenet\.weights={path}: there is no such file; give a local "):
        _load(_network(encoder="nano"), path)
    with pytest.raises(FileNotFoundError, match=rf"^imagenet\.weights={tmp_path}: this is no file; "):
        _load(_network(encoder="nano"), tmp_path)
    path.write_bytes(b"not a file of weights")
    with pytest.raises(ValueError, match=rf"^imagenet\.weights={path}: no file of weights .*give a .pth or ") as told:
        _load(_network(encoder="nano"), path)
    assert "weights_only" not in str(told.value), "torch's advice would run whatever code is in the file"


def test_two_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="name two sources"):
        InitialisationConfig(weights=Path("x.pth"), download=True)
