"""The validations of a run: asynchronous, in a task beside training, where there is room; else on the run's workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from efafnet.models.network import PoseNetwork
from efafnet.pipelines.crops.store import CropStore
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import AsyncValidator, PlainContext
from efafnet.pipelines.training.monitor import best_metrics, validation_text
from efafnet.pipelines.training.schedule import Plan
from efafnet.pipelines.training.state import Checkpoints, Progress, published_weights, weights_of
from efafnet.pipelines.training.validation import calibrated, pictures_of, val_metrics, validate
from efafnet.platform.checkpoint import CheckpointError, load_checkpoint, restore_weights


@dataclass
class Validations:
    """Validates the network of a run, and records the results in the run's ``Progress``.

    ``start`` begins a validation. A synchronous one has ended when it returns. An asynchronous one runs on beside
    training: ``poll`` shows its figures as soon as they are there, and ``collect`` takes them into account. Only
    ``collect`` decides anything (the best checkpoint, early stopping), and it is called at steps that are fixed in
    advance, so that a resumed run decides the same.
    """

    config: TrainConfig
    context: PlainContext
    store: CropStore | None
    """The persons to validate on; None for a run without validation."""
    metric: str
    """The figure by which validations are compared."""
    network: PoseNetwork
    """The network to validate, as training changes it."""
    checkpoints: Checkpoints
    progress: Progress
    plan: Plan
    """For epochs alone; a budget in seconds does not change these."""
    say: Callable[[str], None]
    """Logs and shows a line."""
    shown_step: int = 0
    """Step of the newest validation whose figures were shown and recorded."""
    async_step: int = 0
    """Step of the newest validation that was started beside training."""

    def start(self, *, wait: bool) -> None:
        """Validate the network as it is now; all workers call this together, after ``collect``.

        Args:
            wait: whether to have the figures when this returns. Otherwise the validation is asynchronous if the
                cluster has room for it.
        """
        validator, step = self.context.async_validator, self.progress.step
        if wait or validator is None or not self.context.from_first(validator.has_room):
            self._count(step, self._measure(self.network, step))
            return
        self.progress.validating = step
        if self.context.rank == 0:
            self._start_async(validator, weights_of(self.network), step)

    def poll(self) -> None:
        """Show the figures of the asynchronous validation if they are there by now."""
        step, validator = self.progress.validating, self.context.async_validator
        if self.context.rank != 0 or step is None or validator is None or step == self.shown_step:
            return
        if validator.ready() and (figures := validator.result()) is not None:
            self._show(step, figures)

    def collect(self) -> None:
        """Wait for the asynchronous validation, if there is one, and count it; all workers call this together."""
        step, validator = self.progress.validating, self.context.async_validator
        if step is None:
            return
        figures = self.context.agree(validator.result() if validator and self.context.rank == 0 else None)
        self.progress.validating = None
        if figures is None:
            self.async_step = 0
            figures = self._measure_checkpoint(step)
        if figures is not None:
            self._count(step, figures)

    def resume(self) -> None:
        """Go on where an earlier life of the run ended.

        Its newest validation is recorded once more, because it may have been killed before MLflow had the figures.
        The asynchronous validation that ran at its end is begun anew.
        """
        newest = max(self.progress.validations, default=0)
        figures = val_metrics(self.config, newest, self.progress.validation)
        figures |= best_metrics(self.progress, self.plan, self.metric)
        self.context.sink.log_metrics(figures, newest)
        step, validator = self.progress.validating, self.context.async_validator
        if step is None or validator is None or self.context.rank != 0:
            return
        weights = self._saved_weights(step)
        if weights is not None and validator.has_room():
            self._start_async(validator, weights, step)

    def _start_async(self, validator: AsyncValidator, weights: Mapping[str, Tensor], step: int) -> None:
        self.async_step = step
        validator.start(weights, step)

    def _measure(self, network: PoseNetwork, step: int) -> dict[str, float]:
        assert self.store is not None, "a validation needs a store"
        return validate(self.config, network, self.store, self.context, step)

    def _measure_checkpoint(self, step: int) -> dict[str, float] | None:
        """Validate the checkpoint of ``step``, because the task that was to do so failed; None if it is not there."""
        path = self.checkpoints.path(step)
        weights = self.context.from_first(lambda: self._saved_weights(step))
        if weights is None:
            self.say(f"the validation of step {step} is lost: its checkpoint was not written, or is damaged")
            return None
        network = copy.deepcopy(self.network)
        restore_weights(network, weights, path)
        return self._measure(network, step)

    def _saved_weights(self, step: int) -> dict[str, Tensor] | None:
        """The weights to use of the checkpoint of ``step``, if it is there and whole."""
        try:
            return dict(published_weights(load_checkpoint(self.checkpoints.path(step), with_state=False)))
        except CheckpointError:
            return None

    def _count(self, step: int, figures: dict[str, float]) -> None:
        """Take a validation into account, and report it to the user and to whoever supervises the run."""
        self.progress.note_validation(step, figures, self.metric)
        if self.context.rank == 0:
            # Where the validation was asynchronous its checkpoint was written before.
            self.checkpoints.amend(step, calibrated(self.config, step))
        self.context.sink.log_metrics(best_metrics(self.progress, self.plan, self.metric), step)
        self._show(step, figures)
        position = {"epoch": self.plan.epoch(step), "samples": float(step * self.config.batch_size)}
        self.context.report({**figures, **position, "step": float(step), "loss": self.progress.train_loss})

    def _show(self, step: int, figures: dict[str, float]) -> None:
        """Record a validation and show it, once."""
        if step == self.shown_step:
            return
        self.shown_step = step
        self.context.sink.log_metrics(val_metrics(self.config, step, figures), step)
        pictures = pictures_of(self.config, step)
        if self.config.validation.overlays and pictures.exists():
            self.context.sink.log_artifact(pictures, "validation")
        self.say(validation_text(step, figures, self.metric, asynchronous=step == self.async_step))
