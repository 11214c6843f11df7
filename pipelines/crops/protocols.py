"""The named protocols: what a comparison of networks holds fixed, and how far a run departs from it.

Each fixes boxes, augmentation, target, loss, optimisation and test; the network, its input and the data are left open.
Sources: `paper` is EFAFNet's text on top of the simple baselines' code; `sbn` that code's own recipe
(microsoft/human-pose-estimation.pytorch, ``256x192_d256x3_adam_lr1e-3.yaml``); `hrnet` HRNet's repository
(leoxiaobin/deep-high-resolution-net.pytorch, ``w32_256x192_adam_lr1e-3.yaml`` and ``JointsDataset``); `mmpose` its
td-hm recipe (open-mmlab/mmpose, ``td-hm_res50_8xb64-210e_coco-256x192.py`` and ``RandomBBoxTransform``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from efafnet.models.settings import InputSize
from efafnet.models.skeleton import COCO_17, CROWDPOSE_14, MPII_16
from efafnet.pipelines.crops.geometry import BoxRule
from efafnet.pipelines.crops.manifest import SourceRecord

ProtocolName = Literal["paper", "sbn", "hrnet", "mmpose"]
NONE_NAMED = "none named"
"""What is recorded of a run that follows no protocol by name."""
PROTOCOL_TAG = "efafnet.protocol"
"""Tag of an MLflow run that holds its protocol in words."""


@dataclass(frozen=True)
class Protocol:
    """One protocol."""

    box_rule: BoxRule
    """How `efafnet prepare` turns annotated COCO boxes into cropped ones."""
    settings: Mapping[str, Any]
    """Values of the training configuration by dotted key; sigma, which follows the input's size, is not among them."""


_SHARED: dict[str, Any] = {
    "augmentation.padding": 1.25,
    "augmentation.scale_factor": 0.3,
    "augmentation.rotation_deg": 40.0,
    "augmentation.rotation_probability": 0.6,
    "augmentation.shift_factor": 0.0,
    "augmentation.shift_probability": 0.0,
    "augmentation.distribution": "clipped_normal",
    "augmentation.flip_probability": 0.5,
    "augmentation.half_body_probability": 0.0,
    "heatmap.encoding": "quantised",
    "heatmap.decoding": "quarter",
    "loss.kind": "mse",
    "optimizer.kind": "adam",
    "optimizer.betas": [0.9, 0.999],
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": None,
    "optimizer.ema_decay": None,
    "schedule.kind": "multistep",
    "schedule.factor": 0.1,
    "schedule.warmup_steps": 0,
    "max_samples": None,
    "max_time_s": None,
    "test.flip_test": True,
    "test.joint_score_threshold": 0.2,
    "test.nms": "oks",
    "test.nms_threshold": 0.9,
}

_HALF_BODY: dict[str, Any] = {
    "augmentation.half_body_probability": 0.3,
    "augmentation.half_body_min_joints": 9,
    "augmentation.half_body_upper_probability": 0.7,
    "augmentation.half_body_padding": 1.5,
}

PROTOCOLS: dict[ProtocolName, Protocol] = {
    # The paper does not state its batch size for 2 GPUs; 64 here.
    "paper": Protocol(
        "sbn",
        _SHARED
        | {"loss.kind": "ohkm", "loss.hard_joints": 8}
        | {"optimizer.lr": 5e-4, "batch_size": 64, "epochs": 150.0, "schedule.milestones": [90.0, 120.0]},
    ),
    "sbn": Protocol(
        "sbn",
        _SHARED | {"optimizer.lr": 1e-3, "batch_size": 128, "epochs": 140.0, "schedule.milestones": [90.0, 120.0]},
    ),
    "hrnet": Protocol(
        "sbn",
        _SHARED
        | _HALF_BODY
        # Its code prefers the upper half where a normal is below .5, which has probability .6915.
        | {"augmentation.half_body_upper_probability": 0.6915}
        | {"augmentation.scale_factor": 0.35, "augmentation.rotation_deg": 45.0}
        # 32 a GPU on 4 GPUs. The file's weight decay of 1e-4 is not handed to Adam by its code.
        | {"optimizer.lr": 1e-3, "batch_size": 128, "epochs": 210.0, "schedule.milestones": [170.0, 200.0]},
    ),
    "mmpose": Protocol(
        "mmpose",
        _SHARED
        | _HALF_BODY
        | {"augmentation.scale_factor": 0.5, "augmentation.distribution": "truncated_normal"}
        | {"augmentation.shift_factor": 0.16, "augmentation.shift_probability": 0.3}
        | {"optimizer.lr": 5e-4, "batch_size": 512, "epochs": 210.0, "schedule.milestones": [170.0, 200.0]}
        | {"schedule.warmup_steps": 500, "schedule.warmup_start": 0.001},
    ),
}

_NO_HALF_BODY = {"augmentation.half_body_probability": 0.0}
_MPII = {"augmentation.scale_factor": 0.25, "augmentation.rotation_deg": 30.0} | _NO_HALF_BODY
_MPII_IN_MMPOSE = {"augmentation.shift_probability": 0.0} | _NO_HALF_BODY
_CROWDPOSE_PADDING = 1.3
"""The paper's padding on CrowdPose."""


def constants(name: ProtocolName, input_size: InputSize, skeleton: str = COCO_17.name) -> dict[str, Any]:
    """The settings that a protocol fixes, by dotted key; MPII and (in the paper) CrowdPose have a few of their own.

    The target's sigma is the published 2 heatmap pixels at 256 rows and 3 at 384, and in proportion elsewhere.
    """
    fixed = {**PROTOCOLS[name].settings, "heatmap.sigma_px": input_size.height / 128}
    if skeleton == MPII_16.name:
        return fixed | (_MPII_IN_MMPOSE if name == "mmpose" else _MPII)
    if skeleton == CROWDPOSE_14.name and name == "paper":
        return fixed | {"augmentation.padding": _CROWDPOSE_PADDING}
    return fixed


def envelope_settings(name: ProtocolName) -> dict[str, Any]:
    """The settings of an `Envelope` that serves a protocol on every data set: what ``prepare protocol=`` stands for."""
    fixed = PROTOCOLS[name].settings
    settings = {setting: fixed[f"augmentation.{setting}"] for setting in ("padding", "scale_factor", "rotation_deg")}
    if name == "paper":
        settings["padding"] = _CROWDPOSE_PADDING
    if fixed["augmentation.shift_probability"]:
        settings["shift_factor"] = fixed["augmentation.shift_factor"]
    return settings | {"half_body": fixed["augmentation.half_body_probability"] > 0}


def follow(tree: Mapping[str, Any], default_input: InputSize) -> dict[str, Any]:
    """A training configuration's tree with its protocol's constants for COCO wherever it says nothing itself."""
    result = copy.deepcopy(dict(tree))
    name = result.get("protocol")
    if not isinstance(name, str) or name not in PROTOCOLS:
        return result
    try:
        size = InputSize.model_validate(result.get("input", default_input))
    except ValidationError:
        return result  # the configuration's own check says what is wrong with it
    for key, value in constants(name, size).items():
        group, _, leaf = key.rpartition(".")
        node = result.setdefault(group, {}) if group else result
        # A group that is whole already (settings made in Python) leaves nothing open.
        if isinstance(node, dict):
            node.setdefault(leaf, value)
    return result


def departures(
    tree: Mapping[str, Any], sources: Sequence[SourceRecord] = (), skeleton: str = COCO_17.name
) -> dict[str, str]:
    """Where a run departs from the protocol it names: ``value (protocol's value)`` by key; empty without a protocol.

    Args:
        tree: the run's whole configuration as plain values, `TrainConfig.model_dump(mode="json")`.
        sources: of the crop store, for the boxes.
        skeleton: name of the store's skeleton.
    """
    name = tree.get("protocol")
    if name not in PROTOCOLS:
        return {}  # none, or one of another version of efafnet, of which nothing is known but its name
    fixed = constants(name, InputSize.model_validate(tree["input"]), skeleton)
    pairs = [(key, _value(tree, key), value) for key, value in fixed.items()]
    # Detections and MPII's boxes are not clipped under any protocol.
    rules = {s.box_rule for s in sources if s.format == "coco" and s.detections is None}
    pairs += [("box_rule", rule, PROTOCOLS[name].box_rule) for rule in sorted(rules)]
    return {key: f"{_text(own)} ({_text(value)})" for key, own, value in pairs if own != value}


def described(tree: Mapping[str, Any], sources: Sequence[SourceRecord] = (), skeleton: str = COCO_17.name) -> str:
    """A run's protocol in words: ``sbn``, ``sbn, with differences: batch_size=64 (128)``, or that none was named."""
    listed = ", ".join(f"{key}={text}" for key, text in departures(tree, sources, skeleton).items())
    name = str(tree.get("protocol") or NONE_NAMED)
    return f"{name}, with differences: {listed}" if listed else name


def compared(descriptions: Sequence[str]) -> str | None:
    """What to say under a comparison of runs, given each one's protocol in words; None where all follow the same."""
    names = [text.partition(",")[0] for text in descriptions]
    departing = sum("," in text for text in descriptions)
    counts = {name: names.count(name) for name in sorted(set(names))}
    if len(counts) > 1:
        listed = ", ".join(f"{name} ({count} of the runs)" for name, count in counts.items())
        also = f", and {departing} depart from theirs in single settings" if departing else ""
        return (
            f"Runs of different protocols are compared: {listed}{also}. Figures differ by recipe as well as by network."
        )
    if departing:
        return (
            f"{departing} of the {len(names)} runs depart in single settings from the protocol they name, {names[0]}."
        )
    return None


def _value(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
