"""A torch profile of some steps and a snapshot of the GPU's memory, as files of the run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from efafnet.pipelines.training.config_groups import steps_of
from efafnet.pipelines.training.context import PlainContext
from efafnet.platform import console

FOLDER = "profile"
"""Folder of the files, in the run's directory and in MLflow."""
_ALLOCATIONS = 200_000
"""Newest allocations that a memory snapshot tells of."""


class Profiler:
    """Profiles the wanted steps of rank 0; the others take no part."""

    def __init__(self, steps: str | None, context: PlainContext, run_dir: Path) -> None:
        self._span = None if steps is None or context.rank != 0 else steps_of(steps)
        self._context, self._folder = context, run_dir / FOLDER
        self._profile: profile | None = None
        self._first = 0

    def before(self, step: int) -> None:
        """Begin where step number ``step`` is wanted; a run that is resumed among the wanted ones begins there."""
        if self._span is None or self._profile is not None or not self._span[0] <= step <= self._span[1]:
            return
        activities = [ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS)
        self._profile, self._first = profile(activities=activities), step
        self._profile.start()

    def after(self, step: int) -> None:
        """End after the last wanted step, and write the files. A full disk costs them and not the run."""
        if self._profile is None or self._span is None or step < self._span[1]:
            return
        if self._on_gpu:
            torch.cuda.synchronize(self._context.device)
        self._profile.stop()
        name = f"steps-{self._first}-{step}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            files = [self._folder / f"{name}.trace.json.gz"]
            self._profile.export_chrome_trace(str(files[0]))
            if self._on_gpu:
                files.append(self._folder / f"{name}.memory.pickle")
                torch.cuda.memory._dump_snapshot(str(files[1]))
        except OSError as error:
            console.warn(f"the profile of steps {self._first} to {step} was not written: {error}")
        else:
            for file in files:
                self._context.sink.log_artifact(file, FOLDER)
            self._context.say(f"profile of steps {self._first} to {step}: {', '.join(map(str, files))}")
        self._forget()

    def close(self) -> None:
        """Drop a profile that was begun and not ended."""
        if self._profile is not None:
            with suppress(RuntimeError):
                self._profile.stop()
            self._forget()

    def _forget(self) -> None:
        if self._on_gpu:
            torch.cuda.memory._record_memory_history(enabled=None)
        self._profile = self._span = None

    @property
    def _on_gpu(self) -> bool:
        return self._context.device.type == "cuda"
