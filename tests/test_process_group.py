"""Over which network workers exchange gradients. Between machines: test_nodes.py."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest
import ray.util

from efafnet.pipelines.training import process_group
from efafnet.pipelines.training.process_group import interface_of, use_node_interface


def test_an_address_belongs_to_an_interface_or_to_none() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


def test_the_interface_of_the_nodes_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"lo": "127.0.0.1", "eth0": "203.0.113.5", "ib0": "10.1.0.5"}
    known = {name: [SimpleNamespace(address=address)] for name, address in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: known)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.0.5")
    monkeypatch.setattr(os, "environ", {})
    use_node_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=ib0", "without the sign NCCL takes every interface that begins so"


def test_what_the_environment_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib")
    use_node_interface()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth7", "ib")


def test_an_address_seen_only_from_outside_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.1")
    monkeypatch.setattr(os, "environ", {})
    use_node_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_ray_train_takes_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Group:
        def execute(self, function: object) -> None:
            done.append("interface" if function is use_node_interface else "?")

    base = process_group._ClusterBackend.__bases__[0]
    monkeypatch.setattr(base, "on_start", lambda *_: done.append("process group"))
    config = process_group.ClusterTorchConfig(backend="gloo")
    config.backend_cls().on_start(Group(), config)
    assert done == ["interface", "process group"]
