"""Programs stand still where a test wants to do something to them, however fast the machine is.

Without a hold a run may have ended before the test gets to it, unless it is long enough for the fastest machine, and
then it takes minutes on the slowest.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_SLOW, _SHARDS = "slow", "shards"


class Holds:
    """Where trainings and preparations wait, of programs that are started with ``environment``.

    Args:
        place: a directory that their processes see, too, for nothing else.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._begins = place / "begins"
        self._begins.mkdir(parents=True, exist_ok=True)
        # Python imports it as it starts.
        (self._begins / "sitecustomize.py").write_text(
            f"from pathlib import Path\nfrom tests import holds\nholds.let_all_wait(Path({str(place)!r}))\n"
        )

    def environment(self) -> dict[str, str]:
        """The environment with which a program, and every process it starts, waits here."""
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(self._begins), str(_ROOT)])}

    @contextmanager
    def for_children(self) -> Iterator[None]:
        """Let processes wait that are started meanwhile. All else that is set meanwhile stays: Ray keeps there by what
        its processes know each other."""
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = self.environment()["PYTHONPATH"]
        try:
            yield
        finally:
            del os.environ["PYTHONPATH"]
            if before is not None:
                os.environ["PYTHONPATH"] = before

    def at(self, step: int) -> None:
        """Let every process wait once ``step`` steps are done, as long as it takes."""
        (self._place / str(step)).touch()

    def move(self, step: int, to: int) -> None:
        """Let them go on, and wait again at a later step."""
        self.at(to)
        self.release(step)

    def release(self, step: int) -> None:
        """Let those go on that wait there."""
        (self._place / str(step)).unlink()

    def slowly(self) -> None:
        """Let each step take a fifth of a second longer."""
        (self._place / _SLOW).touch()

    def fast(self) -> None:
        """Let them go on as fast as they can."""
        (self._place / _SLOW).unlink()

    def after_shards(self, count: int) -> None:
        """Let a preparation of crops write no more shards once there are so many."""
        (self._place / _SHARDS).write_text(str(count))

    def clear(self) -> None:
        """Let nobody wait any more."""
        for file in self._place.iterdir():
            if file != self._begins:
                file.unlink()


def let_all_wait(place: Path) -> None:
    """Let this process wait there, whatever it is going to do."""
    _once_imported("efafnet.pipelines.training.job", lambda module: _let_steps_wait(module, place))
    _once_imported("efafnet.pipelines.crops.shards", lambda module: _let_shards_wait(module, place))


def _let_steps_wait(job: Any, place: Path) -> None:
    honest, slow = job.Job.step, place / _SLOW

    def step(self: Any, *arguments: Any) -> Any:
        while (place / str(self.progress.step)).exists():
            self.context.check()  # whether it is wanted any more
            time.sleep(0.02)
        if slow.exists():
            time.sleep(0.2)
        return honest(self, *arguments)

    job.Job.step = step


def _let_shards_wait(shards: Any, place: Path) -> None:
    honest, most = shards.write_shard, place / _SHARDS

    def write_shard(settings: Any, index: int, entries: Any, directory: Path) -> Any:
        while most.exists() and len(list(directory.glob("*.json"))) >= int(most.read_text()):
            time.sleep(0.02)
        return honest(settings, index, entries, directory)

    shards.write_shard = write_shard


def _once_imported(wanted: str, change: Callable[[ModuleType], None]) -> None:
    """Change a module of this process as soon as it is there."""

    class Watch:
        def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
            if name != wanted:
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.loader is not None
            honest = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                honest(module)
                change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Watch())
