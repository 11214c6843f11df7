"""Ray: joining a cluster or starting one on this machine, and what it has."""

from __future__ import annotations

import logging
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from efafnet.models.settings import Settings
from efafnet.platform import ray_private
from efafnet.platform.credentials import leave_in_cluster
from efafnet.platform.interruption import keeping_sigterm
from efafnet.platform.ray_output import choose_worker_lines
from efafnet.platform.worker_environment import in_own_ray, inherited, local_env, runtime_env

T = TypeVar("T")

QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune")
REACH_S = 5.0
"""Seconds that the head of a cluster may take to accept a connection."""
ANSWER_S = 30.0
"""Seconds that it may take, however busy it is, to say that it is one."""
HEAD = "node:__internal_head__"
"""What Ray says the head has one of, and no other node."""


class ClusterConfig(Settings):
    """Which Ray to use."""

    address: str | None = None
    """HOST:PORT of a running cluster, auto for the one on this machine, or local for a new one that ends with the
    program. Null: RAY_ADDRESS (set inside submitted jobs), else a cluster running on this machine, else a new one."""
    num_cpus: int | None = Field(default=None, ge=1)
    """CPU slots of a new local Ray; null for the number of cores. Ignored, and said so, when a cluster is joined."""


class ClusterError(OSError):
    """No usable Ray; the message says which one was tried and what to do."""


@dataclass(frozen=True)
class Resources:
    """What the connected Ray has."""

    address: str
    """HOST:PORT of its head."""
    is_local: bool
    """Whether this program started it, or the one did whose task or actor this process runs."""
    nodes: int
    """Number of living nodes."""
    cpus: float
    """CPU slots."""
    gpus: float
    """GPUs."""
    gpu_types: tuple[str, ...]
    """Ray's names of the GPU models."""
    dashboard: str
    """Address of the dashboard, empty without one."""

    def __str__(self) -> str:
        kind = "Ray on this machine" if self.is_local else f"Ray cluster at {self.address}"
        gpus = f"{self.gpus:g} GPU ({', '.join(self.gpu_types)})" if self.gpus else "no GPU"
        return f"{kind}: {self.nodes} node{'s'[: self.nodes != 1]}, {self.cpus:g} CPU, {gpus}"


def connect(config: ClusterConfig | None = None, *, show_workers: bool = True) -> Resources:
    """Join or start Ray, once per program; a second call returns what is there.

    Args:
        config: which Ray; default ``ClusterConfig()``.
        show_workers: whether what workers write to their standard error appears on this program's.

    Raises:
        ClusterError: the cluster does not answer, wants a token, or cannot be used from here.
    """
    config = config or ClusterConfig()
    quiet_environment()
    quiet_logs()
    import ray

    if not ray.is_initialized():
        address = _choose_address(config)
        _init(None if address == "local" else address, config, show_workers)
    quiet_logs()
    return resources()


def _choose_address(config: ClusterConfig) -> str:
    """Return ``local``, ``auto`` or HOST:PORT."""
    address = config.address or os.environ.get("RAY_ADDRESS") or ray_private.running_here() or "local"
    if address.startswith(("ray://", "http://", "https://")):
        raise ClusterError(
            f"Ray address {address}: training through a client connection does not work; submit the command instead: "
            "ray job submit --address http://HOST:8265 --working-dir . -- python -m efafnet.pipelines …"
        )
    if address != "local" and config.num_cpus is not None:
        from efafnet.platform import console

        console.warn(f"num_cpus = {config.num_cpus} is ignored: the cluster at {address} has its own")
    return address


def _init(address: str | None, config: ClusterConfig, show_workers: bool) -> None:
    import ray

    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": show_workers}
    given = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address  # as Ray understands it
    if given not in (None, "auto", "local"):
        _await_port(given)
    if address is None:
        # Its dashboard would be ten processes more, and show neither losses nor trials: those are in MLflow.
        options |= {"address": "local", "num_cpus": config.num_cpus, "include_dashboard": False}
    else:
        options |= {"address": address, "runtime_env": runtime_env(address)}
    try:
        with keeping_sigterm(), _own(show_workers=show_workers) if address is None else nullcontext():
            ray.init(**options)
        choose_worker_lines()
        leave_in_cluster()
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"no Ray at {address or 'this machine'}: {reason}; check `ray status`, RAY_ADDRESS, and that "
            "RAY_AUTH_MODE and the token are the cluster's"
        ) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        # As Ray says it where a process of its own is not up within 30 s.
        raise ClusterError(
            f"Ray does not start on this machine: {' '.join(str(error).split())[:300]} Is it very busy, or short of "
            "memory? Give the same command again"
        ) from error


@contextmanager
def _own(*, show_workers: bool) -> Iterator[None]:
    """Start a Ray of this program's own meanwhile."""
    with inherited(local_env()), ray_private.without_onlookers(show_workers=show_workers):
        yield


def _await_port(address: str) -> None:
    """Wait some seconds for a cluster's head to take connections: Ray itself would try for minutes without a word.

    Raises:
        ClusterError: it does not, or something else does.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + REACH_S
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S) as connection:
                _check_speaks_grpc(connection, address)
            return
        except ClusterError:
            raise
        except ValueError as error:
            raise ClusterError(f"Ray address {address}: write HOST:PORT, for example 10.0.0.5:6379") from error
        except OSError as error:
            if time.monotonic() + 0.5 > deadline:
                source = "RAY_ADDRESS" if address == os.environ.get("RAY_ADDRESS") else "cluster.address"
                raise ClusterError(
                    f"no Ray at {address} ({source}): {error.strerror or error}; start the cluster, or unset {source} "
                    "for a Ray on this machine"
                ) from error
        time.sleep(0.5)


def _check_speaks_grpc(connection: socket.socket, address: str) -> None:
    """Refuse a port of something else than Ray's head: of its dashboard, of MLflow, of SSH.

    A server of gRPC begins with HTTP/2's frame of settings (type 4), unasked; with TLS it waits for the client.
    """
    said = b"" if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true") else b"\0\0\0\4"
    connection.settimeout(ANSWER_S)
    with suppress(OSError):
        while len(said) < 4 and (more := connection.recv(4 - len(said))):
            said += more
    if said[3:] != b"\4":
        raise ClusterError(
            f"no Ray at {address}: something else takes connections there; give the address of the head's own port, "
            "6379 unless it was started with another (8265 is its dashboard's)"
        )


def quiet_environment() -> None:
    """Set, before Ray is imported, what keeps it from chatting, from calling home and from starting processes that
    nothing uses; the user's own values win."""
    for name, value in {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # A new Ray would start a process per CPU before it knows of any work, more than most of our work has use for.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        # It announces that .git and .venv are left out, which .gitignore and .rayignore see to anyway.
        "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": "",
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def defaults(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables meanwhile that the user has not set: a later run may want others."""
    with inherited({name: value for name, value in variables.items() if name not in os.environ}):
        yield


def quiet_logs() -> None:
    """Leave Ray's libraries their warnings only."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns that a local Ray is protected by a token, which is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


def resources() -> Resources:
    """Describe the connected Ray."""
    import ray

    total = ray.cluster_resources()
    context = ray.get_runtime_context()
    prefix = "accelerator_type:"
    return Resources(
        address=str(context.gcs_address),
        is_local=ray_private.started_by_this_program() or in_own_ray(),
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        gpu_types=tuple(sorted(name.removeprefix(prefix) for name in total if name.startswith(prefix))),
        dashboard=ray_private.dashboard_address(),
    )


def gpu_nodes() -> int:
    """Number of living nodes of the connected Ray that have GPUs."""
    import ray

    return sum(bool(node["Alive"]) and node["Resources"].get("GPU", 0) >= 1 for node in ray.nodes())


def is_running(config: ClusterConfig) -> bool:
    """Tell whether ``connect`` would join a cluster rather than start one."""
    return _choose_address(config) != "local"


def on_head(look: Callable[..., T], *arguments: object, timeout_s: float = 60.0) -> T:
    """Run a function in a task on the head node; OSError with the reason where that fails.

    The task is bound to the node and takes nothing of it: where the caller's own process holds a reservation, as a
    search's trials do, what a task asks for is looked for inside of that, and there is no room for two.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    [head] = [node for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    place = NodeAffinitySchedulingStrategy(head["NodeID"], soft=False)
    answer = ray.remote(num_cpus=0, max_retries=0)(look).options(scheduling_strategy=place).remote(*arguments)
    try:
        found: T = ray.get(answer, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        ray.cancel(answer)  # one that still waits for its turn
        raise ClusterError(f"the head does not tell: {_last_line(error)}") from error
    return found


def on_every_node(look: Callable[..., T], *arguments: object, timeout_s: float = 60.0, gpus: int = 0) -> list[T | str]:
    """Run a function in a task on each living node, all at once; where that fails, its place holds ``HOST: reason``.

    With ``gpus`` only nodes that have so many are asked, and the tasks get them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(look)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= gpus]
    pinned = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [task.options(scheduling_strategy=place).remote(*arguments) for place in pinned]
    ready = set(ray.wait(answers, num_returns=len(answers), timeout=timeout_s)[0]) if answers else set()
    found: list[T | str] = []
    for node, answer in zip(nodes, answers, strict=True):
        try:
            if answer not in ready:
                raise TimeoutError(f"does not answer within {timeout_s:g} s")
            found.append(ray.get(answer))
        except Exception as error:
            found.append(f"{node['NodeManagerHostname']}: {_last_line(error)}")
    return found


def _last_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1][:200] if text else type(error).__name__


def shared_path_problem(path: Path) -> str | None:
    """Return why workers on other nodes could not see ``path``, or None when all nodes can."""
    blind = [
        host for host, seen in (pair for pair in on_every_node(_sees, str(path)) if isinstance(pair, tuple)) if not seen
    ]
    return f"{path} is not visible on {', '.join(blind)}; put it on storage all nodes share" if blind else None


def check_shared(there: Resources, paths: Iterable[Path], why: str) -> None:
    """Refuse paths that not all nodes of a cluster see; on a single node there is nothing to ask.

    Raises:
        OSError: a node does not see one; the message begins with ``why``, which says who uses it.
    """
    for path in paths if there.nodes > 1 else ():
        if problem := shared_path_problem(path.absolute()):
            raise OSError(f"{why}: {problem}")


def _sees(place: str) -> tuple[str, bool]:
    import socket

    return socket.gethostname(), Path(place).exists()


def this_node() -> tuple[str, str]:
    """Ray's name of the node that this process is on, and its address."""
    import ray

    return ray.get_runtime_context().get_node_id(), str(ray.util.get_node_ip_address())


def remove_reservation(group_id: str) -> None:
    """Give back what a placement group reserves, by its id in hexadecimals; nothing happens where it is gone."""
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    with suppress(Exception):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group_id))))


def token_required() -> bool:
    """Tell whether the connected cluster refuses commands without its token."""
    dashboard = ray_private.dashboard_address()
    if not dashboard:
        return ray_private.wants_token()
    try:
        with urllib.request.urlopen(f"http://{dashboard}/api/jobs/", timeout=10):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return ray_private.wants_token()
