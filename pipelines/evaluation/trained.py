"""A trained network taken from a checkpoint, with everything needed to use it: input size, codec, test settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from efafnet.models.config import HeatmapConfig
from efafnet.models.network import AnyNetworkConfig, PoseNetwork, build_network, network_config
from efafnet.models.network_config import differing_switches
from efafnet.models.settings import InputSize, Settings
from efafnet.models.skeleton import SKELETONS, Skeleton
from efafnet.models.undrawn import Undrawn
from efafnet.pipelines.crops.store import CropStore, tell_protection
from efafnet.pipelines.evaluation.config import TestConfig, TestOverrides, Weights
from efafnet.pipelines.evaluation.visibility import META, Calibration, calibration_of
from efafnet.platform import console
from efafnet.platform.checkpoint import CheckpointError, load_checkpoint, read_meta, restore_weights
from efafnet.platform.configuration_errors import rule_of
from efafnet.platform.presence import is_there


@dataclass(frozen=True)
class Trained:
    """A network and how it was trained to be used."""

    path: Path
    """The checkpoint's directory."""
    network: PoseNetwork
    """On the CPU, in evaluation mode."""
    settings: AnyNetworkConfig
    """Its switches."""
    input_size: InputSize
    """Size of its input."""
    heatmap: HeatmapConfig
    """Its codec."""
    padding: float
    """Factor by which boxes grow before cropping."""
    test: TestConfig
    """How it is tested: as its run did, unless told otherwise."""
    skeleton: str
    """Name of its skeleton."""
    config: dict[str, Any]
    """The whole configuration of its run."""
    meta: dict[str, Any]
    """What the checkpoint says about itself: step, metrics, run."""
    visibility: Calibration | None = None
    """How probably a joint is visible, by its peak; None where no validation said so, as with earlier versions."""

    @classmethod
    def of(
        cls,
        path: Path,
        network: PoseNetwork,
        config: Mapping[str, Any],
        meta: Mapping[str, Any],
        skeleton: Skeleton,
        parts: Mapping[str, Any] | None = None,
    ) -> Self:
        """A network with its weights, and what its run's configuration says; ValueError for that of another version.

        ``parts`` are the settings of ``config`` where they have been read already.
        """
        parts = parts or _settings(path, config)
        return cls(
            path=path,
            network=network.eval(),
            settings=parts["network"],
            input_size=parts["input"],
            heatmap=parts["heatmap"],
            padding=float(config["augmentation"]["padding"]),
            test=parts["test"],
            skeleton=skeleton.name,
            config=dict(config),
            meta={key: value for key, value in meta.items() if key != META},
            visibility=calibration_of(meta),
        )

    def visible(self, peaks: NDArray[np.floating], skeleton: Skeleton) -> NDArray[np.float32] | None:
        """Probabilities (N, K) that joints with ``peaks`` (N, K) are visible, NaN where nothing is known of a joint.

        None for a network whose checkpoint says nothing of it.
        """
        return None if self.visibility is None else self.visibility.probabilities(peaks, skeleton.joints)

    def tell_visibility(self) -> None:
        """Say where predictions lack probabilities, or have those of other peaks."""
        if self.visibility is None:
            console.note(
                f"checkpoint {self.path} holds no calibration of visibility: predictions say the height of peaks alone "
                f"(add it with: efafnet evaluate {self.path} STORE calibrate=true)"
            )
        elif self.visibility.flip_test != self.test.flip_test:
            console.note(
                f"visibility was calibrated with test.flip_test={str(self.visibility.flip_test).lower()}: peaks of "
                "other tests are of another height, and probabilities not quite right"
            )

    @property
    def udp(self) -> bool:
        """Whether crops are cut by UDP's rule, which its targets need."""
        return self.heatmap.encoding == "udp"

    def tested_as(self, wanted: TestOverrides) -> Trained:
        """The same network, tested as ``wanted``; ValueError for a decoding that its targets do not allow."""
        given = {name: value for name, value in wanted.model_dump().items() if value is not None}
        decoding = given.pop("decoding", self.heatmap.decoding)
        heatmap = HeatmapConfig.model_validate({**self.heatmap.model_dump(), "decoding": decoding})
        return replace(self, heatmap=heatmap, test=TestConfig.model_validate({**self.test.model_dump(), **given}))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at ``path``: the directory itself, or the best (else the latest) one of a run's directory."""
    if not is_there(path / "meta.json"):
        for name in ("best", "latest"):
            if is_there(path / name / "meta.json"):
                return (path / name).resolve()
    return path


def filled_network(
    config: AnyNetworkConfig, num_joints: int, tensors: Mapping[str, torch.Tensor], source: object
) -> PoseNetwork:
    """Build the network that ``tensors`` are the weights of; nothing is drawn for it first.

    Raises:
        CheckpointError: they are another network's, as ``restore_weights`` says of ``source``.
    """
    with Undrawn():
        network = build_network(config, num_joints)
    restore_weights(network, tensors, source)
    return network


def load_trained(
    path: Path,
    store_skeleton: Skeleton,
    *,
    weights: Weights = "best",
    expected: Mapping[str, Any] | None = None,
) -> Trained:
    """Build the network of a checkpoint and load its weights; ``best`` takes the moving average where one was kept.

    ``expected`` are switches that the network must have. Raises ValueError naming the file and the remedy for a
    checkpoint that is damaged, of another skeleton than ``store_skeleton``, or of other switches than ``expected``.
    """
    path = find_checkpoint(path)
    # The small files first: a mismatch should not cost reading the weights.
    _check_skeleton(path, read_meta(path).get("skeleton"), store_skeleton)
    checkpoint = load_checkpoint(path, with_state=False)
    parts = _settings(path, checkpoint.config)
    check_switches(path, parts["network"], expected or {})
    found = checkpoint.weights
    published = "ema" if "ema" in found else "network"
    name = published if weights == "best" else weights
    if name not in found:
        raise CheckpointError(f"checkpoint {path} holds no weights {name!r}, only {', '.join(found)}; set weights=best")
    network = filled_network(parts["network"], store_skeleton.num_joints, found[name], f"checkpoint {path}")
    _check_finite(path, found[name])
    # Validation looked at the published weights: peaks of others are of another height.
    meta = checkpoint.meta if name == published else {**checkpoint.meta, META: None}
    return Trained.of(path, network, checkpoint.config, meta, store_skeleton, parts)


def _settings(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that testing needs, of the whole tree of a training run."""
    models: dict[str, type[Settings]] = {"input": InputSize, "heatmap": HeatmapConfig, "test": TestConfig}
    try:
        parts = {name: model.model_validate(config[name]) for name, model in models.items()}
        return {"network": network_config(config["network"]), **parts}
    except (KeyError, ValidationError) as error:
        detail = f"no group {error}" if isinstance(error, KeyError) else rule_of(error.errors()[0])
        raise CheckpointError(
            f"checkpoint {path}: its config.json is not that of a training run of this version ({detail}); use the "
            "version of efafnet that wrote it"
        ) from error


def _check_skeleton(path: Path, name: str | None, wanted: Skeleton) -> None:
    known = SKELETONS.get(name or "")
    if name is None or (name == wanted.name and (known is None or known.joints == wanted.joints)):
        return
    raise CheckpointError(
        f"checkpoint {path} was trained for skeleton {name!r}, the crop store holds {wanted.name!r} "
        f"({wanted.num_joints} joints); evaluate on a store of the skeleton it was trained for"
    )


def check_switches(path: Path, has: AnyNetworkConfig, expected: Mapping[str, Any]) -> None:
    """Raise ValueError naming every switch in which a checkpoint's network differs from what is expected of it."""
    # Switches of another kind of network stand on their own: there is nothing of this one's to complete them with.
    own = has.model_dump() if expected.get("kind", has.kind) == has.kind else {}
    try:
        wanted = network_config({**own, **expected})
    except ValidationError as error:
        first = error.errors()[0]
        # The first part names the kind in the union.
        where = ".".join(str(part) for part in ("network", *first["loc"][1:]))
        unknown = f"is no setting of network.kind={first['loc'][0]}" if first["type"] == "extra_forbidden" else ""
        raise ValueError(f"{where}: {unknown or rule_of(first)}") from error
    differ = [
        f"network.{n}={mine!r} instead of {theirs!r}" for n, (mine, theirs) in differing_switches(has, wanted).items()
    ]
    if differ:
        raise CheckpointError(
            f"checkpoint {path} holds another network: {', '.join(differ)}; name the checkpoint of the network meant, "
            "or leave the switches out"
        )


def _check_finite(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"checkpoint {path}: {len(bad)} of {len(tensors)} tensors hold NaN or infinity (first: {bad[0]}); training "
            "diverged, use an earlier checkpoint"
        )


def open_store(path: str) -> CropStore:
    """Open the crop store to evaluate on; ValueError where it holds no persons."""
    store = CropStore.open(path)
    tell_protection(store)
    if store.num_persons == 0:
        raise ValueError(f"crop store {path} holds no persons; look at its rejects with: efafnet inspect {path}")
    return store
