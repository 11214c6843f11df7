"""Everything of Ray that this project uses and that Ray does not promise, each with what it is for.

A new version of Ray may rename any of it. Imports happen inside the functions, so that a missing name breaks its one
use; ``tests/test_ray_private.py`` names all of them, and pyproject.toml bounds the version.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from efafnet.platform.garbage import collect_rarely


def running_here() -> str | None:
    """The address of a cluster that ``ray start`` left running on this machine, if it lives.

    ``ray.init()`` without an address would also take one whose processes are dead, and wait for it. Where none was
    announced Ray itself is not asked: a third of a second passes as it is imported, and much work goes without.
    """
    if not announcement().exists():
        return None
    from ray._private import services

    found = services.find_bootstrap_address(None)
    return found if found and found in services.find_gcs_addresses() else None


def announcement() -> Path:
    """The file in which ``ray start`` names its cluster to programs of this machine, there or not."""
    usual = os.environ.get("TMPDIR", "/tmp") if sys.platform.startswith("linux") else "/tmp"
    return Path(os.environ.get("RAY_TMPDIR", usual)) / "ray" / "ray_current_cluster"


def started_by_this_program() -> bool:
    """Whether the connected Ray lives and dies with this process."""
    from ray._private import worker

    return worker._global_node is not None and bool(worker._global_node.head)


def dashboard_address() -> str:
    """HOST:PORT of the connected Ray's dashboard; empty without one."""
    from ray._private import worker

    return str(worker.get_dashboard_url() or "")


def wants_token() -> bool:
    """Whether this process uses token authentication."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


@contextmanager
def without_onlookers(*, show_workers: bool) -> Iterator[None]:
    """Let a Ray that ``ray.init`` starts meanwhile do without processes that look on, each of which loads much of Ray.

    One would look after machines that its autoscaler may start, one would serve a dashboard that was not asked for, and
    one would read the workers' output for whoever shows it: 2.2 of the 7.4 CPU seconds in which such a Ray starts and
    ends.
    """
    from ray._private import node, parameter

    parameters: Any = parameter
    node_class: Any = node.Node
    before = parameters.RayParams, node_class.start_api_server
    parameters.RayParams = partial(parameters.RayParams, no_monitor=True, include_log_monitor=show_workers)
    node_class.start_api_server = _nothing
    try:
        yield
    finally:
        parameters.RayParams, node_class.start_api_server = before


def free_by_node() -> list[dict[str, float]]:
    """What is free on each living node: ``ray.available_resources()`` is the sum, and no task fits a sum."""
    from ray._private import state

    return [dict(free) for free in state.available_resources_per_node().values()]


def leave_for_workers(text: str) -> None:
    """Keep a text in the cluster's memory for the workers of this job; unlike ``runtime_env`` it is shown nowhere."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_job_key(), text.encode(), overwrite=True, namespace="efafnet")


def left_for_workers() -> str | None:
    """What the driver of this job left by ``leave_for_workers``, or None."""
    from ray.experimental.internal_kv import _internal_kv_get

    found = _internal_kv_get(_job_key(), namespace="efafnet")
    return None if found is None else bytes(found).decode()


def _job_key() -> str:
    import ray

    return f"left-for-workers-{ray.get_runtime_context().get_job_id()}"


def choose_worker_lines(choose: Callable[[dict[str, Any]], list[str]]) -> None:
    """Let ``choose`` say which lines of each piece of the workers' output the connected driver prints."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    for name, show in [pair for pair in dispatcher.handlers if pair[0] == "ray_print_logs"]:
        dispatcher.remove_handler(name)

        def chosen(data: dict[str, Any], show: Callable[[dict[str, Any]], None] = show) -> None:
            if lines := choose(data):
                show({**data, "lines": lines})

        dispatcher.add_handler(name, chosen)


def address_and_port() -> tuple[str, int]:
    """This node's address and a free port there, for a process group to meet at."""
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return str(address), int(port)


def join_torch_group(meeting: tuple[str, int], rank: int, size: int, backend: str, timeout_s: int) -> None:
    """Run in each of Ray Train's workers: join the process group as the backend of Ray's ``TorchConfig`` lets them.

    That backend itself is of no use where torch should stay away: in the process that controls the workers.
    """
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = meeting[0], str(meeting[1])
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, size, "env://", timeout_s)


def leave_torch_group(size: int) -> None:
    """Run in each of Ray Train's ``size`` workers: leave their process group, and the GPU's cached memory."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=size > 1)


def end_workers(worker_group: Any) -> None:
    """End the workers of a group of Ray Train and give back what they reserved."""
    worker_group.get_worker_group_state().shutdown()


def worker_group_callback() -> type[Any]:
    """Hears when workers have started; derived from to note what they reserve."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    return WorkerGroupCallback


def without_helpers(trainer: Any, *, grows: bool) -> Any:
    """The trainer, sparing its run processes that it has no use for, each of which loads much of Ray.

    One would hand out shards of Ray's datasets, of which there are none; one would ask the dashboard each second
    whether the workers' controller lives, to give back what they reserve (see ``pipelines/training/reservations``).
    Where the cluster does not grow, and the number of workers is fixed, nobody has to hear how many are wanted either.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    unused = DatasetsCallback, PlacementGroupCleanerCallback
    every, run = trainer._create_default_callbacks, trainer._initialize_and_run_controller
    trainer._create_default_callbacks = lambda: [one for one in every() if not isinstance(one, unused)]
    if not grows and not trainer.scaling_config.elasticity_enabled:

        def run_in_silence(*, scaling_policy: Any, **parts: Any) -> Any:
            scaling_policy.after_controller_start = scaling_policy._maybe_send_resource_request = _nothing
            return run(scaling_policy=scaling_policy, **parts)

        trainer._initialize_and_run_controller = run_in_silence
    return trainer


def _nothing(*_: object, **__: object) -> None:
    """Stands for what is not asked of Ray."""


def report_logger() -> Any:
    """The logger of ``ray.train.report``: named after a file it escapes the LoggingConfig and prints each report."""
    from ray.train.v2._internal.execution import context

    return context.logger


def hook(function: Callable[[], None]) -> dict[str, str]:
    """The environment variable that lets each worker which has it call a module's function as it starts. A worker that
    cannot import the function ends."""
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: f"{function.__module__}.{function.__qualname__}"}


def begin_worker() -> None:
    """Run in each worker as it starts, before it imports anything of a task or an actor.

    Ray's own helpers there look for "the" Ray of the host, and fail where there are two. The address of a Ray that this
    program starts is known too late to be inherited.
    """
    import ray

    collect_rarely()
    os.environ.setdefault("RAY_ADDRESS", str(ray.get_runtime_context().gcs_address))


def kuberay_types(cluster: str, namespace: str) -> dict[str, Any] | None:
    """The settings that KubeRay's autoscaler runs a cluster with, in the form of ``ray up``'s file.

    None where the cluster does not grow. Ray has no public way to learn what its autoscaler may start. To be called on
    the cluster's head, whose service account may read it; raises OSError where Kubernetes does not answer.
    """
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    resource = node_provider.KubernetesHttpApiClient(namespace=namespace).get(f"rayclusters/{cluster}")
    if not resource["spec"].get("enableInTreeAutoscaling"):
        return None
    return dict(autoscaling_config._derive_autoscaling_config_from_ray_cr(resource))
