"""Processes of Ray that compute no network import no torch, which takes 1.5 CPU seconds and a quarter of a gigabyte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_layout import ROOT, imports


def _files(dotted: str) -> list[Path]:
    """The module of this project that a dotted name is, or is in."""
    path = ROOT / dotted.removeprefix("efafnet.").replace(".", "/")
    return [file for file in (path.with_suffix(".py"), path.parent.with_suffix(".py")) if file.is_file()]


def _imported_with(module: str) -> set[str]:
    """Everything that is imported with a module of this project, and with those that it imports."""
    seen, waiting = set[Path](), _files(module)
    names = set[str]()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            found = [name for name, at_once in imports(path) if at_once]
            names.update(found)
            waiting += [file for name in found if name.startswith("efafnet.") for file in _files(name)]
    return names


def test_what_is_imported_is_found_through_modules_between() -> None:
    assert "torch" in _imported_with("efafnet.pipelines.serving.replica")
    assert "torch" in _imported_with("efafnet.pipelines.evaluation.evaluate")


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("efafnet.pipelines.crops.shard_writing", id="tasks that prepare"),
        pytest.param("efafnet.pipelines.evaluation.crop_view", id="tasks that warp crops"),
        pytest.param("efafnet.pipelines.serving.deployment", id="fronts"),
        pytest.param("efafnet.pipelines.training.process_group", id="what controls a run's workers"),
        pytest.param("efafnet.pipelines.training.errors", id="what it hears of one that failed"),
        pytest.param("efafnet.pipelines.training.reservations", id="what it tells when they have started"),
    ],
)
def test_a_light_process(module: str) -> None:
    assert _files(module)
    assert not {name for name in _imported_with(module) if name.partition(".")[0] == "torch"}
