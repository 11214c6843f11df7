"""Weights of trained pose networks as HRNet's repository and mmpose publish them: HRNet and the simple baseline.

The networks here are built layer by layer like those, so each tensor has one name there and one here, and the heatmaps
are the same. Source of the names: ``lib/models/pose_hrnet.py`` and ``pose_resnet.py`` of
https://github.com/leoxiaobin/deep-high-resolution-net.pytorch; mmpose puts ``backbone.`` and ``head.`` (in its versions
before 1.0 ``keypoint_head.``) before them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from efafnet.models.initialisation import published_names
from efafnet.models.pose_network import PoseNetwork

_PREFIX = re.compile(r"^(backbone|keypoint_head|head)\.")
_COUNTER = "num_batches_tracked"
"""What batch norm counts for itself: some files lack it, and nothing here reads it."""
_RULES = (
    (r"predict\.(\w+)", r"final_layer.\1"),
    (r"upsample\.(\d+)\.(\w+)", r"deconv_layers.\1.\2"),
    (r"stem\.0\.0\.(\w+)", r"conv1.\1"),
    (r"stem\.0\.1\.(\w+)", r"bn1.\1"),
    (r"stem\.1\.0\.(\w+)", r"conv2.\1"),
    (r"stem\.1\.1\.(\w+)", r"bn2.\1"),
    (r"finest\.(.+)", r"transition1.0.\1"),
    (r"openings\.0\.(.+)", r"transition1.1.0.\1"),
    (r"openings\.1\.(.+)", r"transition2.2.0.\1"),
    (r"openings\.2\.(.+)", r"transition3.3.0.\1"),
)
_BLOCKS = {"first.0": "conv1", "first.1": "bn1", "second.0": "conv2", "second.1": "bn2"}


def published_name(name: str) -> str | None:
    """The published name of a tensor of this package's HRNet or simple baseline; None for one that has none."""
    for pattern, published in _RULES:
        if match := re.fullmatch(pattern, name):
            return match.expand(published)
    if match := re.fullmatch(r"stages\.(\d)\.(\d+)\.branches\.(\d\.\d+)\.(\w+\.\d)\.(\w+)", name):
        stage, module, block, part, tensor = match.groups()
        return f"stage{int(stage) + 2}.{module}.branches.{block}.{_BLOCKS[part]}.{tensor}"
    if match := re.fullmatch(r"stages\.(\d)\.(\d+)\.paths\.(.+)", name):
        return f"stage{int(match[1]) + 2}.{match[2]}.fuse_layers.{match[3]}"
    # The bottlenecks, of the baseline's encoder and of HRNet's first stage.
    inner = name.removeprefix("encoder.") if name.startswith("encoder.") else name.replace("stage1.", "conv2.", 1)
    return next(iter(published_names(inner)), None)


def load_published(network: PoseNetwork, tensors: Mapping[str, Tensor], source: str) -> None:
    """Give a network the published weights of the same network, all of them, in place.

    Args:
        network: HRNet or the simple baseline; auxiliary heads have no published weights and must be absent.
        tensors: from ``initialisation.read_weights``.
        source: what messages call the file.

    Raises:
        ValueError: a tensor is missing, of another shape, left over or not finite: the file is of another network.
    """
    given = {_PREFIX.sub("", name): tensor for name, tensor in tensors.items() if not name.endswith(_COUNTER)}
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(_COUNTER)}
    names = {name: published_name(name) for name in own}
    missing = [
        f"{name} ({published or 'never published'})" for name, published in names.items() if published not in given
    ]
    left = sorted(set(given) - {published for published in names.values() if published is not None})
    if missing or left:
        told = [f"{len(missing)} tensors of the network are not in it, first {missing[0]}"] if missing else []
        told += [f"{len(left)} of its tensors have no place, first {left[0]}"] if left else []
        raise ValueError(f"{source}: the weights of another network: {'; '.join(told)}; make network=… the same")
    with torch.no_grad():
        for name, published in names.items():
            tensor = given[str(published)]
            if tensor.shape != own[name].shape:
                raise ValueError(
                    f"{source}: {published} is {tuple(tensor.shape)}, the network's {name} {tuple(own[name].shape)}; "
                    "make its width, depth and joints the same"
                )
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{source}: {published} holds NaN or infinity; get a sound copy")
            own[name].copy_(tensor)
