"""Mixing: how values are weighed. B batch, H query heads, K key heads, T queries, S keys, D head width."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .blockwise import LONGEST, Blockwise
from .layout import Layout


class Softmax(nn.Module):
    """softmax(q k' * scale + mask) v with H query heads over K key heads (Ainslie et al. 2023).

    `scale` is D ** -0.5 unless given; `dropout` of the shares, in training only.
    """

    def __init__(self, scale: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Any, layout: Layout) -> Tensor:
        """[B, H, T, D], [B, K, S, D] twice -> [B, H, T, D]."""
        dropout = self.dropout if self.training else 0.0
        n_heads, n_kv_heads = queries.shape[1], keys.shape[1]
        if queries.requires_grad and not dropout and layout.cache is None and mask.fixed and _suits_blocks(queries):
            scale = queries.shape[-1] ** -0.5 if self.scale is None else self.scale
            return Blockwise.apply(queries, keys, values, mask.square(layout, queries.dtype), scale, mask.causal)
        seen, is_causal = mask(layout, queries.dtype)
        if layout.seq == 1 and n_heads != n_kv_heads and (seen is None or seen.shape[-3:-2] in ((), (1,))):
            # One query a head: the heads of a group stand in the time axis, and no key is copied.
            grouped = queries.view(layout.batch, n_kv_heads, -1, queries.shape[-1])
            mixed = F.scaled_dot_product_attention(grouped, keys, values, seen, dropout, scale=self.scale)
            return mixed.view(queries.shape)
        return F.scaled_dot_product_attention(
            queries, keys, values, seen, dropout, is_causal, scale=self.scale, enable_gqa=n_heads != n_kv_heads
        )


def _suits_blocks(queries: Tensor) -> bool:
    return queries.device.type == "cpu" and 1 < queries.shape[2] <= LONGEST
