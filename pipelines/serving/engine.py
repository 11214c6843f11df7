"""From requests to persons: decode, find boxes, cut crops, predict the crops of several requests together.

Legend: N persons, K joints, h w heatmap pixels.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from efafnet.pipelines.crops.geometry import apply_affine
from efafnet.pipelines.crops.images import ImageProblemError, decode_image
from efafnet.pipelines.evaluation.config import TestOverrides, Weights
from efafnet.pipelines.evaluation.predictions import as_json
from efafnet.pipelines.formats.pixels import rgb_of
from efafnet.pipelines.prediction.config import DetectorConfig
from efafnet.pipelines.prediction.detector import PersonDetector
from efafnet.pipelines.prediction.person_boxes import Boxes
from efafnet.pipelines.prediction.persons import Persons as Found
from efafnet.pipelines.prediction.persons import Predictor, View
from efafnet.pipelines.prediction.pose_predictor import PosePredictor
from efafnet.pipelines.serving.messages import (
    BoxesFrom,
    Heatmaps,
    Keypoint,
    Model,
    Person,
    Persons,
    PoseRequest,
    Refusal,
)
from efafnet.pipelines.serving.models import Served


@dataclass(frozen=True)
class EnginePlan:
    """How networks are loaded and used: all that a replica needs to know."""

    models: tuple[Served, ...]
    weights: Weights
    skeleton: str
    test: TestOverrides
    detector: DetectorConfig
    max_persons: int


@dataclass(frozen=True)
class Prepared:
    """A request whose crops wait for the network; the decoded image is gone, only its shape is left."""

    asked: PoseRequest
    view: View
    boxes_from: BoxesFrom


class Engine:
    """The networks and the detector of one process. Requests may be decoded by several threads at once."""

    def __init__(self, plan: EnginePlan, device: torch.device) -> None:
        """Raises ValueError or OSError for a checkpoint or a detector that cannot be used."""
        self._most = plan.max_persons
        self._network = PersonDetector(plan.detector, device) if plan.detector.weights is not None else None
        self._detecting = threading.Lock()
        self._predictors = {
            served.name: Predictor.load(
                served.checkpoint,
                detector=self._detect if self._network else None,
                weights=plan.weights,
                skeleton=plan.skeleton,
                test=plan.test,
                device=device,
            )
            for served in plan.models
        }

    def models(self) -> list[Model]:
        """What is served, for people and the page."""
        return [described(name, predictor.pose) for name, predictor in self._predictors.items()]

    def prepare(self, asked: PoseRequest) -> Prepared | Refusal:
        """Decode a request's image, find the persons' boxes, cut what the network sees of them."""
        try:
            image = decode_image(asked.image, upright=True)
        except ImageProblemError as problem:
            return Refusal(413 if problem.reason == "image_too_large" else 422, f"the image: {problem.detail}")
        pixels = rgb_of(image)
        try:
            view = self._predictors[asked.model].view(pixels, asked.boxes)
        except ValueError as error:
            return Refusal(400, str(error))
        gone = np.broadcast_to(np.uint8(0), pixels.shape)
        found: BoxesFrom = "detector" if self._network else "whole_image"
        return Prepared(asked, replace(view, image_rgb=gone), found if asked.boxes is None else "request")

    def _detect(self, image_rgb: NDArray[np.uint8]) -> Boxes:
        assert self._network is not None
        with self._detecting:
            found = self._network(image_rgb)
        return Boxes(found.xywh_px[: self._most], found.scores[: self._most])

    def predict(self, waiting: Sequence[Prepared]) -> list[Persons]:
        """The persons of several requests, those of one network in common passes."""
        answers: dict[int, Persons] = {}
        for name, predictor in self._predictors.items():
            members = [n for n, one in enumerate(waiting) if one.asked.model == name]
            found = predictor.together([waiting[n].view for n in members])
            for n, persons in zip(members, found, strict=True):
                answers[n] = _answer(waiting[n], persons, predictor.pose)
        return [answers[n] for n in range(len(waiting))]


def _answer(one: Prepared, found: Found, pose: PosePredictor) -> Persons:
    maps = _heatmaps(pose, one.view, found.ids) if one.asked.with_heatmaps and len(found) else [None] * len(found)
    visible = np.full(found.joint_scores.shape, np.nan) if found.visible is None else found.visible
    persons = [
        Person(
            box_xywh=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            box_score=round(float(box_score), 4),
            score=round(float(score), 4),
            keypoints=[
                Keypoint(
                    joint=joint, x=round(float(x), 2), y=round(float(y), 2), score=round(float(value), 4), visible=p
                )
                for joint, (x, y), value, p in zip(found.skeleton.joints, points, values, as_json(chances), strict=True)
            ],
            heatmaps=shown,
        )
        for box, box_score, score, points, values, chances, shown in zip(
            found.boxes_xywh_px,
            found.box_scores,
            found.scores,
            found.joints_px,
            found.joint_scores,
            visible,
            maps,
            strict=True,
        )
    ]
    height, width = one.view.image_rgb.shape[:2]
    return Persons(
        model=one.asked.model,
        skeleton=found.skeleton.name,
        width=width,
        height=height,
        boxes_from=one.boxes_from,
        persons=persons,
    )


def _heatmaps(pose: PosePredictor, view: View, ids: NDArray[np.int64]) -> list[Heatmaps]:
    """The heatmaps of each person, and where their pixels lie in the image."""
    found, to_input = pose.heatmaps(view.crops[ids])
    height, width = found.shape[2:]
    shown = []
    for maps, to_image in zip(found, view.to_image[ids], strict=True):
        strip = np.round(np.clip(maps, 0, 1) * 255).astype(np.uint8).reshape(-1, width)
        done, png = cv2.imencode(".png", strip)
        assert done
        # Where three corners of the heatmap lie gives the affine.
        origin, right, below = apply_affine(to_image[None], apply_affine(to_input[None], _CORNERS)[0])[0]
        (a, d), (b, e), (c, f) = (right - origin).tolist(), (below - origin).tolist(), origin.tolist()
        shown.append(
            Heatmaps(
                png_base64=base64.b64encode(png.tobytes()).decode(),
                width=width,
                height=height,
                to_image=((a, b, c), (d, e, f)),
            )
        )
    return shown


_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def described(name: str, pose: PosePredictor) -> Model:
    """A network in words and figures."""
    trained, skeleton = pose.trained, pose.skeleton
    return Model(
        name=name,
        skeleton=skeleton.name,
        joints=list(skeleton.joints),
        limbs=[tuple(limb) for limb in skeleton.limbs],
        flip_pairs=[tuple(pair) for pair in skeleton.flip_pairs],
        input=str(trained.input_size),
        network=trained.settings.in_words,
        parameters=sum(values.numel() for values in trained.network.parameters()),
        step=trained.meta.get("step"),
    )
