"""Where a training step goes, part by part: what `bench_step` measures on a GPU and counts without one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from efafnet.models import aligned, fasm, resampling
from efafnet.models.network_config import network_config
from efafnet.models.variants import SBN, Variant, variant
from efafnet.pipelines.crops.batch import Batch
from efafnet.pipelines.training.graph import WARM_UP, GraphedStep
from efafnet.pipelines.training.step import Trainee, train_step

Form = Literal["fam", "fsm", "resampling"]
FORMS: tuple[Form, ...] = ("fam", "fsm", "resampling")
_DECISIONS = {"fam": (aligned, "is_faster"), "fsm": (fasm, "usable"), "resampling": (resampling, "_own")}
_NO_KERNEL = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh",
              "_unsafe_view", "_reshape_alias", "alias", "is_pinned", "device")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A network whose step is measured beside the baseline's."""

    row: Variant
    count: int
    """Crops."""
    plain: tuple[Form, ...] = ()
    """Parts computed in their plain instead of a GPU's form."""


def parts(count: int) -> list[Part]:
    """The baseline with one part of EFAFNet each, EFAFNet, and EFAFNet without one of the forms for GPUs each."""
    base, whole = variant("sbn_r50_256x192"), variant("efafnet_r50_256x192")

    def with_switches(name: str, **switches: object) -> Part:
        return Part(replace(base, name=name, network=network_config({**SBN, **switches})), count)

    def without(name: str, *plain: Form) -> Part:
        return Part(replace(whole, name=f"EFAFNet, {name}"), count, plain)

    return [
        Part(base, count),
        with_switches("+ FAM 26w", fam="26w4s"),
        with_switches("+ FAM width/4", fam="width4"),
        with_switches("+ FSM", fsm="parallel"),
        with_switches("+ FSM, CS alone", fsm="cs"),
        with_switches("+ FSM, LSS alone", fsm="lss"),
        with_switches("+ FASM", fam="26w4s", fsm="parallel"),
        with_switches("+ FFM", ffm=True),
        with_switches("+ DUC", head="duc"),
        Part(whole, count),
        without("FAM as it is stored", "fam"),
        without("FSM plain", "fsm"),
        without("PyTorch's resampling", "resampling"),
        without("all plain", *FORMS),
        *(Part(row, n) for n in (count // 2, 2 * count) for row in (base, whole)),
    ]


@contextmanager
def plain_forms(names: tuple[Form, ...]) -> Iterator[None]:
    """Inside, the named parts are computed in their plain form."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(*_DECISIONS[name], return_value=False))
        yield


def measured(part: Part, trainee: Trainee, batch: Batch) -> dict[str, float]:
    """A step's milliseconds by the clock (the fastest of eight, and eight back to back), its kernels' and their number.

    Copies on the device count as kernels.
    """

    def step() -> None:
        train_step(trainee, batch, 0, 1e-4)

    with plain_forms(part.plain):
        for _ in range(4):
            step()
        torch.cuda.synchronize()
        single = min(_clock(step) for _ in range(8))
        together = _clock(step, times=8)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            step()
            torch.cuda.synchronize()
    # A span that the optimizer names lies over its kernels and would count them twice.
    events = profiled.events() or []
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return {
        "wall_ms": 1000 * single,
        "back_to_back_ms": 1000 * together,
        "kernels_ms": sum(e.device_time for e in kernels) / 1000,
        "kernels": len(kernels),
    }


def _clock(call: Callable[[], object], times: int = 1) -> float:
    """Seconds a call, the device waited for once after the last."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def graphed_ms(part: Part, trainee: Trainee, batch: Batch) -> float:
    """Milliseconds of the whole step as CUDA graphs: one in which nothing waits for Python."""
    graphed = GraphedStep(trainee)

    def step() -> None:
        graphed(trainee, batch, 0, 1e-4)

    with plain_forms(part.plain):
        for _ in range(WARM_UP + 3):
            step()
        torch.cuda.synchronize()
        return 1000 * _clock(step, times=8)


class Operators(TorchDispatchMode):
    """Counts the operators that launch at least one kernel: views and empty tensors launch none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if not func.is_view and func.overloadpacket.__name__ not in _NO_KERNEL:
            self.number += 1
        return func(*args, **(kwargs or {}))


def counted(part: Part, trainee: Trainee, batch: Batch) -> int:
    """Operators of a step in a GPU's forms, on tensors without values ("meta").

    Autocast's casts and the optimizer's few kernels are not among them.
    """
    with ExitStack() as stack:
        for module, name in _DECISIONS.values():
            stack.enter_context(mock.patch.object(module, name, return_value=True))
        # Where the splits are aligned already there is nothing to pad.
        narrow = mock.patch.object(
            aligned, "is_faster", side_effect=lambda fam, _: fam.split_channels % aligned.STEP != 0
        )
        stack.enter_context(narrow)
        # Neither knows such tensors.
        stack.enter_context(mock.patch.object(trainee.optimizer, "step"))
        stack.enter_context(mock.patch.object(torch, "autocast", side_effect=lambda *_, **__: nullcontext()))
        stack.enter_context(plain_forms(part.plain))
        with Operators() as operators:
            train_step(trainee, batch, 0, 1e-4)
    number: int = operators.number
    return number
