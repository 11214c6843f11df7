"""The network interface over which the nodes of a cluster reach each other."""

from __future__ import annotations

import os

import psutil


def use_node_interface() -> None:
    """Let gloo and NCCL use the network interface of this node's address, unless the environment names one.

    NCCL looks among all interfaces itself, and may choose one that leads nowhere; over InfiniBand or EFA only its first
    contact goes this way.
    """
    import ray

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
