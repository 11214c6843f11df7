"""What fronts do, without a cluster: requests handed on again, refusals as values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is an extra: pip install -e '.[serve]'")

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from efafnet.pipelines.serving.deployment import Dispatcher
from efafnet.pipelines.serving.messages import Answer, PoseRequest, Refusal

ASKED = PoseRequest(b"image", "alpha", None)
ANSWER = Answer('{"persons":[]}', persons=2)


class Replicas:
    """A handle whose replicas do one thing after the other."""

    def __init__(self, *outcomes: Answer | Refusal | Exception) -> None:
        self._left = list(outcomes)
        self.asked: list[PoseRequest] = []
        self.persons = self

    async def remote(self, asked: PoseRequest) -> Answer | Refusal:
        self.asked.append(asked)
        outcome = self._left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Counted:
    """Metrics as a list."""

    def __init__(self) -> None:
        self.lines: list[tuple[object, ...]] = []

    def count(self, model: str, status: int, persons: int, _seconds: float) -> None:
        self.lines.append((model, status, persons))

    def replayed(self) -> None:
        self.lines.append(("replayed",))


def handing(replicas: Replicas) -> tuple[Callable[[], Answer | Refusal], Counted]:
    figures = Counted()
    found = Dispatcher(figures)  # type: ignore[arg-type]
    found._replicas = replicas  # type: ignore[assignment]
    return lambda: asyncio.run(found(ASKED)), figures


def test_a_request_whose_replica_dies_goes_to_another() -> None:
    replicas = Replicas(ActorDiedError(), ActorDiedError(), ANSWER)
    call, figures = handing(replicas)
    assert call() is ANSWER
    assert replicas.asked == [ASKED] * 3
    assert figures.lines == [("replayed",), ("replayed",), ("alpha", 200, 2)]


def test_a_request_that_ends_every_replica_is_given_up() -> None:
    replicas = Replicas(*(ActorDiedError() for _ in range(5)))
    call, figures = handing(replicas)
    answer = call()
    assert isinstance(answer, Refusal)
    assert (answer.status, "3 replicas died" in answer.reason) == (503, True)
    assert len(replicas.asked) == 3
    assert figures.lines[-1] == ("alpha", 503, 0)


def test_when_too_many_wait_one_is_told_so_at_once() -> None:
    replicas = Replicas(BackPressureError(num_queued_requests=9, max_queued_requests=8))
    answer = handing(replicas)[0]()
    assert isinstance(answer, Refusal)
    assert (answer.status, "try again" in answer.reason, len(replicas.asked)) == (503, True, 1)
