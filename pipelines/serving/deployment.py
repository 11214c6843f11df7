"""The two deployments of Ray Serve: fronts that check requests, and replicas that hold the networks.

A request that a front has taken is kept there until its answer is back: where a replica dies meanwhile, another one
gets it. Predicting changes nothing, so doing it twice does no harm.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from efafnet.pipelines.serving.api import Rules, build_app
from efafnet.pipelines.serving.config import BatchingConfig
from efafnet.pipelines.serving.engine import Engine, EnginePlan, Prepared
from efafnet.pipelines.serving.messages import Answer, PoseRequest, Refusal
from efafnet.pipelines.serving.metrics import ServingMetrics, gathered

REPLICA, FRONT = "predictor", "front"
_TRIES = 3
"""How often a request is handed to a replica: one that ends whatever replica it meets must not end them all."""


@dataclass(frozen=True)
class ReplicaPlan:
    """How a replica works."""

    plan: EnginePlan
    batching: BatchingConfig
    gpu: bool
    threads: int


class Replica:
    """Holds the networks. Images are decoded one by one beside the network, crops predicted in batches."""

    def __init__(self, plan: ReplicaPlan) -> None:
        torch.set_num_threads(plan.threads)
        self._engine = Engine(plan.plan, torch.device("cuda" if plan.gpu else "cpu"))
        self._in_batches: Any = serve.batch(
            max_batch_size=plan.batching.requests, batch_wait_timeout_s=plan.batching.wait_ms / 1e3
        )(self._predict)

    async def persons(self, asked: PoseRequest) -> Answer | Refusal:
        """Answer one request."""
        waiting = await asyncio.to_thread(self._engine.prepare, asked)
        if isinstance(waiting, Refusal):
            return waiting
        answer: Answer = await self._in_batches(waiting)
        return answer

    async def _predict(self, waiting: list[Prepared]) -> list[Answer]:
        return await asyncio.to_thread(lambda: [Answer.of(found) for found in self._engine.predict(waiting)])


class Front:
    """Checks requests and hands them on; its HTTP interface is built where it runs."""

    def __init__(self, _replicas: DeploymentHandle[Any]) -> None:
        """``_replicas`` makes Ray Serve start them; the interface asks for its handle itself."""


class Dispatcher:
    """Hands requests to the replicas, again where one dies, and counts them."""

    def __init__(self, figures: ServingMetrics) -> None:
        self._replicas: DeploymentHandle[Any] | None = None
        self._figures = figures

    async def __call__(self, asked: PoseRequest) -> Answer | Refusal:
        """The answer of a replica, or why there is none."""
        began = time.monotonic()
        answer = await self._dispatched(asked)
        status = answer.status if isinstance(answer, Refusal) else 200
        persons = answer.persons if isinstance(answer, Answer) else 0
        self._figures.count(asked.model, status, persons, time.monotonic() - began)
        return answer

    async def _dispatched(self, asked: PoseRequest) -> Answer | Refusal:
        if self._replicas is None:
            self._replicas = serve.get_deployment_handle(REPLICA)
        for _ in range(_TRIES):
            try:
                answer: Answer | Refusal = await self._replicas.persons.remote(asked)
                return answer
            except RayActorError:
                self._figures.replayed()
            except BackPressureError:
                return Refusal(503, "too many requests wait; try again in a moment")
            except (DeploymentUnavailableError, RayServeException) as error:
                return Refusal(503, f"no replica answers: {' '.join(str(error).split())[:200]}")
        return Refusal(503, f"{_TRIES} replicas died while they had this request; look at the image")


def application(
    plan: ReplicaPlan, rules: Rules, replica_options: dict[str, Any], front_options: dict[str, Any]
) -> serve.Application:
    """Both deployments, bound together."""

    def interface() -> FastAPI:
        return build_app(rules, Dispatcher(ServingMetrics()), gathered)

    replicas: Any = serve.deployment(Replica)
    fronts: Any = serve.deployment(serve.ingress(interface)(Front))
    bound: serve.Application = fronts.options(name=FRONT, **front_options).bind(
        replicas.options(name=REPLICA, **replica_options).bind(plan)
    )
    return bound
