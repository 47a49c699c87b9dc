"""Activations by the names that Hugging Face configs give them. Any shape in, the same out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import native


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU by tanh, as in GPT-2 (Hendrycks & Gimpel 2016)."""
    return NativeGelu.apply(x) if _trains(x) else F.gelu(x, approximate="tanh")


def gated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """activation(gate) * up, the middle of a gated feed-forward part."""
    if activation is F.silu and _trains(gate, up):
        return NativeSwiGLU.apply(gate, up)
    return activation(gate) * up


def _trains(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and native.usable(*tensors)


class NativeGelu(torch.autograd.Function):
    """GELU by tanh, one pass forward and one back (kernels.cpp)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        native.call("gelu_forward", x, x, y, x.numel())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        to_x = torch.empty_like(x)
        native.call("gelu_backward", x, grad.to(x.dtype).contiguous(), x, to_x, x.numel())
        return to_x


class NativeSwiGLU(torch.autograd.Function):
    """silu(gate) * up, one pass forward and one back (kernels.cpp)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        y = torch.empty_like(gate)
        native.call("gated_forward", gate, gate, up, y, gate.numel())
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        native.call("gated_backward", gate, grad.to(gate.dtype).contiguous(), gate, up, to_gate, to_up, gate.numel())
        return to_gate, to_up


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
