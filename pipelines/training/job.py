"""A run in progress: its parts, what falls on which step, and what then happens."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from efafnet.models.network import PoseNetwork
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.reader import TrainReader
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import Aside, PlainContext, Standing
from efafnet.pipelines.training.execution import Execution
from efafnet.pipelines.training.inputs import Inputs
from efafnet.pipelines.training.memory import DeviceMemory, peak_memory
from efafnet.pipelines.training.monitor import (
    DataWait,
    Point,
    ProgressLine,
    Trace,
    Window,
    curve_metrics,
    outcome_of,
    standing_text,
    summarise,
    validation_text,
)
from efafnet.pipelines.training.profiling import Profiler
from efafnet.pipelines.training.schedule import Plan, due, plan_run
from efafnet.pipelines.training.speed import Rate, WorkerTime, computing_ms, slowest
from efafnet.pipelines.training.state import Checkpoints, Progress, published_weights, weights_of
from efafnet.pipelines.training.step import StepLosses, Trainee
from efafnet.pipelines.training.validation import pictures_of, validate
from efafnet.platform.checkpoint import CheckpointError, load_checkpoint, restore_weights


@dataclass
class Job:
    """The parts of a run in progress. What falls on a step is a pure function of it: the same on all workers."""

    config: TrainConfig
    context: PlainContext
    inputs: Inputs
    trainee: Trainee
    reader: TrainReader
    checkpoints: Checkpoints
    plan: Plan
    progress: Progress
    facts: dict[str, str | None]
    """What every checkpoint says about its origin."""
    trace: Trace | None
    saved_step: int
    """Step of the newest checkpoint; -1 for none."""
    window: Window = field(default_factory=Window)
    line: ProgressLine = field(default_factory=ProgressLine)
    execution: Execution = field(init=False)
    data_wait: DataWait = field(default_factory=DataWait)
    memory: DeviceMemory = field(init=False)
    profiler: Profiler = field(init=False)
    rate: Rate = field(init=False)
    newest: str = ""
    """Figures of the newest point of the curves, for the line that is drawn anew."""
    told: int = 0
    """Step of the validation that was shown last."""
    beside: int = 0
    """Step of the validation that was started beside training last."""
    ending: bool = False
    """Whether a machine under this run has announced its end: every point of the curves becomes a checkpoint."""
    growing: bool = False
    """Whether workers will join soon, and start from the newest checkpoint: the same, so that little is done twice."""
    ticked_s: float = field(default_factory=lambda: time.monotonic())
    """When ``progress.elapsed_s`` was last brought up to date."""

    def __post_init__(self) -> None:
        joints = self.inputs.skeleton.num_joints
        self.rate = Rate.of(self.config, joints, self.trainee.precision, self.context)
        self.profiler = Profiler(self.config.profile.steps, self.context, self.config.run_dir)
        left = self.plan.steps - self.progress.step
        self.execution = Execution(self.trainee, self.context, self.say, left)
        self.memory = DeviceMemory(
            self.trainee,
            self.context,
            self.config.run_dir,
            self.config.compute.micro_batch,
            self.say,
            take=self.execution,
            tries=self.context.device.type == "cuda",
        )

    def batches(self) -> Iterator[Batch]:
        """This worker's slices of the global batches still to train on."""
        first = self.progress.step
        return self.reader.batches(first, first if self.ended else self.plan.steps)

    def step(self, batch: Batch, rate: float) -> StepLosses:
        """Do the next step on this worker's slice."""
        number = self.progress.step + 1
        self.profiler.before(number)
        losses = self.memory.step(batch, self.progress.step, rate)
        self.profiler.after(number)
        return losses

    def count(self, batch: Batch, losses: StepLosses, rate: float) -> None:
        """Note one step as done."""
        self.window.add(batch, losses, rate, self.config.batch_size)
        self.progress.step += 1
        self._show()

    @property
    def ended(self) -> bool:
        """Whether no step is left."""
        patience = self.config.validation.patience
        stale = patience is not None and self.progress.stale_validations >= patience
        return stale or self.progress.step >= self.plan.steps

    @property
    def publishes(self) -> bool:
        """Whether a point of the curves falls here. Every checkpoint has one, so that a resumed run draws the same."""
        return self._regular or self.ended or self.validates or self.saves

    @property
    def validates(self) -> bool:
        """Whether a validation falls here; that of the end belongs to ``conclude``."""
        return self.inputs.val is not None and not self.ended and self._due(self.config.validation.every_epochs)

    @property
    def saves(self) -> bool:
        """Whether a checkpoint falls here; that of the end belongs to ``conclude``."""
        config = self.config.checkpoint
        regular = due(self.progress.step, config.every_steps) or self._due(config.every_epochs)
        return not self.ended and (regular or self.validates or self._hurries)

    @property
    def _regular(self) -> bool:
        step = self.progress.step
        return step % self.config.log_every_steps == 0 or due(step, self.plan.steps_per_epoch)

    @property
    def _hurries(self) -> bool:
        """Whether a checkpoint falls here because these workers may be gone before the next regular one."""
        return (self.ending or self.growing) and self._regular

    def _due(self, every_epochs: float | None) -> bool:
        return every_epochs is not None and due(self.progress.step, every_epochs * self.plan.steps_per_epoch)

    def publish(self) -> None:
        """Close the window: sum it over the workers, record a point of the curves, show progress.

        Raises:
            DivergedError: a loss or gradient in the window was not finite, or a loss exploded.
        """
        step, window = self.progress.step, self.window
        scale, first_loss = self._loss_scale(), self.progress.first_loss
        point = summarise(
            window, self.context, scale=scale, step=step, first_loss=first_loss, last_good=self._last_good
        )
        if self.trace:
            self.trace.write(window, step)
        wait_s = self.reader.wait_s - window.waited_before_s
        passed_s = self._tick()
        metrics = curve_metrics(point, window, self.inputs.skeleton.joints, passed_s, wait_s)
        metrics |= self._position("train/") | self._epoch_loss(point) | peak_memory(self.context.device)
        if scale is not None:
            metrics |= {"train/loss_scale": scale, "train/skipped_share": point.skipped_share}
        metrics |= self.rate.metrics(metrics["speed/samples_per_s"]) | {"speed/elapsed_s": self.progress.elapsed_s}
        own = WorkerTime(computing_ms(self.trainee.exchange), metrics["speed/data_wait_share"])
        figures, late = slowest(self.context, own)
        metrics |= figures
        self.progress.train_loss = metrics["train/loss"]
        self.progress.first_loss = self.progress.first_loss or self.progress.train_loss
        self.context.sink.log_metrics(metrics, step)
        self.window = Window(waited_before_s=self.reader.wait_s)
        self._replan()
        self._listen()
        self._peek()
        self.newest = standing_text(self.progress, self.plan, metrics, self._metric)
        self._show()
        text = self.line.text(self.progress, self.plan, metrics, force=self.ended)
        if text:
            self.say(text + (f"  slowest: {late}" if late else ""), passing=True)
        if warning := self.data_wait.text(wait_s, passed_s):
            self.say(warning)

    def _show(self) -> None:
        if self.context.live is not None and self.context.rank == 0:
            self.context.live(Standing(self.progress.step, self.plan.steps, self.newest))

    def _loss_scale(self) -> float | None:
        scaler = self.trainee.scaler
        return float(scaler.get_scale()) if scaler.is_enabled() else None

    def validate(self) -> None:
        """Measure the network: beside training where there is room, else on all workers before it goes on."""
        self._settle()
        self._hear()
        network, step, aside = self.trainee.published, self.progress.step, self.context.aside
        if aside is None or self.ended or not self.context.from_first(aside.has_room):
            self._note(step, self._measure(network, step))
        else:
            self.progress.validating = step
            if self.context.rank == 0:
                self._start_beside(aside, weights_of(network), step)

    def _start_beside(self, aside: Aside, weights: Mapping[str, Tensor], step: int) -> None:
        self.beside = step
        aside.start(weights, step)

    def _measure(self, network: PoseNetwork, step: int) -> dict[str, float]:
        assert self.inputs.val is not None, "a validation needs a store"
        return validate(self.config, network, self.inputs.val, self.context, step)

    def _hear(self) -> None:
        """Take in the validation beside training; at fixed steps only, so that a resumed run does the same."""
        step, aside = self.progress.validating, self.context.aside
        if step is None:
            return
        figures = self.context.agree(aside.result() if aside and self.context.rank == 0 else None)
        self.progress.validating = None
        if figures is None:
            self.beside = 0
            figures = self._measure_checkpoint(step)
        if figures is not None:
            self._note(step, figures)

    def _measure_checkpoint(self, step: int) -> dict[str, float] | None:
        """Validate what a checkpoint holds, if it was written: the task that was to do so died."""
        path = self.checkpoints.path(step)
        weights = self.context.from_first(lambda: self._saved_weights(step))
        if weights is None:
            self.say(f"the validation of step {step} is lost: its checkpoint was not written, or is damaged")
            return None
        network = copy.deepcopy(self.trainee.published)
        restore_weights(network, weights, path)
        return self._measure(network, step)

    def _saved_weights(self, step: int) -> dict[str, Tensor] | None:
        """The weights to use of the checkpoint of ``step``, if it is there and whole."""
        try:
            return dict(published_weights(load_checkpoint(self.checkpoints.path(step), with_state=False)))
        except CheckpointError:
            return None

    def record_again(self) -> None:
        """Record the newest validation once more: an earlier life may have been killed before the server had it."""
        figures = {f"val/{key}": value for key, value in self.progress.validation.items()}
        self.context.sink.log_metrics(figures, max(self.progress.validations, default=0))

    def validate_again(self) -> None:
        """Begin the validation anew that ran beside training when an earlier life of the run ended."""
        step, aside = self.progress.validating, self.context.aside
        if step is None or aside is None or self.context.rank != 0:
            return
        weights = self._saved_weights(step)
        if weights is not None and aside.has_room():
            self._start_beside(aside, weights, step)

    def _note(self, step: int, figures: dict[str, float]) -> None:
        """Remember a validation, and tell the user and whoever supervises the run."""
        self.progress.note_validation(step, figures, self._metric)
        self._tick()
        self._tell(step, figures)
        position = {"epoch": self.plan.epoch(step), "samples": float(step * self.config.batch_size)}
        self.context.report({**figures, **position, "step": float(step), "loss": self.progress.train_loss})

    def _tell(self, step: int, figures: dict[str, float]) -> None:
        """Record a validation and show it, once."""
        if step == self.told:
            return
        self.told = step
        self.context.sink.log_metrics({f"val/{key}": value for key, value in figures.items()}, step)
        pictures = pictures_of(self.config, step)
        if self.config.validation.overlays and pictures.exists():
            self.context.sink.log_artifact(pictures, "validation")
        self.say(validation_text(step, figures, self._metric, beside=step == self.beside))

    def _peek(self) -> None:
        """Show the figures of the validation beside training as soon as they are there."""
        step, aside = self.progress.validating, self.context.aside
        if self.context.rank == 0 and step is not None and aside is not None and step != self.told and aside.ready():
            figures = aside.result()
            if figures is not None:
                self._tell(step, figures)

    @property
    def _metric(self) -> str:
        return self.config.validation.metric or self.inputs.metric

    def save(self, *, final: bool = False) -> None:
        """Write a checkpoint; rank 0's, for all hold the same."""
        self._settle()
        self.saved_step = self.progress.step
        if self.context.rank == 0:
            meta = {
                **self._position(),
                "train_loss": self.progress.train_loss,
                "metrics": self.progress.validation,
                "validations": {str(step): value for step, value in self.progress.validations.items()},
                "workers": self.context.world_size,
                "micro_batch": self.trainee.micro_batch,
                **self.facts,
            }
            self.checkpoints.save(self.trainee, self.progress, self.config.model_dump(mode="json"), meta, final=final)
        self._tick()

    def conclude(self) -> None:
        """Validate and save the end of the run, unless an earlier life of it did."""
        self._hear()
        if self.inputs.val is not None and self.progress.last_validation != self.progress.step:
            self.validate()
        if self.saved_step != self.progress.step:
            self.save(final=True)

    def outcome(self) -> dict[str, float]:
        """How the run ended (``outcome_of``)."""
        return outcome_of(self.progress, self.plan, self.config.batch_size)

    def close(self) -> None:
        """Stop the reader's threads and finish writing."""
        self.profiler.close()
        self.reader.close()
        self.checkpoints.close()

    def _position(self, prefix: str = "") -> dict[str, float]:
        """Where the run stands, in other units than steps."""
        samples = float(self.progress.step * self.config.batch_size)
        return {f"{prefix}epoch": self.plan.epoch(self.progress.step), f"{prefix}samples": samples}

    def _epoch_loss(self, point: Point) -> dict[str, float]:
        progress = self.progress
        progress.epoch_loss_sum += sum(point.loss)
        progress.epoch_steps += len(point.loss)
        if not due(progress.step, self.plan.steps_per_epoch):
            return {}
        mean = progress.epoch_loss_sum / progress.epoch_steps
        progress.epoch_loss_sum, progress.epoch_steps = 0.0, 0
        return {"train/epoch_loss": mean}

    def _tick(self) -> float:
        """Return the seconds since the last call and count them as the run's."""
        now = time.monotonic()
        seconds, self.ticked_s = now - self.ticked_s, now
        self.progress.elapsed_s += seconds
        return seconds

    def _replan(self) -> None:
        """Under a budget in seconds, let the plan end when the time does; rank 0's clock counts."""
        limit_s, progress = self.config.max_time_s, self.progress
        if limit_s is None:
            return
        left = int((limit_s - progress.elapsed_s) / (progress.elapsed_s / progress.step))
        wanted = min(plan_of(self.config, self.inputs).steps, progress.step + max(0, left))
        progress.planned_steps = self.context.agree(wanted)
        self.plan = self.plan.shortened(progress.planned_steps)

    def _listen(self) -> None:
        """Hear whether a machine under this run is about to be taken away, or others are about to join it."""
        self.growing = self.context.growing()
        if not self.ending and self.context.ending():
            self.ending = True
            self.say(f"a node will be taken away: from step {self.progress.step} on every point is a checkpoint")

    def _settle(self) -> None:
        """Give all workers the same batch-norm statistics: the mean of theirs, each from its own slices."""
        if self.context.world_size == 1:
            return
        networks = [n for n in (self.trainee.module, self.trainee.ema) if n is not None]
        buffers = [b for network in networks for b in network.buffers() if b.is_floating_point()]
        means = self.context.total(torch.cat([b.flatten() for b in buffers])) / self.context.world_size
        for buffer, mean in zip(buffers, means.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def _last_good(self) -> str:
        self.checkpoints.wait()
        latest = self.config.run_dir / "latest"
        return f"the last good checkpoint is {latest.resolve()}" if latest.exists() else "there is no checkpoint yet"

    def say(self, text: str, *, passing: bool = False) -> None:
        """Rank 0 logs a line and shows it, unless it is ``passing`` beside a live line. A full disk costs the line."""
        if self.context.rank == 0:
            with suppress(OSError), (self.config.run_dir / "train.log").open("a", encoding="utf-8") as file:
                file.write(text + "\n")
            if not (passing and self.context.live):
                self.context.say(text)


def plan_of(config: TrainConfig, inputs: Inputs) -> Plan:
    """Length of a run before its speed is known."""
    return plan_run(
        epochs=config.epochs,
        samples=inputs.train.num_persons,
        global_batch=config.batch_size,
        max_samples=config.max_samples,
    )
