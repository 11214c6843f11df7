"""An all-reduce between nodes: measured by two processes that stand for them, and told with what it means."""

from __future__ import annotations

import pytest

from efafnet.pipelines import all_reduce
from efafnet.pipelines.all_reduce import all_reduce_finding


def nodes(*rates: float | str) -> object:
    def ask(look: object, *_: object, **__: object) -> list[object]:
        if look is all_reduce.meeting_point:
            return [(f"node-{index}", f"10.0.0.{index}:5{index}") for index in range(len(rates))]
        return list(rates)

    return ask


def test_the_slowest_node_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """37.6 million gradients of 4 bytes: 150.4 MB, at 2 GB/s 75 ms."""
    monkeypatch.setattr(all_reduce, "on_every_node", nodes(2.5, 2.0, 3.0))
    finding = all_reduce_finding("gloo", gpus=0)
    assert (finding.state, finding.what) == ("ok", "network, gloo")
    assert finding.found.startswith("all-reduce among 3 nodes: 2.00 GB/s, 75 ms a step")


def test_a_slow_network_and_one_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce, "on_every_node", nodes(0.11, 0.12))
    assert all_reduce_finding("nccl", gpus=1).state == "warn"
    monkeypatch.setattr(all_reduce, "on_every_node", nodes(1.0, "n2: Connection refused"))
    finding = all_reduce_finding("gloo", gpus=0)
    assert (finding.state, finding.found) == ("fail", "an all-reduce between the nodes fails: n2: Connection refused")
    assert "GLOO_SOCKET_IFNAME" in finding.remedy


def test_nodes_that_do_not_answer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce, "on_every_node", lambda *_, **__: ["n2: does not answer within 60 s"])
    finding = all_reduce_finding("gloo", gpus=0)
    assert (finding.state, finding.found) == ("fail", "n2: does not answer within 60 s")
