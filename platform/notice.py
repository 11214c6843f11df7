"""A machine's announced end, told to Ray, so that runs save before it and Ray counts no failure.

    python -m efafnet.platform.notice watch            on AWS: asks the metadata service for a spot machine's end
    python -m efafnet.platform.notice drain SECONDS    on Kubernetes: before a pod is stopped, as its preStop hook

Ray knows what to do with a node that is about to go (``ray drain-node``), but nobody tells it of one. Needs nothing but
the standard library and psutil, and runs beside the node's Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path

import psutil

from efafnet.platform import console
from efafnet.platform.locks import LockHeldError, hold

METADATA = "http://169.254.169.254"
"""AWS's instance metadata service."""
POLL_S = 5.0
"""Seconds between two questions, as AWS advises."""
NOTICE_S = 120.0
"""Seconds that a spot machine has from the notice."""
MARGIN_S = 10.0
"""Seconds that are kept for Ray's own end."""
_TIMEOUT_S = 2.0
_TOKEN_TTL_S = 300
# The service is on this machine's own link: never by way of a proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Metadata:
    """The metadata service, version 2: every question carries a token that was asked for before."""

    def __init__(self, address: str = METADATA) -> None:
        self._address, self._token = address, ""

    def end_of_machine(self) -> datetime | None:
        """When this machine is stopped or ended, UTC; None as long as that is not announced.

        Raises:
            OSError: the service does not answer.
            ValueError: its answer makes no sense.
        """
        try:
            answer = self._get("/latest/meta-data/spot/instance-action")
        except urllib.error.HTTPError as error:
            if error.code == 404:  # nothing is announced
                return None
            self._token = ""
            raise
        action = json.loads(answer)
        return datetime.strptime(action["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)

    def _get(self, path: str) -> str:
        for is_last in (False, True):
            if not self._token:
                lasts = {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_TTL_S}
                self._token = self._ask("PUT", "/latest/api/token", lasts)
            try:
                return self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code != 401 or is_last:
                    raise
                self._token = ""  # it had run out
        raise AssertionError

    def _ask(self, method: str, path: str, headers: Mapping[str, object]) -> str:
        named = {name: str(value) for name, value in headers.items()}
        request = urllib.request.Request(f"{self._address}{path}", method=method, headers=named)
        with _OPENER.open(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())


def watch(metadata: Metadata) -> None:
    """Wait for the announcement of this machine's end and drain its node; returns when that is done.

    A service that is away is asked again: a watch that ends at a hiccup would be none.
    """
    silent = ""
    while True:
        try:
            end = metadata.end_of_machine()
            if end is not None and drain(_left_s(end) - MARGIN_S):
                return
            silent = ""
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            if str(error) != silent:
                console.warn(f"the metadata service does not say whether this machine ends: {error}")
            silent = str(error)
        time.sleep(POLL_S)


def _left_s(end: datetime) -> float:
    """Seconds until ``end``. Where this machine's clock is so wrong that the end has passed, or is further away than
    any notice announces, the notice counts as given since the last question."""
    left_s = (end - datetime.now(UTC)).total_seconds()
    return left_s if 0 < left_s <= NOTICE_S else NOTICE_S - POLL_S


def drain(seconds: float) -> bool:
    """Tell Ray that this machine's node goes in ``seconds``; returns whether every node here was told."""
    nodes = local_nodes()
    if not nodes:
        console.warn("no Ray node runs on this machine")
    told = [_drain_node(address, node_id, max(1, round(seconds))) for address, node_id in nodes]
    return bool(told) and all(told)


def _drain_node(address: str, node_id: str, seconds: int) -> bool:
    words = ["drain-node", "--address", address, "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "the machine is taken away", "--deadline-remaining-seconds", str(seconds)]
    program = Path(sys.executable).parent / "ray"
    try:
        done = subprocess.run([program, *words], check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        console.warn(f"node {node_id} cannot be drained: {error}")
        return False
    if done.returncode:
        console.warn(f"node {node_id} was not drained: {(done.stderr or done.stdout).strip()[-300:]}")
        return False
    console.note(f"node {node_id} goes in {seconds} s: Ray was told")
    return True


def local_nodes() -> list[tuple[str, str]]:
    """Address of the cluster and node id of each Ray node on this machine, as the nodes' own processes were told."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet":
            told = dict(word.removeprefix("--").partition("=")[::2] for word in process.info["cmdline"] or ())
            if "node_id" in told and "gcs-address" in told:
                found.append((told["gcs-address"], told["node_id"]))
    return sorted(found)


def is_busy() -> bool:
    """Whether a worker process of Ray works on this machine: Ray names them after what they do."""
    titles = ("".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return any(title.startswith("ray::") and not title.startswith("ray::IDLE") for title in titles)


def leave(seconds: float) -> None:
    """Drain this machine's node and wait until its work has gone elsewhere, at most ``seconds``.

    Kubernetes stops the pod when its preStop hook returns, so a pod without work goes at once.
    """
    deadline = time.monotonic() + seconds
    if not is_busy() or not drain(seconds):
        return
    while is_busy() and time.monotonic() < deadline:
        time.sleep(1.0)


def main(words: Sequence[str]) -> int:
    """Run one of the two commands; 2 for a command that is none."""
    if list(words[:1]) == ["watch"] and len(words) <= 2:
        try:
            # `ray up` again starts a second watch: one is enough.
            with hold(Path(tempfile.gettempdir()) / "efafnet-notice.lock"):
                watch(Metadata(*words[1:]))
        except LockHeldError:
            console.note("this machine is being watched already")
        return 0
    if list(words[:1]) == ["drain"] and len(words) == 2 and words[1].isdigit():
        leave(float(words[1]))
        return 0
    console.fail("usage: python -m efafnet.platform.notice watch [ADDRESS] | drain SECONDS")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
