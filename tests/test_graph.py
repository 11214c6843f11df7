"""The step by graphs, with a recorder that stands in for CUDA's: it is the step as written, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from efafnet.pipelines.training.config_groups import OptimizerConfig
from efafnet.pipelines.training.graph import WARM_UP, CudaRecorder, GraphedStep, GraphMismatchError
from efafnet.pipelines.training.step import StepLosses, Trainee, train_step
from tests.test_step import Linear, batch_of, trainee_of


class Recorder:
    """Like a CUDA graph: recording changes nothing, every launch computes anew into the tensors handed out first."""

    def __init__(self, trainee: Trainee, *, wrong: float = 1.0) -> None:
        self.trainee, self.wrong = trainee, wrong

    def state(self) -> list[Tensor]:
        moments = [value for state in self.trainee.optimizer.state.values() for value in state.values()]
        gradients = [p.grad for p in self.trainee.parameters if p.grad is not None]
        return [*self.trainee.module.parameters(), *self.trainee.module.buffers(), *moments, *gradients]

    def __call__(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        before = [tensor.detach().clone() for tensor in self.state()]
        groups = [dict(group) for group in self.trainee.optimizer.param_groups]
        outcome = call()
        for tensor, value in zip(self.state(), before, strict=True):
            tensor.data.copy_(value)

        def launch() -> None:
            now = [dict(group) for group in self.trainee.optimizer.param_groups]
            for group, recorded in zip(self.trainee.optimizer.param_groups, groups, strict=True):
                group.update({key: recorded[key] for key in ("lr", "capturable")})
            for old, new in zip(tensors(outcome), tensors(call()), strict=True):
                old.copy_(new * self.wrong if new.dim() == 0 else new)
            for group, values in zip(self.trainee.optimizer.param_groups, now, strict=True):
                group.update(values)

        return launch, outcome


def tensors(outcome: StepLosses | Tensor) -> list[Tensor]:
    if isinstance(outcome, Tensor):
        return [outcome]
    return [outcome.total, *outcome.by_head.values(), outcome.by_joint, outcome.grad_norm]


class Normed(Linear):
    """With running statistics, which trying a graph must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Any:
        return super().forward(self.norm(images))


def pair(optimizing: OptimizerConfig, held: int | None, **given: Any) -> tuple[Trainee, Trainee, GraphedStep]:
    trainees = []
    for _ in range(2):
        torch.manual_seed(3)
        trainees.append(trainee_of(optimizing, network=Normed(), micro_batch=held))
    plain, graphed = trainees
    return plain, graphed, GraphedStep(graphed, lambda: Recorder(graphed, **given))


@pytest.mark.parametrize("held", [None, 4, 3])
def test_a_run_by_graphs_is_the_run_as_written(held: int | None) -> None:
    """Rates that change, an average, clipping, decay; whole slices, and parts of which the last is smaller."""
    optimizing = OptimizerConfig(kind="adamw", weight_decay=0.1, clip_norm=0.05, ema_decay=0.9)
    plain, graphed, step_by_graph = pair(optimizing, held)
    for step in range(WARM_UP + 4):
        rate = 2**-10 * (step + 1)  # exact in float32, as which a graph reads it
        expected = train_step(plain, batch_of(8, step), step, rate)
        found = step_by_graph(graphed, batch_of(8, step), step, rate)
        for ours, theirs in zip(tensors(found), tensors(expected), strict=True):
            assert torch.equal(ours, theirs)
    assert step_by_graph.recorded is not None, "the last steps were launched"
    assert plain.ema is not None
    assert graphed.ema is not None
    for by_graph, as_written in ((graphed.module, plain.module), (graphed.ema, plain.ema)):
        state = as_written.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in by_graph.state_dict().items())
    assert graphed.optimizer.param_groups[0].keys() == plain.optimizer.param_groups[0].keys()
    assert graphed.optimizer.param_groups[0]["lr"] == 2**-10 * (WARM_UP + 4)
    assert not graphed.optimizer.param_groups[0]["capturable"]


def test_losses_handed_out_stay_what_they_were() -> None:
    _, graphed, step_by_graph = pair(OptimizerConfig(), None)
    kept = [step_by_graph(graphed, batch_of(8, step), step, 1e-2) for step in range(WARM_UP + 3)]
    values = [losses.total.item() for losses in kept]
    assert len(set(values)) == len(values)


def test_a_graph_is_recorded_anew_for_other_parts() -> None:
    plain, graphed, step_by_graph = pair(OptimizerConfig(), None)
    for step in range(WARM_UP + 3):
        if step == WARM_UP + 1:
            plain.micro_batch = graphed.micro_batch = 4
            graphed.optimizer.zero_grad(set_to_none=True)
        expected = train_step(plain, batch_of(8, step), step, 1e-3).total
        assert torch.equal(step_by_graph(graphed, batch_of(8, step), step, 1e-3).total, expected)
    assert step_by_graph.recorded is not None
    assert len(step_by_graph.recorded.part) == 4


def test_a_graph_that_computes_something_else_is_refused_and_leaves_no_trace() -> None:
    plain, graphed, step_by_graph = pair(OptimizerConfig(), None, wrong=1.1)
    for step in range(WARM_UP):
        train_step(plain, batch_of(8, step), step, 1e-3)
        step_by_graph(graphed, batch_of(8, step), step, 1e-3)
    with pytest.raises(GraphMismatchError, match="loss and gradient norm of the graph are"):
        step_by_graph(graphed, batch_of(8, 9), 9, 1e-3)
    state = plain.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in graphed.module.state_dict().items())


def test_cuda_records_two_graphs_that_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's calls are stubs that take the real ones' arguments: each graph is recorded once, in one pool, aside."""
    real, recorded = torch.cuda.graph, list[dict[str, Any]]()
    capturing: list[object] = []

    @contextmanager
    def graph(*arguments: Any, **named: Any) -> Iterator[None]:
        call = mock.create_autospec(real)
        call(*arguments, **named)
        capturing.append(arguments[0])
        yield
        recorded.append({"graph": capturing.pop(), **named})

    graphs = [mock.Mock(name="first"), mock.Mock(name="second")]
    stub_cuda(monkeypatch, *graphs)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    record = CudaRecorder()
    outcomes = [record(lambda: len(capturing)) for _ in range(2)]
    assert [outcome for _, outcome in outcomes] == [1, 1], "called while it is recorded"
    aside = {"pool": "a pool", "stream": "a stream", "capture_error_mode": "thread_local"}
    assert recorded == [{"graph": made, **aside} for made in graphs]
    outcomes[1][0]()
    assert [made.replay.call_count for made in graphs] == [0, 1]


def stub_cuda(monkeypatch: pytest.MonkeyPatch, *graphs: mock.Mock) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "a stream")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the run's stream")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "a pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", mock.Mock(side_effect=graphs))


@pytest.mark.parametrize("void", [True, False])
def test_a_recording_that_fails_leaves_stream_allocator_and_random_numbers_as_they_were(
    monkeypatch: pytest.MonkeyPatch, void: bool
) -> None:
    """As PyTorch leaves them: a recording that CUDA declares void fails to end, on its stream and in the allocator. One
    in which Python failed did end, and to end it again is an error."""

    @contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        try:
            yield
        finally:
            if void:
                raise RuntimeError("capture_end")

    def end(*_: Any) -> None:
        done.append("ended")
        if not void:
            raise RuntimeError("not currently recording")

    done: list[object] = []
    stub_cuda(monkeypatch, mock.Mock())
    generator = mock.create_autospec(torch.Generator, instance=True)
    monkeypatch.setattr(torch.cuda, "default_generators", (None, None, generator))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "set_stream", done.append)
    pools = {name: mock.Mock() for name in ("_cuda_endAllocateToPool", "_cuda_releasePool")}
    pools["_cuda_endAllocateToPool"].side_effect = end
    for name, call in pools.items():
        monkeypatch.setattr(torch._C, name, call)
    with pytest.raises(RuntimeError, match="capture_end" if void else "waits for the device"):
        CudaRecorder()(mock.Mock(side_effect=RuntimeError("waits for the device")))
    assert done == ["the run's stream", "ended"]
    pools["_cuda_endAllocateToPool"].assert_called_once_with(2, "a pool")
    # Else it would refuse to draw: "Offset increment outside graph capture encountered unexpectedly".
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state.return_value)
    assert pools["_cuda_releasePool"].call_args_list == ([mock.call(2, "a pool")] if void else [])
