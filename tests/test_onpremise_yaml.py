"""The on-premise cluster file: Ray accepts it, and it keeps the rules of the AWS one. test_nodes.py really uses it."""

from __future__ import annotations

import re
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.deploy_cases import DEPLOY, check_mounts, check_shell, cluster_file, commands, the

FILE = DEPLOY / "onpremise.yaml"
EXAMPLES = ip_network("192.0.2.0/24")
"""Addresses that belong to nobody (RFC 5737): whoever forgets to replace them reaches no stranger's machine."""


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    return cluster_file(FILE)


def test_all_workers_are_wanted_from_the_start(prepared: dict[str, Any]) -> None:
    [node] = prepared["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(prepared["provider"]["worker_ips"]) == 2
    assert all(ip_address(address) in EXAMPLES for address in prepared["provider"]["worker_ips"])
    assert ip_address(prepared["provider"]["head_ip"]) in EXAMPLES


def test_the_autoscaler_is_the_one_that_starts_workers(prepared: dict[str, Any]) -> None:
    before, _, _ = the("ray start", prepared["head_start_ray_commands"]).partition("ray start")
    assert re.search(r"export [^;]*RAY_enable_autoscaler_v2=0", before)


def test_the_project_is_installed_with_its_pins(prepared: dict[str, Any]) -> None:
    check_mounts(prepared)
    for key in ("head_setup_commands", "worker_setup_commands"):
        install = the("pip install", prepared[key])
        assert "-c ~/efafnet-build/constraints.txt ~/efafnet-build" in install
        assert "sudo" not in str(prepared[key])


def test_every_node_demands_the_token(prepared: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        before, _, _ = the("ray start", prepared[key]).partition("ray start")
        assert re.search(r"export [^;]*RAY_AUTH_MODE=token", before), key
        assert "chmod 600 ~/.ray/auth_token" in prepared["head_setup_commands"]


def test_nothing_listens_on_every_address(prepared: dict[str, Any]) -> None:
    text = str(commands(prepared))
    assert "0.0.0.0" not in text
    assert "--ray-client-server-port" not in text
    start = the("ray start", prepared["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert '--node-ip-address="$(cat ~/head_ip)"' in start, "without a route to the internet Ray takes 127.0.0.1"
    assert "--host $(cat ~/head_ip)" in the("mlflow server", prepared["head_start_ray_commands"])


def test_the_heads_address_is_read_from_rays_own_file(prepared: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ray_bootstrap_config.yaml").write_text('{"provider": {"type": "local", "head_ip": "192.0.2.10"}}')
    line = the("head_ip", [line for line in prepared["head_start_ray_commands"] if line.startswith("python -c")])
    line = line.replace("python ", "python3 ", 1)
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
    assert (tmp_path / "head_ip").read_text() == "192.0.2.10\n"


def test_mlflow_runs_on_the_head_and_every_node_knows_it(prepared: dict[str, Any]) -> None:
    server = the("mlflow server", prepared["head_start_ray_commands"])
    assert "--serve-artifacts" in server, "workers then need nothing but its address"
    assert "--allowed-hosts" in server, "MLflow answers 403 to a host name it was not told"
    assert "/health" in server, "a second `ray up` must not start a second server"
    assert "/mnt/efafnet/" in server
    head = the("ray start", prepared["head_start_ray_commands"])
    worker = the("ray start", prepared["worker_start_ray_commands"])
    assert "MLFLOW_TRACKING_URI=http://$(cat ~/head_ip):5000" in head.partition("ray start")[0]
    assert "MLFLOW_TRACKING_URI=http://$RAY_HEAD_IP:5000" in worker.partition("ray start")[0]
    [port] = re.findall(r" --port=(\d+)", head)
    assert f'--address="$RAY_HEAD_IP:{port}"' in worker


def test_the_path_is_told_once_to_shells_of_all_kinds(prepared: dict[str, Any], tmp_path: Path) -> None:
    line = the(".bashrc", prepared["setup_commands"])
    for before in (None, "# an interactive shell's\ncase $- in *i*) ;; *) return;; esac\n"):
        if before is not None:
            (tmp_path / ".bashrc").write_text(before)
        for _ in range(2):
            subprocess.run(["bash", "-c", line], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True)
        words = ["bash", "-c", "source ~/.bashrc; echo $PATH $RAY_AUTH_MODE"]
        env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        shown = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
        assert shown == f"{tmp_path}/efafnet-env/bin:/usr/bin:/bin token\n"
        (tmp_path / ".bashrc").unlink()


def test_a_machine_without_the_shared_file_system_is_refused(prepared: dict[str, Any]) -> None:
    line = prepared["initialization_commands"][0].replace("/mnt/efafnet", "/proc/efafnet")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/proc/efafnet is no writable mount; mount the shared file system there" in done.stderr


def test_every_command_is_shell(prepared: dict[str, Any]) -> None:
    for lines in commands(prepared).values():
        for line in lines:
            check_shell(line)
