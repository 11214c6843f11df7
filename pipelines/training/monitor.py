"""The curves of a run: what is recorded between steps, when it is summed over workers, and what the user sees of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.schedule import Plan
from efafnet.pipelines.training.state import Progress
from efafnet.pipelines.training.step import StepLosses

LINE_INTERVAL_S = 10.0
"""Seconds between two progress lines, so that a fast run does not flood a job's log."""


class DivergedError(ValueError):
    """The loss stopped being a number; every worker raises it at the same step."""

    def __init__(self, message: str, step: int, rows: list[int]) -> None:
        super().__init__(message)
        self.step = step
        """Completed steps up to and including the bad one."""
        self.rows = rows
        """Rows of the training store in that step's global batch."""

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a Ray worker."""
        return (type(self), (str(self), self.step, self.rows))


@dataclass
class Window:
    """The steps since the last point of the curves. Tensors stay on the device: reading one would stop it."""

    losses: list[StepLosses] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)
    learning_rate: float = 0.0
    samples: int = 0
    """Samples of the global batches."""
    waited_before_s: float = 0.0
    """What the reader had waited when the window began."""

    def add(self, batch: Batch, losses: StepLosses, learning_rate: float, global_batch: int) -> None:
        """Record one step."""
        self.losses.append(losses)
        self.rows.append(batch.rows)
        self.learning_rate = learning_rate
        self.samples += global_batch


@dataclass(frozen=True)
class Point:
    """Means over a window and over all workers."""

    loss: list[float]
    """Of each step: the mean over the global batch of what was minimised."""
    by_head: dict[str, float]
    by_joint: list[float]
    grad_norm: float
    """Of the last step."""


def summarise(window: Window, context: PlainContext, scaled: bool, step: int, last_good: Callable[[], str]) -> Point:
    """Sum a window over the workers in one exchange.

    Args:
        window: at least one step.
        context: the workers.
        scaled: whether the loss is scaled (fp16), which skips steps whose gradient is not finite.
        step: completed steps at the end of the window.
        last_good: says where the last good checkpoint is, for the error message.

    Raises:
        DivergedError: a loss or a gradient was not finite; names the step and the samples.
    """
    losses = window.losses
    heads = list(losses[0].by_head)
    totals = torch.stack([entry.total for entry in losses])
    by_head = torch.stack([torch.stack([entry.by_head[head] for head in heads]) for entry in losses]).mean(dim=0)
    by_joint = torch.stack([entry.by_joint for entry in losses]).mean(dim=0)
    sums = context.total(torch.cat([totals, by_head, by_joint])).tolist()
    norms = torch.stack([entry.grad_norm for entry in losses]).tolist()
    count = len(losses)
    for index in range(count):
        finite = _finite(sums[index]) and (scaled or _finite(norms[index]))
        if not finite:
            what = "loss" if not _finite(sums[index]) else "gradient"
            _diverged(what, step - count + index + 1, window.rows[index], context, last_good())
    return Point(
        loss=sums[:count],
        by_head=dict(zip(heads, sums[count : count + len(heads)], strict=True)),
        by_joint=sums[count + len(heads) :],
        grad_norm=norms[-1],
    )


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _diverged(what: str, step: int, rows: torch.Tensor, context: PlainContext, last_good: str) -> None:
    parts = context.agree(context.gather(rows.tolist()))
    everyone = [row for part in parts for row in part]
    shown = ", ".join(str(row) for row in everyone[:12]) + (", …" if len(everyone) > 12 else "")
    raise DivergedError(
        f"training diverged: the {what} is not finite at step {step}; the batch held rows {shown} of the training "
        f"store; {last_good}; lower optimizer.lr, add schedule.warmup_steps or set optimizer.clip_norm",
        step,
        everyone,
    )


def curve_metrics(
    point: Point, window: Window, joints: tuple[str, ...], seconds: float, wait_s: float
) -> dict[str, float]:
    """Name the figures of a window as the tracking server shows them.

    ``seconds`` is the window's duration and ``wait_s`` how much of it this worker waited for data.
    """
    metrics = {
        "train/loss": sum(point.loss) / len(point.loss),
        "train/lr": window.learning_rate,
        "train/grad_norm": point.grad_norm,
        "speed/samples_per_s": window.samples / seconds,
        "speed/data_wait_share": min(1.0, wait_s / seconds),
    }
    metrics.update({f"train/head_loss/{head}": value for head, value in point.by_head.items()})
    metrics.update({f"train/joint_loss/{name}": value for name, value in zip(joints, point.by_joint, strict=True)})
    return metrics


class ProgressLine:
    """Tells the user where the run is, at most every ``LINE_INTERVAL_S`` seconds."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def text(self, progress: Progress, plan: Plan, metrics: Mapping[str, float], *, force: bool) -> str | None:
        """Return the line for the state of things, or None if the last one is too recent."""
        now = time.monotonic()
        if not force and now - self._last < LINE_INTERVAL_S:
            return None
        self._last = now
        done, total = plan.epoch(progress.step), plan.epoch(plan.steps)
        remaining_s = progress.elapsed_s / progress.step * (plan.steps - progress.step)
        return (
            f"epoch {done:.2f}/{total:.2f}  step {progress.step}/{plan.steps}  loss {metrics['train/loss']:.6f}  "
            f"lr {metrics['train/lr']:.2e}  {metrics['speed/samples_per_s']:.0f} samples/s  "
            f"data wait {metrics['speed/data_wait_share']:.1%}  ETA {clock(remaining_s)}"
        )


def validation_text(progress: Progress, metric: str) -> str:
    """Say what the last validation found."""
    figures = progress.validation
    names = dict.fromkeys((metric, "ap", "ap_50", "ap_75", "ar"))
    shown = "  ".join(f"{name} {figures[name]:.4f}" for name in names if name in figures)
    best = f"best {metric} {progress.best[metric]:.4f} at step {progress.best_step}"
    return f"validation at step {progress.step}: {shown}  ({figures['seconds']:.1f} s; {best})"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class Trace:
    """Every step's sample rows and loss of one worker, exactly, for comparing two runs step by step."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Go on with a trace after ``first_step`` completed steps: what was written beyond them is trained again."""
        kept = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
        path.write_text("".join(kept), encoding="utf-8")
        self._path = path

    def write(self, window: Window, step: int) -> None:
        """Append a window that ends after ``step`` completed steps; losses are this worker's shares, in hexadecimal."""
        first = step - len(window.losses) + 1
        records = [
            {"step": first + index, "rows": rows.tolist(), "loss": float(losses.total).hex()}
            for index, (losses, rows) in enumerate(zip(window.losses, window.rows, strict=True))
        ]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
