"""A served interface without Ray: the same application and the same room, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import threading
import time
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
from efafnet.pipelines.serving.messages import Asked, Persons, Refused
from efafnet.pipelines.serving.models import Served
from efafnet.pipelines.serving.room import Recipe, Room
from tests import prediction_cases


def make_room(folder: Path, *names: str) -> Room:
    """A room with an untrained network under each name."""
    served = tuple(Served(name, prediction_cases.checkpoint(folder / name / "best")) for name in names)
    recipe = Recipe(served, "best", "auto", TestOverrides(), DetectorConfig(), max_persons=100)
    return Room(recipe, torch.device("cpu"))


def answering(room: Room) -> Predict:
    """What the fronts do by way of Ray, here."""

    async def predict(asked: Asked) -> Persons | Refused:
        waiting = await asyncio.to_thread(room.waiting, asked)
        return waiting if isinstance(waiting, Refused) else room.predict([waiting])[0]

    return predict


@contextmanager
def listening(
    room: Room, limits: LimitsConfig | None = None, token_digest: str | None = None, predict: Predict | None = None
) -> Iterator[str]:
    """The address of the interface, while it listens."""
    rules = Rules(tuple(room.models()), limits or LimitsConfig(), finds_persons=False, token_digest=token_digest)
    app = build_app(rules, predict or answering(room), lambda: "ray_serve_example 1\n")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def ask(address: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON (or text) of an answer."""
    request = urllib.request.Request(address, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text
