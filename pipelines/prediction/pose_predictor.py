"""Joints of persons whose boxes are known, in an image that is an array; `persons.Predictor` finds the boxes, too.

Legend: N persons, K joints, H W input pixels. Images are uint8 (h, w, 3) RGB; coordinates are image pixels, x to the
right and y down, the centre of the first pixel at 0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from efafnet.models.heatmaps import stride_px
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import SKELETONS, Skeleton
from efafnet.pipelines.crops import geometry
from efafnet.pipelines.crops.annotation_sources import named_skeleton
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.decode import CropDecoder
from efafnet.pipelines.crops.manifest import Encoding
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.config import TestOverrides, Weights
from efafnet.pipelines.evaluation.inference import placed, predict_batch, predict_heatmaps
from efafnet.pipelines.evaluation.trained import Trained, find_checkpoint, load_trained
from efafnet.platform import machine
from efafnet.platform.checkpoint import config_of, read_meta

_RGB = CropDecoder(Encoding(format="raw"))
# Bilinear interpolation reads the pixel after the sampled position; one more against rounding.
_MARGIN_PX = 2


class PosePredictor:
    """A trained network with its input size, codec and test settings: image and boxes in, keypoints out.

    ::

        predictor = PosePredictor.load("runs/coco")
        keypoints = predictor(image_rgb, [[100, 50, 60, 200]])  # (1, K, 3): x, y, score
        left_wrist = keypoints[0, predictor.skeleton.joints.index("left_wrist")]

    Gives the joints that `efafnet evaluate` measures for the same boxes. One exception: a crop store holds very large
    persons at a reduced resolution, here every pixel is looked at as it is.
    """

    def __init__(self, trained: Trained, skeleton: Skeleton, device: torch.device | str | None = None) -> None:
        """``device`` is a GPU where torch finds one, else the CPU, unless given."""
        self.trained = trained
        self.skeleton = skeleton
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._network = placed(trained.network, self.device)
        self._precision = machine.checked_precision(trained.test.precision, self.device)

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        weights: Weights = "best",
        skeleton: str = "auto",
        test: TestOverrides | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """The network of a checkpoint directory, or of a run's directory (then its best checkpoint).

        Args:
            checkpoint: the directory.
            weights: ``best`` takes the moving average where one was kept.
            skeleton: see :func:`skeleton_of_checkpoint`.
            test: what is to be tested differently than in training: flip test, batch size, decoding.
            device: see the constructor.

        Raises:
            ValueError: no checkpoint, a damaged one, one of another version, or of an unknown skeleton.
        """
        path = Path(checkpoint).expanduser()
        found = skeleton_of_checkpoint(path, skeleton)
        trained = load_trained(path, found, weights=weights).tested_as(test or TestOverrides())
        return cls(trained, found, device)

    def __call__(self, image_rgb: NDArray[np.uint8], boxes_xywh: ArrayLike) -> NDArray[np.float64]:
        """Keypoints float64 (N, K, 3) of the persons in ``boxes_xywh`` (N, 4): x and y in image pixels, and a score.

        Boxes are left, top, width, height in image pixels and may reach out of the image, which is black there. The
        score is the height of the heatmap's peak, about 0 to 1; a joint scored 0 or less was not found and its place
        means nothing. Boxes go through the network in batches of ``trained.test.batch_size``.

        Raises:
            ValueError: the image is not uint8 (h, w, 3), a box is not four finite numbers with width and height above
                0, or the network returns NaN.
        """
        return self.predict_crops(*self.crops(image_rgb, boxes_xywh))

    def crops(
        self, image_rgb: NDArray[np.uint8], boxes_xywh: ArrayLike
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """What the network sees of boxes (N, 4): crops uint8 (N, 3, H, W), affines (N, 2, 3) to image pixels."""
        check_image(image_rgb)
        boxes = _checked_boxes(boxes_xywh)
        size, trained = self.trained.input_size, self.trained
        to_image = geometry.view_of_boxes(boxes, size, trained.padding, udp=trained.udp)
        return _sampled(image_rgb, to_image, size), to_image

    def predict_crops(self, crops: NDArray[np.uint8], to_image: NDArray[np.float64]) -> NDArray[np.float64]:
        """Keypoints (N, K, 3) of what :meth:`crops` returned, for one image or several ones joined."""
        num_joints, step = self.skeleton.num_joints, self.trained.test.batch_size
        parts = [np.zeros((0, num_joints, 3))]
        for first in range(0, len(crops), step):
            chosen = slice(first, first + step)
            joints_px, scores = self._predict(crops[chosen], to_image[chosen])
            parts.append(np.concatenate([joints_px, scores[..., None].astype(np.float64)], axis=2))
        return np.concatenate(parts)

    def heatmaps(self, crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """What the joints are read from: heatmaps float32 (N, K, h, w) of crops (N, 3, H, W), flip test included.

        Also the affine float64 (2, 3) from pixels of a heatmap to input pixels.
        """
        trained, step = self.trained, self.trained.test.batch_size
        parts = [
            predict_heatmaps(
                self._network,
                torch.from_numpy(crops[first : first + step]).to(self.device),
                skeleton=self.skeleton,
                heatmap=trained.heatmap,
                flip_test=trained.test.flip_test,
                precision=self._precision,
            )
            for first in range(0, len(crops), step)
        ]
        found = torch.cat(parts).cpu().numpy()
        x, y = stride_px(trained.input_size, found.shape[2:], trained.heatmap.encoding)
        return found, np.array([[x, 0, 0], [0, y, 0]], np.float64)

    def _predict(
        self, crops: NDArray[np.uint8], to_image: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        rows = torch.arange(len(crops))
        batch = Batch.unlabelled(torch.from_numpy(crops), rows, torch.from_numpy(to_image), self.skeleton.num_joints)
        return predict_batch(
            self._network,
            batch.to(self.device),
            skeleton=self.skeleton,
            input_size=self.trained.input_size,
            heatmap=self.trained.heatmap,
            flip_test=self.trained.test.flip_test,
            precision=self._precision,
        )


def skeleton_of_checkpoint(checkpoint: Path, wanted: str = "auto") -> Skeleton:
    """The skeleton a checkpoint was trained for.

    ``wanted`` names it: a known name, a YAML file with a skeleton's fields, or a crop store. ``auto`` takes the known
    one of the name that the checkpoint records, else that of the crop store it was trained on, if it is still there.
    Raises ValueError where it cannot be had or is another than the checkpoint's.
    """
    path = find_checkpoint(checkpoint)
    name = read_meta(path).get("skeleton")
    if wanted != "auto":
        given = CropStore.open(Path(wanted)).skeleton if Path(wanted).is_dir() else named_skeleton(wanted)
        assert given is not None
        if name not in (None, given.name):
            raise ValueError(
                f"skeleton={wanted} is {given.name!r}, checkpoint {path} was trained for {name!r}; leave skeleton=auto"
            )
        return given
    if name in SKELETONS:
        return SKELETONS[name]
    store = Path(str((config_of(path).get("data") or {}).get("train", "")))
    if (store / "manifest.json").is_file() and (found := CropStore.open(store).skeleton).name == name:
        return found
    raise ValueError(
        f"checkpoint {path} was trained for skeleton {name!r}, which is none of {', '.join(SKELETONS)}, and its crop "
        "store is not there any more; give skeleton=STORE of the same joints, or a YAML file"
    )


def check_image(image: Any) -> None:
    """Raise ValueError for what is not uint8 (h, w, 3)."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f"an image is a uint8 array (height, width, 3) in RGB; got {found}")


def _checked_boxes(boxes_xywh: ArrayLike) -> NDArray[np.float64]:
    boxes = np.asarray(boxes_xywh, np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes are an array (N, 4) of left, top, width, height; got the shape {boxes.shape}")
    sound = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if not sound.all():
        number = int(np.flatnonzero(~sound)[0])
        raise ValueError(
            f"box {number} is {boxes[number].tolist()}: left, top, width, height must be finite, width and height "
            "above 0"
        )
    return boxes


def _sampled(image: NDArray[np.uint8], to_image: NDArray[np.float64], size: InputSize) -> NDArray[np.uint8]:
    """Crops (N, 3, H, W) of an image (h, w, 3), sampled at affines (N, 2, 3); 0 outside the image."""
    corners = np.array([[x, y] for x in (0, size.width - 1) for y in (0, size.height - 1)], np.float64)
    shown = geometry.apply_affine(to_image, corners)
    last = np.array(image.shape[1::-1], np.float64)
    low = np.clip(np.floor(shown.min(axis=1)) - _MARGIN_PX, 0, last).astype(int)
    high = np.clip(np.ceil(shown.max(axis=1)) + _MARGIN_PX + 1, 0, last).astype(int)
    crops = np.zeros((len(to_image), 3, size.height, size.width), np.uint8)
    for (left, top), (right, bottom), affine, crop in zip(low, high, to_image, crops, strict=True):
        # Only the part that is shown: the decoder copies what it samples from.
        part = image[top:bottom, left:right]
        if part.size:
            _RGB.warp_into(part, affine - [[0, 0, left], [0, 0, top]], crop)
    return crops
