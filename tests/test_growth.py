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
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from efafnet.pipelines.doctor import growth_finding
from efafnet.pipelines.evaluation.config import WorkersConfig
from efafnet.pipelines.training.placement import needs, placed, slots
from efafnet.pipelines.training.ray_run import train
from efafnet.platform.capacity import ActorPool, capacity
from efafnet.platform.cluster import ClusterConfig, connect
from tests import test_tune
from tests.test_faults import begun, lives, newest_step, wait_for
from tests.training_cases import config_of, trace_of

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
        _end_session(head.pid)
        head.wait(timeout=30)


def _end_session(leader: int) -> None:
    """Kill all of a session: pretended machines outlive the autoscaler that started them."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


def _when_up(address: str, log: Path) -> str:
    host, _, port = address.partition(":")
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0 and "Ray runtime started" in log.read_text():
                return address
        time.sleep(0.5)
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


def _end_a_machine() -> None:
    """Kill one of the pretended machines."""
    import ray

    node = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU"))
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and f"--node_id={node}" in (process.info["cmdline"] or ()):
            process.kill()


PRETENDED = ("worker.gpu=yes", "device=cpu", "data.val=null")
"""Such a GPU cannot compute."""


def test_gpu_machines_come_with_the_work(
    growing: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """From no GPU on: what is decided for each of the README's commands, and its training."""
    there, address = connect(ClusterConfig(address=growing)), f"cluster.address={growing}"
    assert _living_gpus() == 0
    assert growth_finding(capacity(there)).found == f"1 nodes with 0 GPUs now, at most 3 with {MOST}"
    assert WorkersConfig().pool(capacity(there)) == ActorPool(MOST, True, 1)
    search = test_tune.config_of(tmp_path, "workers=1", address)
    assert slots(placed(search, capacity(there), runs=2), capacity(there)) == MOST
    with pytest.raises(ValueError, match=r"worker\.gpu = yes: 3 GPUs are needed, this cluster at its largest has 2"):
        train(config_of(tmp_path, "name=many", "workers=3", "worker.gpu=yes", address))

    began = time.monotonic()
    readmes = config_of(tmp_path, "workers=2", "epochs=1", "data.val=null", address)
    assert needs(placed(readmes, capacity(there))) == {"CPU": 1, "GPU": 1}
    result = train(config_of(tmp_path, "workers=2", "epochs=1", *PRETENDED, address))
    record_property("from_zero_s", time.monotonic() - began)
    assert result.checkpoint.is_dir()
    assert "2 workers, each {'CPU': 1.0, 'GPU': 1" in capfd.readouterr().err
    assert _living_gpus() == MOST


def test_a_machine_that_dies_under_an_elastic_training_is_replaced(
    growing: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """It goes on with the one that is left, until the autoscaler has started another."""
    often = ("epochs=180", "checkpoint={every_epochs: null, every_steps: 10}", "trace=true", "worker.grow_every_s=3")
    elastic = ("workers=1..2", *often, *PRETENDED, f"cluster.address={growing}")
    config = config_of(tmp_path, *elastic)
    running = begun(config)
    wait_for("a checkpoint", lambda: newest_step(config) >= 20, running.done)
    _end_a_machine()
    record_property("shrunk_s", wait_for("one worker", lambda: len(lives(config)) == 1, running.done))
    record_property("replaced_s", wait_for("another machine", lambda: len(lives(config)) == 2, running.done))
    running.result(timeout=120)
    assert [workers for _, workers in lives(config)] == [1, 2]
    assert sorted(trace_of(config)) == list(range(1, 901)), "no step is lost"
