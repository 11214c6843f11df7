"""Over which network workers exchange gradients. Between machines: test_nodes.py."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import ray
import ray.util

from efafnet.pipelines.training.process_group import LEAVE_S, ClusterTorchConfig
from efafnet.platform import ray_private
from efafnet.platform.node_interface import interface_of, use_node_interface


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


class Group:
    """Two workers that note what they are told to do."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return 2

    def execute(self, function: Any) -> None:
        self.done.append(("all", function))

    def execute_single(self, rank: int, function: Any) -> tuple[str, int]:
        self.done.append((rank, function))
        return "10.1.0.5", 29500

    def execute_single_async(self, rank: int, function: Any, *arguments: Any) -> tuple[Any, ...]:
        self.done.append((rank, function, *arguments))
        return self.done[-1]

    def execute_async(self, function: Any, *arguments: Any) -> tuple[Any, ...]:
        self.done.append(("all", function, *arguments))
        return self.done[-1]


@pytest.mark.parametrize(("timeout_s", "leave_s"), [(300, LEAVE_S), (10, 10)])
def test_ray_train_takes_this_way(monkeypatch: pytest.MonkeyPatch, timeout_s: int, leave_s: float) -> None:
    """First the interface, then all meet at the first worker's address at once; in the end they leave."""
    waited: list[Any] = []
    monkeypatch.setattr(ray, "get", lambda what, timeout=None: waited.append((what, timeout)))
    config, group = ClusterTorchConfig(backend="gloo", timeout_s=timeout_s), Group()
    config.backend_cls().on_start(cast(Any, group), config)
    meeting = ("10.1.0.5", 29500)
    joining = [(rank, ray_private.join_torch_group, meeting, rank, 2, "gloo", timeout_s) for rank in range(2)]
    assert group.done == [("all", use_node_interface), (0, ray_private.address_and_port), *joining]
    config.backend_cls().on_shutdown(cast(Any, group), config)
    leaving = ("all", ray_private.leave_torch_group, 2)
    assert waited == [(joining, None), (leaving, leave_s)]


def test_workers_that_cannot_meet_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason: a worker that died, or a network that leads nowhere."""
    ended: list[Any] = []
    monkeypatch.setattr(ray_private, "end_workers", ended.append)
    config = ClusterTorchConfig(backend="gloo", timeout_s=30)
    for error in (ray.exceptions.RayActorError(), RuntimeError("connection refused"), KeyboardInterrupt()):

        def fail(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(ray, "get", fail)
        group = Group()
        with pytest.raises(type(error)):
            config.backend_cls().on_start(cast(Any, group), config)
        assert ended.pop() is group
    monkeypatch.setattr(ray, "get", lambda what, timeout=None: None)  # noqa: ARG005
    config.backend_cls().on_start(cast(Any, Group()), config)
    assert ended == []


def test_workers_that_cannot_leave_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise ray.exceptions.GetTimeoutError("30 s")

    monkeypatch.setattr(ray, "get", late)
    config = ClusterTorchConfig(backend="gloo", timeout_s=30)
    config.backend_cls().on_shutdown(cast(Any, Group()), config)
