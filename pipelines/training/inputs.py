"""The stores a run reads, opened and checked against its settings before anything expensive starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from efafnet.models.initialisation import initialise
from efafnet.models.network import AnyNetworkConfig, EFAFNet, PoseNetwork, build_network, network_config
from efafnet.models.network_config import differing_switches
from efafnet.models.skeleton import MPII_16, Skeleton
from efafnet.pipelines.crops import protocols
from efafnet.pipelines.crops.reader import EvalReader, TrainReader
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.evaluation.results_file import reference_of
from efafnet.pipelines.evaluation.scoring import FIGURES_OF
from efafnet.pipelines.evaluation.trained import find_checkpoint
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.schedule import Plan, plan_run
from efafnet.pipelines.training.state import published_weights
from efafnet.platform import console
from efafnet.platform.checkpoint import load_checkpoint, restore_weights
from efafnet.platform.storage import UnreadableFileError


@dataclass(frozen=True)
class Inputs:
    """Opened stores of one skeleton."""

    train: CropStore
    val: CropStore | None

    @property
    def metric(self) -> str:
        """The figure by which validations are compared unless the settings name another."""
        by_head = self.skeleton.joints == MPII_16.joints and self.val is not None and self.val.has_head_sizes
        return "pckh" if by_head else "ap"

    @property
    def stores(self) -> tuple[CropStore, ...]:
        """The training store, and the validation store if there is one."""
        return (self.train,) if self.val is None else (self.train, self.val)

    @property
    def skeleton(self) -> Skeleton:
        """The joints to learn."""
        return self.train.skeleton

    def identity(self, config: TrainConfig) -> dict[str, Any]:
        """What makes the run the run it is (``TrainConfig.identity``), on this data."""
        return config.identity(self.train.digest, None if self.val is None else self.val.digest)

    def plan(self, config: TrainConfig) -> Plan:
        """Length of a run on this data, before its speed is known."""
        return plan_run(
            epochs=config.epochs,
            samples=self.train.num_persons,
            global_batch=config.batch_size,
            max_samples=config.max_samples,
        )

    def protocol(self, config: TrainConfig) -> str:
        """The protocol that the run follows on this data, in words."""
        sources = self.train.manifest.sources
        return protocols.described(config.model_dump(mode="json"), sources, self.skeleton.name)


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
    config.loss.check(train.skeleton.num_joints)
    with _naming("data.train", train.location):
        train_reader(config, train, PlainContext(torch.device("cpu")))
    if val is not None:
        with _naming("data.val", val.location):
            val_reader(config, val, PlainContext(torch.device("cpu")))
    _check_metric(config, val)
    return Inputs(train, val)


def _check_metric(config: TrainConfig, val: CropStore | None) -> None:
    """Refuse a ``validation.metric`` that validation on this store does not compute."""
    metric = config.validation.metric
    if metric is None:
        return
    if val is None:
        raise ValueError(f"validation.metric = {metric!r}: nothing is validated; give data.val, or leave it out")
    names = FIGURES_OF[reference_of(val.path, val.digest).format]
    if metric not in names:
        raise ValueError(f"validation.metric = {metric!r}: validation gives {', '.join(names)}; choose one")


def check_sides(config: TrainConfig, skeleton: Skeleton) -> None:
    """Refuse to mirror samples of a skeleton that has left and right joints but no flip pairs to exchange them by."""
    lonely = skeleton.sided_without_partner
    mirrors = config.augmentation.flip_probability > 0 or config.test.flip_test
    if not lonely or not mirrors:
        return
    names = ", ".join(lonely[:6]) + ", …" * (len(lonely) > 6)
    if not skeleton.flip_pairs:
        raise ValueError(
            f"skeleton {skeleton.name!r} has joints named like sides ({names}) and no flip pairs, but samples are "
            "mirrored: prepare the store with skeleton=FILE.yaml or a category that gives flip_pairs, or do not "
            "mirror: augmentation.flip_probability=0 test.flip_test=false"
        )
    console.warn(f"skeleton {skeleton.name!r}: {names} are named like sides and in no flip pair: they keep their names")


def _open(path: str, key: str) -> CropStore:
    with _naming(key, path):
        return CropStore.open(path)


@contextmanager
def _naming(key: str, path: str) -> Iterator[None]:
    """Say which setting an error of a store is about."""
    try:
        yield
    except OSError as error:  # says nothing about the setting, only about the moment
        raise UnreadableFileError(f"{key} = {path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{key} = {path}: {error}") from error


def train_reader(config: TrainConfig, store: CropStore, context: PlainContext) -> TrainReader:
    """Make the reader of this worker's slices; raises ValueError where the store does not serve such samples."""
    held = config.compute.micro_batch
    return TrainReader(
        store,
        input_size=config.input,
        augmentation=config.augmentation,
        global_batch=config.batch_size,
        seed=config.seed,
        rank=context.rank,
        world_size=context.world_size,
        unit=1 if held == "auto" else held,
        config=config.reader,
        pin_memory=context.device.type == "cuda",
        udp=config.heatmap.encoding == "udp",
        resampled=config.resample == "train",
    )


def val_reader(config: TrainConfig, store: CropStore, context: PlainContext) -> EvalReader:
    """Make the reader of this worker's share of the validation persons; raises ValueError as ``train_reader``."""
    return EvalReader(
        store,
        input_size=config.input,
        padding=config.augmentation.padding,
        batch_size=config.test.batch_size,
        rank=context.rank,
        world_size=context.world_size,
        config=config.reader,
        pin_memory=context.device.type == "cuda",
        udp=config.heatmap.encoding == "udp",
    )


def _describe(skeleton: Skeleton) -> str:
    return f"{skeleton.name} ({skeleton.num_joints} joints)"


def initial_network(config: TrainConfig, skeleton: Skeleton) -> tuple[PoseNetwork, str]:
    """Build the network of a run with the weights it starts from, and one line that says which these are.

    The line is empty for a network that starts at random.

    Raises:
        ValueError: the checkpoint or file of weights is damaged, or of another network or skeleton.
        OSError: it is absent, or cannot be downloaded.
    """
    network = build_network(config.network, skeleton.num_joints)
    if config.init is not None:
        checkpoint = load_checkpoint(find_checkpoint(config.init), with_state=False)
        source = f"init = {config.init}"
        _check_same(network_config(checkpoint.config["network"]), config.network, source)
        restore_weights(network, published_weights(checkpoint), source)
        return network, f"{config.init}: took the whole network of that checkpoint"
    if isinstance(network, EFAFNet):
        report = initialise(network, config.imagenet)
        return network, "" if report is None else report.summary()
    return network, ""


def _check_same(has: AnyNetworkConfig, wanted: AnyNetworkConfig, source: str) -> None:
    differ = differing_switches(has, wanted)
    if differ:
        named = ", ".join(f"network.{name}={mine!r} instead of {ours!r}" for name, (mine, ours) in differ.items())
        raise ValueError(f"{source} holds the weights of another network: {named}; make them the same, or drop init")
