"""A loader as the published code bases have it: for every sample the whole image is decoded, in Python, every epoch.

Written for comparison from the protocol that simple baselines and HRNet share. Every person is an item of a torch
Dataset that holds all annotations: decode the image, draw the augmentation, warp, normalise, draw heatmaps in numpy.
Legend: K joints, H W the input's sides, h w the heatmap's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.augmentation import AugmentationConfig

Array = npt.NDArray[Any]

_MEAN, _STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
_STRIDE, _SIGMA_PX = 4, 2.0


class PeerDataset(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Persons of a COCO file with annotated joints."""

    def __init__(
        self, annotations: Path, images: Path, skeleton: Skeleton, size: InputSize, augmentation: AugmentationConfig
    ) -> None:
        content = json.loads(annotations.read_bytes())
        entries = {image["id"]: image for image in content["images"]}
        self._skeleton, self._size, self._augmentation = skeleton, size, augmentation
        self._persons = [
            _person(annotation, entries[annotation["image_id"]], images)
            for annotation in content["annotations"]
            if not annotation.get("iscrowd") and any(annotation["keypoints"][2::3])
        ]

    def __len__(self) -> int:
        return len(self._persons)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image (3, H, W) float32, heatmaps (K, h, w) float32, weights (K,) float32."""
        person = self._persons[index]
        image = cv2.imread(person["path"], cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise ValueError(f"{person['path']} cannot be read")
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        joints, visible = person["joints"].copy(), person["visible"].copy()
        centre, scale, rotation, flip = self._drawn(person)
        if flip:
            image = image[:, ::-1]
            joints[:, 0] = image.shape[1] - 1 - joints[:, 0]
            swap = list(self._skeleton.flip_permutation)
            joints, visible = joints[swap], visible[swap]
            centre = np.array([image.shape[1] - 1 - centre[0], centre[1]])
        affine = _affine(centre, scale, rotation, self._size)
        picture = cv2.warpAffine(image, affine, (self._size.width, self._size.height), flags=cv2.INTER_LINEAR)
        for joint in range(len(joints)):
            if visible[joint]:
                joints[joint] = affine @ np.array([joints[joint, 0], joints[joint, 1], 1.0])
        heatmaps, weights = _heatmaps(joints, visible, self._size)
        normalised = (picture.astype(np.float32) / 255.0 - _MEAN) / _STD
        planes = np.ascontiguousarray(normalised.transpose(2, 0, 1))
        return torch.from_numpy(planes), torch.from_numpy(heatmaps), torch.from_numpy(weights)

    def _drawn(self, person: dict[str, Any]) -> tuple[Array, float, float, bool]:
        """Centre, width of the region, rotation in degrees, and whether to mirror, of one sample."""
        wanted, f, r = self._augmentation, self._augmentation.scale_factor, self._augmentation.rotation_deg
        x, y, width, height = person["box"]
        widened = max(width, height * self._size.width / self._size.height) * wanted.padding
        scale = widened * float(np.clip(np.random.randn() * f + 1, 1 - f, 1 + f))  # noqa: NPY002 (as the peers do)
        rotation = 0.0
        if np.random.random() < wanted.rotation_probability:  # noqa: NPY002
            rotation = float(np.clip(np.random.randn() * r, -2 * r, 2 * r))  # noqa: NPY002
        flip = bool(np.random.random() < wanted.flip_probability)  # noqa: NPY002
        return np.array([x + width / 2, y + height / 2]), scale, rotation, flip


def _person(annotation: dict[str, Any], image: dict[str, Any], folder: Path) -> dict[str, Any]:
    keypoints = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
    x, y, width, height = annotation["bbox"]
    x1, y1 = max(0.0, x), max(0.0, y)
    x2, y2 = min(image["width"] - 1, x1 + max(0.0, width - 1)), min(image["height"] - 1, y1 + max(0.0, height - 1))
    return {
        "path": str(folder / image["file_name"]),
        "box": (x1, y1, x2 - x1, y2 - y1),
        "joints": keypoints[:, :2].copy(),
        "visible": keypoints[:, 2] > 0,
    }


def _affine(centre: Array, width: float, rotation_deg: float, size: InputSize) -> Array:
    """Affine (2, 3) from image to input pixels, from three points as the peers have it."""
    angle = np.deg2rad(rotation_deg)
    up = width * 0.5 * np.array([np.sin(angle), -np.cos(angle)])
    source = np.array([centre, centre + up, centre + up + np.array([up[1], -up[0]])], dtype=np.float32)
    middle = np.array([size.width, size.height]) * 0.5
    target_up = np.array([0.0, -size.width * 0.5])
    corner = middle + target_up + np.array([target_up[1], -target_up[0]])
    target = np.array([middle, middle + target_up, corner], dtype=np.float32)
    found: Array = cv2.getAffineTransform(source, target)
    return found


def _heatmaps(joints: Array, visible: Array, size: InputSize) -> tuple[Array, Array]:
    """Target heatmaps (K, h, w) and weights (K,): a Gaussian patch of radius 3 sigma per joint, in a loop."""
    h, w = size.height // _STRIDE, size.width // _STRIDE
    radius = int(3 * _SIGMA_PX)
    heatmaps, weights = np.zeros((len(joints), h, w), np.float32), visible.astype(np.float32)
    line = np.arange(0, 2 * radius + 1, 1, dtype=np.float32)
    for joint in range(len(joints)):
        x, y = (int(value / _STRIDE + 0.5) for value in joints[joint])
        left, top, right, bottom = x - radius, y - radius, x + radius + 1, y + radius + 1
        if left >= w or top >= h or right < 0 or bottom < 0:
            weights[joint] = 0
        if weights[joint] == 0:
            continue
        patch = np.exp(-((line - radius) ** 2 + (line[:, None] - radius) ** 2) / (2 * _SIGMA_PX**2))
        x1, x2, y1, y2 = max(0, left), min(w, right), max(0, top), min(h, bottom)
        heatmaps[joint, y1:y2, x1:x2] = patch[y1 - top : y2 - top, x1 - left : x2 - left]
    return heatmaps, weights
