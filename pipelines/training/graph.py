"""The step as two CUDA graphs: launched as a whole, so that the host costs nothing however small the kernels are.

One graph holds target, forward pass, loss and backward pass of a part of full size, the other clipping and the
optimizer. A smaller last part runs as written, and adds its gradients to the same memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.step import (
    StepLosses,
    Trainee,
    backward,
    combined,
    micro_batches,
    move_average,
    train_step,
    update,
)

WARM_UP = 3
"""Steps as written before the recording, which let libraries choose their algorithms and the optimizer make its state:
neither can be recorded. They are steps of the run like all others."""
TOLERANCE = 0.01
"""Largest relative difference of loss and gradient norm between the graph and the step as written, on the same part and
weights. They run the same kernels; only algorithms chosen anew may round otherwise."""


class Recorder(Protocol):
    """Records what a function launches."""

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """Return a function that launches the recording, and what ``call`` returned: launches refill its tensors."""


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory: they run one after the other."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        """Record on a stream of its own, as CUDA asks; nothing is computed meanwhile. What fails leaves no trace."""
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        # The reader's threads may go on meanwhile.
        mode = "thread_local"
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
                outcome = call()
        except BaseException:
            torch.cuda.set_stream(before)
            self._end_recording()
            raise
        return graph.replay, outcome

    def _end_recording(self) -> None:
        """Tell allocator and random numbers that a recording which CUDA declared void is over.

        PyTorch 2.11 does so after a recording that ended well only (``CUDAGraph::capture_end``); 2.14 always. Else the
        allocator takes it to go on: it frees nothing when memory runs short, and ``torch.cuda.empty_cache`` fails.
        """
        device = torch.cuda.current_device()
        # Without effect, and an error, where the allocator was told: its pool then goes with the graph.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device, self._pool)
            torch._C._cuda_releasePool(device, self._pool)
        # A generator that takes the recording to go on gives no numbers outside of it; a copy of its state does.
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


class GraphMismatchError(RuntimeError):
    """A graph does not compute what the step as written does."""


@dataclass
class _Recorded:
    """What was recorded for parts of one size."""

    part: Batch
    """On the device: the memory that the graph reads."""
    rate: Tensor
    """() learning rate that the graph reads."""
    parameters: list[nn.Parameter]
    """Those that get gradients."""
    gradients: list[Tensor]
    """Theirs, where the graph adds to them."""
    forwards: Callable[[], object]
    losses: StepLosses
    updates: Callable[[], object]
    grad_norm: Tensor


@dataclass
class GraphedStep:
    """Takes steps as ``train_step`` does, by graphs once it is warm. For one worker, and without loss scaling."""

    trainee: Trainee
    recorder: Callable[[], Recorder] = CudaRecorder
    taken: int = 0
    recorded: _Recorded | None = field(default=None, init=False)

    def __call__(self, trainee: Trainee, batch: Batch, step: int, learning_rate: float) -> StepLosses:
        """Take one step.

        Raises:
            GraphMismatchError: the graph was recorded and computes something else; weights are as before.
        """
        self.taken += 1
        if self.taken <= WARM_UP:
            return train_step(trainee, batch, step, learning_rate)
        size = min(trainee.micro_batch or len(batch), len(batch))
        if self.recorded is None or len(self.recorded.part) != size:
            self.recorded = None  # its memory first
            self.recorded = self._record(batch.part(0, size))
        return self._launch(self.recorded, batch, step, learning_rate)

    def _record(self, part: Batch) -> _Recorded:
        trainee, record = self.trainee, self.recorder()
        # What is left of a step that failed, a compiler's say, may hold on to the parameters' ends of its backward
        # pass, which are bound to the stream of that step: the recorded one would wait for a stream outside.
        gc.collect()
        # Copies, also of what lies on the device already: the graph reads this memory for ever.
        held = Batch(**{f.name: getattr(part, f.name).to(trainee.device, copy=True) for f in fields(part)})
        used = [p for p in trainee.parameters if p.grad is not None] or trainee.parameters
        gradients = [torch.zeros_like(parameter) for parameter in used]
        _set_gradients(used, gradients)
        # Before the recording, whose memory would stand beside it.
        written = self._measured_without_effect(lambda: backward(trainee, held, nullcontext()), gradients)
        forwards, losses = record(lambda: backward(trainee, held, nullcontext()))
        rate = torch.zeros((), device=trainee.device)
        groups = trainee.optimizer.param_groups
        before = [dict(group) for group in groups]
        try:
            for group in groups:
                group.update(lr=rate, capturable=True)
            updates, grad_norm = record(lambda: update(trainee))
        finally:
            # What a checkpoint holds of the optimizer is the same with and without graphs.
            for group, values in zip(groups, before, strict=True):
                group.clear()
                group.update(values)

        def launched() -> StepLosses:
            forwards()
            return cast(StepLosses, losses)

        found = self._measured_without_effect(launched, gradients)
        if any(abs(a - b) > TOLERANCE * abs(b) for a, b in zip(found, written, strict=True)):
            raise GraphMismatchError(f"loss and gradient norm of the graph are {found}, as written {written}")
        return _Recorded(held, rate, used, gradients, forwards, losses, updates, grad_norm)

    def _measured_without_effect(self, call: Callable[[], StepLosses], gradients: list[Tensor]) -> list[float]:
        """Loss and gradient norm of a pass that leaves no trace."""
        buffers = [buffer.clone() for buffer in self.trainee.module.buffers()]
        torch._foreach_zero_(gradients)
        found: list[float] = torch.stack([call().total, nn.utils.get_total_norm(gradients)]).tolist()
        for buffer, before in zip(self.trainee.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return found

    def _launch(self, recorded: _Recorded, batch: Batch, step: int, learning_rate: float) -> StepLosses:
        trainee = self.trainee
        recorded.rate.fill_(learning_rate)
        for group in trainee.optimizer.param_groups:
            group["lr"] = learning_rate
        _set_gradients(recorded.parameters, recorded.gradients)
        torch._foreach_zero_(recorded.gradients)
        parts = []
        for part, _ in micro_batches(trainee, batch):
            if len(part) == len(recorded.part):
                for name in ("images", "joints_px", "visibility"):
                    getattr(recorded.part, name).copy_(getattr(part, name), non_blocking=True)
                recorded.forwards()
                parts.append(_copied(recorded.losses))
            else:
                parts.append(backward(trainee, part, nullcontext()))
        recorded.updates()
        move_average(trainee, step)
        return combined(parts, recorded.grad_norm.clone())


def _set_gradients(parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
    """Make ``gradients``, the memory that the graphs know, those of the parameters."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def _copied(losses: StepLosses) -> StepLosses:
    """The losses in memory of their own: the next launch overwrites them."""
    return StepLosses(
        total=losses.total.clone(),
        by_head={name: value.clone() for name, value in losses.by_head.items()},
        by_joint=losses.by_joint.clone(),
        grad_norm=losses.grad_norm,
    )
