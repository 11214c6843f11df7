"""Checkpoints of untrained networks, pictures and videos for the tests of prediction and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import torch

from efafnet.models.network import NetworkConfig, build_network
from efafnet.models.skeleton import COCO_17, Skeleton
from efafnet.models.variants import SBN
from efafnet.platform.checkpoint import save_checkpoint
from tests import crop_data

NANO = NetworkConfig(encoder="nano", base_width=8)


SBN_NANO = NetworkConfig.model_validate({"encoder": "nano", "base_width": 8, **SBN})
"""The simple baseline, of a third of the operations: for what any network does."""


def checkpoint(path: Path, skeleton: Skeleton = COCO_17, *, network: NetworkConfig = NANO, **config: Any) -> Path:
    """A checkpoint of an untrained network with input 96x64, as training writes it; ``config`` replaces groups."""
    torch.manual_seed(0)
    tree = {
        "network": network.model_dump(mode="json"),
        "input": {"height": 96, "width": 64},
        "heatmap": {"sigma_px": 1.0},
        "augmentation": {"padding": 1.25},
        # Nothing is sure to an untrained network; so its persons have scores all the same.
        "test": {"batch_size": 5, "joint_score_threshold": 0.0},
        **config,
    }
    save_checkpoint(
        path,
        weights={"network": build_network(network, skeleton.num_joints).state_dict()},
        state={},
        config=tree,
        meta={"skeleton": skeleton.name, "step": 7},
    )
    return path


def write_video(path: Path, frames: int = 6, size: tuple[int, int] = (128, 96), fps: float = 10.0) -> Path:
    """A video of ``frames`` pictures, each another one."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    assert writer.isOpened()
    for number in range(frames):
        writer.write(crop_data.picture(*size, seed=number))
    writer.release()
    return path
