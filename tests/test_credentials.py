"""Names and passwords in addresses: nowhere to be seen, and still of use."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from efafnet.pipelines.training.config import TrainConfig
from efafnet.platform import console, credentials, worker_environment
from efafnet.platform.configuration import apply_overrides, resolve, to_yaml
from efafnet.platform.credentials import bare, full, hidden
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.tracking import params_of

SECRET = "s3cr=t/pw"
QUOTED = "s3cr%3Dt%2Fpw"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test keeps is forgotten with it."""
    for name in (*credentials._MLFLOW, credentials._KEPT):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("address", "cut"),
    [
        (f"postgresql://me:{QUOTED}@db:5432/mlflow?sslmode=require", "postgresql://db:5432/mlflow?sslmode=require"),
        (f"s3://KEY:{QUOTED}@bucket/stores/train", "s3://bucket/stores/train"),
        ("postgresql://me@db/mlflow", "postgresql://me@db/mlflow"),
        (f"postgresql://db/mlflow?user=me&password={QUOTED}&sslmode=require", "postgresql://db/mlflow?sslmode=require"),
        (f"postgresql://me@db/mlflow?password={QUOTED}", "postgresql://db/mlflow"),
        ("sqlite:////mnt/a@b/mlflow.db", "sqlite:////mnt/a@b/mlflow.db"),
        ("/mnt/me:pw@here/store", "/mnt/me:pw@here/store"),
    ],
)
def test_what_is_cut_is_put_back(address: str, cut: str) -> None:
    assert bare(address) == cut
    assert full(cut) == address
    assert bare(bare(address)) == cut


def test_files_below_an_address_have_its_password() -> None:
    bare(f"s3://KEY:{QUOTED}@bucket/stores")
    assert full("s3://bucket/stores/train/a.parquet") == f"s3://KEY:{QUOTED}@bucket/stores/train/a.parquet"
    assert full("s3://bucket/stores-of-others/x") == "s3://bucket/stores-of-others/x"


def test_settings_never_hold_a_password() -> None:
    """Parameters, config.yaml, run.json and everything else is made of these."""
    overrides = [
        f"tracking.uri=mysql://me:{QUOTED}@db/mlflow", f"data.train=s3://K:{QUOTED}@b/train",
        f"checkpoint.copy_to=s3://K:{QUOTED}@b/runs",
    ]  # fmt: skip
    config = resolve(TrainConfig, apply_overrides({"name": "x"}, overrides))
    for text in (to_yaml(config), config.model_dump_json(), repr(config), json.dumps(params_of(config.model_dump()))):
        assert QUOTED not in text
        assert SECRET not in text
    assert full(config.tracking.uri or "") == f"mysql://me:{QUOTED}@db/mlflow"


def test_messages_never_hold_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"postgresql://me:{QUOTED}@db/mlflow"
    bare(address)
    console.fail(f"cannot connect to {address}: password {SECRET} refused")
    assert capsys.readouterr().err == "error: cannot connect to postgresql://me:***@db/mlflow: password *** refused\n"
    bare("postgresql://db/mlflow?user=me&password=0ther%2Fone")
    assert hidden("password 0ther/one (0ther%2Fone) refused") == "password *** (***) refused"
    assert hidden("nothing here") == "nothing here"


def test_passwords_do_not_travel_in_the_runtime_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{QUOTED}@h:5000")
    found = json.dumps(worker_environment.runtime_env("10.0.0.1:6379"))
    assert SECRET not in found
    assert QUOTED not in found
    assert "http://h:5000" in found


def test_a_worker_takes_what_the_driver_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in for the cluster's memory; on a real one: test_ray_private.py."""
    import ray

    memory: list[str] = []
    monkeypatch.setattr("efafnet.platform.ray_private.leave_for_workers", memory.append)
    monkeypatch.setattr("efafnet.platform.ray_private.left_for_workers", lambda: memory[0] if memory else None)
    bare(f"http://me:{QUOTED}@h:5000")
    bare(f"s3://K:{QUOTED}@b/train")
    credentials.leave_in_cluster()
    for name in (*credentials._MLFLOW, credentials._KEPT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "the node's own")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(credentials, "_asked", [])
    assert full("s3://b/train") == f"s3://K:{QUOTED}@b/train"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "the node's own"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server that wants a name and a password, and notes what it was given."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"experiment": {"experiment_id": "1", "lifecycle_stage": "active", "name": "x"}}')

        def log_message(self, *_arguments: Any) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{found.server_port}", seen
    found.shutdown()
    found.server_close()


def test_a_server_gets_name_and_password_as_it_wants_them(server: tuple[str, list[str]]) -> None:
    """MLflow cannot use them in the address: urllib knows no such thing."""
    place, seen = server
    address = bare(f"http://me:{QUOTED}@{place}")
    assert address == f"http://{place}"
    experiment = mlflow_client(address).get_experiment_by_name("x")
    assert experiment is not None
    assert experiment.name == "x"
    assert seen == ["Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()]


def test_mlflow_prints_no_address_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """At the end of a run it would ask the server for it, and print its address with the password."""
    client = mlflow_client(f"http://me:{QUOTED}@127.0.0.1:9")
    client._tracking_client._log_url("run")
    assert capsys.readouterr().out == ""
