"""Everything a run needs before its first step: stores, network, optimizer, and where the newest checkpoint stands."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.inputs import Inputs, initial_network, open_inputs, train_reader
from efafnet.pipelines.training.job import Job
from efafnet.pipelines.training.monitor import Trace
from efafnet.pipelines.training.optimizer import build_optimizer
from efafnet.pipelines.training.rundir import RunDirectory, identity_digest
from efafnet.pipelines.training.schedule import Plan
from efafnet.pipelines.training.state import Checkpoints, Progress, fork, fork_source, restore
from efafnet.pipelines.training.step import Trainee, average_of
from efafnet.platform import machine
from efafnet.platform.checkpoint import Checkpoint, load_checkpoint
from efafnet.platform.configuration import ConfigurationError, to_yaml
from efafnet.platform.garbage import importing
from efafnet.platform.machine import Precision


def prepare_job(config: TrainConfig, context: PlainContext) -> Job:
    """Open the stores, build the network and go to where the newest checkpoint stands, if there is one."""
    if context.world_size > 1:
        # DDP does it anyway, but when there is a network, which would be left out of collections too.
        with importing():
            importlib.import_module("torch._dynamo")
    inputs = open_inputs(config)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    config, drawbacks = resolve_precision(config, context)
    trainee = build_trainee(config, inputs, context)
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    # One reader: a file system that serves some workers late or not at all must not make them begin elsewhere.
    newest = context.from_first(checkpoints.newest)
    plan = inputs.plan(config)
    progress = _initial_progress(config, context, trainee, plan) if newest is None else restore(*newest, trainee)
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
        trace=Trace.of_worker(config.run_dir, context, progress.step) if config.trace else None,
        saved_step=-1 if newest is None else progress.step,
    )
    if newest is None:
        _say_start(job)
        _say_precision(job, drawbacks)
        return job
    job.say(f"resuming at step {progress.step} of {job.plan.steps} from {newest[0]}, workers: {context.world_size}")
    _say_precision(job, drawbacks)
    job.validations.resume()
    return job


def resolve_precision(config: TrainConfig, context: PlainContext) -> tuple[TrainConfig, list[str]]:
    """Decide on the arithmetic of a run, the same for all workers; what a run began with is kept.

    Returns:
        The settings with what ``precision`` came to, and at rank 0 what speaks against it, device by device.
    """
    directory, wanted = RunDirectory(config.run_dir), config.precision
    known = directory.known() if context.rank == 0 and wanted == "auto" else None
    wanted = context.agree(wanted if known is None else known.identity.get("precision", wanted))
    each = context.gather(machine.precision_for(wanted, context.device))
    precision: Precision = context.agree(machine.common_precision(each) if context.rank == 0 else "fp32")
    drawbacks = context.gather(None if wanted == "auto" else machine.drawback(precision, context.device))
    config = config.model_copy(update={"precision": precision})
    if known is not None:
        directory.resolve("precision", precision, to_yaml(config))
    machine.set_float32(precision)
    machine.expect_constant_shapes()
    return config, sorted({drawback for drawback in drawbacks if drawback is not None})


def _say_precision(job: Job, drawbacks: list[str]) -> None:
    """Say how the run computes and what it records about that."""
    precision = job.config.precision
    if job.context.rank == 0:
        job.context.sink.log_param("precision", precision)
    for drawback in drawbacks:
        job.say(f"warning: precision = {precision}: {drawback}")
    job.say(f"precision: {precision}, on {machine.describe(job.context.device)}")


def _initial_progress(config: TrainConfig, context: PlainContext, trainee: Trainee, plan: Plan) -> Progress:
    """Where a new run begins."""
    progress = Progress()
    if config.fork is not None:
        path, checkpoint = context.from_first(lambda: _forked_from(config))
        progress = fork(path, checkpoint, trainee)
    if progress.step >= plan.steps:
        raise ConfigurationError(
            f"fork = {config.fork}: it has {progress.step} steps, and this run would end after {plan.steps}; "
            "train longer with epochs=…"
        )
    progress.planned_steps = plan.steps
    return progress


def _forked_from(config: TrainConfig) -> tuple[Path, Checkpoint]:
    assert config.fork is not None
    path = fork_source(config.fork, config.batch_size)
    return path, load_checkpoint(path)


def _say_start(job: Job) -> None:
    """Say what a new run starts from and which protocol it follows, where there is anything to say."""
    if job.config.fork is not None:
        job.say(f"forked at step {job.progress.step} from {job.config.fork}")
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
        if context.device.type != "cuda":
            raise ConfigurationError(
                "compute.sync_batch_norm = True: needs GPUs, and this run trains on CPUs; leave it out"
            )
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    memory_format = torch.channels_last if config.compute.channels_last else torch.contiguous_format
    module = module.to(context.device).to(memory_format=memory_format)
    wrapped = context.wrap(module, config.compute.gradients)
    precision = machine.precision_for(config.precision, context.device)
    return Trainee(
        module=module,
        origin=origin,
        wrapped=wrapped,
        ddp=wrapped if isinstance(wrapped, DistributedDataParallel) else None,
        micro_batch=None if config.compute.micro_batch == "auto" else config.compute.micro_batch,
        optimizer=build_optimizer(config.optimizer, module),
        scaler=torch.amp.GradScaler(context.device.type, enabled=precision == "fp16"),
        ema=None if config.optimizer.ema_decay is None else average_of(module),
        input_size=config.input,
        heatmap=config.heatmap,
        loss=config.loss,
        optimizing=config.optimizer,
        compute=config.compute,
        precision=precision,
        seed=config.seed,
        global_batch=config.batch_size,
        rank=context.rank,
        world_size=context.world_size,
        device=context.device,
    )
