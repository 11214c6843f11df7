"""How fast the nodes of a cluster add up gradients: an all-reduce among them, measured."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Literal

from efafnet.platform.cluster import on_every_node, this_node
from efafnet.platform.health import Finding
from efafnet.platform.node_interface import use_node_interface

Backend = Literal["gloo", "nccl"]

_BYTES = 64 * 2**20
_GRADIENT_BYTES = 4 * 37_600_000
"""Bytes of the gradients of EFAFNet with ResNet-50, in float32."""
_SLOW_GB_S = 0.75
"""Below this the gradients of a ResNet-50 take a fifth of a second a step, as long as a GPU computes on 400 crops."""
_LIMIT_S = 60.0


def all_reduce_findings(gpu_nodes: int) -> Iterator[Finding]:
    """Measure the network of a cluster of several nodes: by gloo, and by NCCL where several nodes have GPUs."""
    yield all_reduce_finding("gloo", gpus=0)
    if gpu_nodes > 1:
        yield all_reduce_finding("nccl", gpus=1)


def all_reduce_finding(backend: Backend, *, gpus: int) -> Finding:
    """All-reduce 64 MiB among all nodes (with so many GPUs) and tell the rate."""
    what = f"network, {backend}"
    places = on_every_node(meeting_point, timeout_s=_LIMIT_S, gpus=gpus)
    blind = [place for place in places if isinstance(place, str)]
    if blind:
        return Finding("fail", what, "; ".join(blind), "see that all nodes are alive and free: `ray status`")
    ranks = {node: rank for rank, (node, _) in enumerate(place for place in places if not isinstance(place, str))}
    address = next(place[1] for place in places if not isinstance(place, str))
    rates = on_every_node(all_reduce, address, ranks, backend, timeout_s=2 * _LIMIT_S, gpus=gpus)
    return _finding(what, [rate for rate in rates if rate is not None], backend)


def _finding(what: str, rates: list[float | str], backend: Backend) -> Finding:
    faults = [rate for rate in rates if isinstance(rate, str)]
    variable = f"{backend.upper()}_SOCKET_IFNAME"
    if faults:
        remedy = f"open all ports between the nodes, and name their common network with {variable}"
        return Finding("fail", what, f"an all-reduce between the nodes fails: {faults[0]}", remedy)
    rate = min(rate for rate in rates if not isinstance(rate, str))
    found = (
        f"all-reduce among {len(rates)} nodes: {rate:.2f} GB/s, {_GRADIENT_BYTES / rate / 1e6:.0f} ms a step for the "
        "gradients of a ResNet-50"
    )
    if rate >= _SLOW_GB_S:
        return Finding("ok", what, found)
    remedy = (
        "train on one node with several GPUs, or on a faster network between the nodes; a larger batch_size exchanges "
        f"less often. Where nodes have several networks, {variable} names the fast one"
    )
    return Finding("warn", what, found, remedy)


def meeting_point() -> tuple[str, str]:
    """This node's id and an address on it where the others can meet: HOST:PORT."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    node, address = this_node()
    return node, f"{address}:{port}"


def all_reduce(address: str, ranks: Mapping[str, int], backend: Backend) -> float | None:
    """GB/s of adding up 64 MiB, as one of the nodes; None on a node that came later and takes no part."""
    import torch
    from torch import distributed

    rank = ranks.get(this_node()[0])
    if rank is None:
        return None
    use_node_interface()
    limit = timedelta(seconds=_LIMIT_S)
    where = f"tcp://{address}"
    distributed.init_process_group(backend, init_method=where, rank=rank, world_size=len(ranks), timeout=limit)
    try:
        values = torch.ones(_BYTES // 4, device="cuda" if backend == "nccl" else "cpu")
        return _BYTES / min(_seconds(values) for _ in range(4)) / 1e9
    finally:
        distributed.destroy_process_group()


def _seconds(values: object) -> float:
    import torch
    from torch import distributed

    assert isinstance(values, torch.Tensor)
    distributed.barrier()
    began = time.perf_counter()
    distributed.all_reduce(values)
    if values.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
