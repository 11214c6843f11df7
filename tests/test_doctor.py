from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from efafnet.pipelines import all_reduce, doctor
from efafnet.pipelines.doctor import DoctorConfig, node_finding, ray_finding, run_doctor
from efafnet.platform import cluster, health, ray_private
from efafnet.platform.capacity import Capacity
from efafnet.platform.cluster import ClusterError, Resources
from efafnet.platform.health import Finding


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_doctor(DoctorConfig(ray="no", storage=tmp_path / "runs")) == 0
    out = capsys.readouterr().out
    for what in ("Python", "efafnet", "packages", "versions", "memory", "GPU", "Ray", "MLflow", "storage"):
        assert f" {what} " in out
    assert "0 broken" in out
    assert list(tmp_path.iterdir()) == [], "looking must not create anything"


def test_what_is_broken_has_a_remedy_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: [Finding("ok", "a", "b"), Finding("fail", "c", "d", "mend it")])
    assert run_doctor(DoctorConfig()) == 1
    out = capsys.readouterr().out
    assert "fail  c: mend it\n" in out
    assert "1 broken, 0 doubtful, 1 in order" in out
    monkeypatch.setattr(doctor, "examine", lambda _: [Finding("warn", "c", "d", "look")])
    assert run_doctor(DoctorConfig()) == 0


# ---- software


def test_versions_are_compared_with_the_pins(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text(f"# tested\ntorch=={version('torch').partition('+')[0]}\nnot-installed-at-all==1\n")
    assert health.pins(pins).state == "ok"
    pins.write_text("torch==1.0\n")
    found = health.pins(pins)
    assert found.state == "warn"
    assert f"torch {version('torch')} instead of 1.0" in found.found
    assert "no constraints.txt" in health.pins(tmp_path / "none.txt").found


def test_a_torchvision_of_another_build_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", load)
    found = health.imports()
    assert found.state == "fail"
    assert "torchvision: operator torchvision::nms does not exist" in found.found
    assert found.remedy.startswith("take torch and torchvision from one source")


# ---- hardware


def disk(total_gib: float) -> Callable[[object], Any]:
    return lambda _path: type("Usage", (), {"total": int(total_gib * 2**30), "free": int(total_gib * 2**30)})()


@pytest.mark.parametrize(("gib", "state"), [(0.0625, "warn"), (8, "ok")])
def test_a_containers_small_shared_memory_is_noticed(monkeypatch: pytest.MonkeyPatch, gib: float, state: str) -> None:
    monkeypatch.setattr("shutil.disk_usage", disk(gib))
    found = health.shared_memory(Path("/"))
    assert found.state == state
    assert ("--shm-size" in found.remedy) == (state == "warn")


def test_shared_memory_that_is_full_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 8 * 2**30, "free": 2**28})()
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    found = health.shared_memory(Path("/"))
    assert (found.state, found.found) == ("warn", "0.25 GiB of 8.0 free")


def test_a_gpu_that_torch_cannot_use_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(health, "driver_gpus", lambda: ["GPU 0: NVIDIA A10G"])
    found = health.gpus()
    assert found.state == "fail"
    assert "the driver shows GPU 0: NVIDIA A10G, but torch" in found.found
    monkeypatch.setattr(health, "driver_gpus", list)
    assert health.gpus().state == "ok"


def test_the_drivers_gpus_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A10G (UUID: GPU-1)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert health.driver_gpus() == ["GPU 0: NVIDIA A10G"]
    monkeypatch.setenv("PATH", "/none")
    assert health.driver_gpus() == []


def test_few_open_files_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 65536))
    assert health.open_files().remedy == "ulimit -n 65536 before starting Ray"


# ---- storage and tracking


@pytest.mark.parametrize(("gib", "state"), [(0.5, "fail"), (5, "warn"), (50, "ok")])
def test_room_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gib: float, state: str) -> None:
    monkeypatch.setattr(health, "free_bytes", lambda _: int(gib * 2**30))
    assert health.storage(tmp_path / "runs").state == state


def test_storage_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The superuser may write anywhere, so the system's answer is given here.
    monkeypatch.setattr(os, "access", lambda *_args, **_kwargs: False)
    found = health.storage(tmp_path / "runs")
    assert (found.state, found.found) == ("fail", f"{tmp_path}/runs cannot be written")


def test_tracking_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFAFNET_TRACKING_START_S", "0")
    assert health.tracking(None).found == f"{tmp_path}/mlflow.db will be created"
    alone = health.tracking("http://127.0.0.1:9")
    assert alone.state == "fail"
    assert "does not answer" in alone.found
    assert alone.remedy.startswith("start it")
    assert health.tracking("file:///x").state == "fail"
    many = health.tracking(None, nodes=3)
    assert many.state == "fail"
    assert "2 other nodes cannot reach" in many.found
    assert "mlflow server" in many.remedy


def test_an_existing_store_is_opened(tmp_path: Path) -> None:
    from efafnet.platform.tracking import create_run, prepare_tracking

    create_run(prepare_tracking(f"sqlite:///{tmp_path}/m.db"), "some")
    assert health.tracking(f"sqlite:///{tmp_path}/m.db").found.endswith("m.db: 2 experiments")
    (tmp_path / "bad.db").write_text("no database " * 100)
    assert health.tracking(f"sqlite:///{tmp_path}/bad.db").state == "fail"


def test_a_host_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.gethostbyname", unknown)
    assert health.host_name().remedy == "add it to /etc/hosts"
    monkeypatch.setattr("socket.gethostbyname", lambda _: "127.0.1.1")
    assert health.host_name().state == "ok", "workers do not go by it"


# ---- Ray

TWO_NODES = Resources("10.0.0.1:6379", False, 2, 8.0, 1.0, ("A10G",), "10.0.0.1:8265")


def report(**changes: Any) -> dict[str, Any]:
    plain = {"host": "n1", "python": "3.11", "versions": {"ray": "2", "torch": "3"}, "source": "a", "gpus": []}
    return {**plain, "shared_memory": Finding("ok", "shared memory", "8 GiB"), **changes}


@pytest.mark.parametrize(
    ("node", "state", "found"),
    [
        (report(gpus=["GPU 0: A10G"]), "ok", "same Python, packages and code, GPU 0: A10G"),
        (report(python="3.12"), "fail", "Python 3.12, the driver has 3.11"),
        (report(source="b"), "fail", "runs other code (b) than the driver (a)"),
        (report(versions={"ray": "2", "torch": "4"}), "warn", "torch 4, the driver has 3"),
        ("n2: ModuleNotFoundError: No module named 'efafnet'", "fail", "n2: ModuleNotFoundError"),
    ],
)
def test_nodes_are_compared_with_the_driver(node: Mapping[str, Any] | str, state: str, found: str) -> None:
    finding = node_finding(node, report())
    assert finding.state == state
    assert finding.found.startswith(found)


def test_a_cluster_is_examined_node_by_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "is_running", lambda _: True)
    monkeypatch.setattr(cluster, "connect", lambda _: TWO_NODES)
    monkeypatch.setattr(cluster, "on_every_node", lambda _: [report(), "n2: died"])
    monkeypatch.setattr(cluster, "token_required", lambda: False)
    monkeypatch.setattr(cluster, "gpu_nodes", lambda: 2)
    monkeypatch.setattr(doctor, "capacity", lambda _: Capacity([{"CPU": 4.0}], lambda: None))
    slow = [Finding("warn", f"network, {name}", "0.1 GB/s") for name in ("gloo", "nccl")]
    monkeypatch.setattr(all_reduce, "all_reduce_findings", lambda gpu_nodes: slow[:gpu_nodes])
    monkeypatch.setattr(cluster, "shared_path_problem", lambda path: f"{path} is not visible on n2; share it")
    monkeypatch.setattr(health, "node_report", report)
    monkeypatch.setattr(health, "software", lambda: iter(()))
    findings = list(doctor.examine(DoctorConfig(storage=tmp_path)))
    broken = {finding.what for finding in findings if finding.state == "fail"}
    assert broken == {"node", "token", "MLflow", "shared storage"}
    doubtful = {finding.what for finding in findings if finding.state == "warn"}
    assert doubtful >= {"growth", "network, gloo", "network, nccl"}
    unmeasured = {finding.what for finding in doctor.examine(DoctorConfig(storage=tmp_path, measure=False))}
    assert unmeasured.isdisjoint({"arithmetic", "feeding", "network, gloo"})


def test_what_a_cluster_may_grow_to_is_told() -> None:
    head, gpu = {"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}
    found = doctor.growth_finding(Capacity([head, gpu], lambda: (head, gpu, gpu, gpu)))
    assert (found.state, found.found) == ("ok", "2 nodes with 1 GPUs now, at most 4 with 3")
    assert doctor.growth_finding(Capacity([head], lambda: None)).remedy.startswith("say worker.gpu=yes")


def test_no_cluster_is_in_order_and_a_dead_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_private, "running_here", lambda: None)
    assert ray_finding(DoctorConfig())[0].state == "ok"
    monkeypatch.setattr(cluster, "is_running", lambda _: True)

    def refuse(_config: object) -> None:
        raise ClusterError("no Ray at 10.9.9.9:1: refused; check `ray status`")

    monkeypatch.setattr(cluster, "connect", refuse)
    finding, resources = ray_finding(DoctorConfig())
    assert (finding.state, finding.found, finding.remedy) == (
        "fail",
        "no Ray at 10.9.9.9:1: refused",
        "check `ray status`",
    )
    assert resources is None


@pytest.mark.parametrize(
    ("is_local", "dashboard", "state", "end"),
    [
        (True, "", "ok", "Ray on this machine: 1 node, 2 CPU, no GPU"),
        (False, "10.0.0.5:8265", "ok", "no GPU, dashboard 10.0.0.5:8265"),
        (False, "", "warn", "no GPU, no dashboard"),
    ],
)
def test_only_a_cluster_needs_a_dashboard(
    monkeypatch: pytest.MonkeyPatch, is_local: bool, dashboard: str, state: str, end: str
) -> None:
    found = cluster.Resources("10.0.0.5:6379", is_local, 1, 2.0, 0.0, (), dashboard)
    monkeypatch.setattr(cluster, "connect", lambda _: found)
    finding, resources = ray_finding(DoctorConfig(ray="start"))
    assert resources is found
    assert finding.state == state
    assert finding.found.endswith(end)


def test_what_a_job_would_lose_is_told(tmp_path: Path) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    for finding in (health.storage(copy / "runs"), health.tracking(f"sqlite:///{copy}/mlflow.db")):
        assert finding.state == "warn"
        assert "is deleted with the job" in finding.found
