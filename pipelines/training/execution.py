"""How a step is executed: eager, compiled, as a CUDA graph. The fastest is found by timing a run's own first steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import nn

from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.config_groups import ComputeConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.graph import WARM_UP, GraphedStep
from efafnet.pipelines.training.memory import ran_out
from efafnet.pipelines.training.step import StepLosses, Trainee, train_step
from efafnet.platform.configuration import ConfigurationError

TakeStep = Callable[[Trainee, Batch, int, float], StepLosses]
Compiling = Literal["off", "default", "max-autotune"]

MEASURED = 8
"""Steps that are timed per mode, after ``WARM_UP`` + 1 that compile, record and settle."""
WORTH_COMPILING_S = 1800.0
"""Left of a run from which ``compile=auto`` tries it: compiling takes one to two minutes for a fifth of the time."""
TORCH_MODES: dict[Compiling, str | None] = {"default": None, "max-autotune": "max-autotune-no-cudagraphs"}
"""What torch calls it; graphs are recorded here, of the whole step."""


@dataclass(frozen=True)
class StepMode:
    """How a step is executed; all modes compute the same."""

    compiling: Compiling = "off"
    graph: bool = False

    def __str__(self) -> str:
        """In words."""
        names = {"off": "as written", "default": "compiled", "max-autotune": "compiled with max-autotune"}
        return names[self.compiling] + (", as a CUDA graph" if self.graph else "")


@dataclass
class _Trial:
    """A mode that is tried."""

    mode: StepMode
    take: TakeStep
    warm_up_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    steps: int = 0

    @property
    def over(self) -> bool:
        return len(self.times_s) >= MEASURED

    @property
    def step_s(self) -> float:
        return statistics.median(self.times_s)


class Execution:
    """Takes steps: first in every mode that the settings allow, then in the fastest. Each is a step of the run.

    Workers try the same modes at the same steps; rank 0's clock decides.
    """

    def __init__(
        self,
        trainee: Trainee,
        context: PlainContext,
        say: Callable[[str], None],
        steps_left: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``steps_left`` are those of the run from here on.

        Raises:
            ConfigurationError: a CUDA graph is asked for where there can be none.
        """
        self._trainee, self._context, self._say, self._clock = trainee, context, say, clock
        self._steps_left = steps_left
        self._plain = trainee.wrapped
        self._compiled: dict[Compiling, nn.Module] = {"off": trainee.wrapped}
        self._modes = step_modes(trainee.compute, trainee)
        self._trials: list[_Trial] = []
        self.chosen: StepMode | None = self._modes[0] if len(self._modes) == 1 else None
        """None while it is being measured."""
        self._current = self._begin(self._modes.pop(0))

    def __call__(self, trainee: Trainee, batch: Batch, step: int, learning_rate: float) -> StepLosses:
        """Take one step, as ``train_step``."""
        while True:
            began = self._now()
            try:
                losses = self._current.take(trainee, batch, step, learning_rate)
            except Exception as error:
                # Whatever a compiler or a recording may raise. What the step as written raises is the run's; memory
                # that runs out for a mode that is only tried rules out the mode, and later calls for smaller parts.
                memory = isinstance(error, RuntimeError) and ran_out(error) and self.chosen is not None
                # Of workers that worked together before, one has lost the others.
                lost = self._context.world_size > 1 and self._current.steps > 0
                if self._current.mode == StepMode() or memory or lost:
                    raise
                failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
            else:
                self._current.steps += 1
                if self.chosen is None:
                    self._record_time(self._now() - began)
                return losses
            self._say(f"steps {self._current.mode} are not possible here ({failure})")
            self._give_up_current()

    def _begin(self, mode: StepMode) -> _Trial:
        """Make a mode the current one."""
        if mode.compiling not in self._compiled:
            torch_mode = TORCH_MODES[mode.compiling]
            # Shapes are constant but for a last, smaller part: one program for each, none for all.
            self._compiled[mode.compiling] = cast(nn.Module, torch.compile(self._plain, dynamic=False, mode=torch_mode))
        self._trainee.wrapped = self._compiled[mode.compiling]
        return _Trial(mode, GraphedStep(self._trainee) if mode.graph else train_step)

    def _now(self) -> float:
        """The time. While steps are timed it first waits until the device has done all that was launched."""
        if self.chosen is None and self._trainee.device.type == "cuda":
            torch.cuda.synchronize(self._trainee.device)
        return self._clock()

    def _record_time(self, seconds: float) -> None:
        trial = self._current
        self._steps_left -= 1
        if trial.steps <= WARM_UP + 1:
            trial.warm_up_s += seconds
            return
        trial.times_s.append(seconds)
        if trial.over:
            trial.take = train_step  # a graph's memory is not held while others are tried
            self._trials.append(trial)
            self._try_next()

    def _give_up_current(self) -> None:
        """Go on without the current mode; the step as written is always possible."""
        if self.chosen is None and (self._modes or self._trials):
            self._try_next()
        else:
            self.chosen = StepMode()
            self._current = self._begin(self.chosen)

    def _try_next(self) -> None:
        """Try the next mode, or end the trials."""
        while self._modes:
            mode = self._modes.pop(0)
            if self._is_worth_trying(mode):
                self._current = self._begin(mode)
                return
        best = self._context.agree(min(range(len(self._trials)), key=lambda index: self._trials[index].step_s))
        told = "; ".join(f"{t.mode}: {1000 * t.step_s:.1f} ms, warm-up {t.warm_up_s:.1f} s" for t in self._trials)
        chosen = self._trials[best]
        self.chosen = chosen.mode
        self._current = self._begin(chosen.mode)
        self._trials = []
        self._say(f"a step {told}; chosen: {chosen.mode}")

    def _is_worth_trying(self, mode: StepMode) -> bool:
        """Whether compiling can pay off in what is left of the run. A mode that the settings name is always tried."""
        if mode.compiling == "off" or self._trainee.compute.compile != "auto" or not self._trials:
            return True
        left_s = min(trial.step_s for trial in self._trials) * self._steps_left
        return self._context.agree(left_s >= WORTH_COMPILING_S)


def step_modes(compute: ComputeConfig, trainee: Trainee) -> list[StepMode]:
    """The modes that the settings allow on this device, the plainest first.

    Raises:
        ConfigurationError: ``compute.graph=on`` where there can be no graph.
    """
    on_gpu = trainee.device.type == "cuda"
    reason = (
        "there is no GPU" if not on_gpu
        else "several workers exchange gradients" if trainee.world_size > 1
        else "fp16 scales the loss on the host" if trainee.scaler.is_enabled()
        else ""
    )  # fmt: skip
    if compute.graph == "on" and reason:
        raise ConfigurationError(f"compute.graph = on: {reason}; leave it to auto")
    graphs = [True] if compute.graph == "on" else [False] if compute.graph == "off" or reason else [False, True]
    automatic: list[Compiling] = ["off", "default"] if on_gpu else ["off"]
    compiling: list[Compiling] = automatic if compute.compile == "auto" else [compute.compile]
    return [StepMode(each, graph) for each in compiling for graph in graphs]
