"""The clock of a run: at which steps it records its curves, validates and saves, and what is done then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.reader import TrainReader
from efafnet.pipelines.training.async_validation import Validations
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext, Status
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
    status_figures,
    summarise,
)
from efafnet.pipelines.training.profiling import Profiler
from efafnet.pipelines.training.schedule import Plan, due
from efafnet.pipelines.training.speed import Rate, WorkerTime, computing_ms, slowest
from efafnet.pipelines.training.state import Checkpoints, Progress
from efafnet.pipelines.training.step import StepLosses, Trainee, average_batch_norm
from efafnet.pipelines.training.validation import calibrated


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
    validations: Validations = field(init=False)
    status: tuple[str, ...] = ()
    """Figures of the newest point of the curves, for the progress bar."""
    preempted: bool = False
    """Whether a machine under this run has announced that it will be taken away."""
    growing: bool = False
    """Whether more workers will join soon, for which all start anew from the newest checkpoint."""
    ticked_s: float = field(default_factory=lambda: time.monotonic())
    """When ``progress.elapsed_s`` was last brought up to date."""

    def __post_init__(self) -> None:
        joints = self.inputs.skeleton.num_joints
        self.rate = Rate.of(self.config, joints, self.trainee.precision, self.context)
        self.validations = Validations(
            self.config,
            self.context,
            store=self.inputs.val,
            metric=self.config.validation.metric or self.inputs.metric,
            network=self.trainee.published,
            checkpoints=self.checkpoints,
            progress=self.progress,
            plan=self.plan,
            say=self.say,
        )
        self.profiler = Profiler(self.config.profile.steps, self.context, self.config.run_dir)
        left = self.plan.steps - self.progress.step
        self.execution = Execution(self.trainee, self.context, self.say, left)
        self.memory = DeviceMemory(
            self.trainee,
            self.context,
            self.config.run_dir,
            self.config.compute.micro_batch,
            self.say,
            take_step=self.execution,
            probes=self.context.device.type == "cuda",
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
        return self._on_curve or self.ended or self.validates or self.saves

    @property
    def validates(self) -> bool:
        """Whether a validation falls here; that of the end belongs to ``conclude``."""
        return self.inputs.val is not None and not self.ended and self._due(self.config.validation.every_epochs)

    @property
    def saves(self) -> bool:
        """Whether a checkpoint falls here; that of the end belongs to ``conclude``."""
        config = self.config.checkpoint
        regular = due(self.progress.step, config.every_steps) or self._due(config.every_epochs)
        return not self.ended and (regular or self.validates or self._saves_before_restart)

    @property
    def _on_curve(self) -> bool:
        step = self.progress.step
        return step % self.config.log_every_steps == 0 or due(step, self.plan.steps_per_epoch)

    @property
    def _saves_before_restart(self) -> bool:
        """Whether a checkpoint falls here because the workers will soon be gone or start anew, and what they did since
        the newest one would be done twice: then every regular point of the curves has one."""
        return (self.preempted or self.growing) and self._on_curve

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
        own = WorkerTime(computing_ms(self.trainee.ddp), metrics["speed/data_wait_share"])
        figures, late = slowest(self.context, own)
        metrics |= figures
        self.progress.train_loss = metrics["train/loss"]
        self.progress.first_loss = self.progress.first_loss or self.progress.train_loss
        self.context.sink.log_metrics(metrics, step)
        self.window = Window(waited_before_s=self.reader.wait_s)
        self._replan()
        self._watch_cluster()
        self.validations.poll()
        self.status = status_figures(self.progress, self.plan, metrics, self.validations.metric)
        self._show()
        text = self.line.text(self.progress, self.plan, metrics, force=self.ended)
        if text:
            self.say(text + (f"  slowest: {late}" if late else ""), passing=True)
        if warning := self.data_wait.text(wait_s, passed_s):
            self.say(warning)

    def _show(self) -> None:
        if self.context.live is not None and self.context.rank == 0:
            self.context.live(Status(self.progress.step, self.plan.steps, self.status))

    def _loss_scale(self) -> float | None:
        scaler = self.trainee.scaler
        return float(scaler.get_scale()) if scaler.is_enabled() else None

    def validate(self) -> None:
        """Validate the network: asynchronously where there is room, else on all workers before training goes on."""
        average_batch_norm(self.trainee, self.context.total)
        self.validations.collect()
        self.validations.start(wait=self.ended)
        self._tick()

    def save(self, *, final: bool = False) -> None:
        """Write a checkpoint. Rank 0 writes it, because all workers hold the same state."""
        average_batch_norm(self.trainee, self.context.total)
        self.saved_step = self.progress.step
        if self.context.rank == 0:
            meta = {
                **self._position(),
                "train_loss": self.progress.train_loss,
                "metrics": self.progress.validation,
                "validations": {str(step): value for step, value in self.progress.validations.items()},
                "workers": self.context.world_size,
                "micro_batch": self.trainee.micro_batch,
                **calibrated(self.config, self.progress.step),
                **self.facts,
            }
            self.checkpoints.save(self.trainee, self.progress, self.config.model_dump(mode="json"), meta, final=final)
        self._tick()

    def conclude(self) -> None:
        """Validate and save the end of the run, unless an earlier life of it did."""
        self.validations.collect()
        self._tick()
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
        """How far the run is, in epochs and in samples."""
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
        wanted = min(self.inputs.plan(self.config).steps, progress.step + max(0, left))
        progress.planned_steps = self.context.agree(wanted)
        self.plan = self.plan.shortened(progress.planned_steps)

    def _watch_cluster(self) -> None:
        """Ask whether a machine under this run will be taken away (preemption), or others will join it."""
        self.growing = self.context.growing()
        if not self.preempted and self.context.preempted():
            self.preempted = True
            self.say(f"a node will be taken away: from step {self.progress.step} on every point is a checkpoint")

    def _last_good(self) -> str:
        self.checkpoints.wait()
        latest = self.config.run_dir / "latest"
        return f"the last good checkpoint is {latest.resolve()}" if latest.exists() else "there is no checkpoint yet"

    def say(self, text: str, *, passing: bool = False) -> None:
        """Rank 0 logs a line and shows it, unless it is ``passing`` (soon out of date) and a progress bar shows
        the same. If the disk is full the line is not logged, and training goes on."""
        if self.context.rank == 0:
            with suppress(OSError), (self.config.run_dir / "train.log").open("a", encoding="utf-8") as file:
                file.write(text + "\n")
            if not (passing and self.context.live):
                self.context.say(text)
