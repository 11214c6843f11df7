"""Groups of a training run's settings whose owners need torch: optimizer, hardware, checkpoints, validation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from efafnet.models.settings import Settings
from efafnet.platform.addresses import BareAddress


class OptimizerConfig(Settings):
    """How gradients become weights."""

    kind: Literal["adam", "adamw"] = "adam"
    """Adam (weight decay joins the gradient) or AdamW (weight decay is decoupled)."""
    lr: float = 5e-4
    """Peak learning rate, for the global batch."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's running means of the gradient and of its square, each in [0, 1)."""
    weight_decay: float = 0.0
    """Weight decay per unit of learning rate."""
    clip_norm: float | None = None
    """Largest L2 norm of the whole gradient; a longer one is scaled down. None for no clipping."""
    ema_decay: float | None = None
    """Decay per step of an exponential moving average of the weights, which is then what is validated and published;
    the first steps use less, (1 + step) / (10 + step). None for no average."""

    @model_validator(mode="after")
    def _possible(self) -> OptimizerConfig:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive; got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1); got {list(self.betas)}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative; got {self.weight_decay}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive, or null for no clipping; got {self.clip_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, or be null for no average; got {self.ema_decay}")
        return self


class ComputeConfig(Settings):
    """How the hardware computes a step; no setting here changes what is computed beyond rounding."""

    channels_last: bool = True
    """Keep activations and convolution weights in NHWC order in memory, which convolutions prefer."""
    micro_batch: Literal["auto"] | int = "auto"
    """Crops that a device holds at once; a worker's slice of a batch is computed in parts of this size, whose gradients
    are added up. auto: the whole slice, halved when the memory of a GPU runs out. Batch norm sees the parts: with a
    number they are the same for any number of workers, which take whole parts."""
    compile: Literal["auto", "off", "default", "max-autotune"] = "auto"
    """Compile the network with torch.compile, for training; validations run as written. default: a minute or more at
    the start, faster steps after. max-autotune: tries more kernels, for several minutes. auto: off on a CPU and in
    runs of less than half an hour; else default, if its steps are measured to be faster."""
    graph: Literal["auto", "on", "off"] = "off"
    """Launch a step as a CUDA graph, which costs the host no time; one worker, no fp16. auto: where that is measured
    to be faster. Off unless asked for: tested with a stand-in for CUDA's recording, not yet on a GPU."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """As what workers exchange gradients: bf16 halves what travels over the network, and rounds each worker's gradient
    to 8 bits before they are added up. Weights and optimizer stay in float32."""
    sync_batch_norm: bool = False
    """Batch-norm statistics over all GPUs instead of each worker's slice; CUDA only."""

    @model_validator(mode="after")
    def _possible(self) -> ComputeConfig:
        if self.micro_batch != "auto" and self.micro_batch < 1:
            raise ValueError(f"micro_batch is a number of crops, at least 1, or auto; got {self.micro_batch}")
        if self.graph == "on" and self.sync_batch_norm:
            raise ValueError(
                "graph=on: steps that wait for other GPUs, as sync_batch_norm's do, are not recorded; leave one "
                "of them out"
            )
        return self


def steps_of(text: str) -> tuple[int, int]:
    """First and last step of ``FIRST..LAST``, counted from 1.

    Raises:
        ValueError: it is not of that form, or more steps than a trace can be read with.
    """
    first, dots, last = text.partition("..")
    if not (dots and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) < int(first) + 100):
        raise ValueError(f"steps is FIRST..LAST like 100..104, counted from 1, at most 100 of them; got {text!r}")
    return int(first), int(last)


class ProfileConfig(Settings):
    """What is looked at closely."""

    steps: str | None = None
    """Steps FIRST..LAST (100..104, counted from 1) of rank 0 that are profiled: a torch trace and, on a GPU, a snapshot
    of its memory go to profile/ in the run's directory and to MLflow. Null for none."""

    @model_validator(mode="after")
    def _possible(self) -> ProfileConfig:
        if self.steps is not None:
            steps_of(self.steps)
        return self


class CheckpointConfig(Settings):
    """When checkpoints are written and which are kept."""

    every_epochs: float | None = Field(default=1, gt=0)
    """Epochs between two checkpoints (a fraction is allowed); none for no such checkpoints. Every validation and the
    end of the run write one in any case."""
    every_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints, in addition; none for no such checkpoints."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints kept: with two, a damaged one costs one interval and not the run."""
    keep_best: int = Field(default=1, ge=1)
    """Best validated checkpoints kept, beyond the newest."""
    asynchronous: bool = True
    """Write in the background while training goes on."""
    copy_to: BareAddress | None = None
    """Address that every checkpoint is copied to as well, under the run's name, on any file system pyarrow opens:
    s3://BUCKET/runs, gs://…, abfs://…, hdfs://…, file:///…. A run that lost its disk goes on from there. Null for no
    copies."""

    @model_validator(mode="after")
    def _possible(self) -> CheckpointConfig:
        if self.every_epochs is None and self.every_steps is None:
            raise ValueError("checkpoint.every_epochs and every_steps are both null; a run without checkpoints is lost")
        return self


class ValidationConfig(Settings):
    """When and how a run is measured on its validation store. The end of the run is always validated."""

    every_epochs: float | None = Field(default=10, gt=0)
    """Epochs between two validations (a fraction is allowed); none for only one, at the end."""
    metric: str | None = None
    """Figure by which the best checkpoint is chosen, larger is better; none for ap, or pckh on MPII."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many validations in a row without a new best figure; none to train to the end."""
    overlays: int = Field(default=8, ge=0)
    """Best and worst persons drawn at each validation, of each as many, beside a plot of the errors and the figures'
    intervals (metrics.json); 0 for none of these."""
    where: Literal["auto", "inline"] = "auto"
    """inline: all workers stop and share the persons. auto: beside training, in a Ray task of its own, where the
    cluster has room for one more worker; its figures count from the next validation on. Searches validate inline."""
    wait_s: float = Field(default=300, gt=0)
    """Longest wait, in seconds, for a validation beside training once its figures count; then it is cancelled, and all
    workers measure the checkpoint."""
