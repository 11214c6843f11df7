"""What this machine or cluster has, and what is missing: ``efafnet doctor``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from efafnet.models.settings import Settings
from efafnet.pipelines import all_reduce, fitness
from efafnet.platform import cluster, console, health
from efafnet.platform.addresses import BareAddress
from efafnet.platform.capacity import Capacity, capacity
from efafnet.platform.cluster import ClusterConfig, ClusterError, Resources
from efafnet.platform.health import Finding


class DoctorConfig(Settings):
    """What to look at."""

    cluster: ClusterConfig = ClusterConfig()
    ray: Literal["auto", "start", "no"] = "auto"
    """auto joins a Ray cluster if there is one and looks at its nodes; start also starts a Ray on this machine where
    there is none, to see that it works; no leaves Ray alone."""
    tracking_uri: BareAddress | None = None
    """MLflow store to look at; null for MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory."""
    storage: Path = Path("runs")
    """Directory where runs and crop stores are to lie."""
    measure: bool = True
    """Measure arithmetic and reading on this machine, and the network between the nodes of a cluster; some seconds."""


def run_doctor(config: DoctorConfig) -> int:
    """Print findings and remedies; return 1 if something is broken, else 0."""
    findings = list(examine(config))
    console.table(["", "what", "found"], [(finding.state, finding.what, finding.found) for finding in findings])
    for finding in findings:
        if finding.remedy:
            console.say(f"{finding.state}  {finding.what}: {finding.remedy}")
    broken = sum(finding.state == "fail" for finding in findings)
    doubtful = sum(finding.state == "warn" for finding in findings)
    console.say(f"{broken} broken, {doubtful} doubtful, {len(findings) - broken - doubtful} in order")
    return 1 if broken else 0


def examine(config: DoctorConfig) -> Iterator[Finding]:
    """Look at this machine, then at the cluster, then at what both need."""
    yield from health.software()
    yield from health.hardware()
    if config.measure:
        yield from fitness.fitness()
    found, resources = ray_finding(config)
    yield found
    if resources is not None and not resources.is_local:
        yield from nodes_findings(resources)
        yield token_finding()
        yield growth_finding(capacity(resources))
    nodes = resources.nodes if resources is not None else 1
    if nodes > 1:
        yield health.host_name()
        if config.measure:
            yield from all_reduce.all_reduce_findings(cluster.gpu_nodes())
    yield health.tracking(config.tracking_uri, nodes=nodes)
    yield health.storage(config.storage)
    if nodes > 1 and config.storage.exists():
        yield shared_storage(config.storage)


def ray_finding(config: DoctorConfig) -> tuple[Finding, Resources | None]:
    """Join a cluster (or start Ray) as far as the settings want it."""
    if config.ray == "no":
        return Finding("ok", "Ray", "not asked for"), None
    try:
        if config.ray == "auto" and not cluster.is_running(config.cluster):
            return Finding("ok", "Ray", "no cluster runs; commands start one on this machine while they run"), None
        resources = cluster.connect(config.cluster)
    except ClusterError as error:
        found, _, remedy = str(error).partition(";")
        return Finding("fail", "Ray", found, remedy.strip()), None
    if resources.is_local:
        return Finding("ok", "Ray", str(resources)), resources
    if not resources.dashboard:
        remedy = "install ray[default] on the head: without the dashboard jobs cannot be submitted"
        return Finding("warn", "Ray", f"{resources}, no dashboard", remedy), resources
    return Finding("ok", "Ray", f"{resources}, dashboard {resources.dashboard}"), resources


def nodes_findings(resources: Resources) -> Iterator[Finding]:
    """Ask every node what it is and compare it with this process."""
    here = health.node_report()
    for report in cluster.on_every_node(health.node_report):
        yield node_finding(report, here)
        if isinstance(report, dict) and report["shared_memory"].state != "ok" and resources.nodes > 1:
            yield report["shared_memory"]


def node_finding(report: Mapping[str, Any] | str, here: Mapping[str, Any]) -> Finding:
    """Compare one node's report (or the error it gave instead) with the driver's."""
    if isinstance(report, str):
        return Finding(
            "fail", "node", report, "submit the code with `ray job submit --working-dir .`, or install it there"
        )
    what = f"node {report['host']}"
    if report["python"] != here["python"]:
        found = f"Python {report['python']}, the driver has {here['python']}"
        return Finding("fail", what, found, "use one Python on all nodes")
    if report["source"] != here["source"]:
        found = f"runs other code ({report['source']}) than the driver ({here['source']})"
        return Finding("fail", what, found, "submit the code with `ray job submit --working-dir .`")
    different = [
        f"{name} {found}, the driver has {here['versions'][name]}"
        for name, found in report["versions"].items()
        if found != here["versions"][name]
    ]
    if different:
        return Finding("warn", what, "; ".join(different), "install the same constraints.txt on all nodes")
    gpus = f", {', '.join(report['gpus'])}" if report["gpus"] else ""
    return Finding("ok", what, f"same Python, packages and code{gpus}")


def growth_finding(there: Capacity) -> Finding:
    """Tell what the cluster may grow to, and what worker.gpu=auto makes of it."""
    most = there.most_gpus()
    if most is None:
        remedy = "say worker.gpu=yes or worker.gpu=no with each command that finds too few GPUs alive"
        return Finding("warn", "growth", "what the autoscaler may start is not known", remedy)
    assert there.largest is not None
    size = max(len(there.living), len(there.largest))
    found = f"{len(there.living)} nodes with {there.living_gpus():g} GPUs now, at most {size} with {most:g}"
    return Finding("ok", "growth", found)


def token_finding() -> Finding:
    """A cluster without a token runs anybody's code who reaches its ports."""
    if cluster.token_required():
        return Finding("ok", "token", "the cluster refuses commands without one")
    remedy = "start every node and client with RAY_AUTH_MODE=token and the same ~/.ray/auth_token"
    return Finding("fail", "token", "the cluster runs the commands of whoever reaches it", remedy)


def shared_storage(place: Path) -> Finding:
    """Check that all nodes see the directory of runs."""
    problem = cluster.shared_path_problem(place)
    if problem is None:
        return Finding("ok", "shared storage", f"all nodes see {place}")
    found, _, remedy = problem.partition(";")
    return Finding("fail", "shared storage", found, remedy.strip())
