"""MLflow's store: which one, what is wrong with it, and the runs in it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path

import mlflow
import pytest
from pydantic import ValidationError

from efafnet.platform import mlflow_store, tracking
from efafnet.platform.mlflow_client import mlflow_client
from efafnet.platform.mlflow_store import create_sqlite
from efafnet.platform.storage import UnwritableError
from efafnet.platform.tracking import (
    TrackingConfig,
    TrackingError,
    abandon_run,
    create_run,
    dataset_input,
    finish_run,
    params_of,
    prepare_tracking,
)
from tests.processes import deaf_port
from tests.waiting import LIMIT_S

ROOT = Path(__file__).resolve().parents[1]


# ---- the store


def test_the_default_store_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efafnet.platform.tracking.create_sqlite", lambda _file: None)
    monkeypatch.chdir(tmp_path)
    assert prepare_tracking() == f"sqlite:///{tmp_path}/mlflow.db"
    assert prepare_tracking("sqlite:///sub/other.db") == f"sqlite:///{tmp_path}/sub/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////abs/m.db")
    assert prepare_tracking() == "sqlite:////abs/m.db"
    assert prepare_tracking("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db", "what is asked for beats the environment"


def test_a_fresh_store_is_made_in_memory_and_knows_its_place(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "mlflow.db"
    create_sqlite(file)
    assert {path.name for path in file.parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}
    with sqlite3.connect(file) as store:
        content = "\n".join(store.iterdump())
    assert f"'Default','file://{file.parent}/mlartifacts/0','active'" in content
    assert "/dev/shm" not in content
    before = file.read_bytes()
    create_sqlite(file)
    assert file.read_bytes() == before


def test_plain_directories_are_refused(tmp_path: Path) -> None:
    for address in ("mlruns", f"file://{tmp_path}"):
        with pytest.raises(TrackingError, match="no longer keeps runs in plain directories; use sqlite:///"):
            prepare_tracking(address)


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database " * 100)
    with pytest.raises(TrackingError, match=r"store .*mlflow\.db cannot be opened: .*tracking\.uri=…"):
        prepare_tracking(f"sqlite:///{tmp_path}/mlflow.db")


def test_an_unwritable_place_is_named() -> None:
    with pytest.raises(TrackingError, match=r"store /proc/none/mlflow\.db cannot be written"):
        prepare_tracking("sqlite:////proc/none/mlflow.db")


def test_a_store_that_the_disk_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path) -> None:
        raise UnwritableError(f"cannot write output {file}: No space left on device; name a writable place")

    monkeypatch.setattr(mlflow_store, "_make_in_memory", full)
    told = rf"^MLflow's store: cannot write output {tmp_path}/mlflow\.db: No space .*; name .*, with tracking\.uri=…$"
    with pytest.raises(TrackingError, match=told):
        create_sqlite(tmp_path / "mlflow.db")


def test_no_server_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFAFNET_TRACKING_START_S", "0")
    with (
        deaf_port() as port,
        pytest.raises(TrackingError, match=rf"127\.0\.0\.1:{port} does not answer \(.*refused.*start it, or set"),
    ):
        prepare_tracking(f"http://127.0.0.1:{port}")


class _Answer(BaseHTTPRequestHandler):
    status = 403

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Stay quiet."""


@pytest.mark.parametrize("given", ["soon", "nan", "inf", "-1"])
def test_how_long_to_wait_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """Not a number would be waited for without end."""
    monkeypatch.setenv("EFAFNET_TRACKING_START_S", given)
    with pytest.raises(TrackingError, match=f"EFAFNET_TRACKING_START_S={given}: give seconds"):
        prepare_tracking("http://127.0.0.1:1")


def test_a_server_that_refuses_the_host_name_is_told_apart() -> None:
    server = HTTPServer(("127.0.0.1", 0), _Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(TrackingError, match=r"refuses this host name \(403\); start it with --allowed-hosts"):
            prepare_tracking(f"http://127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.no_ray
def test_a_fresh_store_survives_processes_that_all_create_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process and another one; both have loaded what makes it before either begins."""
    maker = import_module("mlflow.store.tracking.sqlalchemy_store").__name__
    program = (
        f"import sys, {maker}\n"
        "from efafnet.platform.tracking import create_run, prepare_tracking\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(create_run(prepare_tracking(sys.argv[1]), 'together', 'other'))\n"
    )
    monkeypatch.setattr(tracking, "create_sqlite", create_sqlite)  # and no copy
    address = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-c", program, address]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
        own = create_run(prepare_tracking(address), "together", "own")
        ids = [own, other.communicate(timeout=LIMIT_S)[0].strip()]
    assert other.returncode == 0
    client = mlflow_client(address)
    experiments = client.search_experiments(filter_string="name = 'together'")
    assert len(experiments) == 1
    assert {run.info.run_id for run in client.search_runs([experiments[0].experiment_id])} == set(ids)


# ---- runs


def test_settings_are_flat_and_long_ones_cut_but_kept_apart() -> None:
    flat = params_of({"a": {"b": 1e-3, "c": {"d": None}}, "e": {}, "f": [1, "x"], "g": True, "h": "text"})
    assert flat == {"a.b": "0.001", "a.c.d": "null", "e": "{}", "f": '[1, "x"]', "g": "true", "h": "text"}


def test_a_run_holds_settings_lineage_and_code(uri: str, tmp_path: Path) -> None:
    long = [f"{'x' * 700}{k}" for k in range(2)]
    many = {f"k{k}": k for k in range(150)}
    data = dataset_input("people", "f" * 64, tmp_path / "store", "training", {"persons": 7})
    run_id = create_run(
        uri, "tests", "whole", params={"lr": 1e-3, "long": {"a": long[0], "b": long[1]}, **many}, datasets=[data]
    )
    run = mlflow_client(uri).get_run(run_id)
    assert run.info.run_name == "whole"
    assert run.data.params["lr"] == "0.001"
    assert run.data.params["k149"] == "149"
    cut = [run.data.params["long.a"], run.data.params["long.b"]]
    assert all(len(text) == 500 for text in cut)
    assert cut[0] != cut[1], "values that differ beyond the limit must stay different"
    kept = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/params.json")
    assert kept["long"] == {"a": long[0], "b": long[1]}
    assert run.inputs is not None
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("people", "f" * 36)
    assert [tag.value for tag in dataset.tags] == ["training"]
    assert len(run.data.tags["code.digest"]) == 16


def test_artifacts_lie_beside_the_store_wherever_the_process_runs(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = create_run(uri, "elsewhere")
    store = Path(uri.removeprefix("sqlite:///")).parent
    location = mlflow_client(uri).get_run(run_id).info.artifact_uri
    assert location.startswith((store / "mlartifacts" / "elsewhere").as_uri())
    assert list(tmp_path.iterdir()) == [], "MLflow must not drop its folders into the working directory"


def test_trials_are_children_of_their_search(uri: str) -> None:
    parent = create_run(uri, "tests", "search")
    child = create_run(uri, "tests", "trial", parent_run_id=parent, tags={"n": "1"})
    experiment = mlflow_client(uri).get_experiment_by_name("tests")
    assert experiment is not None
    found = mlflow_client(uri).search_runs(
        [experiment.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    assert [run.info.run_id for run in found] == [child]


def test_a_deleted_experiment_is_named(uri: str) -> None:
    client = mlflow_client(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(TrackingError, match=r"experiment 'gone' .* was deleted; restore it"):
        create_run(uri, "gone")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (OSError("gone"), "FAILED")])
def test_a_run_that_nobody_will_know_of_does_not_stand_as_running(
    uri: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    """Stopped, or left by its server, between its creation and its parameters."""

    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(tracking, "log_params", fail)
    with pytest.raises((KeyboardInterrupt, TrackingError)):
        create_run(uri, f"left {status}")
    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name(f"left {status}")
    assert experiment is not None
    [left] = client.search_runs([experiment.experiment_id])
    assert left.info.status == status


def test_a_run_is_ended(uri: str, run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert finish_run(uri, run_id, "FAILED")
    assert mlflow_client(uri).get_run(run_id).info.status == "FAILED"
    assert abandon_run(uri, run_id, "KILLED")
    assert mlflow_client(uri).get_run(run_id).info.status == "FAILED"
    mlflow_client(uri).update_run(run_id, "RUNNING")
    assert abandon_run(uri, run_id, "KILLED")
    assert mlflow_client(uri).get_run(run_id).info.status == "KILLED"
    assert not finish_run(uri, "0" * 32)
    assert "setting run 000" in capsys.readouterr().err


def test_an_alias_needs_a_name() -> None:
    with pytest.raises(ValidationError, match="alias = 'champion' names a registered network; set register_as too"):
        TrackingConfig(alias="champion")
    TrackingConfig(alias="champion", register_as="efafnet")
