"""The process group of Ray Train's workers, over the network that the cluster itself uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray.util
from ray.train.torch.config import TorchConfig

from efafnet.platform import ray_private


@dataclass
class ClusterTorchConfig(TorchConfig):
    """``TorchConfig`` whose gloo listens where the other nodes reach this one.

    By itself gloo listens on the address of the host's name, which on a freshly installed Debian or Ubuntu is
    127.0.1.1: workers on different nodes would find nobody there, and fail.
    """

    @property
    def backend_cls(self) -> type[Any]:
        """What sets the process group up."""
        return _ClusterBackend


_TorchBackend: Any = ray_private.torch_backend()


class _ClusterBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)


def use_node_interface() -> None:
    """Let gloo and NCCL use the network interface of this node's address, unless the environment names one.

    NCCL looks among all interfaces itself, and may choose one that leads nowhere; over InfiniBand or EFA only its first
    contact goes this way.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # the sign: this one, not all that begin so


def interface_of(address: str) -> str | None:
    """Return the network interface of this machine that has the address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return name
    return None
