"""The transformer: a stem, a stack and a head, in one call. Shapes: B batch, T time, D width, V words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.protocols import Output
from .attention import Attention
from .cache import KVCache
from .heads import LanguageHead
from .layout import Layout
from .stack import Stack


class Transformer(nn.Module):
    """tokens -> stem -> stack -> head. Every family is this class with other parts inside."""

    def __init__(self, stem: nn.Module, stack: Stack, head: LanguageHead) -> None:
        super().__init__()
        self.stem, self.stack, self.head = stem, stack, head

    def forward(
        self,
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        perturb: Tensor | None = None,
        labels: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Output:
        """Run `tokens` int64 [B, T].

        `documents` [B, T]: a token sees only earlier tokens with its own id in its row; 0 is padding, seen by
        nobody; positions restart in each document unless `positions` [B, T] are given. `perturb` [B, T, D] is
        added to the embeddings. `labels` [B, T] (labels[:, t] is the target of position t, -100 not counted):
        the output has float32 `losses` [B, T] and no logits, and the full logits never exist. Otherwise it has
        float32 `logits` [B, T, V], or [B, 1, V] with `last_only`: of the last position, or of the last that is
        no padding where `documents` are given. `cache`: the tokens come after those cached, and are added.

        Raises UserError when the tokens outgrow the cache or the model's table of positions.
        """
        layout = Layout(tokens, documents=documents, positions=positions, cache=cache)
        hidden = self.stack(self.stem(tokens, layout, perturb), layout)
        if cache is not None:
            cache.advance(layout.seq)
        if labels is not None:
            return Output(hidden, losses=self.head.losses(hidden, labels))
        return Output(hidden, logits=self.head(_last(hidden, documents) if last_only else hidden))

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for this model with room for `max_len` tokens in each of `batch` rows."""
        attention = next(part for part in self.stack.modules() if isinstance(part, Attention))
        weight = attention.key.weight
        heads = len(weight) // attention.d_head
        return KVCache(len(self.stack.blocks), batch, heads, max_len, attention.d_head, weight.dtype, weight.device)


def _last(hidden: Tensor, documents: Tensor | None) -> Tensor:
    """The last position of each row that is no padding: [B, T, D] -> [B, 1, D]."""
    if documents is None:
        return hidden[:, -1:]
    index = torch.arange(documents.shape[1], device=documents.device)
    last = torch.where(documents != 0, index, 0).amax(1)
    return hidden[torch.arange(len(last), device=last.device), last][:, None]
