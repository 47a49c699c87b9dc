"""Normalisation: RMS and layer norm, computed in float32 or wider. [..., D] in, [..., D] out; D width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from . import native
from .precision import matrix_dtype, wide_dtype


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019).

    Handed on in the format of the matrices that read it, so that under autocast it is converted once.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, dtype = self.weight, matrix_dtype(x)
        if torch.is_grad_enabled():
            if dtype == x.dtype and native.usable(x, weight):
                return NativeRms.apply(x, weight, self.eps)
            return Rms.apply(x, weight, self.eps, dtype)
        if x.dtype == weight.dtype == dtype == torch.float32:  # spare a cached token the conversions
            return F.rms_norm(x, weight.shape, weight, self.eps)
        wide = wide_dtype(x)
        return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), self.eps).to(dtype)


class Rms(torch.autograd.Function):
    """RMS norm in as few passes over memory as torch allows; autograd's own takes twice as many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_dtype(x))
        scale = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        normal, wide = x * scale, weight.to(scale.dtype)
        product = grad * normal
        along = torch.mv(product.flatten(0, -2), wide).div_(x.shape[-1]).view(scale.shape)
        to_x = (grad * wide).addcmul_(normal, along, value=-1).mul_(scale)
        to_weight = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return to_x.to(x.dtype), to_weight, None, None


class NativeRms(torch.autograd.Function):
    """The same in one pass forward and one back (kernels.cpp)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        native.call("rms_forward", x, x, weight, y, scale, scale.numel(), x.shape[-1], eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        grad, to_x = grad.to(x.dtype).contiguous(), torch.empty_like(x)
        to_weight = torch.empty_like(weight, dtype=torch.float32)
        native.call("rms_backward", x, grad, x, weight, scale, to_x, to_weight, scale.numel(), x.shape[-1])
        return to_x, to_weight.to(weight.dtype), None


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias over the last axis (Ba et al. 2016); some families have no bias."""

    def __init__(self, d_model: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.dtype == matrix_dtype(x) and native.usable(x, self.weight):
            return NativeLayer.apply(x, self.weight, self.bias, self.eps)
        wide = wide_dtype(x)
        bias = None if self.bias is None else self.bias.to(wide)
        normal = F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), bias, self.eps)
        return normal.to(matrix_dtype(x))


class NativeLayer(torch.autograd.Function):
    """Layer norm in one pass forward and one back (kernels.cpp); torch's rounds its slopes to bfloat16 between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        y, mean = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        scale = torch.empty_like(mean)
        native.call("layer_forward", x, x, weight, bias, y, mean, scale, mean.numel(), x.shape[-1], eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.biased = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight, mean, scale = ctx.saved_tensors
        grad, to_x = grad.to(x.dtype).contiguous(), torch.empty_like(x)
        sums = torch.empty(2, x.shape[-1])
        native.call(
            "layer_backward", x, grad, x, weight, mean, scale, to_x, sums[0], sums[1], mean.numel(), x.shape[-1]
        )
        to_weight, to_bias = sums.to(weight.dtype)
        return to_x, to_weight, to_bias if ctx.biased else None, None
