"""A linear layer whose matrix stands packed. M rows, K inputs, N outputs, G groups of inputs in each row.

`codes` (int8, or two 4-bit numbers a byte) and `scales` [N, G] mean one float matrix, `weight`: a code's value times
its group's scale, worked out in float32 and rounded once. Every product is with exactly that matrix; kernels only add
up in another order. Scales are in the model's number format, and codes were chosen for the scales as they are stored.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.precision import matrix_dtype

SLICE = 1 << 19
"""Numbers of the float matrix that exist at a time on a CPU: they stay in its cache."""


class QuantisedLinear(nn.Module):
    """x [..., K] -> x weight' + bias [..., N], in the format that matrices multiply in (`nn.precision`).

    The matrix learns nothing; slopes go through it to `x`, so adapters can learn around it. `group` is the number of
    inputs that share a scale. Fresh ones hold zeros; `fill` gives them their matrix.
    """

    BITS: ClassVar[int]
    FEW: ClassVar[int] = 16
    """Up to so many rows torch's packed kernel is quicker than making the float matrix (measured on AVX-512)."""
    codes: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, group: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group = in_features, out_features, group
        kind = torch.int8 if self.BITS == 8 else torch.uint8
        self.register_buffer("codes", torch.zeros(out_features, in_features * self.BITS // 8, dtype=kind))
        self.register_buffer("scales", torch.zeros(out_features, in_features // group, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None

    @classmethod
    def fits(cls, in_features: int, group: int) -> str:
        """'' where a matrix with so many inputs can be packed, else why not."""
        raise NotImplementedError

    def fill(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """Take over packed codes, scales and a float bias; their shapes are those of the fresh layer's."""
        self.codes, self.scales = codes.contiguous(), scales.contiguous()
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().to(scales.dtype), requires_grad=bias.requires_grad)

    def values(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """Rows `start` to `end` of the float matrix, [end - start, K], each number rounded once to `dtype`."""
        raise NotImplementedError

    def quick(self, rows: Tensor) -> Tensor | None:
        """[M, K] -> [M, N] by a packed kernel, None where none suits."""
        return None

    @property
    def weight(self) -> Tensor:
        """The float matrix [N, K] in the scales' format, made anew at each call."""
        return self.dequantised(self.scales.dtype)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The float matrix [N, K] in `dtype`."""
        return self.values(0, self.out_features, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and bias."""
        return sum(t.nbytes for t in (self.codes, self.scales, self.bias) if t is not None)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(matrix_dtype(x))
        out = Product.apply(x, self) if torch.is_grad_enabled() and x.requires_grad else self.multiply(x)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """x weight', without the bias."""
        rows = x.reshape(-1, self.in_features)
        out = self.quick(rows)
        if out is None:
            step = max(32, SLICE // self.in_features) if x.device.type == "cpu" else self.out_features
            starts = range(0, self.out_features, step)
            parts = [F.linear(rows, self.values(s, min(s + step, self.out_features), x.dtype)) for s in starts]
            out = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return out.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        bias = "" if self.bias is None else ", bias"
        return f"{self.in_features} -> {self.out_features}, {self.BITS} bits, groups of {self.group}{bias}"


class Product(torch.autograd.Function):
    """multiply(x), and the slope back to x; the float matrix is made again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return layer.multiply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantised(grad.dtype), None


def packed_kernel(rows: Tensor, layer: QuantisedLinear) -> bool:
    """Whether torch's packed CPU kernels are worth calling: few rows, and all in bfloat16.

    They take float32 and float16 too, by loops without vectors that cost ten to a hundred times a float product.
    """
    formats = rows.dtype == layer.scales.dtype == torch.bfloat16
    return formats and rows.device.type == "cpu" and 0 < len(rows) <= layer.FEW
