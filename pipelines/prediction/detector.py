"""Person boxes from one of torchvision's detectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from efafnet.models.initialisation import read_weights
from efafnet.models.undrawn import Undrawn
from efafnet.pipelines.prediction.config import DetectorConfig
from efafnet.pipelines.prediction.person_boxes import Boxes

T = TypeVar("T")

_PERSON = 1
"""COCO's person among the detector's classes."""


_TOGETHER_ON_GPU = 8


def in_batches(items: Iterable[T], image_of: Callable[[T], NDArray[np.uint8] | None], size: int) -> Iterator[list[T]]:
    """The items in order, up to ``size`` together whose images follow each other and have one shape.

    Of one shape, because a batch is padded to its largest picture, which moves what is found in the others. An item
    without an image is alone.
    """
    waiting: list[T] = []
    shape: tuple[int, ...] | None = None
    for item in items:
        image = image_of(item)
        own = None if image is None else image.shape
        if waiting and own != shape:
            yield waiting
            waiting = []
        waiting.append(item)
        shape = own
        # At once, before the next item is asked for: it may be a while until it comes.
        if own is None or len(waiting) == size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


class PersonDetector:
    """Finds persons in one picture, or in several of one size at a time."""

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        """Raises ValueError for weights of another network, OSError where they cannot be read or fetched."""
        assert config.weights is not None
        tensors = _downloaded(config) if config.weights == "download" else _read(config.weights)
        # Importing torchvision's detectors takes a second: only where one is used.
        from torchvision.models import get_model  # type: ignore[import-untyped]

        with Undrawn():
            network = get_model(config.name, weights=None, weights_backbone=None, box_score_thresh=config.min_score)
        _check_fit(config, network.state_dict(), tensors)
        network.load_state_dict(tensors)
        self._device = device
        self._network = network.to(device).eval()
        usual = _TOGETHER_ON_GPU if device.type == "cuda" else 1
        self.batch_size = usual if config.batch_size == "auto" else config.batch_size

    def __call__(self, image_rgb: NDArray[np.uint8]) -> Boxes:
        """The persons of an image uint8 (h, w, 3), by falling score."""
        return self.together([image_rgb])[0]

    def together(self, images_rgb: Sequence[NDArray[np.uint8]]) -> list[Boxes]:
        """The persons of each of several images of one shape, uint8 (h, w, 3) RGB, by falling score."""
        pixels = [torch.from_numpy(image).to(self._device).permute(2, 0, 1).float() / 255 for image in images_rgb]
        with torch.inference_mode():
            return [self._boxes(found) for found in self._network(pixels)]

    @staticmethod
    def _boxes(found: Mapping[str, Tensor]) -> Boxes:
        persons = found["labels"] == _PERSON
        corners = found["boxes"][persons].double().cpu().numpy()
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return Boxes(boxes, found["scores"][persons].float().cpu().numpy())


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"detector.weights={path}: there is no such file; give torchvision's .pth file, or download")
    return read_weights(path, "detector.weights")


def _downloaded(config: DetectorConfig) -> Mapping[str, Tensor]:
    from torchvision.models import get_model_weights

    published: Any = get_model_weights(config.name).DEFAULT
    try:
        tensors: Mapping[str, Tensor] = published.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise OSError(
            f"detector.weights=download: {published.url} cannot be fetched ({error}); fetch it where there is a "
            "network and give the file as detector.weights=FILE, or give boxes=FILE.json"
        ) from error
    return tensors


def _check_fit(config: DetectorConfig, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in given]
    foreign = [name for name in given if name not in own]
    reshaped = [name for name in own if name in given and own[name].shape != given[name].shape]
    kinds = (("missing", missing), ("unknown", foreign), ("of another shape", reshaped))
    faults = [f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds if names]
    if faults:
        raise ValueError(
            f"detector.weights={config.weights} are not those of {config.name}: {', '.join(faults)} of {len(own)} "
            "tensors; set detector.name to the detector they belong to"
        )
