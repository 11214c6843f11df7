"""What a cluster may grow to, from the settings that its autoscaler runs with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from efafnet.platform import capacity as capacity_module
from efafnet.platform.capacity import Capacity, grown, node_types
from efafnet.platform.cluster import HEAD

ROOT = Path(__file__).resolve().parents[1]
AWS = yaml.safe_load((ROOT / "cluster.yaml").read_text())
ON_HEAD = {"CPU": 2.0, HEAD: 1.0}


def test_the_projects_own_cluster_has_no_gpu_at_first_and_four_at_its_largest() -> None:
    there = Capacity([ON_HEAD], lambda: grown((ON_HEAD,), AWS))
    assert (there.living_gpus(), there.most_gpus()) == (0, 4)
    assert there.room({"CPU": 3, "GPU": 1}) == 4
    assert there.living_room({"CPU": 1}) == 2
    assert str(there) == "this cluster at its largest"


def test_machines_that_live_are_not_counted_twice() -> None:
    alive = {"CPU": 4.0, "GPU": 1.0}
    assert grown((ON_HEAD, alive, alive), AWS) == (ON_HEAD, *[{"CPU": 4, "GPU": 1}] * 4)


def test_the_limit_of_the_whole_cluster_counts_and_gpus_come_first() -> None:
    config: dict[str, Any] = {
        "max_workers": 3,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 2}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 32}, "max_workers": 3},
            "gpu": {"resources": {"CPU": 8, "GPU": 8}, "max_workers": 2},
        },
    }
    most = grown((ON_HEAD,), config)
    assert most is not None
    assert [machine.get("GPU", 0) for machine in most] == [0, 8, 8, 0]


def test_machines_of_unknown_size_are_unknown_until_all_live() -> None:
    """`provider: local` names addresses, not what is behind them."""
    local = {"max_workers": 2, "available_node_types": {"local.cluster.node": {"resources": {}, "max_workers": 2}}}
    assert grown((ON_HEAD,), local) is None
    everyone = (ON_HEAD, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0})
    assert grown(everyone, local) == everyone
    assert grown((ON_HEAD,), {}) is None, "an autoscaler that does not tell"
    assert grown((ON_HEAD,), None) == (ON_HEAD,), "no autoscaler"


class Process:
    def __init__(self, *words: str) -> None:
        self.info = {"cmdline": list(words)}


def test_the_autoscaler_is_found_by_the_file_it_runs_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bootstrap.yaml"
    file.write_text(yaml.safe_dump(AWS))
    others = [Process("python", "raylet"), Process("python", "monitor.py", "--gcs-address=1:6379")]
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    monkeypatch.setattr("psutil.process_iter", lambda _: others)
    assert node_types("1:6379") is None, "ray start --head without one"
    served = Process("monitor.py", "--gcs-address=2:6379", f"--autoscaling-config={file}")
    monkeypatch.setattr("psutil.process_iter", lambda _: [*others, served])
    assert node_types("1:6379") is None, "that is another cluster's"
    found = node_types("2:6379")
    assert found is not None
    assert found["available_node_types"]["gpu"]["max_workers"] == 4
    file.unlink()
    with pytest.raises(OSError, match="No such file"):
        node_types("2:6379")


def test_kuberays_cluster_is_read_from_its_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resource is the project's own; only the way to Kubernetes' server is cut short."""
    documents = yaml.safe_load_all((ROOT / "platform" / "deploy" / "kubernetes" / "raycluster.yaml").read_text())
    resource: dict[str, Any] = next(document for document in documents if document["kind"] == "RayCluster")
    resource["metadata"].setdefault("namespace", "here")
    asked: list[tuple[str, str]] = []

    class Client:
        def __init__(self, namespace: str) -> None:
            self.namespace = namespace

        def get(self, path: str) -> dict[str, Any]:
            asked.append((self.namespace, path))
            return resource

    monkeypatch.setattr("ray.autoscaler._private.kuberay.node_provider.KubernetesHttpApiClient", Client)
    monkeypatch.setattr("psutil.process_iter", lambda _: [])
    monkeypatch.setenv("RAY_CLUSTER_NAME", "efafnet")
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "here")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    config = node_types("1:6379")
    assert asked == [("here", "rayclusters/efafnet")]
    group = resource["spec"]["workerGroupSpecs"][0]
    most = grown((ON_HEAD,), config)
    assert most is not None
    assert Capacity(most).living_gpus() == group["maxReplicas"] > 0
    resource["spec"]["enableInTreeAutoscaling"] = False
    assert node_types("1:6379") is None, "a cluster of fixed size"


def test_a_head_that_does_not_answer_leaves_it_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the head does not tell: busy")

    monkeypatch.setattr(capacity_module, "on_head", refuse)
    capacity_module._autoscaler.cache_clear()
    assert capacity_module._autoscaler("h:1") == {}
    assert "what the cluster may grow to is not known: the head does not tell: busy" in capsys.readouterr().err
    capacity_module._autoscaler.cache_clear()
