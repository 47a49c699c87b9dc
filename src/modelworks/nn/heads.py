"""Heads: what reads the stack out. Shapes: B batch, T time, N positions with a label, D width, V words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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
    The slope of the logits, softmax - one-hot, is kept from the forward pass while it is small (`KEEP` bytes
    in the format that matrices multiply in) and worked out again in the backward pass otherwise.
    """

    ROWS = 1 << 20  # logits a chunk: 4 MB in float32 stay in the processor's cache
    KEEP = 256 << 20

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            rows, table = hidden.to(dtype), weight.to(dtype)
            size = max(1, CrossEntropy.ROWS // weight.shape[0])
            needed = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
            keep = needed and hidden.shape[0] * weight.shape[0] * dtype.itemsize <= CrossEntropy.KEEP
            losses, slopes = [], []
            for part, wanted in zip(rows.split(size), labels.split(size), strict=True):
                loss, slope = _chunk(part, table, wanted, keep)
                losses.append(loss)
                slopes.append(slope)
        ctx.size, ctx.dtypes = size, (hidden.dtype, weight.dtype)
        ctx.save_for_backward(rows, table, labels, *(slopes if keep else ()))
        return torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, table, labels, *slopes = ctx.saved_tensors
        with torch.autocast(rows.device.type, enabled=False):
            to_rows = torch.empty_like(rows)
            to_table = torch.zeros(table.shape, dtype=torch.float32, device=table.device)
            for number, start in enumerate(range(0, len(rows), ctx.size)):
                here = slice(start, start + ctx.size)
                slope = slopes[number] if slopes else _chunk(rows[here], table, labels[here], True)[1]
                slope = slope * grad[here, None].to(slope.dtype)
                torch.mm(slope, table, out=to_rows[here])
                to_table += slope.t() @ rows[here]
        return to_rows.to(ctx.dtypes[0]), to_table.to(ctx.dtypes[1]), None


def _chunk(rows: Tensor, table: Tensor, labels: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
    """Losses of a chunk, and softmax - one-hot in the rows' dtype when asked (else an empty tensor)."""
    logits = F.linear(rows, table).float()
    total = logits.logsumexp(1)
    losses = total - logits.gather(1, labels[:, None]).squeeze(1)
    if not slope:
        return losses, logits.new_empty(0)
    share = logits.sub_(total[:, None]).exp_()
    share[torch.arange(len(labels), device=labels.device), labels] -= 1
    return losses, share.to(rows.dtype)
