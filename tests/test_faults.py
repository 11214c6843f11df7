"""Runs on a cluster whose nodes and driver die on the way: each run ends, and its steps are those of a quiet run."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from efafnet.pipelines import all_reduce
from efafnet.pipelines.training.config import TrainConfig
from efafnet.pipelines.training.context import PlainContext
from efafnet.pipelines.training.inputs import open_inputs, train_reader
from efafnet.pipelines.training.loop import run
from efafnet.pipelines.training.ray_run import train
from efafnet.pipelines.training.rundir import TrainResult
from efafnet.platform import notice, ray_private
from efafnet.platform.cluster import ClusterConfig, connect, gpu_nodes, quiet_environment
from efafnet.platform.configuration import to_yaml
from tests import rays
from tests.holds import Holds
from tests.metadata_service import action, metadata_service
from tests.processes import program
from tests.training_cases import ROOT, lives, newest_step, sbn_config_of, trace_of
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.slow

Noted = Callable[[str, object], None]

# A node is gone after three checks of a second's distance that find nobody there: its processes are killed, and where
# nobody listens any more a check fails at once. One that lives may take minutes to answer on a machine that is busy.
QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 240_000,
    "health_check_failure_threshold": 3,
}
SHORT_OF_FILES = "checkpoint={every_epochs: null, every_steps: 10}"


@pytest.fixture(scope="module")
def holds(tmp_path_factory: pytest.TempPathFactory) -> Holds:
    """Where runs on the cluster wait for a test; each lets them go on in the end."""
    return Holds(tmp_path_factory.mktemp("holds"))


@pytest.fixture(scope="module")
def cluster(holds: Holds) -> Iterator[Any]:
    """A head that trains nothing, and no node yet; this process is its driver."""
    rays.leave()
    quiet_environment()
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as places:

        class Apart(Cluster):
            """Each node has a directory of its own. In a common one each new node would remove, and unpack again, the
            code that processes of the others are importing."""

            def add_node(self, wait: bool = True, **what: Any) -> Any:
                with holds.for_children():
                    return super().add_node(wait, temp_dir=tempfile.mkdtemp(dir=places), **what)

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
        with ray_private.without_onlookers(show_workers=False):
            nodes: Any = Apart(initialize_head=True, head_node_args=head)
        connect(ClusterConfig(address=nodes.address))
        _count_nodes_often()
        yield nodes
        rays.leave()
        nodes.shutdown()


def _count_nodes_often() -> None:
    """Let what tells trainings of the nodes there are look each second: Ray's own looks every 20 s."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as rays_own

    class Often(rays_own._AutoscalingCoordinatorActor):
        TICK_INTERVAL_S = 1

    with mock.patch.object(rays_own, "_AutoscalingCoordinatorActor", Often):
        rays_own.get_or_create_autoscaling_coordinator()


def begun(config: TrainConfig) -> Future[TrainResult]:
    """Train in a thread of this process."""
    pool = ThreadPoolExecutor(max_workers=1)
    future = pool.submit(train, config)
    pool.shutdown(wait=False)
    return future


def global_batches(config: TrainConfig, steps: int) -> list[list[int]]:
    """The rows of each step as one process reads them."""
    with train_reader(config, open_inputs(config).train, PlainContext(torch.device("cpu"))) as reader:
        return [batch.rows.tolist() for batch in reader.batches(0, steps)]


def drain(address: str, node_id: str, *, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce the end of the machine under a node, as AWS does two minutes before it takes a spot machine back."""
    monkeypatch.setattr(notice, "local_nodes", lambda: [(address, node_id)])  # this machine has others, too
    with metadata_service() as (service, place):
        service.action = action(seconds + notice.MARGIN_S)
        notice.watch(notice.Metadata(place))


@pytest.mark.slow
def test_nodes_die_return_and_are_drained(
    cluster: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Noted,
    capfd: pytest.CaptureFixture[str],
    holds: Holds,
) -> None:
    """Elastic 1..2: a node dies, comes back, and is drained. The global batches stay those of one process."""
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    tracking = f"tracking={{uri: 'sqlite:///{tmp_path}/mlflow.db', system_metrics_every_s: null}}"
    settings = ("epochs=30", "data.val=null", "trace=true", SHORT_OF_FILES, tracking)
    config = sbn_config_of(tmp_path, "name=run", "workers=1..2", "worker.grow_every_s=3", *settings)
    cluster.add_node(num_cpus=1)
    record_property("all_reduce_gb_s", _network_gb_s())
    doomed = cluster.add_node(num_cpus=1)
    holds.at(20)
    running = begun(config)
    wait_for("a checkpoint of two workers", lambda: newest_step(config) >= 20, running.done)
    cluster.remove_node(doomed, allow_graceful=False)
    stood = newest_step(config)
    record_property("shrunk_s", wait_for("one worker", lambda: len(lives(config)) == 1, running.done))
    holds.move(20, to=40)
    wait_for("a checkpoint of one worker", lambda: newest_step(config) >= 40, running.done)
    returned = cluster.add_node(num_cpus=1)
    record_property("grown_s", wait_for("two workers again", lambda: len(lives(config)) == 2, running.done))
    again = newest_step(config)
    holds.move(40, to=60)
    twenty_steps_s = wait_for("progress", lambda: newest_step(config) >= again + 20, running.done)
    # Enough steps, and enough time for some of them, between the notice and the end.
    holds.slowly()
    holds.move(60, to=140)
    drain(cluster.address, returned.node_id, seconds=5 + round(twenty_steps_s), monkeypatch=monkeypatch)
    record_property("drained_s", wait_for("one worker again", lambda: len(lives(config)) == 3, running.done))
    holds.fast()
    holds.release(140)
    result = running.result(LIMIT_S)
    record_property("lives", lives(config))
    assert [workers for _, workers in lives(config)] == [1, 2, 1]
    assert lives(config)[0][0] >= stood, "no step is lost beyond the last checkpoint"
    _assert_saved_on_notice(config)
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("(failure 1 of ") == 1, "the death is counted, the announced end is not"
    assert "node" in told
    batches = global_batches(config, 150)
    assert [trace_of(config)[step + 1][0] for step in range(150)] == batches
    history = _history(f"sqlite:///{tmp_path}/mlflow.db", result, "train/loss")
    assert Counter(history) == Counter(range(5, 151, 5))


def _network_gb_s() -> float:
    """What doctor measures between the head and a node: two processes of this machine, by gloo."""
    [finding] = all_reduce.all_reduce_findings(gpu_nodes())
    told = re.match(r"all-reduce among 2 nodes: (\d+\.\d\d) GB/s, \d+ ms a step", finding.found)
    assert told is not None, finding
    assert (finding.what, finding.state) == ("network, gloo", "ok" if float(told[1]) >= 0.75 else "warn")
    return float(told[1])


def _assert_saved_on_notice(config: TrainConfig) -> None:
    """From the notice on each point of the curves (every 5 steps) was a checkpoint, not only every tenth step."""
    log = (config.run_dir / "train.log").read_text()
    heard = re.search(r"a node will be taken away: from step (\d+) on", log)
    assert heard is not None
    assert lives(config)[2][0] > int(heard[1])


def _history(uri: str, result: TrainResult, key: str) -> list[int]:
    from mlflow import MlflowClient

    assert result.mlflow_run_id is not None
    return [point.step for point in MlflowClient(uri).get_metric_history(result.mlflow_run_id, key)]


@pytest.mark.slow
def test_a_driver_killed_on_a_cluster_is_started_again(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Noted, holds: Holds
) -> None:
    """After Ctrl-C and after SIGKILL the same command goes on, beside what is left of the one before; equal to the bit
    to a run in one process."""
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # no node is announced to end: a process less each
    settings = ("epochs=8", "data.val=null", "trace=true", SHORT_OF_FILES, "tracking.enabled=false")
    whole = sbn_config_of(tmp_path, "name=whole", *settings)
    cut = sbn_config_of(tmp_path, "name=cut", "workers=1", f"cluster.address={cluster.address}", *settings)
    cluster.add_node(num_cpus=1)
    (tmp_path / "cut.yaml").write_text(to_yaml(cut))
    command = program("train", str(tmp_path / "cut.yaml"))
    holds.at(10)
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for("a checkpoint", lambda: newest_step(cut) >= 10, lambda: first.poll() is not None)
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=LIMIT_S)
    assert first.returncode == 130
    assert re.search(
        r"warning: interrupted; step \d+ saved; the same command goes on from there", " ".join(told.split())
    )
    stood = newest_step(cut)
    holds.move(10, to=20)
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for("another", lambda: newest_step(cut) >= stood + 10, lambda: driver.poll() is not None)
    finally:
        driver.kill()
        driver.wait()
    holds.release(20)
    running = begun(cut)
    record_property("restarted_s", wait_for("a third life", lambda: len(lives(cut)) == 2, running.done))
    running.result(LIMIT_S)
    run(whole, PlainContext(torch.device("cpu")))
    assert trace_of(cut) == trace_of(whole)
    assert sorted(trace_of(cut)) == list(range(1, 41))
