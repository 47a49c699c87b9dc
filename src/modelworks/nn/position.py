"""Position: rotary tables exact to 128k positions. Shapes: B batch, T time, H heads, D head width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layout import Layout


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021), half-split as in Llama: dimension i turns with i + D/2.

    Angles are worked out in float64 and rounded once, so position 131,071 is as exact as position 1 (in
    float32 the angle itself would be off by 0.008 there). One instance is shared by all blocks. The table is
    a plain attribute and no buffer on purpose: `model.to(bfloat16)` must not round it.
    """

    def __init__(self, d_head: int, theta: float) -> None:
        super().__init__()
        self.d_head, self.theta = d_head, theta
        self._table: Tensor | None = None

    def table(self, length: int, device: torch.device) -> Tensor:
        """cos and sin of positions 0 .. length-1 (or more), float32 [2, length, D]; grown on demand."""
        if self._table is None or self._table.shape[1] < length or self._table.device != device:
            # Made as a plain tensor also where inference is on: training may use the same table afterwards.
            with torch.inference_mode(False):
                room = max(256, 1 << (length - 1).bit_length())
                inverse = self.theta ** -(torch.arange(0, self.d_head, 2, dtype=torch.float64) / self.d_head)
                angle = torch.outer(torch.arange(room, dtype=torch.float64), inverse)
                angle = torch.cat((angle, angle), dim=-1)
                self._table = torch.stack((angle.cos(), angle.sin())).float().to(device)
        return self._table

    def _at(self, layout: Layout) -> tuple[Tensor, Tensor]:
        table = self.table(layout.end, layout.device)
        if layout.start is not None:
            table = table[:, layout.start : layout.end]
        else:
            table = table[:, layout.positions]
        table = table.unsqueeze(-2)
        return table[0], table[1]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Turn queries or keys [B, T, H, D] by their positions; float32 inside, the same dtype out."""
        cos, sin = layout.once(self, lambda: self._at(layout))
        half = self.d_head // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return (x * cos + turned * sin).to(x.dtype)


class Unrotated(nn.Module):
    """For families whose positions are in the stem: queries and keys stay as they are."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return x
