"""What Ray's workers need to run the code of this program and to see its environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from efafnet.platform import ray_private
from efafnet.platform.credentials import bare
from efafnet.platform.provenance import code_version, is_checkout, package_root

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_OWN = "EFAFNET_OWN_RAY"
"""Set in the processes of a Ray that a program started for itself."""


@contextmanager
def inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def local_env() -> dict[str, str]:
    """Return the environment variables that a new local Ray hands on to its workers, a checkout first on their path.

    It inherits them from this program. Of a ``runtime_env`` each worker would begin as a process that imports Ray only
    to become another: .4 CPU seconds each.
    """
    path = {}
    if is_checkout():
        path["PYTHONPATH"] = os.pathsep.join(filter(None, [str(package_root()), os.environ.get("PYTHONPATH")]))
    return {**worker_env(), **path, **ray_private.hook(ray_private.begin_worker), _OWN: "1"}


def in_own_ray() -> bool:
    """Whether this is a process of a Ray that a program started for itself, which has one node and does not grow."""
    return _OWN in os.environ


def runtime_env(address: str) -> dict[str, Any]:
    """Return the ``runtime_env`` of the workers of a cluster.

    A checkout is sent along to a cluster it was not submitted to by ``ray job submit``: otherwise workers would
    silently run whatever version is installed on their node.
    """
    variables = worker_env()
    result: dict[str, Any] = {"env_vars": variables}
    if address != "auto":
        # Ray's own helpers in workers look for "the" cluster of the host, and fail where there are two.
        variables["RAY_ADDRESS"] = address
    if is_checkout():
        # Every node has it as a worker begins. It may lack a wheel, and Ray would not say so of what is called then.
        variables |= ray_private.hook(ray_private.begin_worker)
        if _JOB_VARIABLE not in os.environ:
            result["working_dir"] = str(package_root())
    return result


def worker_env() -> dict[str, str]:
    """Return the environment variables every worker needs."""
    env = {
        # Workers would otherwise change into Ray's session folder, where relative paths mean something else.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning"),
    }
    # Never passwords: what is set here is shown on the dashboard. See credentials.leave_in_cluster.
    if (address := os.environ.get("MLFLOW_TRACKING_URI")) is not None:
        env["MLFLOW_TRACKING_URI"] = bare(address)
    env |= {name: os.environ[name] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name in os.environ}
    commit = code_version()["git_commit"]
    return {**env, "EFAFNET_GIT_COMMIT": commit} if commit else env
