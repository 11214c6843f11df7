from __future__ import annotations

import logging
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from efafnet.platform import cluster, ray_private
from efafnet.platform.cluster import ClusterConfig, ClusterError, connect
from tests.processes import deaf_port
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _no_cluster_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_private, "running_here", lambda: None)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


@pytest.mark.parametrize(
    ("asked", "environment", "running", "chosen"),
    [
        (None, None, None, "local"),
        (None, None, "10.0.0.1:6379", "10.0.0.1:6379"),
        (None, "10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
        ("local", "10.0.0.2:6379", "10.0.0.1:6379", "local"),
        ("auto", "10.0.0.2:6379", None, "auto"),
    ],
)
def test_which_ray_is_used(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, environment: str | None, running: str | None, chosen: str
) -> None:
    monkeypatch.setattr(ray_private, "running_here", lambda: running)
    if environment:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert cluster._choose_address(ClusterConfig(address=asked)) == chosen


def test_a_client_address_is_refused_with_the_way_to_do_it() -> None:
    with pytest.raises(ClusterError, match=r"ray://h:10001: .* submit the command instead: ray job submit"):
        cluster._choose_address(ClusterConfig(address="ray://h:10001"))


def test_an_ignored_number_of_cores_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    cluster._choose_address(ClusterConfig(address="10.0.0.1:6379", num_cpus=3))
    assert "num_cpus = 3 is ignored" in capsys.readouterr().err


def test_no_cluster_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**_options: object) -> None:
        raise ConnectionError("Could not find\n any running Ray instance.")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(cluster, "_await_port", lambda _: None)
    with pytest.raises(
        ClusterError, match=r"no Ray at 10\.9\.9\.9:1: Could not find any running Ray instance\.; check"
    ):
        connect(ClusterConfig(address="10.9.9.9:1"))


def test_a_machine_too_busy_to_start_ray_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own words for that are a bare Exception; what is of a class says what went wrong, and is ours."""
    import ray

    failing: list[Exception] = [Exception("The current node timed out during startup.\nThis could"), KeyError("ours")]

    def init(**_: object) -> None:
        raise failing[0]

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match=r"^Ray does not start on this machine: The current node timed .* very busy"):
        connect(ClusterConfig(address="local"))
    failing.pop(0)
    with pytest.raises(KeyError):
        connect(ClusterConfig(address="local"))


@pytest.mark.parametrize("address", [None, "auto"])
def test_an_address_that_leads_nowhere_is_told_within_seconds(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    """Ray itself says nothing of use for minutes; it is not even asked."""
    import ray

    waited: list[float] = []
    # The waiting's own clock, which goes on as it sleeps.
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append))
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with deaf_port() as port:
        nowhere = f"127.0.0.1:{port}"
        monkeypatch.setenv("RAY_ADDRESS", nowhere)
        with pytest.raises(ClusterError, match=rf"no Ray at {nowhere} \(RAY_ADDRESS\): .*refused; start .*unset RAY_A"):
            connect(ClusterConfig(address=address))
    assert 1 < sum(waited) <= cluster.REACH_S


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"\0\0"])
def test_a_port_of_something_else_is_told_apart(monkeypatch: pytest.MonkeyPatch, words: bytes) -> None:
    """Of the dashboard, of SSH, of something that closes the connection at once."""
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))

    def answer() -> None:
        with server.accept()[0] as connection:
            connection.sendall(words)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"no Ray at {address}: something else takes connections there; give"):
            connect(ClusterConfig(address=address))


def test_a_server_of_grpc_is_taken_for_a_head() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        cluster._await_port(f"127.0.0.1:{port}")
    finally:
        server.stop(None)


def test_an_address_is_host_and_port() -> None:
    with pytest.raises(ClusterError, match="Ray address head:port: write HOST:PORT"):
        connect(ClusterConfig(address="head:port"))


def test_ray_is_kept_quiet() -> None:
    cluster.quiet_logs()
    assert logging.getLogger("ray.train").getEffectiveLevel() == logging.WARNING


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_local_ray_runs_this_checkout_in_this_directory() -> None:
    import ray

    found = connect()
    assert found.is_local
    assert (found.nodes, found.cpus, found.gpus) == (1, 4.0, 0.0)
    assert str(found) == "Ray on this machine: 1 node, 4 CPU, no GPU"

    @ray.remote
    def look() -> tuple[list[str], str, str, int, str, dict[str, Any], bool]:
        import gc

        import efafnet
        from efafnet.platform.cluster import resources
        from efafnet.platform.provenance import code_version

        digest, given = code_version()["source_digest"], dict(ray.get_runtime_context().runtime_env)
        often, address = gc.get_threshold()[0], os.environ.get("RAY_ADDRESS", "")
        return list(efafnet.__path__), str(Path.cwd()), digest, often, address, given, resources().is_local

    from efafnet.platform.provenance import code_version

    path, directory, digest, often, address, given, is_local = ray.get(look.remote())
    assert path == [str(ROOT)]
    assert directory == str(Path.cwd())
    assert digest == code_version()["source_digest"]
    assert often == 10_000, "what workers import is looked through for garbage again and again"
    assert address == found.address, "Ray's helpers in workers must not meet another Ray of this machine"
    assert is_local, "a run would start a process that nobody hears, as on a cluster that grows"
    assert given == {}, "with an environment of their own workers start as two processes, one after the other"


def test_paths_are_asked_about_where_there_are_several_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "shared_path_problem", lambda path: f"{path} is not visible on n2; share it")
    one, two = cast(Any, SimpleNamespace(nodes=1)), cast(Any, SimpleNamespace(nodes=2))
    cluster.check_shared(one, [tmp_path], "the replicas load it")
    with pytest.raises(OSError, match=rf"^the replicas load it: {tmp_path} is not visible on n2; share it$"):
        cluster.check_shared(two, [tmp_path], "the replicas load it")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_the_head_answers_a_trial_that_holds_all_of_its_own_reservation() -> None:
    """A search reserves for a trial's process what it asks for and not more; there every task looks for its place."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def look(number: int) -> int:
        return number + 1

    def ask() -> int:
        return cluster.on_head(look, 7, timeout_s=LIMIT_S)

    held = {cluster.HEAD: 0.001}
    group = ray.util.placement_group([held])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    try:
        trial = ray.remote(num_cpus=0, resources=held)(ask).options(scheduling_strategy=inside)
        assert ray.get(trial.remote(), timeout=LIMIT_S) == 8
    finally:
        ray.util.remove_placement_group(group)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_paths_that_workers_cannot_see_are_named(tmp_path: Path) -> None:
    assert cluster.shared_path_problem(tmp_path) is None
    problem = cluster.shared_path_problem(tmp_path / "none")
    assert problem is not None
    assert "put it on storage all nodes share" in problem
