"""Mixing: how values are weighed. B batch, H query heads, K key heads, T queries, S keys, D head width."""

from __future__ import annotations

from typing import Any

import torch
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
        if layout.cache is None and not dropout and mask.fixed and _suits_blocks(queries, mask.causal):
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


def _suits_blocks(queries: Tensor, causal: bool) -> bool:
    """Where `Blockwise` is the quicker of the two: in training on a processor.

    In float32 without causality nothing is skipped, and torch's kernel is: forward and backward of 8 x 197 tokens
    49 ms against 63; in bfloat16 68 against 31 (one Zen 4 core, 12 heads of 64). A compiler would unroll its blocks
    for minutes.
    """
    if torch.compiler.is_compiling():
        return False
    trained = queries.requires_grad and queries.device.type == "cpu" and 1 < queries.shape[2] <= LONGEST
    return trained and (causal or queries.dtype != torch.float32)


class Scored(nn.Module):
    """Attention whose scores a family treats in its own way: `shares` of a subclass turns them into weights.

    Keys of a group are not copied for its heads. `scale` is D ** -0.5 unless given; `dropout` of the shares, in
    training only. Long texts go a block of queries at a time (`SCORES` of them), so that the square never exists.
    """

    SCORES = 1 << 25

    def __init__(self, scale: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout

    def shares(self, scores: Tensor, seen: Tensor | None) -> Tensor:
        """Scores [B, H, T, S] and the additive mask -> weights of the values, [B, H, T, S]."""
        raise NotImplementedError

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Any, layout: Layout) -> Tensor:
        """[B, H, T, D], [B, K, S, D] twice -> [B, H, T, D]."""
        seen, is_causal = mask(layout, queries.dtype)
        if is_causal:
            seen = mask.square(layout, queries.dtype)
        queries = queries * (queries.shape[-1] ** -0.5 if self.scale is None else self.scale)
        size = max(1, self.SCORES // (queries.shape[0] * queries.shape[1] * keys.shape[2]))
        if queries.shape[2] <= size:
            return self._mix(queries, keys, values, seen)
        parts = []
        for start in range(0, queries.shape[2], size):
            here = slice(start, start + size)
            parts.append(self._mix(queries[:, :, here], keys, values, None if seen is None else seen[..., here, :]))
        return torch.cat(parts, 2)

    def _mix(self, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
        grouped = queries.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # [B, K, G T, D]
        scores = torch.matmul(grouped, keys.transpose(2, 3))
        shares = self.shares(scores.view(*queries.shape[:3], -1), seen).to(values.dtype)
        if self.dropout and self.training:
            shares = F.dropout(shares, self.dropout)
        return torch.matmul(shares.view(scores.shape), values).view(*queries.shape[:3], -1)
