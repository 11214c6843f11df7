"""The curves of a run: what is recorded between steps, when it is summed over workers, and what the user sees of it."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.errors import DivergedError
from efafnet.pipelines.training.schedule import Plan
from efafnet.pipelines.training.state import Progress
from efafnet.pipelines.training.step import StepLosses
from efafnet.platform import console
from efafnet.platform.storage import append_lines, write_text

EXPLODED = 100.0
"""A loss this many times that of the run's first point has left the road, and what follows is lost."""
DATA_WAIT_LIMIT, DATA_WAIT_OVER_S = 0.1, 10.0
"""Share of the time that may pass waiting for data without a word, and the seconds it is measured over."""
PASSING = "epoch "
"""How the lines begin that say where a run is."""
MAIN_FIGURES = ("ap", "ap_50", "ap_75", "ar")
"""What is told of a validation in a line, beside the figure that counts."""


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
    skipped_share: float = 0.0
    """Share of the steps that fp16's loss scaling skipped, because their gradient was not finite."""


def summarise(
    window: Window,
    context: PlainContext,
    *,
    scale: float | None,
    step: int,
    first_loss: float | None,
    last_good: Callable[[], str],
) -> Point:
    """Sum a window over the workers in one exchange.

    Args:
        window: at least one step.
        context: the workers.
        scale: what the loss is multiplied by (fp16), which skips steps whose gradient is not finite; None for nothing.
        step: completed steps at the end of the window.
        first_loss: mean loss of the run's first window; None in that window.
        last_good: says where the last good checkpoint is, for the error message.

    Raises:
        DivergedError: a loss or a gradient was not finite, or a loss exploded, or fp16 skipped all steps although it
            no longer scales the loss up; names the step and the samples.
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
        fault = _fault(sums[index], norms[index], scale is not None, first_loss)
        if fault:
            _diverged(fault, step - count + index + 1, window.rows[index], context, last_good())
    skipped = sum(not _finite(norm) for norm in norms)
    if scale is not None and scale < 1 and skipped == count:
        # Each skip halves the scale, from 65536: that many in a row are no search for the right one.
        fault = f"no gradient of the last {count} steps was finite in fp16, at a loss scale of {scale:.3g},"
        _diverged(fault, step, window.rows[-1], context, last_good(), remedy="take precision=bf16 or fp32, ")
    return Point(
        loss=sums[:count],
        by_head=dict(zip(heads, sums[count : count + len(heads)], strict=True)),
        by_joint=sums[count + len(heads) :],
        grad_norm=norms[-1],
        skipped_share=skipped / count,
    )


def _fault(loss: float, norm: float, scaled: bool, first_loss: float | None) -> str:
    """Say what is wrong with a step; empty for nothing."""
    if not _finite(loss):
        return "the loss is not finite"
    if not scaled and not _finite(norm):
        return "the gradient is not finite"
    if first_loss is not None and loss > EXPLODED * first_loss:
        return f"the loss exploded to {loss:.3g}, from {first_loss:.3g} in the first steps,"
    return ""


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _diverged(
    fault: str, step: int, rows: torch.Tensor, context: PlainContext, last_good: str, remedy: str = ""
) -> None:
    parts = context.agree(context.gather(rows.tolist()))
    everyone = [row for part in parts for row in part]
    shown = ", ".join(str(row) for row in everyone[:12]) + (", …" if len(everyone) > 12 else "")
    raise DivergedError(
        f"training diverged: {fault} at step {step}; the batch held rows {shown} of the training "
        f"store; {last_good}; {remedy}lower optimizer.lr, add schedule.warmup_steps or set optimizer.clip_norm",
        step,
        everyone,
    )


def curve_metrics(
    point: Point, window: Window, joints: tuple[str, ...], seconds: float, wait_s: float
) -> dict[str, float]:
    """Name the figures of a window as the tracking server shows them.

    MLflow draws what stands before a slash as a group, the groups by their names, and what has no slash at the end:
    there belong the many curves of single joints.

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
    metrics.update({f"joint_loss.{name}": value for name, value in zip(joints, point.by_joint, strict=True)})
    return metrics


class DataWait:
    """Notices that the network waits for the reader, and says so once."""

    def __init__(self) -> None:
        self._windows, self._waited_s, self._passed_s, self._told = 0, 0.0, 0.0, False

    def text(self, waited_s: float, passed_s: float) -> str | None:
        """Return the warning that a window of so many seconds asks for, or None. The first one, while the reader fills
        its queues, does not count."""
        self._windows += 1
        if self._told or self._windows == 1:
            return None
        self._waited_s, self._passed_s = self._waited_s + waited_s, self._passed_s + passed_s
        if self._passed_s < DATA_WAIT_OVER_S:
            return None
        share, passed_s = self._waited_s / self._passed_s, self._passed_s
        self._waited_s = self._passed_s = 0.0
        self._told = share > DATA_WAIT_LIMIT
        if not self._told:
            return None
        return (
            f"warning: {share:.0%} of the last {passed_s:.0f} s went by waiting for data; where there are cores, raise "
            "worker.cpus (and reader.threads, if that is set); else prepare with a lower max_oversampling, or put the "
            "store on a faster disk"
        )


class ProgressLine:
    """Tells the user where the run is, at most every ``console.LOG_INTERVAL_S`` seconds."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def text(self, progress: Progress, plan: Plan, metrics: Mapping[str, float], *, force: bool) -> str | None:
        """Return the line for the state of things, or None if the last one is too recent."""
        now = time.monotonic()
        if not force and now - self._last < console.LOG_INTERVAL_S:
            return None
        self._last = now
        done, total = plan.epoch(progress.step), plan.epoch(plan.steps)
        return (
            f"{PASSING}{done:.2f}/{total:.2f}  step {progress.step}/{plan.steps}  loss {metrics['train/loss']:.6f}  "
            f"lr {metrics['train/lr']:.2e}  {'  '.join(_speed(metrics))}  "
            f"data wait {metrics['speed/data_wait_share']:.1%}  {_eta(progress, plan)}"
        )


def status_figures(progress: Progress, plan: Plan, metrics: Mapping[str, float], metric: str) -> tuple[str, ...]:
    """The newest figures for a line that is drawn anew, the most wanted first: a narrow terminal shows no others.

    Time left, loss, the figure that counts so far, speed, memory. ``metric`` names the figure by which validations are
    compared.
    """
    parts = [_eta(progress, plan), f"loss {metrics['train/loss']:.5f}"]
    if progress.best_step is not None:
        newest = progress.validation.get(metric, progress.best[metric])
        parts.append(f"{metric.upper()} {newest:.3f} (best {progress.best[metric]:.3f})")
    memory_gib = metrics.get("system/gpu_memory_peak_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return (*parts, *_speed(metrics), f"{memory_gib:.1f} GiB")


def _eta(progress: Progress, plan: Plan) -> str:
    """Time left at the speed of the run so far."""
    return f"ETA {console.clock(progress.elapsed_s / progress.step * (plan.steps - progress.step))}"


def best_metrics(progress: Progress, plan: Plan, metric: str) -> dict[str, float]:
    """The main figures of the best validation so far as curves of their own: MLflow's tables and charts show the newest
    point of a curve, and the newest validation is not the checkpoint to use."""
    if progress.best_step is None:
        return {}
    names = [name for name in dict.fromkeys((metric, *MAIN_FIGURES)) if name in progress.best]
    return {**{f"best/{name}": progress.best[name] for name in names}, "best/epoch": plan.epoch(progress.best_step)}


def outcome_of(progress: Progress, plan: Plan, global_batch: int) -> dict[str, float]:
    """How a run ended: figures of its best checkpoint under plain names, those of its end under ``last/``.

    ``step``, ``epoch`` and ``samples`` are those of the checkpoint to use, ``last/…`` those of the whole run, with the
    last validation and ``last/train_loss``, the newest point of the curve; ``elapsed_s`` is the whole run's.
    """

    def position(step: int) -> dict[str, float]:
        return {"step": float(step), "epoch": plan.epoch(step), "samples": float(step * global_batch)}

    last = {**progress.validation, **position(progress.step), "train_loss": progress.train_loss}
    return {
        **progress.best,
        **position(progress.best_step or progress.step),
        "elapsed_s": progress.elapsed_s,
        **{f"last/{name}": value for name, value in last.items()},
    }


def _speed(metrics: Mapping[str, float]) -> list[str]:
    """Crops a second of the whole run, TFLOP/s of one device, and the share of its peak where that is known."""
    parts = [f"{metrics['speed/samples_per_s']:.0f} samples/s"]
    if "speed/tflops_per_device" in metrics:
        parts.append(f"{metrics['speed/tflops_per_device']:.3g} TFLOP/s")
    if "speed/mfu" in metrics:
        parts.append(f"MFU {metrics['speed/mfu']:.1%}")
    return parts


def validation_text(step: int, figures: Mapping[str, float], metric: str, *, asynchronous: bool) -> str:
    """Say what a validation found, and whether it was asynchronous: beside training instead of on its workers."""
    names = dict.fromkeys((metric, *MAIN_FIGURES))
    shown = "  ".join(f"{name} {figures[name]:.4f}" for name in names if name in figures)
    where = " beside training" if asynchronous else ""
    return f"validation at step {step}: {shown}  ({figures['seconds']:.1f} s{where})"


class Trace:
    """Every step's sample rows and loss of one worker, exactly, for comparing two runs step by step."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Go on with a trace after ``first_step`` completed steps: what was written beyond them is trained again."""
        kept = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
        write_text(path, "".join(kept))
        self._path = path

    @classmethod
    def of_worker(cls, folder: Path, context: PlainContext, first_step: int) -> Trace:
        """The trace of one worker. Rank 0 also cuts those of workers that are no more."""
        if context.rank == 0:
            for path in folder.glob("trace-rank*.jsonl"):
                if int(path.stem.removeprefix("trace-rank")) >= context.world_size:
                    cls(path, first_step)
        return cls(folder / f"trace-rank{context.rank}.jsonl", first_step)

    def write(self, window: Window, step: int) -> None:
        """Append a window that ends after ``step`` completed steps; losses are this worker's shares, in hexadecimal."""
        first = step - len(window.losses) + 1
        records = [
            {"step": first + index, "rows": rows.tolist(), "loss": float(losses.total).hex()}
            for index, (losses, rows) in enumerate(zip(window.losses, window.rows, strict=True))
        ]
        append_lines(self._path, "".join(json.dumps(record) + "\n" for record in records).encode())
