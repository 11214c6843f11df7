"""Asynchronous validation: the figures, the best checkpoint and early stopping are those of synchronous validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from efafnet.pipelines.evaluation.predictions import Predictions
from efafnet.pipelines.evaluation.visibility import Calibration
from efafnet.pipelines.training import async_validation, validation
from efafnet.pipelines.training import job as job_module
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.loop import run
from efafnet.pipelines.training.validation import validate_weights
from efafnet.platform.checkpoint import load_checkpoint, read_meta
from tests.test_loop import Quiet
from tests.test_visibility import MADE
from tests.training_cases import sbn_config_of

SETTINGS = ("epochs=3", "validation={every_epochs: 1, overlays: 1}", "checkpoint={every_steps: 2, keep_last: 1}")


class Task:
    """Validates as Ray's task does, and gives its figures out only to who waits for them, or never; ``busy`` times the
    cluster has no room for it."""

    def __init__(self, config: TrainConfig, *, fails: bool = False, early: bool = False, busy: int = 0) -> None:
        self.config = config
        self.fails, self.early, self.busy = fails, early, busy
        self.started: list[int] = []
        self.figures: dict[str, float] | None = None

    def has_room(self) -> bool:
        self.busy -= 1
        return self.busy < 0

    def start(self, weights: Mapping[str, Tensor], step: int) -> None:
        self.started.append(step)
        self.figures = None if self.fails else validate_weights(self.config.model_dump_json(), weights, step, "cpu")

    def ready(self) -> bool:
        return self.early

    def result(self) -> dict[str, float] | None:
        return self.figures


class WithValidator(Quiet):
    def __init__(self, validator: Task) -> None:
        super().__init__()
        self.async_validator = validator


def untimed(points: list[dict[str, float]]) -> list[dict[str, float]]:
    """Reports without what differs between two equal runs, or says how training stood when a figure was collected."""
    return [{key: value for key, value in point.items() if key not in ("seconds", "loss")} for point in points]


def ended(config: TrainConfig, context: Quiet) -> dict[str, object]:
    result = run(config, context)
    kept = sorted(path.name for path in (config.run_dir / "checkpoints").iterdir())
    figures = {key: value for key, value in result.metrics.items() if not key.endswith(("seconds", "elapsed_s"))}
    return {
        "figures": figures,
        "chosen": result.checkpoint.name,
        "kept": kept,
        "ap": context.curves.points["val/ap"],
        "pictures": context.curves.artifacts,
        "reports": untimed(context.reports),
        "loss": context.curves.points["train/loss"],
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a run that validates inline comes to."""
    return ended(sbn_config_of(tmp_path_factory.mktemp("inline"), *SETTINGS), Quiet())


@pytest.mark.parametrize(("early", "busy", "fails", "started"), [(True, 0, False, [5, 10]), (False, 1, True, [10])])
def test_it_changes_nothing_but_when_figures_are_collected(
    tmp_path: Path, early: bool, busy: int, fails: bool, started: list[int], expected: dict[str, object]
) -> None:
    """Nor does a validation that finds no room or fails, and is done inline."""
    config = sbn_config_of(tmp_path, *SETTINGS)
    task = Task(config, early=early, busy=busy, fails=fails)
    assert ended(config, WithValidator(task)) == expected
    # Every 5 of 15 steps, the end inline because nothing is left to overlap with.
    assert task.started == started
    assert (config.run_dir / "validation" / "step-00000010" / "errors.png").stat().st_size > 1000


def test_a_run_stopped_meanwhile_validates_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, object]
) -> None:
    cut = sbn_config_of(tmp_path, *SETTINGS, "validation.overlays=0")  # pictures are compared above
    honest = job_module.Job.count

    def count(self: job_module.Job, *arguments: object) -> None:
        honest(self, *arguments)  # type: ignore[arg-type]
        if self.progress.step == 9:
            raise KeyboardInterrupt

    first = WithValidator(Task(cut))
    with monkeypatch.context() as patched:
        patched.setattr(job_module.Job, "count", count)
        with pytest.raises(KeyboardInterrupt):
            run(cut, first)
    assert first.curves.points["val/ap"] == []
    # Two checkpoints followed and only one is kept, but the one to be validated is.
    names = sorted(path.name for path in (cut.run_dir / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000008"]
    assert load_checkpoint(cut.run_dir / "latest").state["progress"]["validating"] == 5
    again = Task(cut)
    found = ended(cut, WithValidator(again))
    assert again.started == [5, 10]
    assert found["figures"] == expected["figures"]
    assert found["ap"] == expected["ap"]
    assert found["kept"] == expected["kept"]


def test_an_early_stop_comes_one_validation_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sbn_config_of(tmp_path, "validation={every_epochs: 1, patience: 1, overlays: 0}", "epochs=9")
    figures = iter([0.4, 0.3, 0.2])

    class Scripted(Task):
        def start(self, _: Mapping[str, Tensor], step: int) -> None:
            self.started.append(step)
            self.figures = {"ap": next(figures), "seconds": 0.0}

    monkeypatch.setattr(async_validation, "validate", lambda *_: {"ap": next(figures), "seconds": 0.0})
    task = Scripted(config)
    result = run(config, WithValidator(task))
    # Steps 5 (best) and 10 (stale) are asynchronous. 10 is collected at 15, where the run ends with one of its own.
    assert task.started == [5, 10]
    assert (result.metrics["step"], result.metrics["ap"]) == (5, 0.4)
    assert result.checkpoint.name == "step-00000005"


@pytest.mark.parametrize("asynchronous", [True, False])
def test_checkpoints_learn_what_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    def found(_store: object, predictions: Predictions, *_: object, flip_test: bool) -> Calibration:
        return MADE.model_copy(update={"brier": float(predictions.scores.mean()), "flip_test": flip_test})

    monkeypatch.setattr(validation, "calibrate_on", found)
    copies = tmp_path / "copies"
    config = sbn_config_of(
        tmp_path, "epochs=2",
        "validation={every_epochs: 1, overlays: 0}",
        f"checkpoint={{keep_last: 2, copy_to: 'file://{copies}'}}",
    )  # fmt: skip
    context = WithValidator(Task(config, busy=0 if asynchronous else 9))
    run(config, context)
    said = dict(context.curves.points["val/visibility_brier"])
    assert sorted(said) == [5, 10]
    assert said[5] != said[10]
    for step, brier in said.items():
        for place in (config.run_dir / "checkpoints", copies / config.name):
            meta = read_meta(place / f"step-{step:08d}")
            assert meta["visibility"]["brier"] == brier
            assert meta["step"] == step
    assert [value for _, value in context.curves.points["val/visibility_brier_base"]] == [MADE.brier_base] * 2
