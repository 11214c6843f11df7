"""A served interface without Ray: the same application and the same engine, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn

from efafnet.pipelines.evaluation.config import TestOverrides
from efafnet.pipelines.prediction.config import DetectorConfig
from efafnet.pipelines.serving.api import Predict, Rules, build_app
from efafnet.pipelines.serving.config import LimitsConfig
from efafnet.pipelines.serving.engine import Engine, EnginePlan
from efafnet.pipelines.serving.messages import Answer, PoseRequest, Refusal
from efafnet.pipelines.serving.models import Served
from tests import prediction_cases
from tests.waiting import LIMIT_S, wait_for


def make_engine(folder: Path, *names: str) -> Engine:
    """An engine with an untrained network under each name."""
    served = tuple(Served(name, prediction_cases.checkpoint(folder / name / "best")) for name in names)
    plan = EnginePlan(served, "best", "auto", TestOverrides(), DetectorConfig(), max_persons=100)
    return Engine(plan, torch.device("cpu"))


def answering(engine: Engine) -> Predict:
    """What the fronts do by way of Ray, here."""

    async def predict(asked: PoseRequest) -> Answer | Refusal:
        waiting = await asyncio.to_thread(engine.prepare, asked)
        return waiting if isinstance(waiting, Refusal) else Answer.of(engine.predict([waiting])[0])

    return predict


@contextmanager
def listening(
    engine: Engine, limits: LimitsConfig | None = None, token_digest: str | None = None, predict: Predict | None = None
) -> Iterator[str]:
    """The address of the interface, while it listens."""
    rules = Rules(tuple(engine.models()), limits or LimitsConfig(), finds_persons=False, token_digest=token_digest)
    app = build_app(rules, predict or answering(engine), lambda: "ray_serve_example 1\n")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for("answer", lambda: server.started, lambda: not thread.is_alive())
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(LIMIT_S)


def ask(address: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON (or text) of an answer."""
    request = urllib.request.Request(address, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text
