"""The transformer: a stem, a stack and a head, in one call. Shapes: B batch, T time, D width, V words."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..base.protocols import Output
from .attention import Attention
from .cache import KVCache
from .layout import Layout
from .memory import Memory
from .stack import Stack


class Transformer(nn.Module):
    """inputs -> stem -> stack -> head. Every stack of every family is this class with other parts inside."""

    stem: Any
    head: Any

    def __init__(self, stem: nn.Module, stack: Stack, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.stack, self.head = stem, stack, head

    def forward(
        self,
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        types: Tensor | None = None,
        perturb: Tensor | None = None,
        labels: Tensor | None = None,
        cache: KVCache | None = None,
        memory: Memory | None = None,
        last_only: bool = False,
    ) -> Output:
        """Run `tokens` int64 [B, T], or what else the stem takes (pixels float [B, channels, height, width]).

        `documents` [B, T]: a token sees only tokens with its own id in its row (earlier ones, where the family
        is causal); 0 is padding, seen by nobody; positions restart in each document unless `positions` [B, T]
        are given. `types` [B, T] are token types, where the family has them. `perturb` [B, T, D] is added to
        the embeddings. `labels` [B, T] (labels[:, t] is the target of position t, -100 not counted): the output
        has float32 `losses` [B, T] and no logits, and the full logits never exist. Otherwise it has
        `logits` [B, T, V] in the model's number format, or [B, 1, V] with `last_only`: of the last position, or
        of the last that is no padding where `documents` are given. (A head for classes has [B] and [B, C]; without
        a head there are neither.) `cache`: the tokens come after those cached, and are added. `memory` is what
        cross-attention reads. Where a router balances experts, `balance` is its loss, a mean over layers.

        Raises UserError when the tokens outgrow the cache or the model's table of positions.
        """
        layout = Layout(
            tokens,
            documents=documents,
            positions=positions,
            cache=cache,
            types=types,
            memory=memory,
            seq=self.stem.length(tokens),
        )
        hidden = self.stack(self.stem(tokens, layout, perturb), layout)
        if cache is not None:
            cache.advance(layout.seq)
        output = self.head.read(hidden, layout, labels, last_only)
        if layout.balances:
            output.balance = sum(layout.balances[1:], layout.balances[0]) / len(layout.balances)
        return output

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for this model with room for `max_len` tokens in each of `batch` rows."""
        attention = next(part for part in self.stack.modules() if isinstance(part, Attention))
        weight = next(self.stem.parameters())
        return KVCache(
            len(self.stack.blocks), batch, attention.n_kv_heads, max_len, attention.d_head, weight.dtype, weight.device
        )
