"""Heads: what reads the stack out. B batch, T time, N positions with a label, D width, V words, C classes.

A head is called `read(hidden, layout, labels, last_only) -> Output` by the transformer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..base.protocols import Output
from .layout import Layout
from .precision import matrix_dtype, wide_dtype

IGNORED = -100
"""A label that is not counted (the convention of torch and Hugging Face)."""


class LanguageHead(nn.Module):
    """Scores of the words (or of labels) at each position: projection(transform(hidden)).

    `projection` may be the token embedding's own matrix (tied) and may have a bias; `transform` is what some
    families do before it (BERT's masked-LM head).
    """

    def __init__(self, projection: nn.Linear, transform: nn.Module | None = None) -> None:
        super().__init__()
        self.projection, self.transform = projection, transform or nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> logits [B, T, V] in the format of the matrices: widening them all would cost as much again."""
        return self.projection(self.transform(hidden))

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats at each position, float32 [B, T], 0 where the label is -100."""
        flat, wanted = hidden.flatten(0, 1), labels.flatten()
        counted = (wanted != IGNORED).nonzero().squeeze(1)
        some = counted.numel() < wanted.numel()
        if some:
            flat, wanted = flat[counted], wanted[counted]
        losses = self.cross_entropy(self.transform(flat), wanted)
        if some:
            losses = losses.new_zeros(labels.numel()).index_put((counted,), losses)
        return losses.view(labels.shape)

    def cross_entropy(self, rows: Tensor, labels: Tensor) -> Tensor:
        """[N, D], int64 [N] -> float32 [N]; the full logits never exist."""
        return CrossEntropy.apply(rows, self.projection.weight, labels, self.projection.bias)

    def read(self, hidden: Tensor, layout: Layout, labels: Tensor | None, last_only: bool) -> Output:
        if labels is not None:
            return Output(hidden, losses=self.losses(hidden, labels))
        return Output(hidden, logits=self(last(hidden, layout)[:, None] if last_only else hidden))


class Headless(nn.Module):
    """No head: the hidden states, and one vector a row where the family has a `pool` (BERT's, ViT's)."""

    def __init__(self, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.pool = pool

    def read(self, hidden: Tensor, layout: Layout, labels: Tensor | None, last_only: bool) -> Output:
        return Output(hidden, pooled=None if self.pool is None else self.pool(hidden, layout))


class ClassHead(nn.Module):
    """Scores of classes for a whole row: projection(pool(hidden)), logits float32 [B, C], labels int64 [B]."""

    def __init__(self, projection: nn.Module, pool: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.projection, self.pool, self.dropout = projection, pool, dropout

    def read(self, hidden: Tensor, layout: Layout, labels: Tensor | None, last_only: bool) -> Output:
        pooled = self.pool(hidden, layout)
        logits = self.projection(F.dropout(pooled, self.dropout, self.training))
        logits = logits.to(wide_dtype(logits))
        if labels is None:
            return Output(hidden, logits=logits, pooled=pooled)
        losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
        return Output(hidden, losses=losses, pooled=pooled)


class First(nn.Module):
    """The first vector of each row, through `then` (BERT's dense and tanh). [B, T, D] -> [B, D]."""

    def __init__(self, then: nn.Module | None = None) -> None:
        super().__init__()
        self.then = then or nn.Identity()

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        return self.then(hidden[:, 0])


class Last(nn.Module):
    """The vector of the last token that is no padding. [B, T, D] -> [B, D]."""

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        return last(hidden, layout)


class Mean(nn.Module):
    """The mean of the vectors that are no padding. [B, T, D] -> [B, D]."""

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        if layout.documents is None:
            return hidden.mean(1)
        real = (layout.documents != 0).to(hidden.dtype)[..., None]
        return (hidden * real).sum(1) / real.sum(1).clamp_min(1)


def last(hidden: Tensor, layout: Layout) -> Tensor:
    """The vector of the last position of each row that is no padding: [B, T, D] -> [B, D]."""
    if layout.documents is None:
        return hidden[:, -1]
    index = torch.arange(layout.seq, device=hidden.device)
    at = torch.where(layout.documents != 0, index, 0).amax(1)
    return hidden[torch.arange(at.shape[0], device=hidden.device), at]


class CrossEntropy(torch.autograd.Function):
    """log-sum-exp(h W' + b) - (h W' + b)[label], a few rows at a time, so that the full logits never exist.

    hidden [N, D], weight [V, D], labels [N], bias [V] or None -> float32 losses [N]; any weights may multiply
    them afterwards.
    The slope of the logits is softmax - one-hot = e / sum(e) - one-hot with e = exp(logits - max). Only e is
    kept, in the format that matrices multiply in, while it is small (`KEEP` bytes), else it is worked out again
    in the backward pass; the rest of the slope scales rows of D numbers and never touches V of them.
    """

    CHUNK, ROWS, LARGEST = 1 << 20, 256, 1 << 23
    """Logits in a chunk: 4 MB in float32 stay in the processor's cache; but 256 rows, up to 32 MB, where the words are
    so many that reading the table again for a few rows costs more (32,000 words of 512: 436 ms against 686)."""
    KEEP = 256 << 20

    @staticmethod
    def at_once(words: int) -> int:
        """Rows in a chunk over so many words."""
        most = CrossEntropy.LARGEST // words
        return max(1, CrossEntropy.CHUNK // words, min(CrossEntropy.ROWS, most))

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
        dtype = matrix_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            rows, table = hidden.to(dtype), weight.to(dtype)
            shift = None if bias is None else bias.to(dtype)
            size = CrossEntropy.at_once(len(table))
            keep = any(ctx.needs_input_grad) and len(rows) * len(table) * dtype.itemsize <= CrossEntropy.KEEP
            losses = hidden.new_empty(len(rows), dtype=wide_dtype(rows))
            sums = torch.empty_like(losses)
            kept = rows.new_empty(len(rows) if keep else 0, len(table))
            for start in range(0, len(rows), size):
                here = slice(start, start + size)
                exponentials, chosen = _exponentials(rows[here], table, labels[here], shift)
                torch.sum(exponentials, 1, out=sums[here])
                torch.sub(sums[here].log(), chosen, out=losses[here])
                if keep:
                    kept[here] = exponentials
        ctx.size, ctx.dtypes = len(rows) if keep else size, (hidden.dtype, weight.dtype)
        ctx.save_for_backward(rows, table, labels, sums, kept, shift)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        rows, table, labels, sums, kept, shift = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            scale = (grad / sums)[:, None]
            to_rows = torch.empty_like(rows)
            to_table = to_shift = None
            learns = ctx.needs_input_grad[1]  # not under an adapter: half of the work here
            if shift is not None and ctx.needs_input_grad[3]:
                to_shift = torch.zeros(len(table), dtype=grad.dtype, device=table.device)
            for start in range(0, len(rows), max(1, ctx.size)):
                here = slice(start, start + ctx.size)
                shares = kept if len(kept) else _exponentials(rows[here], table, labels[here], shift)[0].to(rows.dtype)
                torch.mm(shares, table, out=to_rows[here])
                if learns:
                    part = (shares.t() @ (rows[here] * scale[here]).to(rows.dtype)).to(grad.dtype)
                    to_table = part if to_table is None else to_table.add_(part)
                if to_shift is not None:
                    to_shift += (shares.t() @ scale[here].to(shares.dtype)).squeeze(1)
            to_rows = to_rows * scale - table[labels] * grad[:, None]
            if learns:
                to_table = torch.zeros_like(table, dtype=grad.dtype) if to_table is None else to_table
                to_table = to_table.index_add_(0, labels, rows * grad[:, None], alpha=-1).to(ctx.dtypes[1])
            if to_shift is not None:
                to_shift.index_add_(0, labels, grad, alpha=-1)
        return to_rows.to(ctx.dtypes[0]), to_table, None, to_shift


def _exponentials(rows: Tensor, table: Tensor, labels: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """exp(logits - max) of a chunk [n, V] and the labels' own exponents [n], in float32 or wider."""
    logits = F.linear(rows, table, shift)
    logits = logits.to(wide_dtype(logits))
    logits -= logits.amax(1, keepdim=True)
    chosen = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.exp_(), chosen
