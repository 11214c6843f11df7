"""What Ray does not promise: each name is there, and means what it is used for. Fails first when Ray changes."""

from __future__ import annotations

import ast
import inspect
import logging
import re
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from ray import cloudpickle

from efafnet.platform import ray_private

ROOT = Path(__file__).resolve().parents[1]
_PRIVATE = re.compile(r"ray\.[\w.]*\b_\w+")


def test_a_process_group_is_set_up_by_functions_that_take_these_arguments() -> None:
    from ray.train._internal.utils import get_address_and_port
    from ray.train.torch import config

    inspect.signature(get_address_and_port).bind()
    inspect.signature(config._set_torch_distributed_env_vars).bind()
    bound = inspect.signature(config._setup_torch_process_group).bind("gloo", 1, 2, "env://", 30)
    assert list(bound.arguments) == ["backend", "world_rank", "world_size", "init_method", "timeout_s"]
    inspect.signature(config._shutdown_torch).bind(destroy_process_group=True)


def test_a_group_of_workers_is_ended_with_its_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own state of a group, with stand-ins for what is in it."""
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, state

    done: list[str] = []
    monkeypatch.setattr(state, "_shutdown_workers", lambda workers: done.append(f"{len(workers)} workers"))
    monkeypatch.setattr(state, "_shutdown_sync_actor", lambda _: done.append("their meeting point"))

    class Reservation:
        def shutdown(self) -> None:
            done.append("their reservation")

    builder = state.WorkerGroupStateBuilder()
    builder.with_placement_group_handle(cast(Any, Reservation())).with_workers(cast(Any, [1, 2]))
    group = WorkerGroup.__new__(WorkerGroup)
    group._worker_group_state = builder.with_sync_actor(cast(Any, object())).build()
    ray_private.end_workers(group)
    assert done == ["2 workers", "their meeting point", "their reservation"]


@pytest.mark.parametrize("show_workers", [True, False])
def test_a_ray_without_onlookers_is_told_so_by_its_own_parameters(*, show_workers: bool) -> None:
    from ray._private import node, parameter

    honest = parameter.RayParams, node.Node.start_api_server
    with ray_private.without_onlookers(show_workers=show_workers):
        given = cast(Any, parameter.RayParams)(num_cpus=1)
        assert (given.num_cpus, given.no_monitor, given.include_log_monitor) == (1, True, show_workers)
        assert node.Node.start_api_server is not honest[1]
    assert (parameter.RayParams, node.Node.start_api_server) == honest


def test_callbacks_hear_when_workers_have_started() -> None:
    assert callable(ray_private.worker_group_callback().after_worker_group_start)


def test_a_trainer_starts_no_process_that_has_nothing_to_do() -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    def names(trainer: Any) -> list[str]:
        return [type(each).__name__ for each in trainer._create_default_callbacks()]

    usual, spared = (TorchTrainer(print, scaling_config=ScalingConfig(num_workers=1)) for _ in range(2))
    assert ray_private.without_helpers(spared, grows=True) is spared
    assert set(names(usual)) - set(names(spared)) == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert set(names(spared)) < set(names(usual))


@pytest.mark.parametrize(
    ("workers", "grows", "asks"), [(2, True, True), (2, False, False), ((1, 2), True, True), ((1, 2), False, True)]
)
def test_nobody_hears_how_many_workers_are_wanted_where_none_can_come(workers: Any, grows: bool, asks: bool) -> None:
    """Two methods of Ray's scaling policy start the process that hears it; each is there to be replaced."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy

    trainer = TorchTrainer(print, scaling_config=cast(Any, ScalingConfig)(num_workers=workers))
    started: list[Any] = []
    cast(Any, trainer)._initialize_and_run_controller = lambda **parts: started.append(parts)
    ray_private.without_helpers(trainer, grows=grows)
    policy = cast(Any, create_scaling_policy(cast(Any, trainer.scaling_config)))
    cast(Any, trainer)._initialize_and_run_controller(scaling_policy=policy, failure_policy="any")
    [parts] = started
    assert parts == {"scaling_policy": policy, "failure_policy": "any"}
    policy = cloudpickle.loads(cloudpickle.dumps(policy))  # as it travels to the controller
    for name in ("after_controller_start", "_maybe_send_resource_request"):
        assert callable(getattr(type(policy), name))
        assert (name not in vars(policy)) == asks
    if not asks:
        policy.after_controller_start(None)
        assert policy.make_decision_for_non_running_worker_group().num_workers == 2


@pytest.mark.parametrize("variables", [{}, {"TMPDIR": "/var/tmp"}, {"TMPDIR": "/var/tmp", "RAY_TMPDIR": "/data"}])
def test_clusters_are_announced_where_ray_looks(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    from ray._common.utils import get_ray_address_file

    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(ray_private.announcement()) == get_ray_address_file(None)


def test_the_logger_of_reports_is_one() -> None:
    assert isinstance(ray_private.report_logger(), logging.Logger)


def test_workers_find_the_function_that_they_call_as_they_start() -> None:
    from ray._common.utils import load_class

    [name] = ray_private.hook(ray_private.begin_worker).values()
    assert cast(Any, load_class)(name) is ray_private.begin_worker


def test_what_is_asked_without_a_connection() -> None:
    assert ray_private.running_here() is None or ":" in str(ray_private.running_here())
    assert isinstance(ray_private.wants_token(), bool)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_idle")
def test_what_is_asked_of_a_connected_ray() -> None:
    import ray

    assert ray_private.started_by_this_program()
    assert ray_private.dashboard_address() == ""
    [free] = ray_private.free_by_node()
    assert free["CPU"] == 4.0
    started = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert not any("dashboard/dashboard.py" in line or "autoscaler" in line for line in started)
    assert sum("log_monitor.py" in line for line in started) == 1
    gcs = ray.get(ray.remote(lambda: ray.get_runtime_context().gcs_address).remote())
    assert gcs == ray.get_runtime_context().gcs_address


def test_lines_of_workers_are_chosen_before_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_logging

    dispatcher = ray_logging.WorkerStandardStreamDispatcher()
    shown: list[object] = []
    monkeypatch.setattr(ray_logging, "global_worker_stdstream_dispatcher", dispatcher)
    dispatcher.add_handler("ray_print_logs", shown.append)
    ray_private.choose_worker_lines(lambda data: [line for line in data["lines"] if line != "noise"])
    dispatcher.emit({"pid": 1, "lines": ["noise", "word"]})
    dispatcher.emit({"pid": 1, "lines": ["noise"]})
    assert shown == [{"pid": 1, "lines": ["word"]}]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_what_is_left_for_workers_reaches_them_and_is_shown_nowhere() -> None:
    import ray

    before = ray.get(ray.remote(ray_private.left_for_workers).remote()) or "{}"
    assert "a secret" not in before
    ray_private.leave_for_workers("a secret")
    try:
        assert ray.get(ray.remote(ray_private.left_for_workers).remote()) == "a secret"
        assert "a secret" not in ray.get_runtime_context().get_runtime_env_string()
    finally:
        ray_private.leave_for_workers(before)  # other tests share this Ray


def test_no_other_module_uses_what_ray_keeps_private() -> None:
    """Read from the syntax tree, so that comments and texts may speak of it."""
    found = []
    for folder in ("platform", "pipelines", "tune_spaces", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            if path == ROOT / "platform" / "ray_private.py" or not re.search(r"\bray\b", text):
                continue
            for node in ast.walk(ast.parse(text)):
                names: list[str] = []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.Attribute):
                    names = [ast.unparse(node)]
                found += [f"{path.relative_to(ROOT)}: {name}" for name in names if _PRIVATE.match(name)]
    assert found == []


def test_the_version_of_ray_is_bounded() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert '"ray[default,train,tune,data]~=2.60"' in text
