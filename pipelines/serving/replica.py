"""The replica of a served network, as Ray Serve runs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import torch
from ray import serve

from efafnet.pipelines.serving.config import BatchingConfig
from efafnet.pipelines.serving.engine import Engine, EnginePlan, Prepared
from efafnet.pipelines.serving.messages import Answer, PoseRequest, Refusal


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
