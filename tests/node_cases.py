"""A cluster of pretended machines (tests/machines.sh): `ray up`, jobs submitted to it, machines without power."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    tunnel: subprocess.Popen[bytes] | None = None
    """What forwards the dashboard's address through SSH."""

    @property
    def file(self) -> Path:
        """The cluster file that the user filled in."""
        return self.checkout / "my-cluster.yaml"

    def up(self) -> None:
        """Start it, or what is missing of it, and wait for all nodes."""
        self.close()
        began, log = time.monotonic(), self.checkout.parent / "up.log"
        with log.open("w") as out:
            line = command("ray", "up", "-y", self.file)
            done = subprocess.run(line, cwd=self.checkout, stdout=out, stderr=out, check=False, timeout=300)
        assert done.returncode == 0, log.read_text()[-6000:]
        say(f"ray up returned after {time.monotonic() - began:.0f} s")
        line = command("ray", "dashboard", self.file)
        self.tunnel = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until("all nodes", lambda: self.alive() == set(NODES.values()), 300)
        say(f"all nodes alive after {time.monotonic() - began:.0f} s")

    def close(self) -> None:
        """Close the way to it."""
        if self.tunnel is not None:
            self.tunnel.terminate()
            self.tunnel.wait()

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

    def stop(self, job: Job) -> None:
        """Stop a submitted command."""
        line = command("ray", "job", "stop", "--address", DASHBOARD, job.name)
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, timeout=120)
        assert self.get(f"/api/jobs/{job.name}")["status"] == "STOPPED"


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
        # Ray's workers yield to everything else; beside other work of this machine those of all nodes would starve.
        "ray start ": "RAY_worker_niceness=0 ray start --num-cpus=1 --object-store-memory=200000000 ",
        "mlflow server ": "mlflow server --workers 1 ",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


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
        self.switch_on()
        began = time.monotonic()
        until("the node's return", lambda: NODES[self.node] in self._cluster.alive(), 300)
        say(f"{self.node} is part of the cluster again {time.monotonic() - began:.0f} s after it was switched on")

    def switch_on(self) -> None:
        """Let it boot, and nothing more."""
        self._power("on")

    def _power(self, state: str) -> None:
        subprocess.run([MACHINES, state, self.node.removeprefix("node-")], check=True)


def newest_step(run: Path) -> int:
    steps = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-????????")]
    return max(steps, default=-1)


def recorded(run_id: str, steps: int) -> None:
    """MLflow has one curve, each point once, to the end."""
    assert mlflow_client(TRACKING).get_run(run_id).info.status == "FINISHED"
    assert curve(run_id)[-1] == steps


def curve(run_id: str) -> list[int]:
    """The steps of a run's curve in MLflow, each of which is there once."""
    points = [point.step for point in mlflow_client(TRACKING).get_metric_history(run_id, "train/loss")]
    assert points == sorted(set(points))
    return points
