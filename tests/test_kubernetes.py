"""The Kubernetes manifests and the image: they keep the rules of the other deployments. No cluster is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from efafnet.pipelines.serving.config import ServeConfig
from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform.configuration import apply_overrides, load_preset, resolve
from tests.deploy_cases import DEPLOY, INSTALLED_FROM, ROOT, folders, oldest_python, pins

FOLDER = DEPLOY / "kubernetes"
IMAGE = "REPLACE/efafnet:0.2.0"


def documents() -> list[dict[str, Any]]:
    return [document for path in sorted(FOLDER.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in documents() if document["kind"] == kind]


@pytest.fixture(scope="module")
def ray_cluster() -> dict[str, Any]:
    [cluster] = of_kind("RayCluster")
    spec: dict[str, Any] = cluster["spec"]
    return spec


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """(what it is, template) of all pods."""
    [job] = of_kind("RayJob")
    for owner in (*of_kind("RayCluster"), {"kind": "RayJob", "spec": job["spec"]["rayClusterSpec"]}):
        yield f"{owner['kind']} head", owner["spec"]["headGroupSpec"]["template"]
        for group in owner["spec"]["workerGroupSpecs"]:
            yield f"{owner['kind']} {group['groupName']}", group["template"]
    for deployment in of_kind("Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def test_serving_is_reached_at_the_head_of_the_standing_cluster() -> None:
    [service] = (found for found in of_kind("Service") if found["metadata"]["name"] == "efafnet-serve")
    [cluster] = of_kind("RayCluster")
    assert service["spec"]["selector"] == {
        "ray.io/cluster": cluster["metadata"]["name"], "ray.io/node-type": "head"
    }  # fmt: skip
    assert [port["targetPort"] for port in service["spec"]["ports"]] == [ServeConfig(models=("run",)).port]


def test_the_job_runs_on_a_cluster_like_the_standing_one(ray_cluster: dict[str, Any]) -> None:
    [job] = of_kind("RayJob")
    assert job["spec"]["rayClusterSpec"] == ray_cluster
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] > 0, "a driver that dies is submitted again"


def test_the_jobs_command_is_one_that_the_command_line_takes() -> None:
    [job] = of_kind("RayJob")
    program, settings = job["spec"]["entrypoint"].split(" train coco_r50_256x192 ")
    assert program == "python -m efafnet.pipelines"
    config = resolve(TrainConfig, apply_overrides(load_preset("coco_r50_256x192"), settings.split()))
    assert config.workers == 4
    for path in (config.runs, config.data.train, config.data.val):
        assert str(path).startswith("/mnt/efafnet/")


def test_nobody_gets_in_without_the_token(ray_cluster: dict[str, Any]) -> None:
    assert ray_cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, ray_cluster["rayVersion"].split("."))) >= (2, 52), "older ones know no token"


def test_nothing_is_open_to_the_world(ray_cluster: dict[str, Any]) -> None:
    kinds = {document["kind"] for document in documents()}
    assert kinds == {"RayCluster", "RayJob", "Deployment", "Service", "NetworkPolicy", "PersistentVolumeClaim"}
    assert ray_cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert all(service["spec"]["type"] == "ClusterIP" for service in of_kind("Service"))
    assert not any("hostPort" in str(template) or "hostNetwork" in str(template) for _, template in templates())


def test_each_pod_is_behind_a_policy_that_lets_its_own_namespace_in() -> None:
    policies = {
        policy["spec"]["podSelector"]["matchLabels"]["app"]: policy["spec"] for policy in of_kind("NetworkPolicy")
    }
    for name, template in templates():
        assert template["metadata"]["labels"]["app"] in policies, name
    for app, policy in policies.items():
        assert policy["policyTypes"] == ["Ingress"]
        inside, *others = policy["ingress"]
        assert inside == {"from": [{"podSelector": {}}]}
        # The operator's: the dashboard asks for the token, MLflow asks for nothing.
        assert others == ([{"ports": [{"port": 8265, "protocol": "TCP"}]}] if app == "efafnet" else [])


def test_pods_have_no_more_rights_than_they_need() -> None:
    for name, template in templates():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["enableServiceLinks"] is False, "a service called mlflow sets MLFLOW_PORT, which MLflow reads"
        if not name.endswith("head"):  # where the autoscaler asks Kubernetes for pods
            assert spec["automountServiceAccountToken"] is False, name
        for container in containers(template):
            rights = container["securityContext"]
            assert rights == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name


def test_all_pods_share_the_image_the_store_and_the_tracking_server() -> None:
    [claim] = of_kind("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    [service] = (found for found in of_kind("Service") if found["metadata"]["name"] == "mlflow")
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    for name, template in templates():
        [volume] = template["spec"]["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for container in containers(template):
            assert container["image"] == IMAGE
            assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/efafnet"}]
            if name != "mlflow":
                assert {"name": "MLFLOW_TRACKING_URI", "value": address} in container["env"]


def test_gpu_workers_come_from_zero(ray_cluster: dict[str, Any]) -> None:
    assert ray_cluster["enableInTreeAutoscaling"] is True
    [group] = ray_cluster["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    [worker] = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    [head] = ray_cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert "gpu" not in str(head["resources"])


def test_workers_announce_their_end_and_have_the_time_for_it() -> None:
    for name, template in templates():
        worker = name.endswith("gpu")
        [container] = template["spec"]["containers"]
        assert ("lifecycle" in container) == worker, name
        if worker:
            *program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
            assert program == ["python", "-m", "efafnet.platform.notice", "drain"]
            assert int(seconds) + 10 <= template["spec"]["terminationGracePeriodSeconds"]


def test_mlflow_is_one_server_that_keeps_its_store_and_answers_to_its_names() -> None:
    [deployment] = of_kind("Deployment")
    spec = deployment["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate"), "two servers would break the sqlite store"
    [server] = spec["template"]["spec"]["containers"]
    options = dict(word.removeprefix("--").partition("=")[::2] for word in server["args"])
    assert "serve-artifacts" in options
    assert options["backend-store-uri"] == "sqlite:////mnt/efafnet/mlflow/mlflow.db"
    assert options["artifacts-destination"] == "/mnt/efafnet/mlflow/artifacts"
    [service] = (found for found in of_kind("Service") if found["metadata"]["name"] == "mlflow")
    assert f"{service['metadata']['name']}:*" in options["allowed-hosts"].split(",")
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == service["spec"]["selector"]
    assert server["ports"] == [{"containerPort": int(options["port"]), "name": "http"}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"] == {"path": "/health", "port": "http"}, "the one page that asks for no name"


def test_the_image_has_the_pinned_ray_and_all_of_the_project(ray_cluster: dict[str, Any]) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    [base] = re.findall(r"^FROM rayproject/ray:(\d+\.\d+\.\d+)-py(\d)(\d+)-gpu$", text, re.MULTILINE)
    assert base[0] == pins()["ray"] == ray_cluster["rayVersion"]
    assert (int(base[1]), int(base[2])) >= oldest_python()
    assert "-c /tmp/efafnet/constraints.txt '/tmp/efafnet[serve]'" in text
    copied: set[str] = set()
    for line in re.findall(r"^COPY --chown=\S+ (.+)$", text, re.MULTILINE):
        *sources, target = line.split()
        copied |= set(sources)
        for source in sources:
            assert (ROOT / source).exists()
            assert target in ("/tmp/efafnet/", f"/tmp/efafnet/{source}", f"/tmp/efafnet/{source.rpartition('/')[0]}/")
    assert copied == folders() | set(INSTALLED_FROM)
