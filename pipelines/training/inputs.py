"""The stores a run reads, opened and checked against its settings before anything expensive starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efafnet.models import losses
from efafnet.models.network import PoseNetwork, build_network
from efafnet.models.settings import InputSize
from efafnet.models.skeleton import Skeleton
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.state import published_weights
from efafnet.platform.checkpoint import load_checkpoint, restore_weights


@dataclass(frozen=True)
class Inputs:
    """Opened stores of one skeleton."""

    train: CropStore
    val: CropStore | None

    @property
    def skeleton(self) -> Skeleton:
        """The joints to learn."""
        return self.train.skeleton

    def identity(self, config: TrainConfig) -> dict[str, Any]:
        """What makes the run the run it is (``TrainConfig.identity``), on this data."""
        return config.identity(self.train.digest, None if self.val is None else self.val.digest)


def open_inputs(config: TrainConfig) -> Inputs:
    """Open the stores of a run and check that it can train on them.

    Raises:
        ValueError: a store is missing, of another skeleton, empty, or was not prepared for the wanted samples; or a
            setting does not fit the skeleton.
    """
    if config.data.train is None:
        raise ValueError("data.train is required: the crop store to train on, for example data.train=crops/train")
    train = _open(config.data.train, "data.train")
    val = None if config.data.val is None else _open(config.data.val, "data.val")
    if val is not None and val.skeleton != train.skeleton:
        raise ValueError(
            f"data.val = {config.data.val}: its skeleton is {_describe(val.skeleton)}, that of data.train "
            f"{_describe(train.skeleton)}; a network is validated on the joints it learns"
        )
    losses.check(config.loss, train.skeleton.num_joints)
    _check_envelope(train, config.augmentation, config.input, "data.train")
    if val is not None:
        _check_envelope(val, config.augmentation.without_variation(), config.input, "data.val")
    return Inputs(train, val)


def _open(path: Path, key: str) -> CropStore:
    try:
        store = CropStore.open(path)
    except (ValueError, OSError) as error:
        raise type(error)(f"{key} = {path}: {error}") from error
    if store.num_persons == 0:
        raise ValueError(f"{key} = {path}: the store holds no persons; look at its rejects with `efafnet inspect`")
    return store


def _check_envelope(store: CropStore, wanted: AugmentationConfig, size: InputSize, key: str) -> None:
    try:
        store.manifest.envelope.check(wanted, size, any_reduced=store.manifest.counts.reduced > 0)
    except ValueError as error:
        raise ValueError(f"{key} = {store.path}: {error}") from error


def _describe(skeleton: Skeleton) -> str:
    return f"{skeleton.name} ({skeleton.num_joints} joints)"


def initial_network(config: TrainConfig, skeleton: Skeleton) -> PoseNetwork:
    """Build the network of a run, with the weights of ``config.init`` where given.

    Raises:
        ValueError: the checkpoint is absent, damaged, or of another network or skeleton.
    """
    network = build_network(config.network, skeleton.num_joints)
    if config.init is not None:
        checkpoint = load_checkpoint(config.init, with_state=False)
        restore_weights(network, published_weights(checkpoint), f"init = {config.init}")
    return network
