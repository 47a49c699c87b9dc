"""Position: rotary tables exact to 128k positions. Shapes: B batch, T time, H heads, D head width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import native
from .layout import Layout


def frequencies(width: int, theta: float) -> Tensor:
    """theta ** (-2i / width) for i < width / 2: radians a position, float64 [width / 2], always on the processor."""
    return theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021), half-split as in Llama: dimension i turns with i + R/2.

    `inverse` float64 [R / 2] says how fast each pair of dimensions turns; the first R dimensions of a head are
    turned and the others pass. `scale` multiplies cosines and sines (YaRN's attention factor). Angles are worked
    out in float64 and rounded once, so position 131,071 is as exact as position 1 (in float32 the angle itself
    would be off by 0.008 there). One instance is shared by all blocks. The table is a plain attribute and no
    buffer on purpose: `model.to(bfloat16)` must not round it.
    """

    def __init__(self, inverse: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.inverse, self.scale = inverse, scale
        self.turned = 2 * len(inverse)
        self._table: Tensor | None = None

    @torch.inference_mode(False)  # a plain tensor also where inference is on: training may use it afterwards
    def table(self, length: int, device: torch.device) -> Tensor:
        """cos, and sin with its first half negative, of positions 0 .. length-1 or more: float32 [2, length, R]."""
        if self._table is None or self._table.shape[1] < length or self._table.device != device:
            room = max(256, 1 << (length - 1).bit_length())
            angle = torch.outer(torch.arange(room, dtype=torch.float64, device="cpu"), self.inverse)
            cos, sin = angle.cos() * self.scale, angle.sin() * self.scale
            self._table = torch.stack((torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1))).float().to(device)
        return self._table

    def _at(self, layout: Layout) -> tuple[Tensor, Tensor]:
        table = self.table(layout.end, layout.device)
        rows = slice(layout.start, layout.end) if layout.start is not None else layout.positions
        cos, sin = table[:, rows].unsqueeze(-2)
        return cos, sin

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Turn queries or keys [B, T, H, D] by their positions; float32 inside, the same dtype out."""
        cos, sin = layout.once(self, lambda: self._at(layout))
        if x.shape[-1] > self.turned:
            x, rest = x[..., : self.turned], x[..., self.turned :]
            return torch.cat((Turn.apply(x, cos, sin), rest), -1)
        return Turn.apply(x, cos, sin) if torch.is_grad_enabled() else _turn(x, cos, sin)


class Turn(torch.autograd.Function):
    """x turned by an angle; the slope is turned back by it, so nothing but the table is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (the halves of x in the other order) sin; the first half of `sin` is negative."""
    if native.usable(x) and x.dim() == 4 and cos.is_contiguous() and sin.is_contiguous():
        return _native_turn(x, cos, sin)
    first, second = x.chunk(2, -1)
    return (x * cos).add_(torch.cat((second, first), -1) * sin).to(x.dtype)


def _native_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in one pass (kernels.cpp)."""
    y, period = torch.empty_like(x), cos.numel() // cos.shape[-1]
    rows, heads, width = x.shape[0] * x.shape[1], x.shape[2], x.shape[3]
    native.call("turn", x, x, cos, sin, y, rows, heads, width // 2, heads * width, period)
    return y


class Unrotated(nn.Module):
    """For families whose positions are in the stem: queries and keys stay as they are."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x
