from __future__ import annotations

import os
from pathlib import Path

import pytest

from efafnet.platform import ray_private, worker_environment
from efafnet.platform.cluster import ClusterConfig, connect, quiet_environment

ROOT = Path(__file__).resolve().parents[1]


def test_workers_run_the_code_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/other")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert worker_environment.local_env()["PYTHONPATH"] == f"{ROOT}{os.pathsep}/other"
    joined = worker_environment.runtime_env("10.0.0.1:6379")
    assert joined["working_dir"] == str(ROOT)
    assert joined["env_vars"]["RAY_ADDRESS"] == "10.0.0.1:6379"
    begins = ray_private.hook(ray_private.begin_worker).items()
    assert begins <= joined["env_vars"].items()
    assert worker_environment.local_env().keys() - joined["env_vars"].keys() >= {"EFAFNET_OWN_RAY"}, "it is no cluster"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    submitted = worker_environment.runtime_env("10.0.0.1:6379")
    assert "working_dir" not in submitted, "a submitted job brings its own"
    assert begins <= submitted["env_vars"].items()
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    monkeypatch.setattr(worker_environment, "is_checkout", lambda: False)
    installed = worker_environment.runtime_env("10.0.0.1:6379")
    assert "working_dir" not in installed, "a wheel is installed on the nodes"
    assert not begins & installed["env_vars"].items(), "and may be missing on one, which tells so itself"
    assert "PYTHONPATH" not in worker_environment.local_env(), "a wheel is installed here"


def test_workers_see_the_tracking_server_and_keep_their_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:5000")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    env = worker_environment.worker_env()
    assert env["MLFLOW_TRACKING_URI"] == "http://h:5000"
    assert env["GLOO_SOCKET_IFNAME"] == "eth1"
    assert env["RAY_CHDIR_TO_TRIAL_DIR"] == "0"


def test_a_new_ray_inherits_it_and_the_program_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("PYTHONPATH", "/other")
    quiet_environment()  # stays
    before, inherited = dict(os.environ), dict[str, str]()

    def init(**options: object) -> None:
        assert "runtime_env" not in options
        inherited.update(os.environ)
        raise KeyError

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(KeyError):
        connect(ClusterConfig(address="local"))
    wanted = worker_environment.local_env()
    assert ray_private.hook(ray_private.begin_worker).items() <= wanted.items()
    assert wanted.items() <= inherited.items()
    assert {name: os.environ.get(name) for name in wanted} == {name: before.get(name) for name in wanted}
