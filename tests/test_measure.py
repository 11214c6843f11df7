"""From the files of runs to what a study's statistics take."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efafnet.pipelines.study import measure as module


def test_a_figure_that_is_no_number_is_told_and_says_nothing_of_other_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"a-s0": 0.5, "a-s1": math.nan, "b-s0": 0.25}
    monkeypatch.setattr(module, "has_images", lambda _: False)
    monkeypatch.setattr(module, "is_done", lambda run, _: run.name in figures)
    monkeypatch.setattr(module, "figure_of", lambda run, _: figures[run.name])
    runs: Any = {(row, seed): SimpleNamespace(name=f"{row}-s{seed}", run_dir=Path("runs") / f"{row}-s{seed}")
                 for row in ("a", "b") for seed in (0, 1)}  # fmt: skip
    inputs: Any = None
    a, b = module.measure(["a", "b"], runs, inputs, metric="ap", bootstrap=0)
    assert (a.by_seed, b.by_seed) == ({0: 50.0}, {0: 25.0})
    assert "run a-s1 is left out: its ap is nan; remove runs/a-s1" in " ".join(capsys.readouterr().err.split())
