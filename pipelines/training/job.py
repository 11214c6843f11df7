"""A run in progress: its parts, what falls on which step, and what then happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.crops.reader import TrainReader
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.inputs import Inputs, initial_network, open_inputs, train_reader
from efafnet.pipelines.training.monitor import (
    Point,
    ProgressLine,
    Trace,
    Window,
    curve_metrics,
    summarise,
    validation_text,
)
from efafnet.pipelines.training.rundir import RunDirectory, identity_digest
from efafnet.pipelines.training.schedule import Plan, due, plan_run
from efafnet.pipelines.training.state import Checkpoints, Progress, restore
from efafnet.pipelines.training.step import StepLosses, Trainee, average_of, build_optimizer
from efafnet.pipelines.training.validation import validate


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
    ticked_s: float = field(default_factory=lambda: time.monotonic())
    """When ``progress.elapsed_s`` was last brought up to date."""

    def batches(self) -> Iterator[Batch]:
        """This worker's slices of the global batches still to train on."""
        first = self.progress.step
        return self.reader.batches(first, first if self.ended else self.plan.steps)

    def count(self, batch: Batch, losses: StepLosses, rate: float) -> None:
        """Note one step as done."""
        self.window.add(batch, losses, rate, self.config.batch_size)
        self.progress.step += 1

    @property
    def ended(self) -> bool:
        """Whether no step is left."""
        patience = self.config.validation.patience
        stale = patience is not None and self.progress.stale_validations >= patience
        return stale or self.progress.step >= self.plan.steps

    @property
    def publishes(self) -> bool:
        """Whether a point of the curves falls here. Every checkpoint has one, so that a resumed run draws the same."""
        step = self.progress.step
        regular = step % self.config.log_every_steps == 0 or due(step, self.plan.steps_per_epoch)
        return regular or self.ended or self.validates or self.saves

    @property
    def validates(self) -> bool:
        """Whether a validation falls here; that of the end belongs to ``conclude``."""
        return self.inputs.val is not None and not self.ended and self._due(self.config.validation.every_epochs)

    @property
    def saves(self) -> bool:
        """Whether a checkpoint falls here; that of the end belongs to ``conclude``."""
        config = self.config.checkpoint
        regular = due(self.progress.step, config.every_steps) or self._due(config.every_epochs)
        return not self.ended and (regular or self.validates)

    def _due(self, every_epochs: float | None) -> bool:
        return every_epochs is not None and due(self.progress.step, every_epochs * self.plan.steps_per_epoch)

    def publish(self) -> None:
        """Close the window: sum it over the workers, record a point of the curves, show progress.

        Raises:
            DivergedError: a loss or gradient in the window was not finite.
        """
        step, window = self.progress.step, self.window
        point = summarise(window, self.context, self.trainee.scaler.is_enabled(), step, self._last_good)
        if self.trace:
            self.trace.write(window, step)
        wait_s = self.reader.wait_s - window.waited_before_s
        metrics = curve_metrics(point, window, self.inputs.skeleton.joints, self._tick(), wait_s)
        metrics |= self._position("train/") | self._epoch_loss(point) | _memory(self.context.device)
        self.progress.train_loss = metrics["train/loss"]
        self.context.sink.log_metrics(metrics, step)
        self.window = Window(waited_before_s=self.reader.wait_s)
        self._replan()
        text = self.line.text(self.progress, self.plan, metrics, force=self.ended)
        if text:
            self.say(text)

    def validate(self) -> None:
        """Measure the network on all workers, remember the best, tell whoever supervises the run."""
        assert self.inputs.val is not None, "a validation needs a store"
        self._settle()
        progress, name = self.progress, self.config.validation.metric or self.inputs.metric
        figures = validate(self.config, self.trainee.published, self.inputs.val, self.context, progress.step)
        progress.note_validation(figures, name)
        self._tick()
        self.context.sink.log_metrics({f"val/{key}": value for key, value in figures.items()}, progress.step)
        self.say(validation_text(progress, name))
        self.context.report(
            {**figures, **self._position(), "step": float(progress.step), "loss": self.progress.train_loss}
        )

    def save(self, *, final: bool = False) -> None:
        """Write a checkpoint; rank 0's, for all hold the same."""
        self._settle()
        self.saved_step = self.progress.step
        if self.context.rank == 0:
            meta = {
                **self._position(),
                "train_loss": self.progress.train_loss,
                "metrics": self.progress.validation,
                "workers": self.context.world_size,
                **self.facts,
            }
            self.checkpoints.save(self.trainee, self.progress, self.config.model_dump(mode="json"), meta, final=final)
        self._tick()

    def conclude(self) -> None:
        """Validate and save the end of the run, unless an earlier life of it did."""
        if self.inputs.val is not None and self.progress.last_validation != self.progress.step:
            self.validate()
        if self.saved_step != self.progress.step:
            self.save(final=True)

    def outcome(self) -> dict[str, float]:
        """Figures of the best validation (if any), its step and epoch, and what the whole run came to and took."""
        progress = self.progress
        step = progress.best_step or progress.step
        return {
            **progress.best,
            "step": float(step),
            "epoch": self.plan.epoch(step),
            "samples": float(progress.step * self.config.batch_size),
            "train_loss": progress.train_loss,
            "elapsed_s": progress.elapsed_s,
        }

    def close(self) -> None:
        """Stop the reader's threads and finish writing."""
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

    def say(self, text: str) -> None:
        """Add a line to the run's log and show it (rank 0)."""
        if self.context.rank == 0:
            with (self.config.run_dir / "train.log").open("a", encoding="utf-8") as file:
                file.write(text + "\n")
            self.context.say(text)


def plan_of(config: TrainConfig, inputs: Inputs) -> Plan:
    """Length of a run before its speed is known."""
    return plan_run(
        epochs=config.epochs,
        samples=inputs.train.num_persons,
        global_batch=config.batch_size,
        max_samples=config.max_samples,
    )


def prepare_job(config: TrainConfig, context: PlainContext) -> Job:
    """Open the stores, build the network and go to where the newest checkpoint stands, if there is one."""
    inputs = open_inputs(config)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    trainee = build_trainee(config, inputs, context)
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    newest = context.agree(checkpoints.newest() if context.rank == 0 else None)
    plan = plan_of(config, inputs)
    progress = Progress(planned_steps=plan.steps) if newest is None else restore(newest, trainee)
    job = Job(
        config=config,
        context=context,
        inputs=inputs,
        trainee=trainee,
        reader=train_reader(config, inputs.train, context),
        checkpoints=checkpoints,
        plan=plan.shortened(progress.planned_steps),
        progress=progress,
        facts=_facts(config, inputs),
        trace=Trace(config.run_dir / f"trace-rank{context.rank}.jsonl", progress.step) if config.trace else None,
        saved_step=-1 if newest is None else progress.step,
    )
    if newest is not None:
        job.say(f"resuming at step {progress.step} of {job.plan.steps} from {newest}")
    else:
        _say_start(job)
    return job


def _say_start(job: Job) -> None:
    """Say what a new run starts from and which protocol it follows, where there is anything to say."""
    if job.trainee.origin:
        job.say(job.trainee.origin)
    if job.config.protocol is not None:
        job.say(f"protocol: {job.facts['protocol']}")


def _facts(config: TrainConfig, inputs: Inputs) -> dict[str, str | None]:
    record = RunDirectory(config.run_dir).known()
    return {
        "run": config.name,
        "skeleton": inputs.skeleton.name,
        "train_digest": inputs.train.digest,
        "val_digest": None if inputs.val is None else inputs.val.digest,
        "config_digest": identity_digest(inputs.identity(config)),
        "protocol": inputs.protocol(config),
        "mlflow_run_id": None if record is None else record.mlflow_run_id,
    }


def build_trainee(config: TrainConfig, inputs: Inputs, context: PlainContext) -> Trainee:
    """Build the network with its wrappings, its optimizer and its average, all workers alike."""
    torch.manual_seed(config.seed)
    module, origin = initial_network(config, inputs.skeleton)
    if config.compute.sync_batch_norm:
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    memory_format = torch.channels_last if config.compute.channels_last else torch.contiguous_format
    module = module.to(context.device).to(memory_format=memory_format)
    wrapped = context.wrap(module)
    return Trainee(
        module=module,
        origin=origin,
        wrapped=cast(nn.Module, torch.compile(wrapped)) if config.compute.compile else wrapped,
        optimizer=build_optimizer(config.optimizer, module),
        scaler=torch.amp.GradScaler(context.device.type, enabled=config.precision == "fp16"),
        ema=None if config.optimizer.ema_decay is None else average_of(module),
        input_size=config.input,
        heatmap=config.heatmap,
        loss=config.loss,
        optimizing=config.optimizer,
        compute=config.compute,
        precision=config.precision,
        seed=config.seed,
        global_batch=config.batch_size,
        rank=context.rank,
        world_size=context.world_size,
        device=context.device,
    )


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"system/gpu_memory_peak_gib": torch.cuda.max_memory_allocated(device) / 2**30}
