"""Metrics of serving: counted where requests are taken, exported by Ray, and gathered from all nodes for Prometheus."""

from __future__ import annotations

import urllib.request

_PREFIXES = ("ray_serve_", "ray_efafnet_")
_BORDERS_MS = [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 3e4]
_TIMEOUT_S = 2.0


class ServingMetrics:
    """What a front end counts. Ray sums them over processes."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._requests = Counter("efafnet_requests", "Requests by model and HTTP status.", ("model", "status"))
        self._persons = Counter("efafnet_persons", "Persons predicted.", ("model",))
        self._replayed = Counter("efafnet_replayed", "Requests given to another replica because theirs died.")
        self._latency = Histogram(
            "efafnet_latency_ms", "Milliseconds from a checked request to its answer.", _BORDERS_MS, ("model",)
        )

    def count(self, model: str, status: int, persons: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.inc(1, {"model": model, "status": str(status)})
        if persons:
            self._persons.inc(persons, {"model": model})
        self._latency.observe(max(seconds * 1e3, 1e-3), {"model": model})

    def replayed(self) -> None:
        """Count one request that met a dying replica."""
        self._replayed.inc(1)


def gathered() -> str:
    """Ray Serve's figures and ours from every node, in Prometheus' text; Ray brings them up to date every 10 s."""
    import ray

    texts = []
    for node in ray.nodes():
        if node["Alive"] and node.get("MetricsExportPort"):
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            try:
                with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:
                    texts.append(answer.read().decode())
            except OSError as error:
                texts.append(f"# {node['NodeManagerHostname']}: {error}")
    return chosen("\n".join(texts))


def chosen(text: str) -> str:
    """The lines of Prometheus' text that concern serving, each family's description once."""
    seen: set[str] = set()
    lines = []
    for line in text.splitlines():
        described = line.startswith(("# HELP ", "# TYPE "))
        name = line.split(" ", 3)[2] if described else line
        if name.startswith(_PREFIXES) and not (described and line in seen):
            lines.append(line)
            seen.add(line)
    return "\n".join(lines) + "\n"
