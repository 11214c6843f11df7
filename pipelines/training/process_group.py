"""The process group of Ray Train's workers, over the network that the cluster itself uses.

Imports no torch: the process that controls the workers, which each run starts first, would load it for nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from efafnet.platform import ray_private
from efafnet.platform.node_interface import use_node_interface

LEAVE_S = 30.0
"""Longest wait for workers to leave their process group, seconds, and never longer than for an exchange between them:
one that stopped answering never will."""


@dataclass
class ClusterTorchConfig(BackendConfig):
    """What Ray's ``TorchConfig`` sets up, but with gloo where the other nodes reach this one.

    By itself gloo listens on the address of the host's name, which on a freshly installed Debian or Ubuntu is
    127.0.1.1: workers on different nodes would find nobody there, and fail.
    """

    backend: str
    """Torch's name of the backend, as in ``init_process_group``."""
    timeout_s: int
    """Longest wait in an exchange between the workers, seconds."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the process group up."""
        return _ClusterBackend


class _ClusterBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ClusterTorchConfig)
        try:
            self._join(worker_group, backend_config)
        except BaseException:
            # Ray Train forgets workers that started and could not meet: their places would stay taken until the program
            # ends, and the next try would wait for them.
            ray_private.end_workers(worker_group)
            raise

    def _join(self, worker_group: Any, backend_config: ClusterTorchConfig) -> None:
        worker_group.execute(use_node_interface)
        meeting = worker_group.execute_single(0, ray_private.address_and_port)
        size, how = len(worker_group), (backend_config.backend, backend_config.timeout_s)
        ray.get([
            worker_group.execute_single_async(rank, ray_private.join_torch_group, meeting, rank, size, *how)
            for rank in range(size)
        ])  # fmt: skip

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ClusterTorchConfig)
        leaving = worker_group.execute_async(ray_private.leave_torch_group, len(worker_group))
        with suppress(ray.exceptions.GetTimeoutError):
            ray.get(leaving, timeout=min(LEAVE_S, backend_config.timeout_s))
