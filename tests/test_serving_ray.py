"""Serving on Ray Serve: batches, figures, and a replica that is killed under load loses no request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from efafnet.pipelines.serving.api import Rules
from efafnet.pipelines.serving.config import ServeConfig
from efafnet.pipelines.serving.engine import Engine
from efafnet.pipelines.serving.models import find_models
from efafnet.pipelines.serving.serve import engine_plan, start
from tests import crop_data, prediction_cases, rays
from tests.processes import free_port
from tests.serving_cases import ask
from tests.waiting import wait_for

pytestmark = pytest.mark.slow
pytest.importorskip("ray.serve", reason="Ray Serve is an extra: pip install -e '.[serve]'")
REPLICAS = 2
BOXES = [[10, 20, 50, 90], [100, 30, 60, 40]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, _rays_end: None) -> Iterator[str]:
    from ray import serve

    rays.share()
    run: Path = tmp_path_factory.mktemp("serve") / "run"
    prediction_cases.checkpoint(run / "best")
    port = free_port()
    settings = {"models": [str(run)], "port": port, "workers": {"count": REPLICAS, "cpus": 0.5, "gpu": "no"}}
    config = ServeConfig.model_validate({**settings, "batching": {"requests": 4, "wait_ms": 5}})
    plan = engine_plan(config, find_models(config.models))
    rules = Rules(tuple(Engine(plan, torch.device("cpu")).models()), config.limits, False, None)
    start(config, plan, rules)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def _replicas() -> list[str]:
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in named if "#predictor#" in actor["name"]]


@dataclass(frozen=True)
class Load:
    """What was answered, status and body."""

    first: tuple[int, Any]
    """While nothing else was asked."""
    rest: list[tuple[int, Any]]
    """While one of the replicas died."""
    killed: str


@pytest.fixture(scope="module")
def load(address: str) -> Load:
    """One request, then 120 of eight clients; once 20 are answered a replica is killed."""
    import ray

    done, data = cv2.imencode(".png", crop_data.picture(200, 160, 3))
    assert done
    request = f"{address}/v1/persons?boxes={json.dumps(BOXES).replace(' ', '')}"
    first = ask(request, data.tobytes())
    before = _replicas()
    assert len(before) == REPLICAS
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, request, data.tobytes()) for _ in range(120)]
        wait_for("20 answers", lambda: sum(answer.done() for answer in answers) >= 20)
        ray.kill(ray.get_actor(before[0], namespace="serve"))
        return Load(first, [answer.result() for answer in answers], before[0])


def test_a_replica_that_dies_under_load_loses_no_request(load: Load) -> None:
    status, expected = load.first
    assert status == 200
    assert [person["box_xywh"] for person in expected["persons"]] == BOXES
    assert [status for status, _ in load.rest] == [200] * 120
    assert all(
        one["score"] == pytest.approx(other["score"], abs=1e-3)
        for _, answer in load.rest
        for one, other in zip(answer["persons"], expected["persons"], strict=True)
    )
    wait_for("a replica in place of the one that died", lambda: len(set(_replicas()) - {load.killed}) >= REPLICAS)


@pytest.mark.usefixtures("load")
def test_figures_tell_of_the_requests(address: str) -> None:
    counted: list[str] = []

    def all_counted() -> bool:
        status, text = ask(f"{address}/metrics")
        assert status == 200
        counted[:] = [
            line for line in text.splitlines() if line.startswith("ray_efafnet_requests") and 'status="200"' in line
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in counted) >= 121

    wait_for("all requests among the figures", all_counted)
    assert 'model="run"' in counted[0]
