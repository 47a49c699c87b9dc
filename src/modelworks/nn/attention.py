"""Attention over grouped heads, and who may see whom. B batch, T queries, S keys, H/K heads, D head width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blockwise import LONGEST, Blockwise
from .layout import Layout

Seen = tuple[Tensor | None, bool]
"""An additive mask broadcastable to [B, H, T, S] (None: all is seen), and whether plain causality is enough."""


class Causal(nn.Module):
    """Each token sees itself and the earlier tokens of its own document; padding (document 0) sees only itself.

    One instance is shared by all blocks, so the mask is built once a pass, and only when it is needed.
    """

    def forward(self, layout: Layout, dtype: torch.dtype) -> Seen:
        return layout.once((self, dtype), lambda: self._seen(layout, dtype))

    def square(self, layout: Layout, dtype: torch.dtype) -> Tensor:
        """The additive mask of a whole pass, also where plain causality would need none."""
        mask, _ = self(layout, dtype)
        if mask is not None:
            return mask
        hidden = torch.full((layout.seq, layout.seq), float("-inf"), dtype=dtype, device=layout.device)
        return layout.once((self, dtype, "square"), lambda: hidden.triu_(1))

    def _seen(self, layout: Layout, dtype: torch.dtype) -> Seen:
        fresh = layout.cache is None or layout.cache.longest == 0
        if layout.documents is None and (fresh or layout.seq == 1) and not (layout.cache and layout.cache.ragged):
            return None, layout.seq > 1
        index = torch.arange(layout.cache.longest + layout.seq if layout.cache else layout.seq, device=layout.device)
        if layout.documents is not None:
            query, key = layout.documents[:, :, None], layout.documents[:, None, :]
            allowed = (query == key) & (query != 0) & (index[:, None] >= index)
            allowed |= torch.eye(layout.seq, dtype=torch.bool, device=layout.device)
        elif layout.cache is not None and layout.cache.ragged:
            allowed = index <= layout.cache.slots[:, :, None]
        else:
            assert layout.cache is not None
            allowed = index <= index[layout.cache.longest :, None]
        mask = torch.zeros(allowed.shape, dtype=dtype, device=layout.device).masked_fill_(~allowed, float("-inf"))
        return (mask[:, None] if mask.dim() == 3 else mask), False


class Attention(nn.Module):
    """Softmax attention with H query heads over K key heads (Ainslie et al. 2023), composed of the parts given.

    `query_norm` and `key_norm` act on single heads [..., D] before `position` turns them; `mask` says who is
    seen; `layer` is this block's shelf in the cache. [B, T, width] -> [B, T, width].
    """

    def __init__(
        self,
        *,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        d_head: int,
        layer: int,
        mask: Causal,
        position: nn.Module,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = query, key, value, out
        self.query_norm, self.key_norm = query_norm or nn.Identity(), key_norm or nn.Identity()
        self.position = position
        self.mask: Causal = mask
        self.d_head, self.layer, self.dropout = d_head, layer, dropout

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        heads = (*x.shape[:-1], -1, self.d_head)
        queries = self.position(self.query_norm(self.query(x).view(heads)), layout).transpose(1, 2)
        keys = self.position(self.key_norm(self.key(x).view(heads)), layout).transpose(1, 2)
        values = self.value(x).view(heads).transpose(1, 2)
        if layout.cache is not None:
            stored = layout.cache.write(self.layer, keys, values)
            if layout.cache.longest:  # else this pass is all there is, and fresh values need no rounding
                keys, values = stored
        mixed = self._attend(queries, keys, values, layout)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        n_heads, n_kv_heads = queries.shape[1], keys.shape[1]
        if queries.requires_grad and not dropout and layout.cache is None and _suits_blocks(queries):
            return Blockwise.apply(queries, keys, values, self.mask.square(layout, queries.dtype))
        mask, is_causal = self.mask(layout, queries.dtype)
        if layout.seq == 1 and n_heads != n_kv_heads:
            # One query a head: the heads of a group stand in the time axis, and no key is copied.
            grouped = queries.view(layout.batch, n_kv_heads, -1, self.d_head)
            mixed = F.scaled_dot_product_attention(grouped, keys, values, mask, dropout)
            return mixed.view(queries.shape)
        return F.scaled_dot_product_attention(
            queries, keys, values, mask, dropout, is_causal, enable_gqa=n_heads != n_kv_heads
        )


def _suits_blocks(queries: Tensor) -> bool:
    return queries.device.type == "cpu" and 1 < queries.shape[2] <= LONGEST
