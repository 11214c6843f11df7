"""The ways to compute one and the same step, and the choice among them by measurement, on the run's own first steps."""

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

Taker = Callable[[Trainee, Batch, int, float], StepLosses]
Compiling = Literal["off", "default", "max-autotune"]

MEASURED = 8
"""Steps that are timed per way, after ``WARM_UP`` + 1 that compile, record and settle."""
WORTH_COMPILING_S = 1800.0
"""Left of a run from which ``compile=auto`` tries it: compiling takes one to two minutes for a fifth of the time."""
MODES: dict[Compiling, str | None] = {"default": None, "max-autotune": "max-autotune-no-cudagraphs"}
"""What torch calls it; graphs are recorded here, of the whole step."""


@dataclass(frozen=True)
class Way:
    """How a step is computed."""

    compiling: Compiling = "off"
    graph: bool = False

    def __str__(self) -> str:
        """In words."""
        names = {"off": "as written", "default": "compiled", "max-autotune": "compiled with max-autotune"}
        return names[self.compiling] + (", as a CUDA graph" if self.graph else "")


@dataclass
class _Trial:
    """A way that is tried."""

    way: Way
    take: Taker
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
    """Takes steps: first in every way that the settings allow, then in the fastest. Each is a step of the run.

    Workers try the same ways at the same steps; rank 0's clock decides.
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
        self._ways = ways(trainee.compute, trainee)
        self._trials: list[_Trial] = []
        self.chosen: Way | None = self._ways[0] if len(self._ways) == 1 else None
        """None while it is being measured."""
        self._current = self._begin(self._ways.pop(0))

    def __call__(self, trainee: Trainee, batch: Batch, step: int, learning_rate: float) -> StepLosses:
        """Take one step, as ``train_step``."""
        while True:
            began = self._now()
            try:
                losses = self._current.take(trainee, batch, step, learning_rate)
            except Exception as error:
                # Whatever a compiler or a recording may raise. What the step as written raises is the run's; memory
                # that runs out for a way that is only tried rules out the way, and later calls for smaller parts.
                memory = isinstance(error, RuntimeError) and ran_out(error) and self.chosen is not None
                # Of workers that worked together before, one has lost the others.
                lost = self._context.world_size > 1 and self._current.steps > 0
                if self._current.way == Way() or memory or lost:
                    raise
                failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
            else:
                self._current.steps += 1
                if self.chosen is None:
                    self._note(self._now() - began)
                return losses
            self._say(f"steps {self._current.way} are not possible here ({failure})")
            self._drop()

    def _begin(self, way: Way) -> _Trial:
        """Make a way the current one."""
        if way.compiling not in self._compiled:
            mode = MODES[way.compiling]
            # Shapes are constant but for a last, smaller part: one program for each, none for all.
            self._compiled[way.compiling] = cast(nn.Module, torch.compile(self._plain, dynamic=False, mode=mode))
        self._trainee.wrapped = self._compiled[way.compiling]
        return _Trial(way, GraphedStep(self._trainee) if way.graph else train_step)

    def _now(self) -> float:
        """The time when all that was launched is done; while nothing is measured, no waiting."""
        if self.chosen is None and self._trainee.device.type == "cuda":
            torch.cuda.synchronize(self._trainee.device)
        return self._clock()

    def _note(self, seconds: float) -> None:
        trial = self._current
        self._steps_left -= 1
        if trial.steps <= WARM_UP + 1:
            trial.warm_up_s += seconds
            return
        trial.times_s.append(seconds)
        if trial.over:
            trial.take = train_step  # a graph's memory is not held while others are tried
            self._trials.append(trial)
            self._go_on()

    def _drop(self) -> None:
        """Go on without the current way; the step as written is always possible."""
        if self.chosen is None and (self._ways or self._trials):
            self._go_on()
        else:
            self.chosen = Way()
            self._current = self._begin(self.chosen)

    def _go_on(self) -> None:
        """Try the next way, or end the trials."""
        while self._ways:
            way = self._ways.pop(0)
            if self._worth(way):
                self._current = self._begin(way)
                return
        best = self._context.agree(min(range(len(self._trials)), key=lambda index: self._trials[index].step_s))
        told = "; ".join(f"{t.way}: {1000 * t.step_s:.1f} ms, warm-up {t.warm_up_s:.1f} s" for t in self._trials)
        chosen = self._trials[best]
        self.chosen = chosen.way
        self._current = self._begin(chosen.way)
        self._trials = []
        self._say(f"a step {told}; chosen: {chosen.way}")

    def _worth(self, way: Way) -> bool:
        """Whether compiling can pay in what is left of the run; asked for by name it is not asked."""
        if way.compiling == "off" or self._trainee.compute.compile != "auto" or not self._trials:
            return True
        left_s = min(trial.step_s for trial in self._trials) * self._steps_left
        return self._context.agree(left_s >= WORTH_COMPILING_S)


def ways(compute: ComputeConfig, trainee: Trainee) -> list[Way]:
    """The ways that the settings allow on this device, the plainest first.

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
    return [Way(each, graph) for each in compiling for graph in graphs]
