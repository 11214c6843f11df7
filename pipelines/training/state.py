"""Everything a run must remember to go on exactly where it stopped, and the directories that remember it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from efafnet.models.network import PoseNetwork
from efafnet.pipelines.training.config_groups import CheckpointConfig
from efafnet.pipelines.training.errors import LostRunError
from efafnet.pipelines.training.step import Trainee
from efafnet.platform import console
from efafnet.platform.checkpoint import (
    Checkpoint,
    CheckpointError,
    amend_meta,
    config_of,
    load_checkpoint,
    restore_weights,
    save_checkpoint,
)
from efafnet.platform.checkpoint_copies import CheckpointCopies
from efafnet.platform.configuration import ConfigurationError
from efafnet.platform.presence import entries, is_directory, is_there
from efafnet.platform.storage import OutputExistsError, UnreadableFileError


@dataclass
class Progress:
    """Where a run stands between two steps. With the weights and the optimizer this is the whole state.

    The reader's position and the schedule's are the step; random numbers are drawn from the step and the seed.
    """

    step: int = 0
    """Completed optimizer steps."""
    planned_steps: int = 0
    """Length of the run; changes only under a budget in seconds."""
    elapsed_s: float = 0.0
    """Seconds spent in the loop, over all restarts."""
    train_loss: float = 0.0
    """Newest point of the loss curve."""
    first_loss: float | None = None
    """First point of the loss curve."""
    epoch_loss_sum: float = 0.0
    """Sum over the steps of the epoch so far of the mean loss."""
    epoch_steps: int = 0
    """Steps in that sum."""
    validation: dict[str, float] = field(default_factory=dict)
    """Figures of the last validation."""
    last_validation: int = 0
    """Step of the last validation; 0 for none."""
    validations: dict[int, float] = field(default_factory=dict)
    """The figure by which validations are compared, of each validated step."""
    validating: int | None = None
    """Step whose validation runs beside training; none for none."""
    best: dict[str, float] = field(default_factory=dict)
    """Figures of the best validation."""
    best_step: int | None = None
    """Step of the best validation."""
    stale_validations: int = 0
    """Validations since the best one."""

    def note_validation(self, step: int, figures: dict[str, float], metric: str) -> None:
        """Remember the figures of the validation at ``step``; larger ``metric`` is better, the first of equals.

        Raises:
            ConfigurationError: there is no such figure.
        """
        if metric not in figures:
            raise ConfigurationError(
                f"validation.metric = {metric!r}: validation gives {', '.join(figures)}; choose one"
            )
        self.validation, self.last_validation, self.validations[step] = figures, step, figures[metric]
        if self.best_step is None or figures[metric] > self.best[metric]:
            self.best, self.best_step, self.stale_validations = figures, step, 0
        else:
            self.stale_validations += 1


class Checkpoints:
    """The checkpoints of one run: ``checkpoints/step-00001200``, and links ``latest`` and ``best`` beside them.

    One process writes (rank 0), any may read. ``save`` copies the state and returns; the copy is written by a thread,
    atomically, and only then do the links move and old checkpoints go.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig) -> None:
        self.run_dir = run_dir
        self.directory = run_dir / "checkpoints"
        self._config = config
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copies = None if config.copy_to is None else CheckpointCopies(config.copy_to, run_dir.name)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first.

        Raises:
            OSError: the directory cannot be read, which says nothing of what is in it.
        """
        return [path for path in entries(self.directory) if path.name.startswith("step-") and is_directory(path)]

    def path(self, step: int) -> Path:
        """Directory of the checkpoint after ``step`` steps."""
        return self.directory / f"step-{step:08d}"

    def newest(self) -> tuple[Path, Checkpoint] | None:
        """Newest checkpoint that is whole, and what it holds; taken from the copies where the disk has lost all.

        None is for a run that has none. Those that are damaged are set aside, and said.

        Raises:
            LostRunError: there are checkpoints, and all are damaged.
            OSError: one cannot be read at present. It may be the newest, so nothing older is gone on from.
        """
        self._fetch()
        damaged: dict[Path, str] = {}
        for path in reversed(self.all()):
            try:
                checkpoint = load_checkpoint(path)
            except CheckpointError as error:
                damaged[path] = str(error)
            except OSError as error:
                raise UnreadableFileError(
                    f"checkpoint {path} is there and cannot be read ({error.strerror or error}); nothing was changed: "
                    "once it can be read the same command goes on from it",
                ) from error
            else:
                self._set_aside(damaged)
                return path, checkpoint
        if damaged:
            raise LostRunError(
                f"run {self.run_dir} has no checkpoint that is whole: {'; '.join(damaged.values())}. Nothing was "
                f"changed; put a whole one back, or move {self.directory} away to begin at step 0"
                + (f", or to take the copies of {self._config.copy_to}" if self._config.copy_to else "")
            )
        return None

    def _set_aside(self, damaged: Mapping[Path, str]) -> None:
        """Rename damaged checkpoints, so that none is kept in the place of a whole one."""
        for path, reason in damaged.items():
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            console.warn(f"passed over a checkpoint: {reason}; it is {aside.name} now")

    def _fetch(self) -> None:
        """Bring back the copies of a run whose disk is empty."""
        if self._copies is None or self.all():
            return
        for name in self._copies.names():
            self._copies.pull(name, self.directory / name)
        if self.all():
            console.note(f"took {len(self.all())} checkpoints from {self._config.copy_to}")

    def to_use(self) -> Path:
        """The best validated checkpoint, else the last one. Only after the first was written."""
        best = self.run_dir / "best"
        return (best if is_there(best) else self.run_dir / "latest").resolve(strict=True)

    def save(
        self, trainee: Trainee, progress: Progress, config: Mapping[str, Any], meta: Mapping[str, Any], *, final: bool
    ) -> None:
        """Write the state after ``progress.step`` steps. A failed write is reported and training goes on, unless final.

        Raises:
            OSError: the final checkpoint could not be written.
        """
        self.wait()
        content = {
            "weights": _weights(trainee),
            "state": _on_cpu({"progress": asdict(progress), **_machinery(trainee)}),
            "config": dict(config),
            "meta": {**meta, "step": progress.step, "validated": progress.validations.get(progress.step)},
        }
        path, best, wanted = self.path(progress.step), progress.best_step, self._wanted(progress)
        if final or not self._config.asynchronous:
            self._write(path, content, best, wanted, tolerant=not final)
        else:
            self._pending = self._writer.submit(self._write, path, content, best, wanted, tolerant=True)

    def amend(self, step: int, entries: Mapping[str, Any]) -> None:
        """Add ``entries`` to what the checkpoint of ``step`` says about itself, if it is still there.

        A disk or a store that does not take them costs the entries and not the run.
        """
        if not entries:
            return
        self.wait()
        path = self.path(step)
        if not path.is_dir():
            return
        try:
            amend_meta(path, entries)
            if self._copies is not None and path.name in self._copies.names():
                self._copies.push_meta(path)
        except (OSError, CheckpointError) as error:
            console.warn(f"checkpoint {path.name} does not learn {', '.join(entries)}: {error}")

    def wait(self) -> None:
        """Return once nothing is being written."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Finish writing and end the thread."""
        self.wait()
        self._writer.shutdown()

    def _write(
        self, path: Path, content: dict[str, Any], best_step: int | None, wanted: list[Path], *, tolerant: bool
    ) -> None:
        try:
            # An earlier life of this run may have left one here that no longer loads.
            save_checkpoint(path, **content, overwrite=True)
            _point(self.run_dir / "latest", path)
            if best_step is not None and is_there(self.path(best_step)):
                _point(self.run_dir / "best", self.path(best_step))
            self._prune(path, wanted)
        except (OSError, OutputExistsError) as error:  # the latter where another life of this run still writes
            if not tolerant:
                raise
            console.warn(f"no checkpoint of this step: {error}; training goes on, the next one may succeed")
        else:
            self._copy(path)

    def _copy(self, path: Path) -> None:
        """Keep the same checkpoints in the copies as on disk. A store that is away costs a copy and not the run."""
        if self._copies is None:
            return
        try:
            self._copies.push(path)
            here = {mine.name for mine in self.all()}
            for name in self._copies.names():
                if name not in here:
                    self._copies.remove(name)
        except OSError as error:
            console.warn(f"no copy of {path.name} at {self._config.copy_to}: {error}; the next one may succeed")

    def _wanted(self, progress: Progress) -> list[Path]:
        """Checkpoints to keep beside the newest: the best validated, and one whose validation is still to come."""
        ranked = sorted(progress.validations, key=lambda step: (-progress.validations[step], step))
        steps = [*ranked[: self._config.keep_best], progress.validating]
        return [self.path(step) for step in steps if step is not None]

    def _prune(self, written: Path, wanted: list[Path]) -> None:
        """Remove what is older than the checkpoint just written, but for the newest of those and ``wanted``.

        Whatever has a higher number is not this life's to judge.
        """
        known = [path for path in self.all() if path.name <= written.name]
        for path in set(known) - set(known[-self._config.keep_last :]) - set(wanted):
            # Renamed first, so that a kill halfway leaves nothing that looks like a checkpoint.
            doomed = path.with_name(f".{path.name}.removed")
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def restore(path: Path, checkpoint: Checkpoint, trainee: Trainee) -> Progress:
    """Bring ``trainee`` to where a checkpoint of this very run stood, and return where that is.

    Args:
        path: where it was read from, for the error.
        checkpoint: its content.
        trainee: of the same run.

    Raises:
        ValueError: the checkpoint is of another network.
    """
    restore_weights(trainee.module, checkpoint.weights["network"], path)
    if trainee.ema is not None:
        restore_weights(trainee.ema, checkpoint.weights["ema"], path)
    trainee.optimizer.load_state_dict(checkpoint.state["optimizer"])
    trainee.scaler.load_state_dict(checkpoint.state["scaler"])
    return Progress(**checkpoint.state["progress"])


def fork_source(source: Path, batch_size: int) -> Path:
    """The checkpoint to fork from: ``source`` itself, or the newest of the run's directory.

    Raises:
        ValueError: there is none, or its steps are other batches than ``batch_size`` samples.
    """
    path = source / "latest" if is_there(source / "latest") else source
    try:
        batch = config_of(path)["batch_size"]
    except OSError as error:
        raise UnreadableFileError(f"fork = {source}: {error}") from error
    except ValueError as error:
        raise ValueError(f"fork = {source}: {error}") from error
    if batch != batch_size:
        raise ValueError(
            f"fork = {source}: its steps are batches of {batch} samples, not of batch_size={batch_size}; "
            f"set batch_size={batch}, or take its weights alone with init={source}"
        )
    return path


def fork(path: Path, checkpoint: Checkpoint, trainee: Trainee) -> Progress:
    """Bring ``trainee`` to where a checkpoint of another run stood, and return where the new run begins.

    Args:
        path: where it was read from, for the error.
        checkpoint: its content.
        trainee: of the new run; its average begins as the other run's, or as its weights if it kept none.

    Raises:
        ValueError: the checkpoint is of another network.
    """
    restore_weights(trainee.module, checkpoint.weights["network"], path)
    if trainee.ema is not None:
        restore_weights(trainee.ema, published_weights(checkpoint), path)
    trainee.optimizer.load_state_dict(checkpoint.state["optimizer"])
    # Settings of the optimizer are the new run's; the rate is set at every step.
    for group in trainee.optimizer.param_groups:
        group.update(betas=trainee.optimizing.betas, weight_decay=trainee.optimizing.weight_decay)
    if checkpoint.state["scaler"] and trainee.scaler.is_enabled():
        trainee.scaler.load_state_dict(checkpoint.state["scaler"])
    old = Progress(**checkpoint.state["progress"])
    return Progress(
        step=old.step, elapsed_s=old.elapsed_s, train_loss=old.train_loss, first_loss=old.first_loss,
        epoch_loss_sum=old.epoch_loss_sum, epoch_steps=old.epoch_steps,
    )  # fmt: skip


def published_weights(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Weights to use a trained network with: the moving average where one was kept."""
    return checkpoint.weights.get("ema", checkpoint.weights["network"])


def weights_of(network: PoseNetwork) -> dict[str, Tensor]:
    """Copy a network's weights to CPU memory."""
    copied: dict[str, Tensor] = _on_cpu(network.state_dict())
    return copied


def _weights(trainee: Trainee) -> dict[str, dict[str, Tensor]]:
    networks = {"network": trainee.module, "ema": trainee.ema}
    return {name: weights_of(network) for name, network in networks.items() if network is not None}


def _machinery(trainee: Trainee) -> dict[str, Any]:
    return {"optimizer": trainee.optimizer.state_dict(), "scaler": trainee.scaler.state_dict()}


def _on_cpu(value: Any) -> Any:
    """Copy nested tensors to CPU memory: training changes the originals while the copy is written.

    The order of dimensions in memory stays as it is: the fused optimizer needs that of its moments to be the weights'.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _point(link: Path, target: Path) -> None:
    """Make ``link`` a relative link to ``target``, in one step."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent))
    temporary.replace(link)
