"""A cluster of several machines, for real: `ray up` of the on-premise file, jobs submitted to it, a machine that dies.

The machines are namespaces of this one (tests/machines.sh), so root is needed, and a quarter of an hour:

    make test-nodes
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from efafnet.pipelines.search.earlier import open_study
from efafnet.platform.mlflow_client import mlflow_client
from tests.node_cases import (
    DASHBOARD,
    HEAD,
    NODES,
    ON_CPUS,
    RAN,
    ROOT,
    RUNS,
    SHARED,
    TRACKING,
    Cluster,
    Failure,
    check_out,
    command,
    curve,
    filled_in,
    newest_step,
    recorded,
    say,
    until,
    workers_of,
)

pytestmark = [
    pytest.mark.skipif("MACHINES" not in os.environ, reason="needs machines: make test-nodes"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster, up, and the way to it."""
    os.environ["RAY_AUTH_MODE"] = "token"
    subprocess.run(command("ray", "get-auth-token", "--generate"), check=True, capture_output=True)
    made = Cluster(
        tmp_path_factory.mktemp("operator") / "checkout", (Path.home() / ".ray" / "auth_token").read_text().strip()
    )
    check_out(made.checkout)
    made.file.write_text(filled_in((ROOT / "platform/deploy/onpremise.yaml").read_text()))
    try:
        made.up()
        yield made
    finally:
        made.close()


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
    job.succeed(1200)
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
    """It is stopped then: how many steps it takes meanwhile depends on the machine."""
    run, workers = RUNS / "elastic", ["workers=2..3", "worker.grow_every_s=10", "batch_size=18", *ON_CPUS]
    settings = ["name=elastic", f"runs={RUNS}", *data, "tracking.enabled=true", *workers]
    settings += ["epochs=1000000", "validation.every_epochs=1000", "trace=true"]
    settings += ["checkpoint.every_steps=50", "checkpoint.every_epochs=null", "log_every_steps=10"]
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
    grown = newest_step(run)
    record = json.loads((run / "run.json").read_text())["mlflow_run_id"]
    until("further checkpoints", lambda: job.ended() or newest_step(run) >= grown + 100, 240)
    until("further points in MLflow", lambda: job.ended() or curve(record)[-1] > grown, 120)
    cluster.stop(job)
    marks = workers_of("elastic")
    again = {node for mark, node in marks.items() if mark not in three and mark not in two}
    assert (set(two.values()), again, len(marks)) == ({"node-1", "node-2"}, set(NODES), 8)
    traced = [json.loads(line)["step"] for line in (run / "trace-rank0.jsonl").read_text().splitlines()]
    assert traced == list(range(1, len(traced) + 1)), "a step was lost, or taken twice"
    assert len(traced) >= grown + 100
    assert curve(record)[-1] > grown


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
    job.succeed(1200)
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


def test_a_run_outlives_the_head(cluster: Cluster, data: list[str]) -> None:
    """Its job dies with it; after another `ray up` the same command goes on where the run stood."""
    run, steps = RUNS / "headless", 600
    settings = ["name=headless", f"runs={RUNS}", *data, "tracking.enabled=true", "workers=2", "batch_size=16", *ON_CPUS]
    settings += ["epochs=1000", f"max_samples={16 * steps}", "validation.every_epochs=100", "trace=true"]
    settings += ["checkpoint.every_steps=50", "checkpoint.every_epochs=null", "log_every_steps=10"]
    job = cluster.submit("headless", "train", "nano_test", *settings)
    until("the first checkpoints", lambda: job.ended() or newest_step(run) >= 100, 240)
    before = workers_of("headless")
    failure, reached = Failure(cluster, "node-1"), newest_step(run)
    until("the end of what the operator sees", lambda: job.client.poll() is not None, 240)
    say(f"the operator's command ended {failure.seconds():.0f} s after the failure: {job.log.read_text()[-300:]!r}")
    assert job.client.returncode != 0
    failure.switch_on()
    cluster.up()
    stood = newest_step(run)  # by now nobody of the old cluster is left who could write one
    say(
        f"the cluster is up again {failure.seconds():.0f} s after the failure; the run stood at {reached}, then {stood}"
    )
    cluster.submit("headless-again", "train", "nano_test", *settings).succeed(1200)
    say(f"the run had ended {failure.seconds():.0f} s after the failure")
    assert len(workers_of("headless")) == len(before) + 2
    traced = [json.loads(line)["step"] for line in (run / "trace-rank0.jsonl").read_text().splitlines()]
    assert traced == list(range(1, steps + 1)), "a step was lost, or taken twice"
    assert f"resuming at step {stood} " in (run / "train.log").read_text()
    recorded(json.loads((run / "run.json").read_text())["mlflow_run_id"], steps)


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
    with (cluster.checkout.parent / "down.log").open("w") as log:
        subprocess.run(command("ray", "down", "-y", cluster.file), stdout=log, stderr=log, check=True, timeout=200)
    assert HEAD not in with_ray()
    began = time.monotonic()
    until("the end of the workers, which notice that the head is gone", lambda: with_ray() == [], 180)
    say(f"no Ray on any node {time.monotonic() - began:.0f} s after ray down")
