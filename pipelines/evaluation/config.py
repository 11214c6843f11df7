"""The settings of testing and measuring networks, apart from the code that needs torch, OpenCV and Arrow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from efafnet.models.settings import Settings
from efafnet.pipelines.crops.config import ReaderConfig
from efafnet.platform.addresses import BareAddress
from efafnet.platform.capacity import ActorPool, Capacity, decide_gpu
from efafnet.platform.cluster import ClusterConfig
from efafnet.platform.machine import WantedPrecision
from efafnet.platform.mirror import Location

if TYPE_CHECKING:
    import torch

Weights = Literal["best", "network", "ema"]

CrowdSplit = Literal["tool", "paper"]


class TestConfig(Settings):
    """How a network is tested: what is averaged, how persons are scored, which duplicates go."""

    __test__: ClassVar[bool] = False  # not a test case, whatever pytest thinks of the name

    flip_test: bool = True
    """Average the heatmaps with those of the mirrored crop (twice the computation)."""
    batch_size: int = Field(default=64, gt=0)
    """Crops per forward pass of one process."""
    precision: WantedPrecision = "auto"
    """Arithmetic of the forward pass, as in training; heatmaps are decoded in float32. auto: what suits the device."""
    joint_score_threshold: float = Field(default=0.2, ge=0, lt=1)
    """A person's score is its box score times the mean of the joint scores above this."""
    nms: Literal["none", "oks", "soft_oks"] = "oks"
    """Suppression of duplicates within an image: hard or soft OKS-NMS, or none."""
    nms_threshold: float = Field(default=0.9, gt=0, le=1)
    """OKS above which the weaker of two predictions is a duplicate (hard), or the decay's scale (soft)."""


class TestOverrides(Settings):
    """What is tested differently than in training; none keeps what the checkpoint says."""

    __test__: ClassVar[bool] = False  # not a test case, whatever pytest thinks of the name

    flip_test: bool | None = None
    """Average with the mirrored crop."""
    batch_size: int | None = Field(default=None, gt=0)
    """Crops per forward pass of one process."""
    precision: WantedPrecision | None = None
    """Arithmetic of the forward pass."""
    joint_score_threshold: float | None = Field(default=None, ge=0, lt=1)
    """A person's score is its box score times the mean of the joint scores above this."""
    nms: Literal["none", "oks", "soft_oks"] | None = None
    """Suppression of duplicates within an image."""
    nms_threshold: float | None = Field(default=None, gt=0, le=1)
    """OKS above which the weaker of two predictions is a duplicate (hard), or the decay's scale (soft)."""
    decoding: Literal["argmax", "quarter", "dark", "udp"] | None = None
    """From heatmap to joint."""


class ActorsConfig(Settings):
    """What each of the processes that predict gets."""

    count: int | None = Field(default=None, ge=0)
    """Ray's actors that hold the network: null for one per GPU, or on CPUs for as many as leave a core for reading;
    0 for this very process, without Ray. Also written workers=N."""
    cpus: float = Field(default=1, gt=0)
    """CPU cores of each actor; also the threads of its arithmetic."""
    gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU per actor (or for this process): auto takes it where there is one."""
    cluster: ClusterConfig = ClusterConfig()
    """Which Ray."""

    @model_validator(mode="before")
    @classmethod
    def _count_alone(cls, tree: Any) -> Any:
        """Read ``workers: 0`` as ``workers: {count: 0}``."""
        if isinstance(tree, int) and not isinstance(tree, bool):
            return {"count": tree}
        if isinstance(tree, str):
            raise ValueError(f"workers is a number of actors, 0 for none but this process; got {tree!r}")
        return tree

    @property
    def without_ray(self) -> bool:
        """Whether this very process predicts."""
        return self.count == 0

    @property
    def threads(self) -> int:
        """Threads of an actor's arithmetic."""
        return max(1, int(self.cpus))

    def device_here(self) -> torch.device:
        """The device of this process; ValueError where a GPU is asked for that is not there."""
        import torch

        if self.gpu == "yes" and not torch.cuda.is_available():
            raise ValueError("workers.gpu=yes: this machine has no GPU that torch can use; set workers.gpu=auto")
        return torch.device("cuda" if self.gpu != "no" and torch.cuda.is_available() else "cpu")

    def pool(self, there: Capacity) -> ActorPool:
        """The actors on a cluster; ValueError for GPUs that can never come, or of which nobody knows."""
        if decide_gpu(self.gpu, 1, there, "workers.gpu"):
            count = self.count or max(1, int(there.most_gpus() or there.living_gpus()))
            return ActorPool(count, True, max(1, min(count, int(there.living_gpus()))))
        cpus = sum(shape.get("CPU", 0) for shape in there.living)
        count = self.count or max(1, int((cpus - 1) // self.cpus))
        return ActorPool(count, False, count)


class WorkersConfig(ActorsConfig):
    """Who predicts."""

    count: int | None = Field(default=None, ge=0)
    """Ray's actors that hold the network: null for one per GPU, or on CPUs for as many as leave a core for reading, or
    for this very process with at most 1,000 persons and no cluster that runs or is named; 0 for this process always,
    without Ray. Also written workers=N."""
    reader: ReaderConfig = ReaderConfig()
    """Reading without Ray."""


class ScoringConfig(Settings):
    """What is computed beside the figures, and by whom."""

    bootstrap: int = Field(default=1000, ge=0)
    """Resamplings of the images for confidence intervals; 0 for none."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Probability mass of the intervals."""
    seed: int = Field(default=0, ge=0)
    """Seed of the resampling."""
    errors: bool = True
    """Analyse the mistakes by kind (jitter, inversion, swap, miss), with a picture where there is an output."""
    crowd_split: CrowdSplit = "tool"
    """Borders of CrowdPose's easy, medium and hard images: the official tool's (.2, .8) or its paper's (.1, .8)."""


class EvaluateConfig(Settings):
    """Measure a trained network on a crop store."""

    checkpoint: Path
    """Checkpoint directory, or a run's directory (then its best checkpoint)."""
    data: Location
    """Crop store, a directory made by `efafnet prepare` or its address; with annotated boxes or a detector's."""
    output: Path = Path("evaluation")
    """Directory for predictions.json (COCO results), metrics.json, errors.png, best.jpg and worst.jpg."""
    overwrite: bool = False
    """Whether an output that exists is replaced."""
    weights: Weights = "best"
    """Which weights of the checkpoint: best takes the moving average where one was kept."""
    network: dict[str, Any] = Field(default_factory=dict)
    """Switches the network must have, for example network.ffm=true; a checkpoint of another is refused."""
    test: TestOverrides = TestOverrides()
    workers: WorkersConfig = WorkersConfig()
    scoring: ScoringConfig = ScoringConfig()
    calibrate: bool = False
    """Find on this store how probably a joint is visible, given the height of its peak, and keep that in the checkpoint
    in the place of what it holds; training does so on the validation store. Give no store that is reported on."""
    overlays: int = Field(default=12, ge=0)
    """Persons in each of best.jpg and worst.jpg; 0 for no pictures."""
    mlflow: bool = False
    """Log figures and files to the MLflow run that wrote the checkpoint, as evaluation.STORE.FIGURE."""
    tracking_uri: BareAddress | None = None
    """Address of the MLflow store that holds the run; none for the training's own, then MLFLOW_TRACKING_URI."""
