"""Masks: who may see whom. B batch, T queries, S keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layout import Layout

Seen = tuple[Tensor | None, bool]
"""An additive mask broadcastable to [B, H, T, S] (None: all is seen), and whether plain causality is enough."""


class Mask(nn.Module):
    """Which distances are seen; documents and padding (document 0, sees only itself) are the same for all.

    One instance is shared by all blocks that see alike, so a mask is built once a pass, and only when needed.
    """

    causal: bool
    fixed = True
    """False where the mask itself is learned (T5), so that its slope is wanted."""

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window

    def visible(self, distance: Tensor) -> Tensor:
        """bool, where a query sees a key that stands `distance` tokens before it (negative: after it)."""
        raise NotImplementedError

    def forward(self, layout: Layout, dtype: torch.dtype) -> Seen:
        return layout.once((self, dtype), lambda: self._seen(layout, dtype))

    def square(self, layout: Layout, dtype: torch.dtype) -> Tensor | None:
        """The additive mask of a pass without a cache; None where all is seen."""
        mask, is_causal = self(layout, dtype)
        if not is_causal:
            return mask
        hidden = torch.full((layout.seq, layout.seq), float("-inf"), dtype=dtype, device=layout.device)
        return layout.once((self, dtype, "square"), lambda: hidden.triu_(1))

    def distances(self, layout: Layout) -> Tensor:
        """Query's place minus key's, [T, S], or [B, T, S] where rows of the cache have different lengths."""
        past = layout.cache.longest if layout.cache is not None else 0
        keys = torch.arange(past + layout.seq, device=layout.device)
        ragged = layout.cache is not None and layout.cache.ragged
        queries = layout.cache.slots if ragged and layout.cache is not None else keys[past:]
        return queries[..., None] - keys

    def simple(self, layout: Layout) -> Seen | None:
        """What spares a mask altogether, if anything does."""
        raise NotImplementedError

    def _seen(self, layout: Layout, dtype: torch.dtype) -> Seen:
        ragged = layout.cache is not None and layout.cache.ragged
        if layout.documents is None and not ragged and (simple := self.simple(layout)) is not None:
            return simple
        allowed = self.visible(self.distances(layout))
        if layout.documents is not None:
            query, key = layout.documents[:, :, None], layout.documents[:, None, :]
            allowed = allowed & (query == key) & (query != 0)
            allowed |= torch.eye(layout.seq, dtype=torch.bool, device=layout.device)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=layout.device).masked_fill_(~allowed, float("-inf"))
        return (mask[:, None] if mask.dim() == 3 else mask), False


class Causal(Mask):
    """Each token sees itself and the earlier tokens of its document, the nearest `window` of them if given."""

    causal = True

    def visible(self, distance: Tensor) -> Tensor:
        return distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)

    def simple(self, layout: Layout) -> Seen | None:
        past = layout.cache.longest if layout.cache is not None else 0
        if self.window is not None and past + layout.seq > self.window:
            return None
        return (None, layout.seq > 1) if past == 0 or layout.seq == 1 else None


class Bidirectional(Mask):
    """Each token sees the whole of its document, or what stands at most `window` tokens before or after it."""

    causal = False

    def visible(self, distance: Tensor) -> Tensor:
        return torch.ones_like(distance, dtype=torch.bool) if self.window is None else distance.abs() <= self.window

    def simple(self, layout: Layout) -> Seen | None:
        return (None, False) if self.window is None or layout.seq <= self.window + 1 else None


class OverMemory(nn.Module):
    """Cross-attention: a token sees the memory of its own document; without documents, all that is no padding."""

    causal, fixed = False, False

    def forward(self, layout: Layout, dtype: torch.dtype) -> Seen:
        return layout.once((self, dtype), lambda: self._seen(layout, dtype))

    def _seen(self, layout: Layout, dtype: torch.dtype) -> Seen:
        assert layout.memory is not None
        if layout.memory.documents is None:
            return None, False
        key = layout.memory.documents[:, None, :]
        if layout.documents is None:
            allowed = key != 0
        else:
            query = layout.documents[:, :, None]
            allowed = (query == key) | (query == 0)  # padding sees all, so that no row is empty
        mask = torch.zeros(allowed.shape, dtype=dtype, device=layout.device).masked_fill_(~allowed, float("-inf"))
        return mask[:, None], False
