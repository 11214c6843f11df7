"""The settings of a training run: one tree, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from efafnet.models.config import HeatmapConfig, InitialisationConfig, LossConfig
from efafnet.models.network_config import AnyNetworkConfig, NetworkConfig
from efafnet.models.settings import MAX_SEED, InputSize, Settings
from efafnet.pipelines.crops.augmentation import AugmentationConfig
from efafnet.pipelines.crops.config import ReaderConfig
from efafnet.pipelines.crops.protocols import ProtocolName, follow
from efafnet.pipelines.evaluation.config import TestConfig
from efafnet.pipelines.training.config_groups import (
    CheckpointConfig,
    ComputeConfig,
    OptimizerConfig,
    ProfileConfig,
    ValidationConfig,
)
from efafnet.pipelines.training.identity import CHANGEABLE, IDENTITY, chosen
from efafnet.pipelines.training.schedule import ScheduleConfig
from efafnet.platform.cluster import ClusterConfig
from efafnet.platform.configuration import flatten
from efafnet.platform.consumption import CostConfig
from efafnet.platform.machine import WantedPrecision
from efafnet.platform.mirror import Location
from efafnet.platform.tracking import TrackingConfig


class DataConfig(Settings):
    """Where the persons come from."""

    train: Location | None = None
    """Crop store to train on, a directory made by `efafnet prepare` or its address (s3://…, gs://…); required."""
    val: Location | None = None
    """Crop store to validate on, likewise; none for training without validation."""


class WorkerConfig(Settings):
    """What each Ray worker gets. Without effect when workers is 0."""

    cpus: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPU cores reserved per worker; also the number of threads of its arithmetic (at least 1). auto: those that go
    with its GPU, less one; without GPUs an equal part for all workers (and for all runs of a search); 16 at most."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU per worker: auto takes them where the cluster has enough for all workers, or may start them."""
    gpus: float = Field(default=1, gt=0, le=1)
    """Share of a GPU reserved per worker: with 0.5 two runs of one worker share each GPU. Whether their memory fits is
    not checked."""
    max_failures: int = Field(default=3, ge=-1)
    """Times that a failure of one kind (a dead worker, a read that failed) at one checkpoint is survived: training goes
    on from there after a pause. A new checkpoint counts anew; -1 for always. Nodes that announce their end (spot
    instances) do not count."""
    fewest: int | None = Field(default=None, ge=1)
    """Elastic training: while nodes are missing the run goes on with as few workers as this, and takes more again when
    they return; null for never fewer than `workers`. workers=1..4 sets both."""
    grow_every_s: float = Field(default=60, gt=0)
    """Seconds between two looks for returned nodes; taking them in costs a restart from the last checkpoint."""
    collective_timeout_s: float = Field(default=1800, gt=0)
    """Longest time that workers wait for each other, in seconds, before those that wait give up and the run goes on
    from the last checkpoint with new workers. Longer than any validation and any checkpoint takes."""

    @property
    def threads(self) -> int:
        """Threads of a worker's arithmetic; one where its cores are not decided."""
        return 1 if self.cpus == "auto" else max(1, int(self.cpus))


_INPUT = InputSize(height=256, width=192)


class TrainConfig(Settings):
    """One training run. Giving the same settings again resumes it."""

    name: str = "train"
    """Name of the run, and of its directory under `runs`."""
    runs: Path = Path("runs")
    """Directory that holds the runs; all workers must see it (a shared file system on several nodes)."""
    data: DataConfig = DataConfig()
    """Where the persons come from."""
    protocol: ProtocolName | None = None
    """Published recipe (paper, sbn, hrnet, mmpose) that stands for every setting of augmentation, target, loss,
    optimisation and test that is not given. The run records its name and the settings in which it differs. Null for
    none."""
    network: AnyNetworkConfig = NetworkConfig()
    """The network: EFAFNet or the simple baseline, HRNet, or the stacked hourglass."""
    input: InputSize = _INPUT
    """Size of the network's input in pixels, HEIGHTxWIDTH, both divisible by 32."""
    init: Path | None = None
    """Checkpoint or run directory whose weights the run starts from; none for the network's own initialisation."""
    fork: Path | None = None
    """Run directory or checkpoint that a new run goes on from, under the settings given here: weights, optimizer,
    average and step are taken over, validations are not. Also written --fork RUN. None for a start at step 0."""
    imagenet: InitialisationConfig = InitialisationConfig()
    """ImageNet weights for the residual encoder to start from; none for a random start."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """How training samples are varied; its padding holds for validation too."""
    heatmap: HeatmapConfig = HeatmapConfig()
    """How joints become heatmaps and back."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How gradients become weights."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the run."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per optimizer step over ALL workers; each takes a near-equal slice."""
    epochs: float = Field(default=150, gt=0)
    """Length of the full run in passes over the training store."""
    max_samples: int | None = Field(default=None, ge=1)
    """Budget in training samples: the run ends there if that is earlier, and its schedule is compressed to fit."""
    max_time_s: float | None = Field(default=None, gt=0)
    """Budget in seconds of the loop, validations included: the schedule is compressed as the measured speed demands.
    Such a run depends on the machine and cannot be repeated exactly."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of initialisation, sample order and augmentation."""
    resample: Literal["none", "train"] = "none"
    """train: another training set for each seed, as many row groups of the store drawn with replacement (a bootstrap;
    about 63 % of them take part, some twice or more), so that runs with different seeds also differ by the data."""
    precision: WantedPrecision = "auto"
    """Arithmetic of the network: fp32 (float32); tf32 (its products rounded, on GPUs); bf16 or fp16 (under autocast
    with float32 weights). auto: bf16 where the devices compute it in hardware, else fp16 on GPUs and fp32 on CPUs;
    chosen when the run begins, and kept when it is resumed on other devices."""
    compute: ComputeConfig = ComputeConfig()
    """How the hardware computes a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a run without Ray trains; auto takes the GPU if there is one. Ray's workers follow worker.gpu;
    cpu counts for them, too."""
    workers: int = Field(default=1, ge=0)
    """Ray workers that share each batch; 0 trains in this very process without Ray. FEWEST..MOST (1..4) for as many as
    the cluster has at the time; the batch stays what it is."""
    worker: WorkerConfig = WorkerConfig()
    """What each Ray worker gets."""
    cluster: ClusterConfig = ClusterConfig()
    """Which Ray to use."""
    reader: ReaderConfig = ReaderConfig()
    """How the stores are read."""
    test: TestConfig = TestConfig()
    """How the network is tested in validations."""
    validation: ValidationConfig = ValidationConfig()
    """When the run is validated, and what follows from it."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written and which are kept."""
    tracking: TrackingConfig = TrackingConfig()
    """What is recorded in MLflow, and where."""
    cost: CostConfig = CostConfig()
    """What an hour costs."""
    profile: ProfileConfig = ProfileConfig()
    """What is looked at closely."""
    log_every_steps: int = Field(default=50, ge=1)
    """Steps between two points of the training curves."""
    trace: bool = False
    """Write every step's sample rows and loss to trace-rank*.jsonl in the run's directory, to compare runs exactly."""

    @classmethod
    def filled(cls, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tree with its protocol's constants wherever it says nothing itself."""
        return follow(tree, _INPUT)

    @model_validator(mode="before")
    @classmethod
    def _follow_protocol(cls, tree: Any) -> Any:
        return cls.filled(tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="before")
    @classmethod
    def _split_range(cls, tree: Any) -> Any:
        """Read ``workers: 1..4`` as ``workers: 4, worker: {fewest: 1}``."""
        if not isinstance(tree, Mapping) or not isinstance(tree.get("workers"), str):
            return tree
        fewest, dots, most = tree["workers"].partition("..")
        if not (dots and fewest.isdigit() and most.isdigit() and 1 <= int(fewest) <= int(most)):
            raise ValueError(f"workers is a number, or FEWEST..MOST like 1..4; got {tree['workers']!r}")
        return {**tree, "workers": int(most), "worker": {**tree.get("worker", {}), "fewest": int(fewest)}}

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        self._check_name()
        if self.schedule.kind == "multistep":
            late = [milestone for milestone in self.schedule.milestones if milestone >= self.epochs]
            if late:
                raise ValueError(
                    f"schedule.milestones must lie before the end of the run at epochs={self.epochs:g}; "
                    f"got {list(self.schedule.milestones)}: move them, drop them, or train longer"
                )
        if self.worker.fewest is not None and self.worker.fewest > self.workers:
            raise ValueError(
                f"worker.fewest={self.worker.fewest} is more than workers={self.workers}; write workers=FEWEST..MOST"
            )
        self._check_shares()
        if self.worker.gpus < 1 and self.workers > 1:
            raise ValueError(
                f"worker.gpus = {self.worker.gpus:g}: two of workers={self.workers} could land on one GPU, which NCCL "
                "refuses; use workers=1, or whole GPUs"
            )
        limit_s = self.worker.collective_timeout_s
        if self.workers > 1 and self.validation.where == "auto" and self.validation.wait_s >= limit_s:
            raise ValueError(
                f"validation.wait_s={self.validation.wait_s:g}: all workers wait meanwhile, and give up after "
                f"worker.collective_timeout_s={limit_s:g}; make it shorter than that"
            )
        self._check_network()
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision = fp16: works on GPUs only; use bf16 or fp32 on device=cpu")
        return self

    def _check_shares(self) -> None:
        """Refuse a batch of which some worker would get nothing."""
        if self.batch_size < self.workers:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by workers={self.workers} so that each gets a "
                f"sample; it must be at least {self.workers}"
            )
        held = self.compute.micro_batch
        if held != "auto" and -(-self.batch_size // held) < self.workers:
            raise ValueError(
                f"compute.micro_batch={held} leaves some of workers={self.workers} without a part of "
                f"batch_size={self.batch_size}; make it {self.batch_size // self.workers} or less, or auto"
            )

    def _check_network(self) -> None:
        network, stride = self.network, self.network.heatmap_stride
        if self.heatmap.stride != stride:
            cause = f"network.head={network.head}" if network.kind == "efafnet" else f"network.kind={network.kind}"
            raise ValueError(
                f"heatmap.stride = {self.heatmap.stride}: {cause} puts out heatmaps of stride {stride}; "
                f"set heatmap.stride={stride}"
            )
        if self.imagenet.wanted and network.kind != "efafnet":
            raise ValueError(
                f"imagenet: its weights are for residual encoders, and network.kind={network.kind} has none; "
                "leave them out, or start from a checkpoint with init=…"
            )
        if self.fork is not None and (self.init is not None or self.imagenet.wanted):
            raise ValueError(f"fork = {self.fork}: takes that run's weights; leave out init and imagenet")
        if self.imagenet.wanted and self.init is not None:
            raise ValueError(
                f"init = {self.init}: the checkpoint would overwrite the imagenet weights; set one of them"
            )

    def _check_name(self) -> None:
        if not self.name or self.name.startswith((".", "-")) or set(self.name) & set("/\\\0 \t\n"):
            raise ValueError(f"name = {self.name!r}: names a directory; use letters, digits, '_', '-' and '.'")

    @property
    def starts_from_weights(self) -> bool:
        """Whether the network starts from something on disk or on the network."""
        return self.init is not None or self.imagenet.wanted

    @property
    def run_dir(self) -> Path:
        """Directory of this run."""
        return self.runs / self.name

    def identity(self, train_digest: str, val_digest: str | None) -> dict[str, Any]:
        """What makes this run the run it is, as dotted keys: everything that changes its figures.

        Where files lie, how many workers share a batch, how the hardware computes it, what is logged and kept is left
        out: a run may be moved, and resumed on another cluster. Data is named by content, not by path.
        """
        settings = chosen(flatten(self.model_dump(mode="json")), IDENTITY)
        return {**settings, "data.train": train_digest, "data.val": val_digest}

    def changeable(self) -> dict[str, Any]:
        """What may change when the run is resumed, which is then printed, as dotted keys."""
        return chosen(flatten(self.model_dump(mode="json")), CHANGEABLE)
