"""A cluster whose GPU machines come with the work: Ray's own autoscaler with its pretended machines, from none on.

Torch sees no GPU behind a pretended one and computes on the CPU; what is asked for, started and waited for is real.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from efafnet.pipelines.doctor import growth_finding
from efafnet.pipelines.training.ray_run import train
from efafnet.platform.capacity import capacity
from efafnet.platform.cluster import ClusterConfig, connect
from tests.training_cases import config_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("GROWING" not in os.environ, reason="starts a cluster with an autoscaler: GROWING=1"),
]

HEAD_ID = "f" * 51 + "00000"
MOST = 2
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head without GPU, whose autoscaler may start two machines of one GPU each."""
    import ray

    place = tmp_path_factory.mktemp("growing")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (place / "cluster.yaml").write_text(yaml.safe_dump(_settings(address)))
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    mode = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    options = ["--head", "--block", f"--port={address.partition(':')[2]}", "--num-cpus=2", "--num-gpus=0"]
    options += ["--include-dashboard=false", f"--autoscaling-config={place / 'cluster.yaml'}"]
    command = [str(Path(sys.executable).with_name("ray")), "start", *options]
    with (place / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        connect(ClusterConfig(address=_when_up(address, place / "head.log")))
        yield address
    finally:
        ray.shutdown()
        os.environ.pop("RAY_AUTH_MODE") if mode is None else os.environ.update(RAY_AUTH_MODE=mode)
        head.terminate()
        head.wait(timeout=30)
        _end_session(head.pid)


def _end_session(leader: int) -> None:
    """Kill what is left of a session: pretended machines outlive the autoscaler that started them."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


def _when_up(address: str, log: Path) -> str:
    host, _, port = address.partition(":")
    for _ in range(60):
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                time.sleep(3)
                return address
        time.sleep(1)
    raise AssertionError(log.read_text())


def _settings(address: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        name: []
        for name in (
            "cluster_synced_files", "rsync_exclude", "rsync_filter", "setup_commands", "head_setup_commands",
            "worker_setup_commands", "initialization_commands", "head_start_ray_commands", "worker_start_ray_commands",
        )
    }  # fmt: skip
    return nothing | {
        "cluster_name": "growing",
        "max_workers": MOST,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": 5.0,
        # By its module: under its name Ray looks for defaults in a file that its wheel leaves out.
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "launch_multiple": True,
            "gcs_address": address,
            # They run as they are: nothing to install through SSH.
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST},
        },
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }


def _living_gpus() -> float:
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def test_the_readmes_training_makes_gpu_machines_come(
    growing: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there = connect(ClusterConfig(address=growing))
    assert _living_gpus() == 0
    assert growth_finding(capacity(there)).found == f"1 nodes with 0 GPUs now, at most 3 with {MOST}"
    with pytest.raises(ValueError, match=r"worker\.gpu = yes: 3 GPUs are needed, this cluster at its largest has 2"):
        train(config_of(tmp_path, "name=many", "workers=3", "worker.gpu=yes", f"cluster.address={growing}"))
    result = train(config_of(tmp_path, "workers=2", "epochs=1", "data.val=null", f"cluster.address={growing}"))
    assert result.checkpoint.is_dir()
    assert "2 workers, each {'CPU': 1.0, 'GPU': 1" in capfd.readouterr().err
    assert _living_gpus() == MOST
