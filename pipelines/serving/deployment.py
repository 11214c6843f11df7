"""The two deployments of Ray Serve: fronts that check requests, and replicas that hold the networks.

A request that a front has taken is kept there until its answer is back: where a replica dies meanwhile, another one
gets it. Predicting changes nothing, so doing it twice does no harm.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from efafnet.pipelines.serving.api import Rules, build_app
from efafnet.pipelines.serving.messages import Answer, PoseRequest, Refusal
from efafnet.pipelines.serving.metrics import ServingMetrics, gathered

if TYPE_CHECKING:
    from efafnet.pipelines.serving.replica import ReplicaPlan

REPLICA, FRONT = "predictor", "front"
_TRIES = 3
"""How often a request is handed to a replica: one that ends whatever replica it meets must not end them all."""


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
    from efafnet.pipelines.serving.replica import Replica  # not above: fronts import this module, and need no torch

    def interface() -> FastAPI:
        return build_app(rules, Dispatcher(ServingMetrics()), gathered)

    replicas: Any = serve.deployment(Replica)
    fronts: Any = serve.deployment(serve.ingress(interface)(Front))
    bound: serve.Application = fronts.options(name=FRONT, **front_options).bind(
        replicas.options(name=REPLICA, **replica_options).bind(plan)
    )
    return bound
