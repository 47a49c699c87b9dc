"""Where the tokens of one forward pass stand: positions, documents, what came before. B batch, T time, S memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from .cache import KVCache
from .memory import Memory


class Layout:
    """The facts that every block of one forward pass shares, worked out once.

    `start` is the first position when all rows stand at start, start + 1, ... (the common case: tables are
    sliced, causal attention needs no mask); None when rows differ, and then `positions` [B, T] says it all.
    `documents` [B, T] keeps documents of one row apart; 0 is padding. `types` [B, T] are BERT's token types.
    `memory` is what cross-attention reads. `seq` where the stem makes another number of vectors than
    `inputs.shape[1]` (patches of an image). `balances` collects what routers add to the loss.
    """

    def __init__(
        self,
        inputs: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        types: Tensor | None = None,
        memory: Memory | None = None,
        seq: int | None = None,
    ) -> None:
        self.batch, self.seq = inputs.shape[0], inputs.shape[1] if seq is None else seq
        self.device = inputs.device
        self.documents, self.cache, self.types, self.memory = documents, cache, types, memory
        self.balances: list[Tensor] = []
        self.start: int | None = None
        self._positions: Tensor | None = None
        self._memo: dict[Hashable, Any] = {}
        if cache is not None:
            if documents is not None and cache.longest:
                raise ValueError("documents can only be given while the cache is empty.")
            cache.begin(self.seq)
        if positions is not None:
            self._positions, self.end = positions, int(positions.max()) + 1
        elif documents is not None:
            self._positions, self.end = document_positions(documents), self.seq
        elif cache is not None and cache.ragged:
            self._positions, self.end = cache.slots, cache.longest + self.seq
        else:
            self.start = cache.longest if cache is not None else 0
            self.end = self.start + self.seq

    @property
    def positions(self) -> Tensor:
        """Position of every token in its document, int64 [B, T] ([1, T] when all rows agree)."""
        if self._positions is None:
            assert self.start is not None
            self._positions = torch.arange(self.start, self.end, device=self.device)[None]
        return self._positions

    def shift(self, by: int | Tensor) -> None:
        """Let the text begin at position `by`, or at by[b] in row b (int64 [B]): something unseen stands before it."""
        if isinstance(by, int):
            self._positions = None if self._positions is None else self._positions + by
            self.start = None if self.start is None else self.start + by
            self.end += by
        else:
            self._positions, self.start = self.positions + by[:, None], None
            self.end += int(by.max())

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns, made by the first block that asks and handed to the others."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]


def document_positions(documents: Tensor) -> Tensor:
    """Positions that restart at 0 with each run of equal ids: int64 [B, T] -> int64 [B, T]."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - torch.where(first, index, 0).cummax(1).values
