"""Heads: what reads the stack out. Shapes: B batch, T time, N positions with a label, D width, V words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .precision import matrix_dtype

IGNORED = -100
"""A label that is not counted (the convention of torch and Hugging Face)."""


class LanguageHead(nn.Module):
    """Scores of the next word. `projection` may be the token embedding's own matrix (tied)."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> float32 logits [B, T, V]."""
        return self.projection(hidden).float()

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats at each position, float32 [B, T], 0 where the label is -100."""
        flat, wanted = hidden.flatten(0, 1), labels.flatten()
        counted = (wanted != IGNORED).nonzero().squeeze(1)
        some = counted.numel() < wanted.numel()
        if some:
            flat, wanted = flat[counted], wanted[counted]
        losses = CrossEntropy.apply(flat, self.projection.weight, wanted)
        if some:
            losses = torch.zeros(labels.numel(), device=labels.device).index_put((counted,), losses)
        return losses.view(labels.shape)


class CrossEntropy(torch.autograd.Function):
    """log-sum-exp(h W') - (h W')[label], a few rows at a time, so that the full logits never exist.

    hidden [N, D], weight [V, D], labels [N] -> float32 losses [N]; any weights may multiply them afterwards.
    The slope of the logits is softmax - one-hot = e / sum(e) - one-hot with e = exp(logits - max). Only e is
    kept, in the format that matrices multiply in, while it is small (`KEEP` bytes), else it is worked out again
    in the backward pass; the rest of the slope scales rows of D numbers and never touches V of them.
    """

    CHUNK = 1 << 20
    """Logits in a chunk: 4 MB in float32 stay in the processor's cache."""
    KEEP = 256 << 20

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        dtype = matrix_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            rows, table = hidden.to(dtype), weight.to(dtype)
            size = max(1, CrossEntropy.CHUNK // len(table))
            keep = any(ctx.needs_input_grad) and len(rows) * len(table) * dtype.itemsize <= CrossEntropy.KEEP
            losses = hidden.new_empty(len(rows), dtype=torch.float32)
            sums = torch.empty_like(losses)
            kept = rows.new_empty(len(rows) if keep else 0, len(table))
            for start in range(0, len(rows), size):
                here = slice(start, start + size)
                exponentials, chosen = _exponentials(rows[here], table, labels[here])
                torch.sum(exponentials, 1, out=sums[here])
                torch.sub(sums[here].log(), chosen, out=losses[here])
                if keep:
                    kept[here] = exponentials
        ctx.size, ctx.dtypes = len(rows) if keep else size, (hidden.dtype, weight.dtype)
        ctx.save_for_backward(rows, table, labels, sums, kept)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, table, labels, sums, kept = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            scale = (grad / sums)[:, None]
            to_rows = torch.empty_like(rows)
            to_table = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
            for start in range(0, len(rows), max(1, ctx.size)):
                here = slice(start, start + ctx.size)
                shares = kept if len(kept) else _exponentials(rows[here], table, labels[here])[0].to(rows.dtype)
                torch.mm(shares, table, out=to_rows[here])
                to_table += shares.t() @ (rows[here] * scale[here]).to(rows.dtype)
            to_rows = to_rows * scale - table[labels] * grad[:, None]
            to_table.index_add_(0, labels, rows * grad[:, None], alpha=-1)
        return to_rows.to(ctx.dtypes[0]), to_table.to(ctx.dtypes[1]), None


def _exponentials(rows: Tensor, table: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - max) of a chunk [n, V] and the labels' own exponents [n], both float32."""
    logits = F.linear(rows, table).float()
    logits -= logits.amax(1, keepdim=True)
    chosen = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.exp_(), chosen
