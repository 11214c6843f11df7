"""The loop in one plain process: that it learns, what falls on which step, and how it stops."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efafnet.pipelines.training import async_validation, preparation
from efafnet.pipelines.training import job as job_module
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.errors import DivergedError
from efafnet.pipelines.training.loop import run
from efafnet.pipelines.training.monitor import Trace, Window
from efafnet.pipelines.training.step import StepLosses
from efafnet.platform.checkpoint import load_checkpoint
from tests.training_cases import config_of, sbn_config_of


class Curves:
    """Keeps what a tracking server would get."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.params: dict[str, str] = {}
        self.artifacts: list[str] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for key, value in metrics.items():
            self.points[key].append((step, value))

    def log_param(self, name: str, value: str) -> None:
        self.params[name] = value

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.artifacts.append(f"{folder}/{path.name}")

    def steps(self, key: str) -> list[int]:
        return [step for step, _ in self.points[key]]


class Quiet(PlainContext):
    """Keeps what would be shown and reported."""

    def __init__(self) -> None:
        self.curves = Curves()
        self.lines: list[str] = []
        self.reports: list[dict[str, float]] = []
        super().__init__(torch.device("cpu"), self.curves)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def report(self, metrics: Mapping[str, float]) -> None:
        self.reports.append(dict(metrics))


def trace_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "trace-rank0.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_what_it_promises(tmp_path: Path) -> None:
    context, config = (
        Quiet(),
        config_of(tmp_path, "epochs=5", "trace=true", "validation={every_epochs: 2, overlays: 2}"),
    )
    result = run(config, context)
    # 5 epochs of 40 persons in batches of 8: 25 steps; validations after epochs 2 and 4 and at the end.
    assert result.metrics["ap"] > 0.9
    assert [report["step"] for report in context.reports] == [10, 20, 25]
    assert [report["ap"] for report in context.reports] == [value for _, value in context.curves.points["val/ap"]]
    assert context.reports[-1]["epoch"] == 5
    curve = context.curves
    assert curve.artifacts == [f"validation/step-000000{step}" for step in (10, 20, 25)]
    assert curve.steps("train/loss") == list(range(5, 26, 5))  # every 5 steps, which are also the epochs' ends
    assert curve.steps("joint_loss.red") == curve.steps("train/loss")
    trace = trace_of(config.run_dir)
    assert [entry["step"] for entry in trace] == list(range(1, 26))
    losses = [float.fromhex(entry["loss"]) for entry in trace]
    assert dict(curve.points["train/loss"])[10] == pytest.approx(sum(losses[5:10]) / 5)
    assert dict(curve.points["train/epoch_loss"])[10] == pytest.approx(sum(losses[5:10]) / 5)
    assert sorted(row for entry in trace[:5] for row in entry["rows"]) == list(range(40))
    meta = load_checkpoint(result.checkpoint).meta
    assert meta["skeleton"] == "spots4"
    assert meta["metrics"]["ap"] == result.metrics["ap"]
    log = (config.run_dir / "train.log").read_text().splitlines()
    assert log == context.lines
    assert log[0] == "precision: fp32, on 1 CPU thread"
    assert curve.params == {"precision": "fp32"}
    assert log[1].startswith("epoch 1.00/5.00  step 5/25  loss 0.0")
    assert "validation at step 10: ap" in "".join(log)


def test_points_close_at_epochs_and_checkpoints_wherever_they_fall(tmp_path: Path) -> None:
    context = Quiet()
    run(sbn_config_of(tmp_path, "batch_size=12", "log_every_steps=4", "checkpoint.every_steps=7", "epochs=3"), context)
    # One epoch is 40/12 = 3.33 steps: ends at 4, 7, 10; points at 4, 8; checkpoints at 7; validation after 2 epochs at
    # 7; the end at 10.
    assert context.curves.steps("train/loss") == [4, 7, 8, 10]
    assert context.curves.steps("train/epoch_loss") == [4, 7, 10]
    assert context.curves.steps("val/ap") == [7, 10]


def test_a_budget_in_samples_is_a_small_full_run(tmp_path: Path) -> None:
    context = Quiet()
    result = run(sbn_config_of(tmp_path, "max_samples=60", "log_every_steps=1", "data.val=null"), context)
    rates = [value for _, value in context.curves.points["train/lr"]]
    assert len(rates) == 8  # ceil(60 / 8)
    assert rates[0] == pytest.approx(0.04 * 5e-3)
    # Step 7 of 8 is (7/8 - .3) / .7 of the way down the cosine: far below the peak, as at the end of a full run.
    assert rates[-1] == pytest.approx(5e-3 * (1 + math.cos(math.pi * 0.575 / 0.7)) / 2)
    assert max(rates) > 4.8e-3
    assert "ap" not in result.metrics
    assert result.checkpoint.name == "step-00000008"


def test_a_budget_in_seconds_ends_the_run_with_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that is read once in two steps and goes on by 50 ms: 1.2 s are 24 points.
    monkeypatch.setattr(job_module, "time", SimpleNamespace(monotonic=itertools.count(0, 0.05).__next__))
    context = Quiet()
    settings = ("epochs=4000", "max_time_s=1.2", "data.val=null", "checkpoint.every_epochs=999", "log_every_steps=2")
    run(sbn_config_of(tmp_path, *settings), context)
    rates = [value for _, value in context.curves.points["train/lr"]]
    assert len(rates) == pytest.approx(24, abs=2)
    assert rates[-1] < 0.03 * max(rates)


def test_patience_stops_a_run_that_no_longer_improves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([0.1, 0.4, 0.3, 0.4, 0.9])
    monkeypatch.setattr(async_validation, "validate", lambda *_: {"ap": next(figures), "seconds": 0.0})
    config, context = sbn_config_of(tmp_path, "validation={every_epochs: 1, patience: 2}", "epochs=9"), Quiet()
    result = run(config, context)
    assert [report["ap"] for report in context.reports] == [0.1, 0.4, 0.3, 0.4]
    assert (result.metrics["step"], result.metrics["ap"]) == (10, 0.4)
    assert result.checkpoint.name == "step-00000010"
    # The same command again has nothing left to do and says the same.
    again = Quiet()
    second = run(config, again)
    assert second.checkpoint == result.checkpoint
    assert {**second.metrics, "elapsed_s": 0} == {**result.metrics, "elapsed_s": 0}
    assert again.reports == []


@pytest.mark.parametrize(
    ("poison", "told"),
    [
        ("loss", "the loss is not finite"),
        ("gradient", "the gradient is not finite"),
        ("explosion", r"the loss exploded to 5, from 0.00\d+ in the first steps,"),
    ],
)
def test_divergence_names_step_samples_and_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str, told: str
) -> None:
    honest = job_module.Job.count

    def poisoned(self: job_module.Job, batch: Any, losses: StepLosses, rate: float) -> None:
        if self.progress.step + 1 == 13:
            (losses.grad_norm if poison == "gradient" else losses.total).fill_(
                5.0 if poison == "explosion" else math.nan
            )
        honest(self, batch, losses, rate)

    monkeypatch.setattr(job_module.Job, "count", poisoned)
    config = sbn_config_of(tmp_path, "trace=true", "data.val=null", "epochs=3")
    with pytest.raises(DivergedError, match=f"{told} at step 13; .*step-00000010; lower") as caught:
        run(config, Quiet())
    assert caught.value.step == 13
    assert len(caught.value.rows) == 8
    monkeypatch.undo()
    # What was in the batch is what an honest run trains on at that step, and nothing bad was kept.
    run(config, Quiet())
    assert trace_of(config.run_dir)[12]["rows"] == caught.value.rows


@pytest.mark.parametrize(("always", "ends"), [(True, True), (False, False)])
def test_loss_scaling_that_skips_every_step_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, always: bool, ends: bool
) -> None:
    """A real scaler halves 65536 at each skip: 17 in a row bring it below 1, and the point at step 20 tells."""
    honest = preparation.build_trainee

    def scaled(*arguments: Any) -> Any:
        trainee = honest(*arguments)
        trainee.scaler = torch.amp.GradScaler("cpu", enabled=True)
        calls = itertools.count(1)
        weight = next(trainee.module.parameters())
        weight.register_hook(lambda grad: grad * math.inf if always or next(calls) <= 3 else grad)
        return trainee

    monkeypatch.setattr(preparation, "build_trainee", scaled)
    context, config = Quiet(), sbn_config_of(tmp_path, "data.val=null", "epochs=5" if ends else "epochs=2")
    if ends:
        told = r"no gradient of the last 5 steps was finite in fp16, at a loss scale of 0.0625, at step 20; .*"
        with pytest.raises(DivergedError, match=told + "take precision=bf16 or fp32, lower optimizer.lr"):
            run(config, context)
    else:
        run(config, context)
    points = {key: dict(context.curves.points[f"train/{key}"]) for key in ("loss_scale", "skipped_share")}
    assert points["loss_scale"][5] == 65536 / 2 ** (5 if always else 3)
    assert points["skipped_share"][5] == (1.0 if always else 0.6)
    if not ends:
        assert points["skipped_share"][10] == 0


def test_a_trace_drops_what_will_be_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    window = Window(losses=[_losses(0.5), _losses(0.25)], rows=[torch.tensor([1, 2]), torch.tensor([3])])
    trace = Trace(path, 0)
    trace.write(window, 2)
    trace.write(window, 4)
    with path.open("a") as file:
        file.write('{"step": 5, "rows": [')  # the process was killed here
    Trace(path, 3)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["step"], float.fromhex(entry["loss"])) for entry in kept] == [(1, 0.5), (2, 0.25), (3, 0.5)]


def _losses(value: float) -> StepLosses:
    zero = torch.zeros(())
    return StepLosses(total=torch.tensor(value), by_head={"final": zero}, by_joint=torch.zeros(4), grad_norm=zero)


def test_every_point_is_a_checkpoint_while_workers_are_about_to_join(tmp_path: Path) -> None:
    """They start from the newest: what was done after it is done twice."""

    class Joined(Quiet):
        points = 0

        def growing(self) -> bool:
            self.points += 1
            return 2 <= self.points <= 3

    context = Joined()
    settings = ("epochs=4", "data.val=null", "checkpoint={every_epochs: null, every_steps: 100, keep_last: 9}")
    result = run(sbn_config_of(tmp_path, *settings), context)
    written = sorted(int(path.name[5:]) for path in result.checkpoint.parent.glob("step-*"))
    assert context.curves.steps("train/loss") == [5, 10, 15, 20]
    assert written == [10, 15, 20]


def test_a_resumed_run_records_the_validation_of_its_checkpoint_again(tmp_path: Path) -> None:
    """The process before it may have been killed after the checkpoint was whole and before MLflow had the figures."""
    config = sbn_config_of(tmp_path, "epochs=4", "validation.every_epochs=2")
    result = run(config, Quiet())
    (result.checkpoint.parent / "step-00000020").rename(tmp_path / "lost")
    again = Quiet()
    run(config, again)
    assert again.curves.steps("val/ap") == [10, 20]
