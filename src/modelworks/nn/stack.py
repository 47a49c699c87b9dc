"""The stack: blocks one after another on a residual stream, and the last norm. Shapes: B batch, T time, D width."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from .layout import Layout


class Block(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + feedforward(norm(x)). [B, T, D] -> [B, T, D].

    The other blocks below are this one's parts in another order; `dropout` of what is added, in training only.
    """

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        feedforward_norm: nn.Module,
        feedforward: nn.Module,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.feedforward_norm, self.feedforward = feedforward_norm, feedforward
        self.dropout = dropout

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = x + self._drop(self.attention(self.attention_norm(x), layout))
        return x + self._drop(self.feedforward(self.feedforward_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class PostNormBlock(Block):
    """The original order: norm(x + attention(x)), then norm(x + feedforward(x)) (Vaswani et al. 2017; BERT)."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.attention_norm(x + self._drop(self.attention(x, layout)))
        return self.feedforward_norm(x + self._drop(self.feedforward(x)))


class ParallelBlock(Block):
    """Both at once: x + attention(norm(x)) + feedforward(norm'(x)) (GPT-J; GPT-NeoX)."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        attended = self._drop(self.attention(self.attention_norm(x), layout))
        return x + attended + self._drop(self.feedforward(self.feedforward_norm(x)))


class SandwichBlock(Block):
    """Norms before and after: x + norm'(attention(norm(x))), then the same of the feed-forward part (Gemma 2)."""

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        attention_after: nn.Module,
        feedforward_norm: nn.Module,
        feedforward: nn.Module,
        feedforward_after: nn.Module,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(attention_norm, attention, feedforward_norm, feedforward, dropout)
        self.attention_after, self.feedforward_after = attention_after, feedforward_after

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = x + self._drop(self.attention_after(self.attention(self.attention_norm(x), layout)))
        return x + self._drop(self.feedforward_after(self.feedforward(self.feedforward_norm(x))))


class CrossBlock(Block):
    """Pre-norm block that also reads a memory between attention and feed-forward (T5, Whisper)."""

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        cross_norm: nn.Module,
        cross: nn.Module,
        feedforward_norm: nn.Module,
        feedforward: nn.Module,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(attention_norm, attention, feedforward_norm, feedforward, dropout)
        self.cross_norm, self.cross = cross_norm, cross

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = x + self._drop(self.attention(self.attention_norm(x), layout))
        x = x + self._drop(self.cross(self.cross_norm(x), layout))
        return x + self._drop(self.feedforward(self.feedforward_norm(x)))


class PostNormCrossBlock(CrossBlock):
    """The original decoder's order: a norm after each of the three (Vaswani et al. 2017; BART, Marian)."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.attention_norm(x + self._drop(self.attention(x, layout)))
        x = self.cross_norm(x + self._drop(self.cross(x, layout)))
        return self.feedforward_norm(x + self._drop(self.feedforward(x)))


class Stack(nn.Module):
    """Blocks in order, then `norm` (an identity where the blocks end with one). [B, T, D] -> [B, T, D]."""

    def __init__(self, blocks: Iterable[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        for block in self.blocks:
            x = block(x, layout)
        return self.norm(x)
