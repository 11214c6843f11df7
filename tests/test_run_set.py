"""A set of runs side by side: when the rest is not begun any more, and who predicts for a run that ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efafnet.models.variants import VARIANTS
from efafnet.pipelines.evaluation.config import EvaluateConfig, WorkersConfig
from efafnet.pipelines.runs import measured, run_set
from efafnet.pipelines.runs.concurrency import Launch
from efafnet.pipelines.runs.failures import AlikeFailures
from efafnet.pipelines.runs.run_set import Running
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.rundir import TrainResult
from tests.training_cases import sbn_config_of


def outcome(
    monkeypatch: pytest.MonkeyPatch, failures: Sequence[str], *, done: int = 0
) -> tuple[dict[str, str], list[str]]:
    """Run a set whose runs end as ``failures`` says, two at a time; returns what is told of it and who was begun."""
    configs: Any = [SimpleNamespace(name=str(place), workers=1, tracking=SimpleNamespace(run_name=None))
                    for place in range(len(failures))]  # fmt: skip
    begun: list[str] = []

    class Pool(list[Any]):
        def __init__(self, *_: object) -> None:
            """Nothing is asked of a cluster."""

        def begin(self, run: Any, job: dict[str, str]) -> None:
            begun.append(job["name"])
            self.append(run)

        def ended(self, timeout_s: float) -> list[tuple[Any, str]]:
            assert timeout_s > 0
            run = self.pop(0)
            return [(run, failures[int(run.name)])]

        def cancel(self) -> None:
            assert not self

    class Set(run_set._RunSet):
        def _job(self, run: TrainConfig) -> dict[str, Any]:
            return {"name": run.name}

    monkeypatch.setattr(run_set, "TaskPool", Pool)
    monkeypatch.setattr(run_set, "figure_of", lambda *_: 0.5)
    there: Any = Launch(configs, lambda: 2, {}, "")  # type: ignore[arg-type]
    return Set(there, Running(None, "ap"), False, done, show=lambda *_: None).run(), begun


def test_three_that_fail_alike_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = [f"OSError: /mnt/run-{place} is not mounted" for place in range(8)]
    failures, begun = outcome(monkeypatch, reasons)
    assert begun == ["0", "1", "2", "3"]  # the fourth ran beside the third
    assert failures["3"] == reasons[3]
    assert [failures[name] for name in "4567"] == [f"not begun: {reasons[3]}"] * 4


@pytest.mark.parametrize(
    ("reasons", "done"),
    [
        (["OSError: full"] * 6, 1),  # an earlier command of this set had a run that ended
        (["", *["OSError: full"] * 6], 0),
        ([f"DivergedError: at step {step}" for step in range(6)], 0),
        (["OSError: full", "ValueError: no", "OSError: full", "ValueError: no", "RuntimeError: lost"], 0),
    ],
)
def test_all_are_tried_where_others_may_do_better(
    monkeypatch: pytest.MonkeyPatch, reasons: list[str], done: int
) -> None:
    failures, begun = outcome(monkeypatch, reasons, done=done)
    assert begun == [str(place) for place in range(len(reasons))]
    assert list(failures.values()) == [reason for reason in reasons if reason]


def test_reasons_are_alike_whatever_numbers_they_hold() -> None:
    alike = AlikeFailures()
    for place in (1, 22, 333):
        assert alike.repeated == ""
        alike.add(f"OSError: port {place}")
    assert alike.repeated == "OSError: port 333"


def test_a_core_predicts_what_takes_it_seconds_and_rays_workers_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eleven persons, forwards and mirrored: 22 passes, of ResNet-152 at 384x288 28.6 GMAC each. What GPUs trained they
    predict, whatever it is."""

    def workers(*overrides: str) -> WorkersConfig:
        config = sbn_config_of(tmp_path, "workers=2", *overrides)
        measured.predict_validation(config, TrainResult(config.run_dir, tmp_path, {}, None))
        return asked.pop().workers

    def evaluate(config: EvaluateConfig, _: object) -> SimpleNamespace:
        asked.append(config)
        return SimpleNamespace(results=[])

    asked: list[EvaluateConfig] = []
    monkeypatch.setattr(measured, "evaluate", evaluate)
    monkeypatch.setattr(measured, "write_text", lambda *_: None)
    small, large = workers("worker.gpu=no"), VARIANTS["sbn_r152_384x288"].network.model_dump_json()
    assert (small.count, small.gpu) == (0, "no")
    deep = workers("worker.gpu=no", f"network={large}", "input=384x288")
    assert (deep.count, deep.gpu) == (2, "no")
    on_gpus = workers("worker.gpu=yes")
    assert (on_gpus.count, on_gpus.gpu) == (2, "auto")
