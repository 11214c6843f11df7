"""A cluster of several machines, for real: `ray up` of the on-premise file, jobs submitted to it, a machine that dies.

The machines are namespaces of this one (tests/machines.sh), so root is needed, and some minutes:

    make test-nodes
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from efafnet.pipelines.search.earlier import open_study
from efafnet.platform.mlflow_client import mlflow_client

ROOT = Path(__file__).resolve().parents[1]
MACHINES = ROOT / "tests" / "machines.sh"
SHARED = Path("/mnt/efafnet")
RUNS = SHARED / "runs"
RAN = SHARED / "ran"
NODES = {f"node-{number}": f"10.77.0.1{number}" for number in (1, 2, 3)}
HEAD, *WORKERS = NODES.values()
DASHBOARD = "http://127.0.0.1:8265"
TRACKING = f"http://{HEAD}:5000"
ON_CPUS = ("worker.gpu=no", "worker.cpus=1", "precision=fp32")
"""Said, for while a machine is dead nobody knows what it would bring."""

pytestmark = [
    pytest.mark.skipif("MACHINES" not in os.environ, reason="needs machines: make test-nodes"),
    pytest.mark.timeout(1200),
]

MARK = f"""

_run = run


def run(config, context):
    import os, socket

    mark = Path("{RAN}") / f"{{config.name}} rank {{context.rank}} pid {{os.getpid()}} {{socket.gethostname()}}"
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(__file__)
    return _run(config, context)
"""
"""Only the submitted tree has this: every worker writes down on which node it runs which file."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)  # noqa: T201


def until(what: str, look: Callable[[], Any], within_s: float) -> Any:
    """Return the first thing that ``look`` finds."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        time.sleep(0.5)


def command(program: str, *words: str | Path) -> list[str]:
    return [str(Path(sys.executable).parent / program), *map(str, words)]


def workers_of(run: str) -> dict[str, str]:
    """Where the workers of a run have begun so far: {mark: node}."""
    return {mark.name: mark.name.split()[-1] for mark in sorted(RAN.glob(f"{run} rank *"))}


# ---- the cluster


@dataclass
class Cluster:
    """What the operator has of it."""

    checkout: Path
    token: str

    def get(self, path: str) -> Any:
        """Ask the dashboard, through the tunnel."""
        request = urllib.request.Request(DASHBOARD + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def alive(self) -> set[str]:
        """Addresses of the nodes that Ray holds to be alive; none while the dashboard does not answer."""
        try:
            nodes = self.get("/api/v0/nodes")["data"]["result"]["result"]
        except OSError:
            return set()
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    def submit(self, name: str, *words: str) -> Job:
        """Send the checkout and a command to the cluster."""
        log = self.checkout.parent / f"{name}.log"
        options = ["--address", DASHBOARD, "--working-dir", str(self.checkout), "--submission-id", name]
        line = command("ray", "job", "submit", *options, "--", "python", "-m", "efafnet.pipelines", *words)
        say(f"$ ray job submit --working-dir . -- python -m efafnet.pipelines {' '.join(words)}")
        with log.open("w") as file:
            return Job(self, name, subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT), log)


@dataclass
class Job:
    """A submitted command."""

    cluster: Cluster
    name: str
    client: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> bool:
        """Whether it has ended, and well."""
        assert self.client.poll() in (None, 0), self.log.read_text()[-6000:]
        return self.client.returncode == 0

    def succeed(self, within_s: float) -> None:
        """Wait for its end."""
        until(f"the end of {self.name}", self.ended, within_s)
        assert self.cluster.get(f"/api/jobs/{self.name}")["status"] == "SUCCEEDED"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, up, and the way to it."""
    os.environ["RAY_AUTH_MODE"] = "token"
    subprocess.run(command("ray", "get-auth-token", "--generate"), check=True, capture_output=True)
    checkout = tmp_path_factory.mktemp("operator") / "checkout"
    check_out(checkout)
    file = checkout / "my-cluster.yaml"
    file.write_text(filled_in((ROOT / "platform/deploy/onpremise.yaml").read_text()))
    began = time.monotonic()
    log = checkout.parent / "up.log"
    with log.open("w") as out:
        line = command("ray", "up", "-y", file)
        done = subprocess.run(line, cwd=checkout, stdout=out, stderr=out, check=False, timeout=300)
    assert done.returncode == 0, log.read_text()[-6000:]
    say(f"ray up returned after {time.monotonic() - began:.0f} s")
    made = Cluster(checkout, (Path.home() / ".ray" / "auth_token").read_text().strip())
    tunnel = subprocess.Popen(command("ray", "dashboard", file), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until("all nodes", lambda: made.alive() == set(NODES.values()), 300)
        say(f"all nodes alive after {time.monotonic() - began:.0f} s")
        yield made
    finally:
        tunnel.terminate()
        tunnel.wait()


def check_out(place: Path) -> None:
    """Copy the tree, and make it differ from the one that is installed on the nodes."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
        text=True,
    )
    for name in listed.stdout.strip("\0").split("\0"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
    with (place / "pipelines/training/loop.py").open("a") as file:
        file.write(MARK)


def filled_in(text: str) -> str:
    """The on-premise file as its user fills it in; the nodes, which share this machine, take one core each."""
    for old, new in {
        "head_ip: 192.0.2.10 ": f"head_ip: {HEAD} ",
        "[192.0.2.11, 192.0.2.12]": f"[{', '.join(WORKERS)}]",
        "ssh_user: ubuntu ": "ssh_user: efafnet ",
        "ray start ": "ray start --num-cpus=1 --object-store-memory=200000000 ",
        "mlflow server ": "mlflow server --workers 1 ",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def data(cluster: Cluster) -> list[str]:
    """Small crop stores, made on the cluster, as settings."""
    people = SHARED / "people"
    sizes = ["images.train=40", "images.val=10", "image_size=160x200", "workers=1"]
    cluster.submit("synth", "synth", str(people), *sizes).succeed(120)
    for part in ("train", "val"):
        labels, images = people / "annotations" / f"{part}.json", people / "images" / part
        words = "prepare", str(labels), str(images), str(SHARED / part)
        cluster.submit(f"prepare-{part}", *words).succeed(180)
    return [f"data.train={SHARED}/train", f"data.val={SHARED}/val"]


# ---- a machine that dies


class Failure:
    """The plug of a node is pulled. Its cable dies first: nobody hears of it."""

    def __init__(self, cluster: Cluster, node: str) -> None:
        self._cluster, self.node = cluster, node
        self._began = time.monotonic()
        self._power("off")
        say(f"{node} is without power")

    def noted(self) -> bool:
        """Whether Ray holds the node to be dead."""
        alive = self._cluster.alive()
        return bool(alive) and NODES[self.node] not in alive

    def seconds(self) -> float:
        """Since the plug was pulled."""
        return time.monotonic() - self._began

    def mend(self) -> None:
        """Switch the node on again, and wait until the cluster has it back."""
        self._power("on")
        began = time.monotonic()
        until("the node's return", lambda: NODES[self.node] in self._cluster.alive(), 300)
        say(f"{self.node} is part of the cluster again {time.monotonic() - began:.0f} s after it was switched on")

    def _power(self, state: str) -> None:
        subprocess.run([MACHINES, state, self.node.removeprefix("node-")], check=True)


def newest_step(run: Path) -> int:
    steps = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-????????")]
    return max(steps, default=-1)


def test_nobody_is_let_in_without_the_token(cluster: Cluster) -> None:
    assert cluster.get("/api/jobs/") == []
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{DASHBOARD}/api/jobs/", timeout=10)


def test_training_outlives_a_machine(cluster: Cluster, data: list[str]) -> None:
    run, steps, every = RUNS / "outlives", 1000, 50
    settings = ["name=outlives", f"runs={RUNS}", *data, "tracking.enabled=true", "workers=2", "batch_size=16", *ON_CPUS]
    settings += ["epochs=1000", f"max_samples={16 * steps}", "validation.every_epochs=100", "trace=true"]
    settings += [f"checkpoint.every_steps={every}", "checkpoint.every_epochs=null", "log_every_steps=10"]
    began = time.monotonic()
    job = cluster.submit("train", "train", "nano_test", *settings)
    until("the first checkpoints", lambda: job.ended() or newest_step(run) >= 4 * every, 240)
    say(f"step {newest_step(run)} {time.monotonic() - began:.0f} s after the submission; {workers_of('outlives')}")
    before = workers_of("outlives")
    assert len(set(before.values())) == 2, "one CPU per node: the workers are on two nodes"
    lost = next(node for node in before.values() if NODES[node] != HEAD)
    failure = Failure(cluster, lost)
    reached = newest_step(run)
    assert reached < steps - 4 * every, "the node died too late to say anything"
    until("Ray's notice", lambda: job.ended() or failure.noted(), 180)
    say(f"Ray held {lost} to be dead after {failure.seconds():.0f} s")
    until("new workers", lambda: job.ended() or len(workers_of("outlives")) >= 4, 300)
    say(f"new workers began after {failure.seconds():.0f} s: {workers_of('outlives').keys() - before.keys()}")
    until("a further checkpoint", lambda: job.ended() or newest_step(run) > reached + every, 120)
    say(f"step {newest_step(run)} {failure.seconds():.0f} s after the failure; the last before it was {reached}")
    job.succeed(400)
    say(f"the run had ended {time.monotonic() - began:.0f} s after its submission")

    marks = workers_of("outlives")
    assert len(marks) == 4, "two workers, and two in their place"
    assert lost not in {node for mark, node in marks.items() if mark not in before}
    for mark in marks:
        assert "/working_dir_files/_ray_pkg_" in (RAN / mark).read_text(), "not the submitted tree"
    for rank in (0, 1):
        traced = [json.loads(line)["step"] for line in (run / f"trace-rank{rank}.jsonl").read_text().splitlines()]
        assert traced == list(range(1, steps + 1)), "a step was lost, or taken twice"
    assert json.loads((run / "result.json").read_text())["metrics"]
    recorded(json.loads((run / "run.json").read_text())["mlflow_run_id"], steps)
    failure.mend()


def test_elastic_training_shrinks_and_grows_with_the_cluster(cluster: Cluster, data: list[str]) -> None:
    run, steps = RUNS / "elastic", 4000
    settings = [
        "name=elastic",
        f"runs={RUNS}",
        *data,
        "tracking.enabled=true",
        "workers=2..3",
        "batch_size=18",
        *ON_CPUS,
    ]
    settings += ["epochs=2000", f"max_samples={18 * steps}", "validation.every_epochs=200", "trace=true"]
    settings += ["checkpoint.every_steps=50", "checkpoint.every_epochs=null", "log_every_steps=10"]
    settings += ["worker.grow_every_s=10", *ON_CPUS]
    job = cluster.submit("elastic", "train", "nano_test", *settings)
    until("three workers at work", lambda: job.ended() or newest_step(run) >= 100, 240)
    three = workers_of("elastic")
    assert set(three.values()) == set(NODES)
    failure = Failure(cluster, "node-3")
    reached = newest_step(run)
    until("two workers", lambda: job.ended() or len(workers_of("elastic")) >= 5, 300)
    two = {mark: node for mark, node in workers_of("elastic").items() if mark not in three}
    say(f"two workers after {failure.seconds():.0f} s: {two}")
    until("a further checkpoint", lambda: job.ended() or newest_step(run) >= reached + 50, 120)
    say(f"step {newest_step(run)} {failure.seconds():.0f} s after the failure; the last before it was {reached}")
    failure.mend()
    began = time.monotonic()
    until("three workers again", lambda: job.ended() or len(workers_of("elastic")) >= 8, 240)
    say(f"three workers {time.monotonic() - began:.0f} s after the node's return")
    job.succeed(400)
    marks = workers_of("elastic")
    again = {node for mark, node in marks.items() if mark not in three and mark not in two}
    assert (set(two.values()), again, len(marks)) == ({"node-1", "node-2"}, set(NODES), 8)
    traced = [json.loads(line)["step"] for line in (run / "trace-rank0.jsonl").read_text().splitlines()]
    assert traced == list(range(1, steps + 1)), "a step was lost, or taken twice"
    recorded(json.loads((run / "run.json").read_text())["mlflow_run_id"], steps)


def recorded(run_id: str, steps: int) -> None:
    """MLflow has one curve, each point once, to the end."""
    client = mlflow_client(TRACKING)
    assert client.get_run(run_id).info.status == "FINISHED"
    points = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    assert points == sorted(set(points))
    assert points[-1] == steps


def test_a_search_outlives_a_machine(cluster: Cluster, data: list[str]) -> None:
    run, trials, steps = RUNS / "search", 4, 400
    settings = ["name=search", f"runs={RUNS}", *data, "tracking.enabled=true", "workers=1", "batch_size=16", *ON_CPUS]
    settings += ["epochs=1000", f"max_samples={16 * steps}", f"search.trials={trials}"]
    settings += ["search.stop=none", "search.validations=2"]
    settings += ["checkpoint.every_steps=50", "checkpoint.every_epochs=null"]
    began = time.monotonic()
    job = cluster.submit("tune", "tune", "ohkm", "nano_test", *settings)

    def places() -> dict[str, str]:
        return {mark.split()[0]: node for number in range(trials) for mark, node in workers_of(f"{number:04d}").items()}

    until("trials on two nodes", lambda: job.ended() or len(set(places().values())) >= 2, 300)
    say(f"trials run {time.monotonic() - began:.0f} s after the submission: {places()}")
    number, lost = next((number, node) for number, node in places().items() if NODES[node] != HEAD)
    until("a checkpoint", lambda: job.ended() or newest_step(run / "trials" / number) >= 50, 180)
    before = workers_of(number)
    failure = Failure(cluster, lost)
    reached = newest_step(run / "trials" / number)
    assert not (run / "trials" / number / "result.json").exists(), "the node died too late to say anything"
    until("the trial's next worker", lambda: job.ended() or len(workers_of(number)) > len(before), 400)
    say(f"trial {number} began again {failure.seconds():.0f} s after the failure, from step {reached}")
    job.succeed(600)
    say(f"the search had ended {time.monotonic() - began:.0f} s after its submission; {places()}")

    study = open_study(run / "study.db")
    states = [trial.state for trial in study.trials]
    assert states == [optuna.trial.TrialState.COMPLETE] * trials, "a trial was lost, doubled or failed"
    again = {node for mark, node in workers_of(number).items() if mark not in before}
    assert again
    assert lost not in again
    record = json.loads((run / "run.json").read_text())
    children = mlflow_client(TRACKING).search_runs(
        [mlflow_client(TRACKING).get_run(record["mlflow_run_id"]).info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{record['mlflow_run_id']}'",
    )
    assert sorted(child.info.status for child in children) == ["FINISHED"] * trials
    for child in children:
        recorded(child.info.run_id, steps)
    for mark in (mark for number in range(trials) for mark in workers_of(f"{number:04d}")):
        assert "/working_dir_files/_ray_pkg_" in (RAN / mark).read_text(), "not the submitted tree"
    failure.mend()


def test_the_cluster_goes_down(cluster: Cluster) -> None:
    key = str(Path.home() / ".ssh" / "id_ed25519")
    options = ["-q", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]

    def with_ray() -> list[str]:
        look = ["ssh", *options, "-o", "ConnectTimeout=10"]
        looks = {at: subprocess.run([*look, f"efafnet@{at}", "pgrep -c raylet"], capture_output=True, check=False)
                 for at in NODES.values()}  # fmt: skip
        assert all(found.returncode in (0, 1) for found in looks.values()), "a node does not answer"
        return [address for address, found in looks.items() if found.returncode == 0]

    assert set(with_ray()) == set(NODES.values())
    file = cluster.checkout / "my-cluster.yaml"
    with (cluster.checkout.parent / "down.log").open("w") as log:
        subprocess.run(command("ray", "down", "-y", file), stdout=log, stderr=log, check=True, timeout=200)
    assert HEAD not in with_ray()
    began = time.monotonic()
    until("the end of the workers, which notice that the head is gone", lambda: with_ray() == [], 180)
    say(f"no Ray on any node {time.monotonic() - began:.0f} s after ray down")
