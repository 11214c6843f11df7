"""Steps that are looked at closely: when the profile begins and ends, and the files it leaves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from efafnet.pipelines.training.loop import run
from efafnet.platform.configuration import ConfigurationError
from tests.test_loop import Quiet
from tests.training_cases import config_of


def test_wanted_steps_leave_a_trace_in_the_run(tmp_path: Path) -> None:
    context = Quiet()
    config = config_of(tmp_path, "profile.steps=3..4", "epochs=1", "data.val=null")
    run(config, context)
    file = config.run_dir / "profile" / "steps-3-4.trace.json.gz"
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    optimizer_steps = [e for e in events if str(e.get("name", "")).startswith("Optimizer.step#Adam")]
    assert len(optimizer_steps) == 2
    assert context.curves.artifacts == ["profile/steps-3-4.trace.json.gz"]
    assert any(line.startswith("profile of steps 3 to 4: ") for line in context.lines)


def test_a_run_that_ends_among_the_wanted_steps_leaves_nothing_half_written(tmp_path: Path) -> None:
    context = Quiet()
    config = config_of(tmp_path, "profile.steps=4..9", "epochs=1", "data.val=null")
    run(config, context)
    assert not (config.run_dir / "profile").exists()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as free:
        torch.ones(3).sum()
    assert free.key_averages(), "the profiler was given back"


@pytest.mark.parametrize("steps", ["5..", "9..3", "0..3", "1..500", "a..b"])
def test_what_is_no_span_of_steps(tmp_path: Path, steps: str) -> None:
    with pytest.raises(ConfigurationError, match=r"profile.*FIRST..LAST like 100..104, counted from 1"):
        config_of(tmp_path, f"profile.steps={steps}")
