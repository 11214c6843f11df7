"""The capacity of a Ray cluster: the machines that are there, and those that its autoscaler may start.

A decision from what lives at the moment of the start is wrong on a cluster whose machines come with the work. All that
depends on it is decided here: whether workers take GPUs, and how many of them there is room for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from efafnet.platform import console, ray_private
from efafnet.platform.cluster import HEAD, Resources, on_head

Shape = Mapping[str, float]
"""What a machine offers, as Ray names it: CPU, GPU, ..."""
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Capacity:
    """The machines of a cluster.

    Args:
        living: those that live now.
        ask: tells those at the cluster's largest, and None where it grows in unknown ways. Called when what lives is
            not enough; left out for a cluster that does not grow.
        is_local: whether it is this machine alone.
    """

    def __init__(
        self,
        living: Sequence[Shape],
        ask: Callable[[], tuple[Shape, ...] | None] | None = None,
        *,
        is_local: bool = False,
    ) -> None:
        self.living, self.is_local = tuple(living), is_local
        self._ask = ask

    @cached_property
    def largest(self) -> tuple[Shape, ...] | None:
        """The machines at the cluster's largest; None where that is unknown."""
        return self.living if self._ask is None else self._ask()

    def living_gpus(self) -> float:
        """GPUs of the machines that live."""
        return _gpus(self.living)

    def most_gpus(self) -> float | None:
        """GPUs of the cluster at its largest; None where that is unknown."""
        return None if self.largest is None else max(self.living_gpus(), _gpus(self.largest))

    def living_room(self, needs: Shape) -> int:
        """How many workers that each need ``needs`` fit now."""
        return _room(self.living, needs)

    def room(self, needs: Shape) -> int | None:
        """How many of them fit at the cluster's largest; None where that is unknown."""
        return None if self.largest is None else max(_room(self.living, needs), _room(self.largest, needs))

    def __str__(self) -> str:
        if self.is_local:
            return "this machine"
        if self.largest is None:
            return "this cluster"
        return "this cluster" if len(self.largest) <= len(self.living) else "this cluster at its largest"


@dataclass(frozen=True)
class ActorPool:
    """Actors that do the same work side by side."""

    count: int
    """Number of actors."""
    gpu: bool
    """Whether each has a GPU."""
    living: int
    """How many there is a place for now; the others come with the machines that are started for them."""


def capacity(there: Resources) -> Capacity:
    """Look at the connected cluster; its autoscaler's settings are asked for on its head."""
    import ray

    living = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    if there.is_local:
        return Capacity(living, is_local=True)
    return Capacity(living, lambda: grown(living, _autoscaler(there.address)))


@lru_cache(maxsize=4)
def _autoscaler(address: str) -> dict[str, Any] | None:
    """The settings of the connected cluster's autoscaler, asked for once; None where none runs, empty where unknown."""
    try:
        return on_head(node_types, address)
    except OSError as error:
        console.warn(f"what the cluster may grow to is not known: {error}")
        return {}


def grown(living: tuple[Shape, ...], config: Mapping[str, Any] | None) -> tuple[Shape, ...] | None:
    """The machines of a cluster at its largest, by its autoscaler's settings; None where they do not tell.

    Args:
        living: the machines that live.
        config: Ray's cluster settings: ``available_node_types``, ``max_workers``, ``head_node_type``; None for a
            cluster that does not grow, empty where they are not known.
    """
    if not config:
        return living if config is None else None
    heads = [shape for shape in living if HEAD in shape]
    workers: list[Shape] = []
    for name, kind in config.get("available_node_types", {}).items():
        if name != config.get("head_node_type"):
            workers += [kind.get("resources") or {}] * int(kind.get("max_workers", config.get("max_workers", 0)))
    # Where not all of them can live together, those with GPUs are what a training asks for.
    workers = sorted(workers, key=lambda shape: -shape.get("GPU", 0))[: config.get("max_workers", len(workers))]
    if all(workers):
        return (*heads, *workers)
    return living if len(living) >= len(heads) + len(workers) else None


def node_types(address: str) -> dict[str, Any] | None:
    """The settings of the autoscaler that serves the cluster at ``address`` (its GCS) from this machine, the head; None
    where none does.

    ``ray up`` and ``ray start --autoscaling-config`` run it with a file, KubeRay in a container beside this one with
    the cluster's resource. Raises OSError where there is one whose settings cannot be read.
    """
    import psutil
    import yaml

    for process in psutil.process_iter(["cmdline"]):
        options = dict(str(word).partition("=")[::2] for word in process.info["cmdline"] or ())
        file = options.get("--autoscaling-config")
        if file and options.get("--gcs-address") == address:  # another Ray of this machine may have one, too
            found: dict[str, Any] = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
            return found
    name = os.environ.get("RAY_CLUSTER_NAME")
    return _kuberay_types(name) if name and "KUBERNETES_SERVICE_HOST" in os.environ else None


def _kuberay_types(name: str) -> dict[str, Any] | None:
    space = (
        os.environ.get("RAY_CLUSTER_NAMESPACE") or (_SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    )
    return ray_private.kuberay_types(name, space)


def decide_gpu(wanted: Literal["auto", "yes", "no"], needed: float, there: Capacity, key: str = "worker.gpu") -> bool:
    """Decide whether workers take GPUs, which may have to be started first.

    Args:
        wanted: the setting; auto takes them where there are, or can be, enough for all workers.
        needed: GPUs that all workers take together.
        there: the cluster.
        key: the setting's name, for messages.

    Raises:
        ValueError: GPUs are wanted that can never come, or nobody knows whether they may come.
    """
    if wanted == "no":
        return False
    if there.living_gpus() >= needed:
        return True
    most = there.most_gpus()
    if most is None:
        if wanted == "yes":
            return True
        raise ValueError(
            f"{key} = auto: the cluster has {there.living_gpus():g} of {needed:g} GPUs now, and what it may grow to is "
            f"not known; set {key}=yes to wait for them, or {key}=no to compute on CPUs"
        )
    if wanted == "yes" and most < needed:
        are = "GPU is" if needed == 1 else "GPUs are"
        raise ValueError(
            f"{key} = yes: {needed:g} {are} needed, {there} has {most:g}; lower the number of workers, or set {key}=no"
        )
    if wanted == "auto" and 0 < most < needed:
        console.warn(
            f"computing on CPUs: {needed:g} GPUs are needed, {there} has {most:g}; fewer workers would use them"
        )
    return most >= needed


def check_room(workers: int, needs: Shape, there: Capacity) -> None:
    """Refuse what the cluster can never run, before anything starts.

    Args:
        workers: the fewest that can do the work.
        needs: of each.
        there: the cluster.

    Raises:
        ValueError: they do not fit, even at its largest.
    """
    if there.living_room(needs) >= workers:
        return
    room = there.room(needs)
    if room is None or room >= workers:
        return
    each = ", ".join(f"{amount:g} {name}" for name, amount in needs.items())
    advice = "; or join a cluster with cluster.address=…" if there.is_local else ""
    raise ValueError(
        f"workers = {workers}: {there} has room for {room} that need {each} each; lower workers or worker.cpus{advice}"
    )


def _gpus(machines: Iterable[Shape]) -> float:
    return sum(machine.get("GPU", 0.0) for machine in machines)


def _room(machines: Iterable[Shape], needs: Shape) -> int:
    """Workers that fit, each within one machine."""
    wanted = {name: amount for name, amount in needs.items() if amount}
    return sum(min(int(shape.get(name, 0) / amount + 1e-9) for name, amount in wanted.items()) for shape in machines)
