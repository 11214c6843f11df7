"""Which mode of executing a step is tried, timed and chosen, and what happens where one is not possible."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from efafnet.pipelines.training import execution
from efafnet.pipelines.training.config_groups import ComputeConfig, OptimizerConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.execution import MEASURED, Execution, StepMode, step_modes
from efafnet.pipelines.training.graph import WARM_UP
from efafnet.pipelines.training.step import StepLosses, Trainee, train_step
from efafnet.platform.configuration import ConfigurationError
from tests.test_step import batch_of, trainee_of

STEPS = WARM_UP + 1 + MEASURED
"""Steps of one trial."""


def on_gpu(**given: Any) -> Any:
    """As much of a trainee as the choice of modes looks at."""
    trainee = trainee_of(OptimizerConfig(), **given)
    trainee.device = torch.device("cuda", 0)
    return trainee


def test_the_ways_that_settings_and_devices_allow() -> None:
    plain, graph, compiled, both = StepMode(), StepMode("off", True), StepMode("default"), StepMode("default", True)
    assert step_modes(ComputeConfig(), on_gpu()) == [plain, compiled]
    assert step_modes(ComputeConfig(graph="auto"), on_gpu()) == [plain, graph, compiled, both]
    assert step_modes(ComputeConfig(graph="auto"), on_gpu(world_size=4)) == [plain, compiled]
    assert step_modes(ComputeConfig(graph="auto"), on_gpu(scaled=True)) == [plain, compiled]
    assert step_modes(ComputeConfig(compile="off", graph="on"), on_gpu()) == [graph]
    assert step_modes(ComputeConfig(compile="max-autotune", graph="off"), on_gpu()) == [StepMode("max-autotune")]
    assert step_modes(ComputeConfig(graph="auto"), trainee_of(OptimizerConfig())) == [plain]
    assert step_modes(ComputeConfig(compile="default"), trainee_of(OptimizerConfig())) == [compiled]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: trainee_of(OptimizerConfig()), "there is no GPU"),
        (lambda: on_gpu(world_size=2), "several workers exchange gradients"),
        (lambda: on_gpu(scaled=True), "fp16 scales the loss"),
    ],
)
def test_a_graph_where_there_can_be_none(made: Callable[[], Trainee], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=f"compute.graph = on: {reason}.*; leave it to auto"):
        step_modes(ComputeConfig(graph="on"), made())


class Run:
    """Steps whose modes take so many seconds each by a clock of their own; a mode in ``broken`` raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost_s: dict[StepMode, float], **given: Any) -> None:
        self.cost_s, self.now, self.taken = cost_s, 0.0, list[StepMode]()
        self.broken: tuple[StepMode, ...] = given.pop("broken", ())
        self.error: Exception = given.pop("error", RuntimeError("no compiler\nat all"))
        self.told: list[str] = []
        monkeypatch.setattr(execution, "step_modes", lambda *_: list(cost_s))
        monkeypatch.setattr(execution, "train_step", self.take)
        monkeypatch.setattr(execution, "GraphedStep", lambda _: self.take)
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # what it takes is in ``cost_s``
        self.trainee = trainee_of(OptimizerConfig())
        steps_left = given.pop("steps_left", 10**9)
        self.execution = Execution(
            self.trainee, PlainContext(torch.device("cpu")), self.told.append, steps_left, clock=lambda: self.now
        )

    def take(self, *arguments: Any) -> StepLosses:
        mode = self.execution._current.mode
        self.taken.append(mode)
        if mode in self.broken:
            raise self.error
        self.now += self.cost_s[mode] + (10 if self.taken.count(mode) == 1 and mode.compiling != "off" else 0)
        return train_step(*arguments)

    def steps(self, count: int) -> list[StepMode]:
        """Take so many steps; the modes that they were taken in."""
        before = len(self.taken)
        for step in range(count):
            self.execution(self.trainee, batch_of(8), step, 0.0)
        return [mode for mode, _ in itertools.groupby(self.taken[before:])]


PLAIN, GRAPH, COMPILED = StepMode(), StepMode("off", True), StepMode("default")


def test_the_fastest_way_is_chosen_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, {PLAIN: 0.08, GRAPH: 0.05, COMPILED: 0.06})
    assert run.steps(3 * STEPS) == [PLAIN, GRAPH, COMPILED]
    assert run.told == [
        "a step as written: 80.0 ms, warm-up 0.3 s; as written, as a CUDA graph: 50.0 ms, warm-up 0.2 s; "
        "compiled: 60.0 ms, warm-up 10.2 s; chosen: as written, as a CUDA graph"
    ]
    assert run.steps(5) == [GRAPH]
    assert run.execution.chosen == GRAPH


def test_compiling_is_not_tried_where_little_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, {PLAIN: 0.08, COMPILED: 0.01}, steps_left=1000)  # 80 seconds
    assert run.steps(2 * STEPS) == [PLAIN]
    assert run.execution.chosen == PLAIN


def test_a_way_that_is_not_possible_is_told_and_its_step_taken_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, {PLAIN: 0.08, GRAPH: 0.05, COMPILED: 0.06}, broken=(GRAPH, COMPILED))
    assert run.steps(2 * STEPS) == [PLAIN, GRAPH, COMPILED, PLAIN]
    assert run.told[0] == "steps as written, as a CUDA graph are not possible here (RuntimeError: no compiler)"
    assert run.execution.chosen == PLAIN
    only = Run(monkeypatch, {COMPILED: 0.06}, broken=(COMPILED,))
    only.cost_s[PLAIN] = 0.08
    assert only.steps(2) == [COMPILED, PLAIN]


def test_what_the_step_as_written_raises_is_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, {PLAIN: 0.08, GRAPH: 0.05}, broken=(PLAIN,))
    with pytest.raises(RuntimeError, match="no compiler"):
        run.steps(1)


def test_memory_rules_out_a_way_on_trial_and_is_the_runs_later(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, {PLAIN: 0.08, GRAPH: 0.05}, broken=(GRAPH,), error=torch.OutOfMemoryError("CUDA"))
    run.steps(STEPS + 2)
    assert run.execution.chosen == PLAIN
    chosen = Run(monkeypatch, {GRAPH: 0.05}, broken=(GRAPH,), error=torch.OutOfMemoryError("CUDA"))
    with pytest.raises(torch.OutOfMemoryError):
        chosen.steps(1)


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_compiled_step_is_the_step_as_written() -> None:
    """On a CPU with the real compiler: float32 to 1e-5; a smaller last part has a program of its own."""
    written, compiled = (trainee_of(OptimizerConfig(), micro_batch=5) for _ in range(2))
    compiled.compute = ComputeConfig(compile="default", channels_last=False)
    execute = Execution(compiled, PlainContext(torch.device("cpu")), lambda line: pytest.fail(line), 10)
    for step in range(3):
        expected = train_step(written, batch_of(8, step), step, 1e-3)
        found = execute(compiled, batch_of(8, step), step, 1e-3)
        torch.testing.assert_close(found.total, expected.total, rtol=1e-5, atol=0)
    for ours, theirs in zip(compiled.parameters, written.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
