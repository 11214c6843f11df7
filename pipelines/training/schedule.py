"""How long a run is, when things are due in it, and the learning rate of each step: pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import model_validator

from efafnet.models.settings import Settings


class ScheduleConfig(Settings):
    """Learning rate over the run, in multiples of ``optimizer.lr``. A smaller budget compresses it, warm-up too."""

    kind: Literal["multistep", "cosine", "one_cycle"] = "multistep"
    """multistep: times ``factor`` at each milestone. cosine: half a wave from 1 down to ``floor``.
    one_cycle: a cosine rise from ``start`` to 1, then a cosine fall to ``floor``."""
    milestones: tuple[float, ...] = (90.0, 120.0)
    """Epochs at which the rate drops, ascending; multistep only."""
    factor: float = 0.1
    """Multiplier applied at every milestone, in (0, 1]; multistep only."""
    floor: float = 0.0
    """Rate at the end of the run as a fraction of ``optimizer.lr``, in [0, 1]; cosine and one_cycle only."""
    start: float = 0.04
    """Rate of the first step as a fraction of ``optimizer.lr``, in [0, 1]; one_cycle only."""
    rise: float = 0.3
    """Fraction of the run spent rising to the peak, in (0, 1); one_cycle only."""
    warmup_steps: int = 0
    """Steps of linear warm-up at the start of a full-length run, multiplied onto any kind; 0 for none."""
    warmup_start: float = 0.001
    """Fraction of the rate at which the warm-up begins, in [0, 1]."""

    @model_validator(mode="after")
    def _possible(self) -> ScheduleConfig:
        if any(b <= a for a, b in zip((0.0, *self.milestones), self.milestones, strict=False)):
            raise ValueError(f"milestones must be positive and ascending epochs; got {list(self.milestones)}")
        for name in ("floor", "start", "warmup_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a fraction of the rate, between 0 and 1; got {getattr(self, name)}")
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must lie in (0, 1]; got {self.factor}")
        if not 0 < self.rise < 1:
            raise ValueError(f"rise must lie between 0 and 1, both excluded; got {self.rise}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative; got {self.warmup_steps}")
        return self

    def ignored(self) -> list[str]:
        """Names of settings that differ from their defaults but have no effect on this kind of schedule."""
        used = {"multistep": ("milestones", "factor"), "cosine": ("floor",), "one_cycle": ("floor", "start", "rise")}
        special = {name for names in used.values() for name in names}
        plain = ScheduleConfig()
        return sorted(name for name in special - set(used[self.kind]) if getattr(self, name) != getattr(plain, name))


@dataclass(frozen=True)
class Plan:
    """The length of one run in optimizer steps."""

    steps: int
    """Steps of this run, after any budget."""
    full_steps: int
    """Steps the run would have without a budget: ceil(epochs * samples / batch)."""
    epochs: float
    """Epochs of the run without a budget: the unit of the milestones."""
    steps_per_epoch: float
    """Samples of the store divided by the global batch; not an integer in general."""

    def fraction(self, step: int) -> float:
        """Share of the run before 0-based ``step``, in [0, 1]."""
        return min(1.0, step / self.steps)

    def epoch(self, step: int) -> float:
        """Epochs of data consumed after ``step`` steps."""
        return step / self.steps_per_epoch

    def shortened(self, steps: int) -> Plan:
        """The same run in at most ``steps`` steps; never longer than the full run, never shorter than one step."""
        return replace(self, steps=max(1, min(steps, self.full_steps)))


def plan_run(*, epochs: float, samples: int, global_batch: int, max_samples: int | None = None) -> Plan:
    """Length of a run over ``samples`` persons per epoch, capped at ``max_samples`` samples in all."""
    full = math.ceil(epochs * samples / global_batch)
    plan = Plan(steps=full, full_steps=full, epochs=epochs, steps_per_epoch=samples / global_batch)
    return plan if max_samples is None else plan.shortened(math.ceil(max_samples / global_batch))


def due(step: int, every: float | None) -> bool:
    """Whether something that happens every ``every`` steps (a fraction is allowed) falls on ``step`` completed steps.

    The k-th time is the first whole step at or after ``k * every``; ``None`` means never.
    """
    return every is not None and math.floor(step / every) > math.floor((step - 1) / every)


def learning_rate(config: ScheduleConfig, peak: float, step: int, plan: Plan) -> float:
    """Rate of the 0-based ``step``: the shape at ``step / plan.steps``, times the warm-up.

    Because the shape depends on the share of the run alone, a run with a smaller budget is a small full run and not
    a truncated one; milestones and warm-up shrink with it.
    """
    return peak * _shape(config, plan.fraction(step), plan.epochs) * _warmup(config, step, plan)


def _shape(config: ScheduleConfig, fraction: float, epochs: float) -> float:
    if config.kind == "multistep":
        # The tolerance keeps a milestone on the step it names when fraction * epochs rounds down.
        return config.factor ** sum(fraction * epochs >= milestone - 1e-9 for milestone in config.milestones)
    if config.kind == "cosine":
        return _half_wave(1.0, config.floor, fraction)
    if fraction < config.rise:
        return _half_wave(config.start, 1.0, fraction / config.rise)
    return _half_wave(1.0, config.floor, (fraction - config.rise) / (1 - config.rise))


def _half_wave(start: float, end: float, fraction: float) -> float:
    """Cosine interpolation: ``start`` at 0, ``end`` at 1, level at both."""
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def _warmup(config: ScheduleConfig, step: int, plan: Plan) -> float:
    steps = config.warmup_steps * plan.steps / plan.full_steps
    if step >= steps:
        return 1.0
    return config.warmup_start + (1 - config.warmup_start) * step / steps
