"""RMS norm and its slopes against the definition in float64."""

from __future__ import annotations

import pytest
import torch

from modelworks.nn.norm import LayerNorm, RMSNorm


@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 4, 16)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rms_norm(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(16, 1e-6)
    torch.nn.init.normal_(norm.weight)
    x = (torch.randn(shape) * scale).requires_grad_()
    grad = torch.randn(shape)
    got = torch.autograd.grad(norm(x), (x, norm.weight), grad)
    wide, weight = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    want = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    slopes = torch.autograd.grad(want, (wide, weight), grad.double())
    with torch.no_grad():
        assert torch.allclose(norm(x).double(), want, atol=1e-5)
    assert torch.allclose(norm(x).double(), want, atol=1e-5)
    for left, right in zip(got, slopes, strict=True):
        assert (left - right).norm() / right.norm() <= 1e-5


@pytest.mark.parametrize("norm", [RMSNorm(64, 1e-6), LayerNorm(64, 1e-5)])
def test_bfloat16_in_float32_inside(norm: torch.nn.Module) -> None:
    x = torch.randn(10, 64).mul(1000).bfloat16()
    with torch.no_grad():
        got = norm(x)
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, norm(x.float()).bfloat16())
