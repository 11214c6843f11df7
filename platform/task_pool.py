"""Many calls of one function as Ray tasks, each known by what it is for: as many at a time as the caller begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
T = TypeVar("T")


class TaskPool(Generic[Key, T]):
    """The calls that run.

    Args:
        function: what is called, in processes that Ray gives.
        resources: what each call reserves, as Ray names it: CPU, GPU, and others.
        retries: times that a call whose process died is made again.
    """

    def __init__(self, function: Callable[..., T], resources: Mapping[str, float], retries: int) -> None:
        import ray

        self._task: Any = ray.remote(function).options(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            resources={name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")},
            max_retries=retries,
        )
        self._running: dict[Any, Key] = {}

    def __len__(self) -> int:
        """Number of calls that run."""
        return len(self._running)

    def running(self) -> list[Key]:
        """What the calls that run are for, in the order of their beginning."""
        return list(self._running.values())

    def begin(self, key: Key, *arguments: object) -> None:
        """Call the function for ``key``; returns at once."""
        self._running[self._task.remote(*arguments)] = key

    def ended(self, timeout_s: float) -> list[tuple[Key, T | Exception]]:
        """Wait until a call ends, but not longer than ``timeout_s``.

        Returns:
            What each call that ended was for, with its answer, or with what Ray raised in its place.
        """
        import ray

        done, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        answers: list[tuple[Key, T | Exception]] = []
        for reference in done:
            key = self._running.pop(reference)
            try:
                answers.append((key, ray.get(reference)))
            except ray.exceptions.RayError as error:
                answers.append((key, error))
        return answers

    def cancel(self) -> None:
        """End the processes of all calls that run."""
        import ray

        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
