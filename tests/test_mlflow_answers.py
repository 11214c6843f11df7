"""What stands between a run and MLflow answers in its place: no point is lost by it, and none is sent twice."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow.exceptions import MlflowException, RestException

from efafnet.platform.mlflow_answers import is_absent, is_refusal, newest_steps
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.tracker import Tracker
from efafnet.platform.tracking import TrackingError, create_run, find_run
from tests.waiting import LIMIT_S, wait_for

INSTEAD: dict[str, tuple[int, str]] = {
    "401": (401, "Unauthorized"),
    "403": (403, "<html>Forbidden</html>"),
    "403 json": (403, json.dumps({"message": "token expired"})),
    "404": (404, "default backend - 404"),
    "404 json": (404, json.dumps({"detail": "not found"})),
    "500": (500, "oops"),
    "503": (503, "come again in an hour"),
    "200 {}": (200, "{}"),
    "200 html": (200, "<html>Please sign in</html>"),
    "200 nothing": (200, ""),
}


class Server(ThreadingHTTPServer):
    """As much of MLflow's REST interface as a tracker needs, in memory; a run's way to it may be taken."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, int] = {}
        """Bytes of the files that it took, by path."""
        self.taken: dict[str, str] = {}
        """What answers in MLflow's place, by run."""
        self.asked: dict[str, int] = {}
        """Requests that it answered."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked = {key: value[0] for key, value in parse_qs(parts.query).items()}
        self.serve(parts.path.rpartition("mlflow/")[2], asked)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.serve(self.path.rpartition("mlflow/")[2], json.loads(body))

    def do_PUT(self) -> None:
        """A file, for which it stands to a run as its path says: 0/RUN/artifacts/…"""
        place, body = self.path.partition("/artifacts/")[2], self.rfile.read(int(self.headers["Content-Length"]))
        mode = self.server.taken.get("files")
        if mode is None:
            self.server.files[place] = len(body)
        self.answer(*INSTEAD[mode] if mode else (200, "{}"))

    def list_files(self, place: str) -> None:
        found = {name: size for name, size in self.server.files.items() if name.rpartition("/")[0] == place}
        files = [{"path": name.rpartition("/")[2], "is_dir": False, "file_size": n} for name, n in found.items()]
        self.answer(200, json.dumps({"files": files}))

    def serve(self, what: str, asked: dict[str, Any]) -> None:
        if self.path.partition("?")[0].endswith("mlflow-artifacts/artifacts"):
            return self.list_files(asked["path"])
        if what == "logged-models/search":  # asked before a directory is sent
            return self.answer(200, "{}")
        run_id = str(asked.get("run_id", ""))
        mode = self.server.taken.get(run_id) or self.server.taken.get("*")
        if mode is not None:
            self.server.asked[run_id] = self.server.asked.get(run_id, 0) + 1
            return self.answer(*INSTEAD[mode])
        if run_id not in self.server.runs:
            return self.answer(404, json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}))
        points = self.server.runs[run_id]
        if what == "runs/log-batch":
            points.extend(asked.get("metrics", []))
            return self.answer(200, "{}")
        if what == "metrics/get-history":
            return self.answer(200, json.dumps({"metrics": [p for p in points if p["key"] == asked["metric_key"]]}))
        newest = {p["key"]: p for p in sorted(points, key=lambda p: int(p["step"]))}
        info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "0", "status": "RUNNING", "start_time": 1}
        info["artifact_uri"] = f"mlflow-artifacts:/0/{run_id}/artifacts"
        return self.answer(200, json.dumps({"run": {"info": info, "data": {"metrics": [*newest.values()]}}}))

    def answer(self, code: int, body: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        if code == 503:
            self.send_header("Retry-After", "3600")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    with Server() as stub:
        thread = threading.Thread(target=stub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield stub
        stub.shutdown()
        thread.join()


def steps(server: Server, run_id: str) -> list[int]:
    return [int(point["step"]) for point in server.runs[run_id] if point["key"] == "loss"]


def log(tracker: Tracker, at: range) -> None:
    for step in at:
        tracker.log_metrics({"loss": float(step)}, step)


def test_what_answers_in_mlflows_place_costs_no_point(server: Server, tmp_path: Path) -> None:
    """Each way of answering comes between the third and the seventh point of a run of its own; then it goes."""
    runs = {f"{number:032x}": mode for number, mode in enumerate(INSTEAD, start=1)}
    server.runs = {run_id: [] for run_id in runs}
    trackers = {run_id: Tracker(server.address, run_id, spill=tmp_path / f"{run_id}.jsonl") for run_id in runs}
    for tracker in trackers.values():
        log(tracker, range(1, 4))
        assert tracker.flush(LIMIT_S)
    server.taken = dict(runs)
    for tracker in trackers.values():
        log(tracker, range(4, 7))
    wait_for("spill file of each run", lambda: all((tmp_path / f"{run_id}.jsonl").exists() for run_id in runs))
    assert all(steps(server, run_id) == [1, 2, 3] for run_id in runs)
    server.taken = {}
    for tracker in trackers.values():
        log(tracker, range(7, 10))
    for run_id, tracker in trackers.items():
        assert tracker.close(LIMIT_S).count == 0, runs[run_id]
        assert sorted(steps(server, run_id)) == list(range(1, 10)), runs[run_id]
        assert not (tmp_path / f"{run_id}.jsonl").exists()


def test_a_proxy_that_asks_for_an_hour_is_not_obeyed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    run_id = "a" * 32
    server.runs, server.taken = {run_id: []}, {run_id: "503"}
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.delenv("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", raising=False)
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(time=time.time, sleep=slept.append))
    with pytest.raises(MlflowException, match="503"):
        newest_steps(mlflow_client(server.address), run_id)
    assert server.asked[run_id] == 2
    assert sum(slept) < 60


def test_what_never_came_through_is_sent_by_the_next_process_of_the_run(server: Server, tmp_path: Path) -> None:
    run_id, spill = "a" * 32, tmp_path / "spill.jsonl"
    server.runs = {run_id: []}
    server.taken = {run_id: "403"}
    with Tracker(server.address, run_id, spill=spill) as tracker:
        log(tracker, range(1, 4))
        lost = tracker.close(timeout_s=0.5)
    assert (lost.count, lost.file) == (3, spill)
    server.taken = {}
    server.runs[run_id] = [{"key": "loss", "value": 9.0, "timestamp": 1, "step": step} for step in (2, 9)]
    with Tracker(server.address, run_id, spill=spill) as tracker:
        assert tracker.flush(LIMIT_S)
    # Later points that arrived before do not stand for the earlier ones; what is there is not sent again.
    assert sorted(steps(server, run_id)) == [1, 2, 3, 9]
    assert not spill.exists()


def test_files_that_something_else_took_are_sent_again(server: Server, tmp_path: Path) -> None:
    """A proxy answers "200 {}" to uploads; the next process of the run sends what its spill file holds."""
    run_id, spill, folder = "a" * 32, tmp_path / "spill.jsonl", tmp_path / "step-00000005"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w" * 70)
    (tmp_path / "train.log").write_bytes(b"log of 12 by")
    server.runs = {run_id: []}
    server.taken = {"files": "200 {}"}
    with Tracker(server.address, run_id, spill=spill) as tracker:
        tracker.log_text("{}", "environment.json")
        tracker.log_artifact(folder, "checkpoints")
        tracker.log_artifact(tmp_path / "train.log")
        lost = tracker.close(timeout_s=0.5)
    assert (lost.count, lost.file, server.files) == (3, spill, {})
    assert "environment.json was answered with success and is not there" in lost.reason
    server.taken = {}
    with Tracker(server.address, run_id, spill=spill) as tracker:
        assert tracker.flush(LIMIT_S)
    place = f"0/{run_id}/artifacts"
    arrived = {"environment.json": 2, "checkpoints/step-00000005/weights": 70, "train.log": 12}
    assert server.files == {f"{place}/{name}": size for name, size in arrived.items()}
    assert not spill.exists()


def test_a_spill_file_that_cannot_be_read_stays(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, spill = "a" * 32, tmp_path / "spill.jsonl"
    spill.write_text('{"run_id": "other"}\n[1]\n{"run_id": "' + run_id + '", "unknown": 1}\n')
    server.runs = {run_id: []}

    honest = Path.read_text

    def fails(self: Path, *arguments: Any, **options: Any) -> str:
        if self == spill:  # others read on: MLflow reads files of its own where it is used for the first time
            raise OSError(5, "Input/output error")
        return honest(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", fails)
        with Tracker(server.address, run_id, spill=spill) as tracker:
            log(tracker, range(1, 2))
    assert steps(server, run_id) == [1]
    assert spill.exists()
    assert "cannot be read now (Input/output error): it stays there" in " ".join(capsys.readouterr().err.split())
    with Tracker(server.address, run_id, spill=spill) as tracker:
        log(tracker, range(2, 3))
    assert steps(server, run_id) == [1, 2], "lines that are none are passed over"


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "bad name"}), True),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}), True),
        (RestException({"error_code": "PERMISSION_DENIED", "message": "token expired"}), False),
        (RestException({"error_code": "INTERNAL_ERROR"}), False),
        (RestException({"message": "no route"}), False),
        (MlflowException("API request to endpoint /x failed with error code 404 != 200.", error_code=5), False),
        (MlflowException.invalid_parameter_value("bad name"), True),
        (FileNotFoundError("absent.png"), True),
        (ConnectionError("refused"), False),
    ],
)
def test_only_mlflow_itself_refuses(error: Exception, refused: bool) -> None:
    assert is_refusal(error) is refused
    assert is_absent(error) is ("RESOURCE_DOES_NOT_EXIST" in str(error))


@pytest.mark.parametrize("mode", ["200 {}", "200 html", "401", "404 json"])
def test_a_run_is_not_begun_where_something_else_answers(server: Server, mode: str) -> None:
    server.taken = {"*": mode}
    with pytest.raises(TrackingError, match=rf"MLflow at {server.address} did not take the run"):
        create_run(server.address, "tests")


def test_a_run_is_found_where_its_server_is_now(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a cluster was taken down and started again: another address, the same store."""
    run_id, gone = "b" * 32, "http://127.0.0.1:9"
    server.runs = {run_id: []}
    assert find_run(run_id, server.address + "/", gone) == server.address
    assert find_run(run_id, gone, server.address) == server.address, "only the old one has it"
    assert find_run(run_id, None, server.address) == server.address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    assert find_run(run_id, None, gone) == server.address
    assert find_run(run_id, gone, gone) == gone, "nobody can say: it waits there"
    # A sqlite store that is not there is not made.
    assert find_run(run_id, f"sqlite:///{tmp_path}/new.db", server.address) == server.address
    assert not (tmp_path / "new.db").exists()
    server.runs = {}
    assert find_run(run_id, server.address, gone) == server.address, "the old one may still have it"
    assert find_run(run_id, server.address, server.address) is None
    server.taken = {"*": "404"}
    assert find_run(run_id, server.address, server.address) == server.address, "an ingress is not MLflow"
