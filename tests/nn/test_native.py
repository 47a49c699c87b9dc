"""kernels.cpp against torch in float64, in both formats; what is not a number stays so; without them all goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modelworks.nn import activation, native, position
from modelworks.nn.norm import NativeLayer, RMSNorm

needed = pytest.mark.skipif(native.library() is None, reason="no C++ compiler: the kernels are not there")
FORMATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SIZES = pytest.mark.parametrize("rows, width", [(1, 4), (3, 7), (5, 64), (300, 130)])


def close(found: Tensor, wanted: Tensor) -> None:
    """Within one rounding of the format, and a few of float32."""
    tolerance = {torch.float32: 4e-6, torch.bfloat16: 2**-8}[found.dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * 0.5, equal_nan=True)


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and gradients of both, theirs in float64 from the very numbers that ours get."""
    here = [x.clone().requires_grad_() for x in inputs]
    there = [x.double().requires_grad_() for x in inputs]
    out, exact = ours(*here), theirs(*there)
    close(out.detach(), exact.detach())
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    out.backward(slope)
    exact.backward(slope.double())
    for x, y in zip(here, there, strict=True):
        grad = x.grad
        tolerance = {torch.float32: 2e-5, torch.bfloat16: 2**-7}[grad.dtype]
        scale = float(y.grad.abs().nan_to_num().max())
        torch.testing.assert_close(grad.double(), y.grad, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0, spread: float = 3.0) -> Tensor:
    return (spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@needed
@FORMATS
@SIZES
def test_gelu(rows: int, width: int, dtype: torch.dtype) -> None:
    x = numbers(rows, width, dtype=dtype, spread=6)
    assert activation._trains(x)
    compare(activation.tanh_gelu, lambda x: F.gelu(x, approximate="tanh"), x)


@needed
@FORMATS
@SIZES
def test_gated(rows: int, width: int, dtype: torch.dtype) -> None:
    gate, up = (numbers(rows, width, dtype=dtype, seed=seed, spread=6) for seed in (1, 2))
    compare(lambda g, u: activation.gated(F.silu, g, u), lambda g, u: F.silu(g) * u, gate, up)


@needed
@FORMATS
@SIZES
def test_rms_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    norm = RMSNorm(width, 1e-6).to(dtype)
    weight = numbers(width, dtype=dtype, seed=3)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        norm.weight = torch.nn.Parameter(weight.detach())
        out = norm(x)
        norm.weight.register_hook(lambda grad: setattr(weight, "grad", grad))
        return out

    compare(ours, lambda x, w: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w,
            numbers(rows, width, dtype=dtype), weight)  # fmt: skip


@needed
@FORMATS
@SIZES
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(biased: bool, rows: int, width: int, dtype: torch.dtype) -> None:
    weights = [numbers(width, dtype=dtype, seed=seed) for seed in (3, 4)[: 1 + biased]]

    def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return NativeLayer.apply(x, weight, bias, 1e-6)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, (width,), weight, bias, 1e-6)

    compare(ours, theirs, numbers(rows, width, dtype=dtype), *weights)


@needed
@FORMATS
@pytest.mark.parametrize("own", [False, True])
def test_turn(own: bool, dtype: torch.dtype) -> None:
    """Positions shared by all rows, and rows with positions of their own (packed documents)."""
    x, angle = numbers(3, 5, 4, 6, dtype=dtype), torch.rand(*([3] if own else []), 5, 1, 3)
    cos, sin = torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)

    def theirs(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        c, s = angle.cos().double(), angle.sin().double()
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    compare(lambda x: position.Turn.apply(x, cos, sin), theirs, x)


@needed
@FORMATS
def test_what_is_not_a_number_stays_so(dtype: torch.dtype) -> None:
    """The guard looks for them: a kernel that clamps would hide them."""
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e4, -1e4, 0.0]).to(dtype)
    assert activation.tanh_gelu(x)[:2].isnan().tolist() == [True, False] and activation.tanh_gelu(x)[1] == float("inf")
    assert activation.tanh_gelu(x)[3:].tolist() == pytest.approx([float(x[3]), 0, 0], abs=1e-30)
    assert activation.gated(F.silu, x, x)[0].isnan()
    assert RMSNorm(6, 1e-6).to(dtype)(x[None])[0].isnan().all()


def test_without_the_kernels_all_goes_on() -> None:
    code = """if True:
        import torch
        from modelworks.nn import native
        from modelworks.models import qwen3
        assert native.library() is None
        shape = dict(vocab_size=16, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, d_head=16, d_ff=64)
        tokens = torch.ones(1, 4, dtype=torch.long)
        qwen3.build(qwen3.Config(max_len=8, **shape))(tokens, labels=tokens).losses.sum().backward()"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MODELWORKS_NATIVE": "0"})


def test_no_compiler_is_said_once(tmp_path: object) -> None:
    code = "import torch; torch.ones(1) + 1; from modelworks.nn import native; native.library(); native.library()"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env={**os.environ, "PATH": str(tmp_path), "MODELWORKS_QUIET": ""},
    )  # fmt: skip
    assert done.stderr.count("torch's own kernels") == 1
