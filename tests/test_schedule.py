"""Lengths of runs, due dates and learning rates, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from efafnet.pipelines.training.schedule import Plan, ScheduleConfig, due, learning_rate, plan_run


def plan(steps: int = 1000, full: int | None = None, epochs: float = 10.0) -> Plan:
    full = full or steps
    return Plan(steps=steps, full_steps=full, epochs=epochs, steps_per_epoch=full / epochs)


def test_a_run_has_enough_batches_for_its_epochs() -> None:
    # 3 epochs of 100 persons are 300 samples: 9 batches of 32 are 288, so 10.
    found = plan_run(epochs=3, samples=100, global_batch=32)
    assert (found.steps, found.full_steps, found.steps_per_epoch) == (10, 10, 3.125)
    assert found.epoch(5) == 1.6
    # The published recipe: 150 epochs of COCO's 149,813 persons in batches of 64.
    assert plan_run(epochs=150, samples=149_813, global_batch=64).steps == 351_125


@pytest.mark.parametrize(("budget", "steps"), [(None, 10), (1, 1), (33, 2), (10_000, 10)])
def test_a_budget_in_samples_shortens_a_run_and_never_lengthens_it(budget: int | None, steps: int) -> None:
    found = plan_run(epochs=3, samples=100, global_batch=32, max_samples=budget)
    assert (found.steps, found.full_steps) == (steps, 10)


def test_due_is_the_first_whole_step_at_or_after_each_multiple() -> None:
    assert [step for step in range(1, 13) if due(step, 3.125)] == [4, 7, 10]
    assert [step for step in range(1, 9) if due(step, 4)] == [4, 8]
    # Oftener than every step is every step.
    assert [step for step in range(1, 4) if due(step, 0.4)] == [1, 2, 3]
    assert not due(5, None)


def test_multistep_drops_exactly_at_its_milestones() -> None:
    # 140 epochs of 10 steps; the simple baselines' recipe: 1e-3, times 0.1 at 90 and 120.
    config = ScheduleConfig(kind="multistep", milestones=(90, 120))
    full = plan(steps=1400, epochs=140)
    rates = [learning_rate(config, 1e-3, step, full) for step in (0, 899, 900, 1199, 1200, 1399)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rel=1e-12)


def test_milestones_between_steps_drop_at_the_next_step() -> None:
    # One epoch is 3.125 steps, so epoch 1.5 begins after 4.6875 steps: step 4 is before it, step 5 after.
    config = ScheduleConfig(kind="multistep", milestones=(1.5,), factor=0.5)
    found = plan_run(epochs=3.2, samples=100, global_batch=32)
    assert found.steps == 10
    assert [learning_rate(config, 1.0, step, found) for step in (4, 5)] == [1.0, 0.5]


def test_cosine_is_half_a_wave_down_to_its_floor() -> None:
    config = ScheduleConfig(kind="cosine", floor=0.1)
    rates = [learning_rate(config, 2.0, step, plan(steps=100)) for step in (0, 25, 50, 75)]
    # floor + (1 - floor) (1 + cos(pi t)) / 2 at t = 0, 1/4, 1/2, 3/4
    expected = [2 * (0.1 + 0.9 * (1 + c) / 2) for c in (1, math.sqrt(0.5), 0, -math.sqrt(0.5))]
    assert rates == pytest.approx(expected, rel=1e-12)
    last = learning_rate(config, 2.0, 99, plan(steps=100))
    assert 0.2 < last < 0.201


def test_cosine_equals_torchs() -> None:
    config = ScheduleConfig(kind="cosine", floor=0.02)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=37, eta_min=0.01)
    for step in range(37):
        assert learning_rate(config, 0.5, step, plan(steps=37)) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_one_cycle_rises_and_falls() -> None:
    config = ScheduleConfig(kind="one_cycle", start=0.04, rise=0.3, floor=0.0)
    rates = [learning_rate(config, 1e-2, step, plan(steps=100)) for step in (0, 15, 30, 65, 99)]
    # Half way up: the mean of .04 and 1; half way down: one half. The last step is 69/70 of the way down.
    last = 1e-2 * (1 + math.cos(math.pi * 69 / 70)) / 2
    assert rates == pytest.approx([4e-4, 0.52e-2, 1e-2, 0.5e-2, last], rel=1e-12)


def test_warm_up_is_linear_and_multiplies_any_kind() -> None:
    config = ScheduleConfig(kind="multistep", milestones=(5,), warmup_steps=500, warmup_start=0.001)
    rates = [learning_rate(config, 5e-4, step, plan(steps=1000)) for step in (0, 250, 499, 500)]
    # step 500 is epoch 5 of 10: warm and already past the milestone
    expected = [5e-4 * 0.001, 5e-4 * 0.5005, 5e-4 * (0.001 + 0.999 * 0.998), 5e-5]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(kind="multistep", milestones=(6, 8), warmup_steps=100),
        ScheduleConfig(kind="cosine", floor=0.05, warmup_steps=40),
        ScheduleConfig(kind="one_cycle"),
    ],
)
def test_a_smaller_budget_is_a_small_full_run(config: ScheduleConfig) -> None:
    full, quarter = plan(steps=1000), plan(steps=250, full=1000)
    for step in range(250):
        assert learning_rate(config, 1.0, step, quarter) == pytest.approx(learning_rate(config, 1.0, 4 * step, full))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": [120, 90]}, "ascending"),
        ({"milestones": [0]}, "positive"),
        ({"factor": 0}, r"factor must lie in \(0, 1\]"),
        ({"floor": 1.5}, "floor is a fraction"),
        ({"rise": 1}, "rise must lie between"),
        ({"warmup_steps": -1}, "must not be negative"),
        ({"gamma": 0.1}, "gamma"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScheduleConfig.model_validate(settings)


def test_settings_without_effect_are_named() -> None:
    assert ScheduleConfig(kind="cosine", milestones=(3,), rise=0.2, floor=0.1).ignored() == ["milestones", "rise"]
    assert ScheduleConfig(kind="multistep", milestones=(3,), warmup_steps=9).ignored() == []
