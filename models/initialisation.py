"""ImageNet weights for the encoder, from a local file, with an account of what was taken and what was not.

Two published families are known by the names of their tensors: torchvision's ResNet, and Res2Net 26w x 4s. Weights
are taken by unit, a convolution with its batch norm: a norm without its convolution would bring the scale of other
features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from efafnet.models.config import InitialisationConfig
from efafnet.models.efafnet import EFAFNet
from efafnet.models.network_config import BLOCKS

Kind = Literal["resnet", "res2net"]
_DEPTHS: dict[tuple[int, ...], str] = {counts: name for name, counts in BLOCKS.items() if name != "nano"}


@dataclass(frozen=True)
class InitialisationReport:
    """What became of a file of weights."""

    source: str
    """File, or name of the download."""
    kind: Kind
    taken: tuple[str, ...]
    """Names of the encoder's tensors (parameters and running statistics) that come from the file."""
    left: tuple[str, ...]
    """Names of the encoder's tensors that stay at their random start."""
    taken_parameters: int
    """Parameters among `taken`."""
    encoder_parameters: int
    """Parameters of the encoder."""
    unused: tuple[str, ...]
    """Names of the file's tensors that found no place."""

    @property
    def complete(self) -> bool:
        """Whether every tensor of the encoder comes from the file."""
        return not self.left

    def summary(self) -> str:
        """One line for the user: how much was taken, and which parts were not."""
        share = (
            f"took {len(self.taken)} of {len(self.taken) + len(self.left)} encoder tensors "
            f"({self.taken_parameters / 1e6:.2f} of {self.encoder_parameters / 1e6:.2f} M parameters)"
        )
        rest = f"; random: {_by_part(self.left)}" if self.left else ""
        unused = f"; unused in the file: {_by_part(self.unused)}" if self.unused else ""
        return f"{self.source}: {self.kind} weights, {share}{rest}{unused}"


def initialise(network: EFAFNet, config: InitialisationConfig) -> InitialisationReport | None:
    """Give the encoder the configured ImageNet weights, in place; None if it is to start at random.

    Raises:
        ValueError: the file is no ImageNet ResNet or Res2Net, of another depth or width, or holds NaN.
        OSError: the file cannot be read, or the download fails.
    """
    if config.weights is not None:
        return load_encoder(network, read_weights(config.weights, "imagenet.weights"), str(config.weights))
    if config.download:
        name = f"{network.config.encoder.replace('resnet', 'ResNet')}_Weights.IMAGENET1K_V1"
        return load_encoder(network, _download(network, name), name)
    return None


def read_weights(path: Path, setting: str) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file, unwrapped from ``state_dict``, ``model`` and ``module.``.

    Raises FileNotFoundError or ValueError naming ``setting``, the whole key that gave the file.
    """
    if not path.is_file():
        found = "this is no file" if path.exists() else "there is no such file"
        raise FileNotFoundError(f"{setting}={path}: {found}; give a local .pth or .safetensors file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader has its own zoo of exceptions for a file that is not its kind
        # Of torch's many lines the one that says why: the others advise to run whatever code is in the file.
        told = str(error).partition("WeightsUnpickler error: ")[2].partition(" by default. Please use ")[0]
        reason = next(iter((told or str(error)).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{setting}={path}: no file of weights ({reason}); give a .pth or .safetensors") from error
    for wrapping in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
    if not isinstance(content, Mapping):
        raise ValueError(f"{setting}={path}: holds a {type(content).__name__}, not named tensors; give a state dict")
    return {str(name).removeprefix("module."): t for name, t in content.items() if isinstance(t, Tensor)}


def load_encoder(network: EFAFNet, tensors: Mapping[str, Tensor], source: str) -> InitialisationReport:
    """Copy into the encoder what fits of a published state dict; see `initialise` for the errors."""
    kind = _recognise(tensors, source)
    _check_fit(network, tensors, kind, source)
    own = {k: t for k, t in network.encoder.state_dict().items() if not k.endswith("num_batches_tracked")}
    found = {name: _lookup(name, tensors) for name in own}
    fits = {name for name, (_, tensor) in found.items() if tensor is not None and tensor.shape == own[name].shape}
    units: dict[str, set[str]] = {}
    for name in own:
        units.setdefault(_unit(name), set()).add(name)
    taken = [name for name in own if units[_unit(name)] <= fits]
    used: set[str] = set()
    with torch.no_grad():
        for name in taken:
            names, tensor = found[name]
            assert tensor is not None
            own[name].copy_(tensor)
            used.update(names)
    sizes = {name: p.numel() for name, p in network.encoder.named_parameters()}
    if not taken:
        raise ValueError(
            f"{source}: none of its tensors fits encoder={network.config.encoder}; give weights of that encoder"
        )
    return InitialisationReport(
        source=source,
        kind=kind,
        taken=tuple(taken),
        left=tuple(name for name in own if name not in set(taken)),
        taken_parameters=sum(sizes.get(name, 0) for name in taken),
        encoder_parameters=sum(sizes.values()),
        unused=tuple(n for n in tensors if n not in used and not n.endswith("num_batches_tracked")),
    )


def _download(network: EFAFNet, name: str) -> Mapping[str, Tensor]:
    if network.config.encoder == "nano":
        raise ValueError("imagenet.download=true: there are no ImageNet weights for encoder=nano; leave it off")
    # torchvision is wanted here only: a network without downloaded weights needs none.
    from torchvision.models import get_weight  # type: ignore[import-untyped]

    try:
        state: Mapping[str, Tensor] = get_weight(name).get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise OSError(f"download of {name} failed ({error}); give a file as imagenet.weights=FILE") from error
    return state


def _recognise(tensors: Mapping[str, Tensor], source: str) -> Kind:
    """The family of a state dict, by its names."""
    if "layer1.0.convs.0.weight" in tensors and "conv1.weight" in tensors:
        return "res2net"
    if "conv1.0.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        raise ValueError(f"{source}: a ResNet or Res2Net with a deep stem (v1b, D); give one with a single 7x7 stem")
    if "layer1.0.conv3.weight" in tensors and "conv1.weight" in tensors:
        return "resnet"
    if "layer1.0.conv2.weight" in tensors:
        raise ValueError(f"{source}: a ResNet without bottlenecks (18 or 34 layers); give a ResNet-50, 101 or 152")
    names = ", ".join(list(tensors)[:3]) or "no tensors at all"
    raise ValueError(f"{source}: neither a torchvision ResNet nor a Res2Net (it holds {names}, ...); give one of these")


def _check_fit(network: EFAFNet, tensors: Mapping[str, Tensor], kind: Kind, source: str) -> None:
    """Refuse a file of another depth or width, of a FAM form the network lacks, or with NaN in it."""
    config = network.config
    counts = tuple(
        1 + max((int(m[1]) for n in tensors if (m := re.match(rf"layer{s}\.(\d+)\.", n))), default=-1)
        for s in (1, 2, 3, 4)
    )
    if counts != BLOCKS[config.encoder]:
        depth = _DEPTHS.get(counts, f"{counts} blocks")
        raise ValueError(f"{source}: its depth is {depth}, the network's encoder={config.encoder}; make them the same")
    stem = tensors["conv1.weight"].shape
    middle = tensors["layer1.0.convs.0.weight" if kind == "res2net" else "layer1.0.conv2.weight"].shape
    splits = 1 + sum(re.fullmatch(r"layer1\.0\.convs\.\d+\.weight", n) is not None for n in tensors)
    wanted = (26, 26, 3, 3) if kind == "res2net" else (64, 64, 3, 3)
    if stem != (config.width, 3, 7, 7) or middle != wanted or splits not in (1, 4):
        raise ValueError(
            f"{source}: a {kind} of another width (stem {tuple(stem)}, first 3x3 {tuple(middle)}, {splits} splits); "
            f"the network's stem is {(config.width, 3, 7, 7)} and needs {wanted}"
        )
    if kind == "res2net" and (config.fam, config.fam_recurrence) != ("26w4s", "res2net"):
        raise ValueError(
            f"{source}: Res2Net weights need fam=26w4s fam_recurrence=res2net; the network has fam={config.fam} "
            f"fam_recurrence={config.fam_recurrence}: set both, or start from a plain ResNet"
        )
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise ValueError(f"{source}: {len(broken)} tensors hold NaN or infinity, first {broken[0]}; get a sound copy")


_PARTS = {"reduce": ("conv1", "bn1"), "aggregate": ("conv2", "bn2"), "expand": ("conv3", "bn3")}


def _lookup(name: str, tensors: Mapping[str, Tensor]) -> tuple[list[str], Tensor | None]:
    """The published names behind one of the encoder's tensors, and their content (None where one is missing)."""
    names = published_names(name)
    found = [tensors[n] for n in names if n in tensors]
    if not names or len(found) != len(names):
        return [], None
    return names, torch.cat(found) if len(found) > 1 else found[0]


def published_names(name: str) -> list[str]:
    """``conv3.0.reduce.1.bias`` -> ``[layer2.0.bn1.bias]``; three names for the grouped convolution of a first block;
    none for what no published file has (FSM)."""
    if match := re.fullmatch(r"conv1\.([01])\.(\w+)", name):
        return [f"{('conv1', 'bn1')[int(match[1])]}.{match[2]}"]
    match = re.fullmatch(r"conv([2-5])\.(\d+)\.(\w+)\.(.+)", name)
    if match is None:
        return []
    block, part, rest = f"layer{int(match[1]) - 1}.{match[2]}", match[3], match[4]
    if part == "identity":
        return [f"{block}.downsample.{rest}"]
    if inner := re.fullmatch(r"branches\.(\d)\.([01])\.(\w+)", rest):
        return [f"{block}.{('convs', 'bns')[int(inner[2])]}.{inner[1]}.{inner[3]}"]
    if inner := re.fullmatch(r"grouped\.([01])\.(\w+)", rest):
        return [f"{block}.{('convs', 'bns')[int(inner[1])]}.{i}.{inner[2]}" for i in range(3)]
    if part in _PARTS and (inner := re.fullmatch(r"([01])\.(\w+)", rest)):
        return [f"{block}.{_PARTS[part][int(inner[1])]}.{inner[2]}"]
    return []


def _unit(name: str) -> str:
    """The convolution-with-norm that a tensor belongs to: its name up to the index in the pair."""
    return name.rsplit(".", 2)[0]


def _by_part(names: tuple[str, ...]) -> str:
    """Names condensed to ``part xcount``: the first component that is not an index, of every name."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        label = parts[2] if len(parts) > 3 else parts[0]
        counts[label] = counts.get(label, 0) + 1
    return ", ".join(f"{label} x{count}" for label, count in counts.items())
