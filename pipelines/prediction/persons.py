"""Persons in pictures, from Python: ``Predictor.load(run).persons(image)``, with boxes, a detector or neither.

Legend: N persons of one picture, K joints. Coordinates are pixels of the picture, x to the right and y down, the centre
of the first pixel at 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.images import ImageProblemError, decode_image, read_regular
from efafnet.pipelines.evaluation.config import TestOverrides, Weights
from efafnet.pipelines.evaluation.predictions import VISIBLE, as_json, kept_persons, padded_area, person_scores
from efafnet.pipelines.formats.pixels import rgb_of
from efafnet.pipelines.prediction.config import DetectorConfig
from efafnet.pipelines.prediction.detector import PersonDetector, in_batches
from efafnet.pipelines.prediction.person_boxes import Boxes, whole_image
from efafnet.pipelines.prediction.pose_predictor import PosePredictor, check_image

ImageLike = NDArray[np.uint8] | Image.Image | bytes | str | os.PathLike[str]
"""uint8 (h, w, 3) RGB, a picture of Pillow's, or the bytes or the path of an image file."""
Detector = Callable[[NDArray[np.uint8]], Boxes]
"""Finds persons in uint8 (h, w, 3) RGB."""

_HELD_BYTES = 2**28
"""Pictures that may wait for their batch to fill."""


@dataclass(frozen=True)
class Persons:
    """The persons of one picture: ``len(persons)`` of them, in one order in every field."""

    joints_px: NDArray[np.float64]
    """float64 (N, K, 2), x and y."""
    joint_scores: NDArray[np.float32]
    """float32 (N, K), height of the heatmap's peak, about 0 to 1; at 0 or less a joint was not found."""
    boxes_xywh_px: NDArray[np.float64]
    """float64 (N, 4), the box each was looked for in: left, top, width, height."""
    box_scores: NDArray[np.float32]
    """float32 (N,), the detector's confidence; 1 for given boxes without one."""
    scores: NDArray[np.float32]
    """float32 (N,), the person's score as COCO ranks it: box score times the mean of the sure joints' scores."""
    ids: NDArray[np.int64]
    """int64 (N,), place of the box among those that were given or detected, from 0."""
    skeleton: Skeleton
    """Names the K joints."""
    image_rgb: NDArray[np.uint8]
    """uint8 (h, w, 3), the picture itself, turned upright; not a copy where an array was given."""
    sure_from: float
    """Joint score from which a joint counts as sure: ``test.joint_score_threshold`` of the network's run."""
    visible: NDArray[np.float32] | None = None
    """float32 (N, K), probability that each joint is visible; NaN for a joint that no data set of the validation
    annotates; None for a network whose checkpoint holds no calibration."""

    def __len__(self) -> int:
        return len(self.ids)

    def joint(self, name: str) -> NDArray[np.float64]:
        """One joint of every person: float64 (N, 3) of x, y and joint score. ValueError for a name that is none."""
        if name not in self.skeleton.joints:
            raise ValueError(f"{name!r} is no joint of {self.skeleton.name}; it has {', '.join(self.skeleton.joints)}")
        k = self.skeleton.joints.index(name)
        return np.concatenate([self.joints_px[:, k], self.joint_scores[:, k, None].astype(np.float64)], axis=1)

    def to_coco(self, image_id: int = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """COCO results with ``bbox``, plain numbers that JSON can hold; ``id`` is the person's of :attr:`ids`.

        ``keypoints_visible`` are the probabilities of :attr:`visible`, where there are any.
        """
        keypoints = np.concatenate([self.joints_px, self.joint_scores[..., None].astype(np.float64)], axis=2)
        rows = zip(
            self.ids,
            keypoints.reshape(len(self), 3 * self.skeleton.num_joints),
            self.scores,
            self.boxes_xywh_px,
            strict=True,
        )
        results: list[dict[str, Any]] = [
            {
                "image_id": image_id, "category_id": category_id, "id": int(number), "keypoints": triplets.tolist(),
                "score": float(score), "bbox": box.tolist(),
            }
            for number, triplets, score, box in rows
        ]  # fmt: skip
        for result, visible in zip(results, self.visible if self.visible is not None else (), strict=False):
            result[VISIBLE] = as_json(visible)
        return results

    def draw(self) -> NDArray[np.uint8]:
        """A copy of the picture, uint8 (h, w, 3) RGB, with boxes and poses.

        Joints are filled where they are rather visible than not (without a calibration: sure), else hollow.
        """
        from efafnet.pipelines.prediction.pictures import draw_results

        return draw_results(self.image_rgb, self.to_coco(), self.skeleton, self.sure_from)


@dataclass(frozen=True)
class View:
    """A picture whose persons wait for the network."""

    image_rgb: NDArray[np.uint8]
    boxes: Boxes
    detected: bool
    crops: NDArray[np.uint8]
    to_image: NDArray[np.float64]


class Predictor:
    """A trained network and, where wanted, a person detector: images in, :class:`Persons` out.

    ::

        predictor = Predictor.load("runs/coco", detector="download")
        persons = predictor.persons("street.jpg")
        Image.fromarray(persons.draw()).save("drawn.jpg")

    Boxes that are given come back in their order, each with its person. What a detector finds goes through the
    suppression of duplicates that `efafnet predict` uses (``test.nms``), best person first.
    """

    def __init__(self, pose: PosePredictor, detector: Detector | None = None) -> None:
        """``detector`` is any function of an image that returns :class:`Boxes`; none: a picture is one person's."""
        self.pose = pose
        self.detector = detector

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str],
        *,
        detector: Literal["download"] | str | os.PathLike[str] | DetectorConfig | Detector | None = None,
        weights: Weights = "best",
        skeleton: str = "auto",
        test: TestOverrides | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """The network of a run's or a checkpoint's directory.

        Args:
            checkpoint: the directory.
            detector: file of the weights of torchvision's Faster R-CNN, ``download`` to fetch them, its settings for
                another of the family, a function of one's own, or none.
            weights: ``best`` takes the moving average where one was kept.
            skeleton: see :func:`.pose_predictor.skeleton_of_checkpoint`.
            test: what is to be tested differently than in training: flip test, batch size, decoding, suppression.
            device: the GPU where torch finds one, else the CPU, unless given.

        Raises:
            ValueError: a checkpoint or a detector that is missing, damaged or of another kind.
            OSError: the detector's weights cannot be read or fetched.
        """
        pose = PosePredictor.load(checkpoint, weights=weights, skeleton=skeleton, test=test, device=device)
        return cls(pose, _detector(detector, pose.device))

    @property
    def skeleton(self) -> Skeleton:
        """The joints of the network."""
        return self.pose.skeleton

    def persons(
        self, image: ImageLike, boxes_xywh: ArrayLike | None = None, box_scores: ArrayLike | None = None
    ) -> Persons:
        """The persons of one image.

        Args:
            image: see :data:`ImageLike`; files and Pillow's pictures are turned upright as their tag says.
            boxes_xywh: (N, 4), or (4,) for one person; none: the detector looks for them, and without one the whole
                picture is one person's box.
            box_scores: (N,) confidences of the boxes, which the persons' scores are multiplied by; 1 by default.

        Raises:
            ValueError: what is no image or no box (naming it), or NaN out of the network.
        """
        [found] = self.together([self.view(image, boxes_xywh, box_scores)])
        return found

    def stream(
        self, images: Iterable[ImageLike], boxes_xywh: Iterable[ArrayLike | None] | None = None
    ) -> Iterator[Persons]:
        """The persons of each of many images, in order: a list, or a generator that is read as far as is needed.

        Persons of several images go through the network together (``test.batch_size``), and images of one size through
        the detector (``batch_size`` of its settings), so the first answers come when a batch is full or the images end:
        for a live camera call :meth:`persons` instead. ``boxes_xywh`` gives the boxes of each image, or none where they
        are to be found. What waits are a batch's images, 256 MB of them at most.

        Raises:
            ValueError: as :meth:`persons`, naming the image's place; fewer or more boxes than images.
        """
        waiting: list[View] = []
        for view in self._views(images, boxes_xywh):
            waiting.append(view)
            held = sum(one.image_rgb.nbytes for one in waiting)
            if sum(len(one.crops) for one in waiting) >= self._batch_size or held >= _HELD_BYTES:
                yield from self.together(waiting)
                waiting = []
        yield from self.together(waiting)

    @property
    def _batch_size(self) -> int:
        return self.pose.trained.test.batch_size

    def _views(self, images: Iterable[ImageLike], boxes_xywh: Iterable[ArrayLike | None] | None) -> Iterator[View]:
        several = self.detector if isinstance(self.detector, PersonDetector) else None
        pictures = self._pictures(images, boxes_xywh)
        if several is None:
            yield from (self._numbered_view(*picture) for picture in pictures)
            return
        for together in in_batches(pictures, lambda p: p[1] if p[2] is None else None, several.batch_size):
            if together[0][2] is not None:
                yield self._numbered_view(*together[0])
                continue
            found = several.together([image_rgb for _, image_rgb, _ in together])
            for (_, image_rgb, _), boxes in zip(together, found, strict=True):
                yield self._view(image_rgb, boxes, detected=True)

    def _numbered_view(self, number: int, image_rgb: NDArray[np.uint8], boxes_xywh: ArrayLike | None) -> View:
        try:
            return self.view(image_rgb, boxes_xywh)
        except ValueError as error:
            raise ValueError(f"image {number}: {error}") from error

    def _pictures(
        self, images: Iterable[ImageLike], boxes_xywh: Iterable[ArrayLike | None] | None
    ) -> Iterator[tuple[int, NDArray[np.uint8], ArrayLike | None]]:
        """Number, pixels and boxes of each image, as many boxes as images."""
        absent: Any = object()
        pairs: Iterable[tuple[Any, Any]] = ((image, None) for image in images)
        if boxes_xywh is not None:
            pairs = zip_longest(images, boxes_xywh, fillvalue=absent)
        for number, (image, boxes) in enumerate(pairs):
            if image is absent or boxes is absent:
                more, fewer = ("boxes", "images") if image is absent else ("images", "boxes")
                raise ValueError(f"there are more {more} than {fewer}: the {fewer} end after {number}")
            try:
                yield number, pixels_of(image), boxes
            except ValueError as error:
                raise ValueError(f"image {number}: {error}") from error

    def view(self, image: Any, boxes_xywh: ArrayLike | None, box_scores: ArrayLike | None = None) -> View:
        """What :meth:`together` predicts of one image; arguments and errors as of :meth:`persons`."""
        image_rgb = pixels_of(image)
        if boxes_xywh is not None:
            boxes = _given(boxes_xywh, box_scores)
        elif self.detector is not None:
            boxes = self.detector(image_rgb)
        else:
            boxes = whole_image(image_rgb.shape[1], image_rgb.shape[0])
        return self._view(image_rgb, boxes, detected=boxes_xywh is None)

    def _view(self, image_rgb: NDArray[np.uint8], boxes: Boxes, *, detected: bool) -> View:
        return View(image_rgb, boxes, detected, *self.pose.crops(image_rgb, boxes.xywh_px))

    def together(self, views: Sequence[View]) -> Iterator[Persons]:
        """The persons of each view, all in common passes; ValueError for NaN out of the network."""
        if not views:
            return
        keypoints = self.pose.predict_crops(
            np.concatenate([view.crops for view in views]), np.concatenate([view.to_image for view in views])
        )
        ends = np.cumsum([len(view.crops) for view in views])
        for view, own in zip(views, np.split(keypoints, ends[:-1]), strict=True):
            yield self._persons(view, own)

    def _persons(self, view: View, keypoints: NDArray[np.float64]) -> Persons:
        trained = self.pose.trained
        joint_scores = keypoints[:, :, 2].astype(np.float32)
        sure_from = trained.test.joint_score_threshold
        scores = person_scores(joint_scores, view.boxes.scores, sure_from)
        chosen: NDArray[np.intp] = np.arange(len(keypoints))
        if view.detected:
            areas = padded_area(view.boxes.xywh_px, trained.input_size, trained.padding)
            chosen = kept_persons(keypoints[:, :, :2], scores, areas, self.skeleton.sigmas, trained.test)
        visible = trained.visible(joint_scores[chosen], self.skeleton)
        return Persons(
            joints_px=keypoints[chosen, :, :2],
            joint_scores=joint_scores[chosen],
            boxes_xywh_px=view.boxes.xywh_px[chosen],
            box_scores=view.boxes.scores[chosen],
            scores=scores[chosen],
            ids=chosen.astype(np.int64),
            skeleton=self.skeleton,
            image_rgb=view.image_rgb,
            sure_from=sure_from,
            visible=visible,
        )


def pixels_of(image: Any) -> NDArray[np.uint8]:
    """An image as uint8 (h, w, 3) RGB, upright; ValueError for what is none, see :data:`ImageLike`."""
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(f"a picture of Pillow's mode {image.mode} has no 8 bits a channel; give its file instead")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if not isinstance(image, str | os.PathLike | bytes):
        check_image(image)
        return image  # type: ignore[no-any-return]
    try:
        data = image if isinstance(image, bytes) else read_regular(Path(image).expanduser())
        return rgb_of(decode_image(data, upright=True))
    except (ImageProblemError, OSError) as error:
        name = "the image" if isinstance(image, bytes) else f"image {os.fspath(image)}"
        detail = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise ValueError(f"{name} {detail}") from error


def _given(boxes_xywh: ArrayLike, box_scores: ArrayLike | None) -> Boxes:
    boxes = np.asarray(boxes_xywh, np.float64)
    boxes = boxes[None] if boxes.shape == (4,) else boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    scores = np.ones(len(boxes), np.float32) if box_scores is None else np.asarray(box_scores, np.float32).reshape(-1)
    if len(scores) != len(boxes) or not np.isfinite(scores).all():
        raise ValueError(f"box_scores are one finite number for each of {len(boxes)} boxes; got {scores.tolist()}")
    return Boxes(boxes, scores)


def _detector(
    given: str | os.PathLike[str] | DetectorConfig | Detector | None, device: torch.device
) -> Detector | None:
    if given is None or callable(given):
        return given
    if not isinstance(given, DetectorConfig):
        given = DetectorConfig(weights="download" if given == "download" else Path(given).expanduser())
    if given.weights is None:
        raise ValueError("the detector's settings name no weights: give DetectorConfig(weights=FILE), or download")
    return PersonDetector(given, device)
