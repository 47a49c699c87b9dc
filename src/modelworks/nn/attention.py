"""Attention, to the text itself and to a memory. B batch, T queries, S keys, H/K heads, D head width."""

from __future__ import annotations

from torch import Tensor, nn

from .layout import Layout
from .masks import OverMemory
from .mixing import Softmax


class Attention(nn.Module):
    """Attention of a text to itself, composed of the parts given. [B, T, width] -> [B, T, width].

    `query_norm` and `key_norm` act on single heads [..., D] before `position` turns them; `mask` says who is
    seen; `mixer` how much (softmax unless given); `layer` is this block's shelf in the cache.
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
        mask: nn.Module,
        position: nn.Module,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        mixer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = query, key, value, out
        self.query_norm, self.key_norm = query_norm or nn.Identity(), key_norm or nn.Identity()
        self.position, self.mask, self.mixer = position, mask, mixer or Softmax()
        self.d_head, self.layer = d_head, layer
        self.n_kv_heads = key.out_features // d_head

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        heads = (*x.shape[:-1], -1, self.d_head)
        queries = self.position(self.query_norm(self.query(x).view(heads)), layout).transpose(1, 2)
        keys = self.position(self.key_norm(self.key(x).view(heads)), layout).transpose(1, 2)
        values = self.value(x).view(heads).transpose(1, 2)
        if layout.cache is not None:
            stored = layout.cache.write(self.layer, keys, values)
            if layout.cache.longest:  # else this pass is all there is, and fresh values need no rounding
                keys, values = stored
        mixed = self.mixer(queries, keys, values, self.mask, layout)
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of a text to `layout.memory`. [B, T, width] -> [B, T, width]."""

    def __init__(
        self,
        *,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        d_head: int,
        layer: int,
        mixer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = query, key, value, out
        self.mask, self.mixer = OverMemory(), mixer or Softmax()
        self.d_head, self.layer = d_head, layer

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        memory = layout.memory
        if memory is None:
            raise ValueError("this model reads a memory: give it the encoder's.")
        queries = self._heads(self.query(x))
        keys, values = memory.once(
            self.layer, lambda: (self._heads(self.key(memory.hidden)), self._heads(self.value(memory.hidden)))
        )
        mixed = self.mixer(queries, keys, values, self.mask, layout)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.d_head).transpose(1, 2)
