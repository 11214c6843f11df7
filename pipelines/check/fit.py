"""Overfitting a few persons, as they are and mirrored: what every sound training can do.

Legend: N persons, K joints. The batch holds each twice: rows 0 to N-1 as they are, N to 2N-1 mirrored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from efafnet.models.cost import multiply_adds
from efafnet.models.heatmaps import decode, encode
from efafnet.models.network_config import NetworkConfig
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.check.config import CheckConfig
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.geometry import apply_affine
from efafnet.pipelines.crops.reader import read_rows
from efafnet.pipelines.crops.store import GROUND_TRUTH, CropStore
from efafnet.pipelines.evaluation.columns import Truth, detections, truth
from efafnet.pipelines.evaluation.matching import match
from efafnet.pipelines.evaluation.metrics import curves, summary
from efafnet.pipelines.evaluation.oks import oks_of_pairs
from efafnet.pipelines.training.context import PlainContext, pick_device
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.preparation import build_trainee
from efafnet.pipelines.training.step import Trainee, forward, train_step
from efafnet.platform import console, machine

ENOUGH = 0.9
"""AP above which the persons count as learned."""
FEWEST_STEPS, _MEASURE_EVERY, _FALL_FROM = 150, 25, 0.7


@dataclass(frozen=True)
class People:
    """The persons to learn, and what is true of them."""

    batch: Batch
    """2N crops."""
    truth: Truth
    """Of N images with one person each, in the order of the batch."""
    skeleton: Skeleton

    @property
    def count(self) -> int:
        """Number of persons, N."""
        return len(self.batch) // 2


@dataclass(frozen=True)
class Fit:
    """How well the persons were learned."""

    network: str
    """Empty for the network of the settings, else what stood in for it and why."""
    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    ap: float
    """Of the persons as they are."""
    mirrored_ap: float
    joints_px: NDArray[np.float64]
    """float64 (2N, K, 2): what the network finds, in pixels of the input."""
    oks: NDArray[np.float64]
    """float64 (2N,)."""

    @property
    def learned(self) -> bool:
        """Whether the persons are learned both as they are and mirrored."""
        return min(self.ap, self.mirrored_ap) > ENOUGH


def people_of(config: CheckConfig, store: CropStore, rows: list[int]) -> People:
    """Read persons as they are and mirrored, and their annotations."""
    plain = config.augmentation.without_variation()
    halves = [
        read_rows(
            store,
            rows,
            input_size=config.input,
            augmentation=plain.model_copy(update={"flip_probability": probability}),
            udp=config.heatmap.encoding == "udp",
        )
        for probability in (0.0, 1.0)
    ]
    parts = {field.name: torch.cat([getattr(half, field.name) for half in halves]) for field in fields(Batch)}
    return People(Batch(**parts), _truth_of(store, rows), store.skeleton)


def _truth_of(store: CropStore, rows: list[int]) -> Truth:
    """The persons' annotations, each alone in an image of its own."""
    wanted = store.rows(["person_id", "data_set"], rows).to_pylist()
    table = store.table(GROUND_TRUTH)
    places = {
        (data_set, number): row
        for row, (data_set, number) in enumerate(
            zip(table["data_set"].to_pylist(), table["annotation_id"].to_pylist(), strict=True)
        )
    }
    annotations = table.take([places[w["data_set"], w["person_id"]] for w in wanted]).to_pylist()
    people = [
        {
            "id": n + 1,
            "image_id": n + 1,
            "category_id": 1,
            "bbox": list(a["box_xywh"]),
            "area": a["area"],
            "iscrowd": 0,
            "num_keypoints": int((np.array(a["keypoints"]).reshape(-1, 3)[:, 2] > 0).sum()),
            "keypoints": list(a["keypoints"]),
        }
        for n, a in enumerate(annotations)
    ]
    category = {"id": 1, "name": "person", "keypoints": list(store.skeleton.joints), "skeleton": []}
    images = [{"id": n + 1, "file_name": f"{n + 1}", "width": 1, "height": 1} for n in range(len(people))]
    return truth({"images": images, "annotations": people, "categories": [category]}, store.skeleton)


def measured(people: People, joints_px: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64]]:
    """AP of the persons as they are and of the mirrored ones, and the OKS (2N,), of joints (2N, K, 2) of the input."""
    n, sides = people.count, list(people.skeleton.flip_permutation)
    in_image = apply_affine(people.batch.input_to_image.numpy(), joints_px)
    in_image[n:] = in_image[n:, sides]  # a mirrored left hand is found where the right one is
    known = people.truth
    oks = [
        oks_of_pairs(half, known.joints_px, known.visibility, known.area_px2, known.box_xywh_px, people.skeleton.sigmas)
        for half in (in_image[:n], in_image[n:])
    ]
    return _ap(known, in_image[:n]), _ap(known, in_image[n:]), np.concatenate(oks)


def _ap(known: Truth, joints_px: NDArray[np.float64]) -> float:
    results = [
        {
            "image_id": int(known.image_ids[known.image[n]]),
            "category_id": 1,
            "keypoints": np.concatenate([joints, np.ones((len(joints), 1))], axis=1).reshape(-1).tolist(),
            "score": 1.0,
        }
        for n, joints in enumerate(joints_px)
    ]
    return summary(curves(match(known, detections(results, known))))["ap"]


def ceiling(config: CheckConfig, people: People) -> tuple[float, float]:
    """AP that perfect heatmaps would reach, and their median error in pixels of the input; nan without any joint."""
    batch = people.batch
    target = encode(batch.joints_px, batch.visibility, config.input, config.heatmap)
    found = decode(target.heatmaps, config.input, config.heatmap).joints_px
    errors = (found - batch.joints_px).norm(dim=-1)[target.weights > 0]
    plain, mirrored, _ = measured(people, found.double().numpy())
    return min(plain, mirrored), float(errors.median()) if len(errors) else float("nan")


def learn(config: CheckConfig, inputs: Inputs, people: People) -> Fit:
    """Train on the persons until they are known or the time is up, and show the time that is left.

    The time is counted from the end of the first steps: they load and prepare what all others need, which takes many
    seconds on a busy machine.
    """
    context = PlainContext(pick_device(config.device))
    precision = machine.precision_for(config.precision, context.device)
    machine.set_float32(precision)
    alone = config.model_copy(
        update={
            "batch_size": len(people.batch),
            "precision": precision,
            "optimizer": config.optimizer.model_copy(update={"ema_decay": None}),
        }
    )
    trainee = build_trainee(alone, inputs, context)
    first = float(train_step(trainee, people.batch, 0, alone.optimizer.lr).total)
    began = time.monotonic()  # the first step also prepares whatever the next ones need
    float(train_step(trainee, people.batch, 1, alone.optimizer.lr).total)
    step_s, stand_in = time.monotonic() - began, ""
    too_slow = step_s * FEWEST_STEPS > config.limit_s and context.device.type == "cpu"
    if too_slow and _has_stand_in(config, people.skeleton.num_joints):
        stand_in = f"efafnet-nano (a step of the network itself takes {step_s:.1f} s here; that it begins was seen)"
        # A nano network has no published recipe: the rate of the nano presets.
        optimizer = alone.optimizer.model_copy(update={"lr": 5e-3})
        alone = alone.model_copy(update={"network": _NANO, "optimizer": optimizer, "init": None})
        alone = alone.model_copy(update={"imagenet": type(config.imagenet)()})
        trainee = build_trainee(alone, inputs, context)
        first = float(train_step(trainee, people.batch, 0, alone.optimizer.lr).total)
    with console.progress("overfitting a few persons", config.limit_s, unit="s at most") as advance:
        return _learn(alone, trainee, people, stand_in, first, advance)


_NANO = NetworkConfig(encoder="nano")


def _has_stand_in(config: CheckConfig, num_joints: int) -> bool:
    """Whether a nano network gives such heatmaps, at a fraction of the cost."""
    cost, nano = (multiply_adds(network, num_joints, config.input) for network in (config.network, _NANO))
    return config.heatmap.stride == _NANO.heatmap_stride and nano < cost / 4


def _learn(
    config: CheckConfig, trainee: Trainee, people: People, stand_in: str, first: float, advance: Callable[[float], None]
) -> Fit:
    began = now = time.monotonic()
    step, last = 2, first
    while True:
        passed = (now - began) / config.limit_s
        rate = config.optimizer.lr * (1.0 if passed < _FALL_FROM else 0.1)
        last = float(train_step(trainee, people.batch, step, rate).total)
        step, before, now = step + 1, now, time.monotonic()
        advance(now - before)
        over = now - began >= config.limit_s or not np.isfinite(last)
        if over or step % _MEASURE_EVERY == 0:
            joints = _found(config, trainee, people.batch)
            ap, mirrored, oks = measured(people, joints)
            if over or min(ap, mirrored) > ENOUGH:
                return Fit(stand_in, step, now - began, first, last, ap, mirrored, joints, oks)


@torch.no_grad()
def _found(config: CheckConfig, trainee: Trainee, batch: Batch) -> NDArray[np.float64]:
    trainee.module.eval()
    heatmaps = forward(trainee, batch.images.to(trainee.device)).heatmaps.cpu()
    trainee.module.train()
    found = decode(heatmaps, config.input, config.heatmap).joints_px.double().numpy()
    return np.asarray(np.nan_to_num(found))
