"""The memory that cross-attention reads: what the encoder made of its input. B batch, S source time, D width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Memory:
    """`hidden` [B, S, D] of the encoder; `documents` int64 [B, S] keeps packed texts apart, 0 is padding.

    Keys and values that a decoder's layers made of it are kept from one generated token to the next.
    """

    hidden: Tensor
    documents: Tensor | None = None
    _made: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def once(self, layer: int, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer: made by the first pass that asks, unless gradients are wanted."""
        if torch.is_grad_enabled():
            return make()
        if layer not in self._made:
            self._made[layer] = make()
        return self._made[layer]

    def rows(self, index: Tensor) -> Memory:
        """The memory of some rows, int64 [N], in any order, repeats allowed (beams, finished sequences)."""
        made = {layer: (keys[index], values[index]) for layer, (keys, values) in self._made.items()}
        return Memory(self.hidden[index], None if self.documents is None else self.documents[index], made)
