"""A cluster whose GPU machines come with the work and go after it: Ray's own autoscaler with its pretended machines.

Torch sees no GPU behind a pretended one and computes on the CPU; what is asked for, started and waited for is real.
It takes some minutes:

    make test-growth
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml

from efafnet.pipelines.doctor import growth_finding
from efafnet.pipelines.evaluation import store_prediction
from efafnet.pipelines.evaluation.config import EvaluateConfig, ScoringConfig, WorkersConfig
from efafnet.pipelines.evaluation.evaluate import run_evaluate
from efafnet.pipelines.search.earlier import open_study
from efafnet.pipelines.search.tune import tune
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.placement import needs, placed, slots
from efafnet.pipelines.training.ray_run import train
from efafnet.platform.capacity import ActorPool, capacity
from efafnet.platform.cluster import ClusterConfig, connect
from efafnet.platform.configuration import to_yaml
from tests import test_tune
from tests.processes import end_session, free_port
from tests.training_cases import ROOT, config_of, lives, newest_step
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("GROWING" not in os.environ, reason="takes minutes: make test-growth"),
]

HEAD_ID = "f" * 51 + "00000"
MOST = 2


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head without GPU, whose autoscaler may start two machines of one GPU each."""
    import ray

    place, machines = tmp_path_factory.mktemp("growing"), tempfile.mkdtemp(prefix="machines-", dir="/tmp")
    address = f"127.0.0.1:{free_port()}"
    (place / "cluster.yaml").write_text(yaml.safe_dump(_settings(address, machines)))
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).parent),  # for the autoscaler, which imports the pretended machines
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
        end_session(head.pid)  # pretended machines outlive the autoscaler that started them
        head.wait(timeout=30)
        shutil.rmtree(machines)


def _when_up(address: str, log: Path) -> str:
    host, _, port = address.partition(":")
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0 and "Ray runtime started" in log.read_text():
                return address
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def _settings(address: str, machines: str) -> dict[str, Any]:
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
        # Longer than a run takes to begin anew: what is left of its machines must not go meanwhile.
        "idle_timeout_minutes": 0.5,
        # By its module: under its name Ray looks for defaults in a file that its wheel leaves out.
        "provider": {
            "type": "external",
            "module": "pretended_machines.PretendedMachines",
            "place": machines,
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


def _free_gpus() -> float:
    import ray

    return float(ray.available_resources().get("GPU", 0))


def _all_machines_go() -> float:
    """Wait until the autoscaler has ended what is idle; returns the seconds."""
    return wait_for("end of the idle machines", lambda: _living_gpus() == 0, lambda: False)


@contextmanager
def _all_machines() -> Iterator[None]:
    """They come, and stay meanwhile however long they are idle."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": 1}] * MOST)
    try:
        wait_for("all machines", lambda: _living_gpus() == MOST, lambda: False)
        yield
    finally:
        request_resources(bundles=[])


@contextmanager
def _training(config: TrainConfig, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program at work, so that it can be stopped: it ends meanwhile, or with this."""
    (place / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "efafnet.pipelines", "train", str(place / "run.yaml")]
    with subprocess.Popen(command, cwd=ROOT) as running:
        try:
            yield running
        finally:
            running.kill()


def _end_a_machine() -> None:
    """Kill one of the pretended machines."""
    import ray

    node = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU"))
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and f"--node_id={node}" in (process.info["cmdline"] or ()):
            process.kill()


@contextmanager
def _no_machine_to_be_had() -> Iterator[None]:
    """The autoscaler starts nothing meanwhile, as where a cloud has run out of a kind of machine."""
    import ray

    address = ray.get_runtime_context().gcs_address
    [autoscaler] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"--gcs-address={address}" in (words := process.info["cmdline"] or ())
        and any("/autoscaler/" in word and word.endswith("/monitor.py") for word in words)
    ]
    autoscaler.suspend()
    try:
        yield
    finally:
        autoscaler.resume()


ON_CPU = ("worker.gpu=yes", "device=cpu")
"""A pretended GPU is reserved, and cannot compute."""


def test_a_search_takes_all_machines_that_come(
    growing: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """As the README's ``tune``, from no GPU on: as many trials at once as there may be machines."""
    there, address = connect(ClusterConfig(address=growing)), f"cluster.address={growing}"
    assert _living_gpus() == 0
    search = test_tune.config_of(tmp_path, "name=search", "workers=1", "search.trials=4", "search.stop=none", *ON_CPU,
                                 address)  # fmt: skip
    auto = test_tune.config_of(tmp_path, "workers=1", address)
    assert slots(placed(auto, capacity(there), runs=4), capacity(there)) == MOST

    began, busy = time.monotonic(), 0.0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tune, search)
        while not running.done():
            busy = max(busy, _living_gpus() - _free_gpus())
            time.sleep(0.1)
        running.result()
    record_property("search_from_zero_s", time.monotonic() - began)
    assert busy == MOST
    study = open_study(tmp_path / "runs" / "search" / "study.db")
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 4


def test_a_training_begins_when_its_machines_have_come(
    growing: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """From no GPU on, to which the cluster shrinks again after the work: what is decided for each of the README's
    commands, and its training."""
    there, address = connect(ClusterConfig(address=growing)), f"cluster.address={growing}"
    record_property("idle_s", _all_machines_go())
    assert growth_finding(capacity(there)).found == f"1 nodes with 0 GPUs now, at most 3 with {MOST}"
    assert WorkersConfig().pool(capacity(there)) == ActorPool(MOST, True, 1)
    with pytest.raises(ValueError, match=r"worker\.gpu = yes: 3 GPUs are needed, this cluster at its largest has 2"):
        train(config_of(tmp_path, "name=many", "workers=3", "worker.gpu=yes", address))

    began = time.monotonic()
    readmes = config_of(tmp_path, "workers=2", "epochs=1", "data.val=null", address)
    assert needs(placed(readmes, capacity(there))) == {"CPU": 1, "GPU": 1}
    result = train(config_of(tmp_path, "workers=2", "epochs=1", "data.val=null", *ON_CPU, address))
    record_property("training_from_zero_s", time.monotonic() - began)
    assert result.checkpoint.is_dir()
    assert "2 workers, each with 1 CPU and 1 GPU" in capfd.readouterr().err
    assert _living_gpus() == MOST


def test_an_evaluation_waits_for_a_machine_with_a_gpu(
    growing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """As the README's ``evaluate``: its actors hold GPUs of machines that came for them."""

    class Predictor(store_prediction._Predictor):
        def __post_init__(self) -> None:
            import ray

            assert self.task.gpu
            assert len(ray.get_gpu_ids()) == 1
            self.task = replace(self.task, gpu=False)  # a pretended one cannot compute
            super().__post_init__()

    monkeypatch.setattr(store_prediction, "_Predictor", Predictor)
    run_dir = train(config_of(tmp_path, "epochs=1", "data.val=null")).run_dir
    _all_machines_go()
    began = time.monotonic()
    run_evaluate(
        EvaluateConfig(
            checkpoint=run_dir,
            data=str(tmp_path / "val"),
            output=tmp_path / "evaluation",
            workers=WorkersConfig(cluster=ClusterConfig(address=growing)),
            scoring=ScoringConfig(bootstrap=0),
            overlays=0,
        )
    )
    record_property("evaluation_from_zero_s", time.monotonic() - began)
    assert (tmp_path / "evaluation" / "metrics.json").exists()
    assert _living_gpus() >= 1


def test_a_machine_that_dies_under_an_elastic_training_is_replaced(
    growing: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """It goes on with the one that is left while no other is to be had, and with two when the autoscaler has started
    another. It is stopped then: how many steps it takes meanwhile depends on the machine. The last of these tests: for
    three minutes after a program that was stopped Ray keeps the machines that it had asked for."""
    often = ("epochs=1000000", "checkpoint={every_epochs: null, every_steps: 20}", "trace=true", "data.val=null")
    elastic = ("workers=1..2", "worker.grow_every_s=3", *ON_CPU, f"cluster.address={growing}")
    config = config_of(tmp_path, *often, *elastic, "tracking.enabled=false")
    with ExitStack() as machines:
        machines.enter_context(_all_machines())
        with _training(config, tmp_path) as running:

            def ended() -> bool:
                return running.poll() is not None

            wait_for("a checkpoint", lambda: newest_step(config) >= 40, ended)
            machines.close()
            with _no_machine_to_be_had():
                _end_a_machine()
                shrunk = wait_for("one worker", lambda: len(lives(config)) == 1, ended)
                assert _living_gpus() == 1
            replaced = wait_for("another machine", lambda: len(lives(config)) == 2, ended)
            assert _living_gpus() == MOST
            stood = newest_step(config)
            wait_for("progress", lambda: newest_step(config) >= stood + 40, ended)
            running.send_signal(signal.SIGINT)
            assert running.wait(60) == 130
    record_property("shrunk_s", shrunk)
    record_property("replaced_s", replaced)
    assert [workers for _, workers in lives(config)] == [1, 2]
    steps = {int(step) for file in config.run_dir.glob("trace-rank*.jsonl")
             for step in re.findall(r'"step": (\d+)', file.read_text())}  # fmt: skip
    assert steps == set(range(1, max(steps) + 1)), "no step is lost"
