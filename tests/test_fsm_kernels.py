"""FSM's form for GPUs against its plain form; conftest has Triton interpret the kernels where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from efafnet.models import fsm_fused
from efafnet.models.fasm import FeatureSelection
from efafnet.models.network_config import Arrangement
from tests.step_transfers import stand_in_gpu

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
ARRANGEMENTS = [name for name in get_args(Arrangement) if name != "none"]
_LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@pytest.fixture(autouse=True)
def _whole_float32() -> Iterator[None]:
    """On a GPU PyTorch's own convolutions are in TF32 unless that is switched off: no measure for 1e-5. Afterwards all
    is as it was before."""
    with fsm_fused._whole_float32():
        yield


def _selection(arrangement: Any, channels: int, *, lss_relu: bool = False) -> FeatureSelection:
    torch.manual_seed(1)
    selection = FeatureSelection(
        channels, arrangement=arrangement, reduction=2, lss_relu=lss_relu, merge="scaled"
    ).double()
    for parameter in selection.parameters():
        # Away from the start, where half of the small layers are switched off.
        torch.nn.init.normal_(parameter, std=0.5)
    return selection.to(DEVICE)


def _maps(shape: tuple[int, ...], layout: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """F, X and a gradient of Y."""
    generator = torch.Generator().manual_seed(2)
    made = [torch.randn(shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype) for _ in range(3)]
    f, x, towards = (t.contiguous(memory_format=_LAYOUTS[layout]) for t in made)
    return f.requires_grad_(), x.requires_grad_(), towards


def _outcomes(
    form: Callable[[Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor, Tensor], selection: FeatureSelection
) -> tuple[Tensor, ...]:
    f, x, towards = inputs
    y = form(f, x)
    return (y, *torch.autograd.grad(y, [f, x, *selection.parameters()], towards))


# 70 channels and 9 x 8 positions: more than a tile of either, and no multiple of one.
@pytest.mark.parametrize(
    ("arrangement", "lss_relu", "layout", "shape"),
    [
        *[(arrangement, False, "nhwc", (2, 5, 4, 3)) for arrangement in ARRANGEMENTS],
        ("parallel", True, "nhwc", (2, 5, 4, 3)),
        ("parallel", False, "nchw", (2, 70, 9, 8)),
        ("parallel", False, "nhwc", (2, 70, 9, 8)),
        ("parallel", False, "nhwc", (1, 3, 1, 1)),
        ("lss_cs", True, "nchw", (3, 2, 1, 5)),
    ],
)
def test_values_and_gradients_are_the_plain_forms(
    arrangement: str, lss_relu: bool, layout: str, shape: tuple[int, ...]
) -> None:
    selection = _selection(arrangement, shape[1], lss_relu=lss_relu)
    inputs = _maps(shape, layout)
    plain, fused = (_outcomes(form, inputs, selection) for form in (selection.plain, selection.fused))
    for wanted, found in zip(plain, fused, strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    y, d_f, d_x = fused[:3]
    assert all(t.is_contiguous(memory_format=_LAYOUTS[layout]) for t in (y, d_f, d_x))


@pytest.mark.parametrize("arrangement", ["parallel", "cs_lss"])
def test_numerical_gradients(arrangement: str) -> None:
    selection = _selection(arrangement, 3)
    f, x, _ = _maps((2, 3, 2, 2), "nhwc")
    # The parameters themselves are moved by gradcheck, in place: the call reads them where they are.
    parameters = tuple(selection.parameters())
    assert torch.autograd.gradcheck(lambda f, x, *_: selection.fused(f, x), (f, x, *parameters), fast_mode=True)


def test_float32_and_any_strides() -> None:
    selection = _selection("parallel", 6).float()
    f, x, towards = _maps((2, 6, 5, 4), "nhwc", torch.float32)
    # A slice of a wider map, a transposed one, and a gradient that is one number: what autograd hands over.
    wide = torch.cat((f, f), dim=1).detach().requires_grad_()
    turned = x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    inputs = (wide[:, :6], turned, towards.new_ones(()).expand(towards.shape))
    plain, fused = (_outcomes(form, inputs, selection) for form in (selection.plain, selection.fused))
    for wanted, found in zip(plain, fused, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arrangement", ["parallel", "lss"])
def test_what_is_no_number_stays_none(arrangement: str) -> None:
    """One value of the first of two samples: CS spreads it over the sample, LSS alone over its position."""
    selection = _selection(arrangement, 5, lss_relu=True)
    f, x, towards = _maps((2, 5, 4, 3), "nhwc")
    with torch.no_grad():
        f[0, 2, 1, 1] = float("nan")
    plain, fused = (_outcomes(form, (f, x, towards), selection) for form in (selection.plain, selection.fused))
    y = fused[0]
    assert y[0].isnan().sum() == (y[0].numel() if arrangement == "parallel" else 5)
    assert not y[1].isnan().any()
    assert [t.isnan().any() for t in fused] == [t.isnan().any() for t in plain]


def test_the_trial_on_a_card_finds_right_kernels_right_and_wrong_ones_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fsm_fused._difference(DEVICE, torch.float32) < 1e-5
    # Half precision keeps 8 bits: outputs are rounded once, gradients twice.
    assert fsm_fused._difference(DEVICE, torch.bfloat16) < 0.02
    right = fsm_fused._channel_gate_backward
    monkeypatch.setattr(fsm_fused, "_channel_gate_backward", lambda g, *rest: right(2 * g, *rest))
    assert fsm_fused._difference(DEVICE, torch.float32) > 1e-3


def test_the_trial_is_in_whole_float32_whatever_the_run_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 keeps 10 bits: rounded to it, each form in its own way, the two differ by more than the trial allows."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    plain, seen = FeatureSelection.plain, list[bool]()

    def noted(selection: FeatureSelection, f: Tensor, x: Tensor) -> Tensor:
        seen.extend(backend.allow_tf32 for backend in backends)
        return plain(selection, f, x)

    monkeypatch.setattr(FeatureSelection, "plain", noted)
    for backend in backends:
        backend.allow_tf32 = True
    fsm_fused._difference(DEVICE, torch.float32)
    assert seen == [False, False]
    assert all(backend.allow_tf32 for backend in backends)


def test_a_card_that_cannot_run_the_kernels_gets_the_plain_form_and_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> float:
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(fsm_fused, "_difference", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old Card")
    fsm_fused._tried.cache_clear()
    with pytest.warns(
        UserWarning, match=r"plain, slower form.*Old Card in bfloat16 \(RuntimeError: no kernel image is"
    ):
        assert not fsm_fused.works(0, torch.bfloat16)
    assert not fsm_fused.works(0, torch.bfloat16)  # tried, and told, once
    fsm_fused._tried.cache_clear()


def test_a_cpu_takes_the_plain_form() -> None:
    f = torch.zeros(1, 2, 3, 3)
    assert not fsm_fused.usable(f, f)


@pytest.mark.parametrize("kernels", [True, False])
def test_a_gpu_takes_the_kernels_where_they_run(kernels: bool) -> None:
    with stand_in_gpu(kernels=kernels) as gpu:
        f = torch.zeros(1, 8, 4, 3, device=gpu.device, requires_grad=True)
        y = _selection("parallel", 8).to(gpu.device, torch.float32)(f, f)
        assert type(y.grad_fn).__name__ == ("_GatedBackward" if kernels else "_GatedResidualBackward")
        # Another type than the features': the plain form's promotion.
        y = _selection("parallel", 8).to(gpu.device, torch.float32)(f, f.double())
        assert type(y.grad_fn).__name__ != "_GatedBackward"


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.parametrize("arrangement", ["parallel", "lss_cs"])
def test_a_compiled_fsm_keeps_the_kernels_and_the_function(arrangement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ask(torch.nn.Module):
        """Asks while it is traced, as `FeatureSelection.forward` does on a GPU."""

        def __init__(self) -> None:
            super().__init__()
            self.selection = _selection(arrangement, 5)

        def forward(self, f: Tensor, x: Tensor) -> Tensor:
            answered = fsm_fused.works(0, f.dtype)
            return self.selection.fused(f, x) if answered else self.selection.plain(f, x)

    # What the trial does could not be traced.
    monkeypatch.setattr(fsm_fused, "_tried", lambda *_: bool(torch.ones(3).nonzero().numel()))
    module = Ask()
    inputs = _maps((2, 5, 4, 3), "nhwc")
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    eager, found = (_outcomes(form, inputs, module.selection) for form in (module, compiled))
    torch.testing.assert_close(found, eager, rtol=1e-12, atol=1e-12)


_COMPILE = """
import triton.language as tl
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from efafnet.models import fsm_kernels as kernels

HALF, SUMS = {"f", "identity", "y", "grad", "inner", "d_f"}, {"SUM": tl.float32}
TILE = {"BLOCK_C": 64, "BLOCK_P": 64, "LINE": 1024, "BASE": 2 / 3, "SCALE": 1 / 3}
SWITCHES = {"CS": True, "LSS": True, "POOL": True, "DOT": True, "RESIDUAL": True, "RELU": True}
CONSTANTS = {**TILE, **SWITCHES, **SUMS}
NUMBERS = {"C", "P", "M", "BLOCKS"}
for name, kernel in vars(kernels).items():
    if not isinstance(kernel, triton.JITFunction):
        continue
    signature, constants, aligned = {}, {}, {}
    for i, argument in enumerate(kernel.arg_names):
        stride = len(argument) == 3 and argument[1] == "_" and argument[2] in "ncp"
        if argument in CONSTANTS or (stride and argument[2] == "c"):  # channels lie side by side
            signature[argument], constants[(i,)] = "constexpr", CONSTANTS.get(argument, 1)
            continue
        pointer = "*bf16" if argument in HALF else "*i32" if argument == "index" else "*fp32"
        signature[argument] = "i32" if stride or argument in NUMBERS else pointer
        aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    print(name, "cubin" in made.asm, "v4.b32" in made.asm["ptx"])
"""


@pytest.mark.slow
@pytest.mark.no_ray
def test_the_kernels_compile_for_a_gpu_and_read_whole_rows(tmp_path: Path) -> None:
    script = tmp_path / "compile.py"
    # What Triton compiles it reads from a file.
    script.write_text(_COMPILE)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = ("statistics", "position_gate", "gate", "gate_backward", "position_gate_backward", "features_backward")
    assert done.stdout.splitlines() == [f"_{name} True True" for name in names]
