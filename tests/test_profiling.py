"""Steps that are looked at closely: when the profile begins and ends, and the files it leaves."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from efafnet.pipelines.training import profiling
from efafnet.pipelines.training.loop import run
from efafnet.pipelines.training.profiling import Profiler
from efafnet.platform.configuration import ConfigurationError
from tests.test_loop import Quiet
from tests.training_cases import sbn_config_of


def test_wanted_steps_leave_a_trace_in_the_run(tmp_path: Path) -> None:
    context = Quiet()
    config = sbn_config_of(tmp_path, "profile.steps=3..4", "epochs=1", "data.val=null")
    run(config, context)
    file = config.run_dir / "profile" / "steps-3-4.trace.json.gz"
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    optimizer_steps = [e for e in events if str(e.get("name", "")).startswith("Optimizer.step#FusedAdam")]
    assert len(optimizer_steps) == 2
    assert context.curves.artifacts == ["profile/steps-3-4.trace.json.gz"]
    assert any(line.startswith("profile of steps 3 to 4: ") for line in context.lines)


def test_a_run_that_ends_among_the_wanted_steps_leaves_nothing_half_written(tmp_path: Path) -> None:
    context = Quiet()
    config = sbn_config_of(tmp_path, "profile.steps=4..9", "epochs=1", "data.val=null")
    run(config, context)
    assert not (config.run_dir / "profile").exists()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as free:
        torch.ones(3).sum()
    assert free.key_averages(), "the profiler was given back"


@pytest.mark.parametrize("steps", ["5..", "9..3", "0..3", "1..500", "a..b"])
def test_what_is_no_span_of_steps(tmp_path: Path, steps: str) -> None:
    with pytest.raises(ConfigurationError, match=r"profile.*FIRST..LAST like 100..104, counted from 1"):
        sbn_config_of(tmp_path, f"profile.steps={steps}")


def test_on_a_gpu_the_memory_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's calls are stubs that take the real ones' arguments, and the order is what counts."""
    context = Quiet()
    context.device = torch.device("cuda", 0)
    calls = mock.Mock()
    for owner, name in (
        (torch.cuda.memory, "_record_memory_history"),
        (torch.cuda.memory, "_dump_snapshot"),
        (torch.cuda, "synchronize"),
    ):
        stub = mock.create_autospec(getattr(owner, name))
        calls.attach_mock(stub, name)
        monkeypatch.setattr(owner, name, stub)
    recorded: Any = mock.create_autospec(torch.profiler.profile)
    monkeypatch.setattr(profiling, "profile", recorded)
    profiler = Profiler("2..3", context, tmp_path)
    for step in range(1, 5):
        profiler.before(step)
        profiler.after(step)
    profiler.close()
    activities = torch.profiler.ProfilerActivity
    recorded.assert_called_once_with(activities=[activities.CPU, activities.CUDA])
    snapshot = str(tmp_path / "profile" / "steps-2-3.memory.pickle")
    assert calls.mock_calls == [
        mock.call._record_memory_history(max_entries=200_000),
        mock.call.synchronize(context.device),
        mock.call._dump_snapshot(snapshot),
        mock.call._record_memory_history(enabled=None),
    ]
    assert context.curves.artifacts == ["profile/steps-2-3.trace.json.gz", "profile/steps-2-3.memory.pickle"]
