"""Attention for training on a processor: a block of queries at a time, so that scores stay in its cache.

           keys ->                 A block of queries sees the keys up to its own end, so of the square of
    queries [#     ]               scores only the stairs are computed; probabilities are kept for the
       |    [##    ]               backward pass. torch's flash kernel for CPUs works out the backward pass
       v    [###   ]               with small products; here they are batched. Measured at T = 256 in
            [####  ]               bfloat16, forward and backward: 23 ms against 58 ms (one Zen 4 core,
                                   16 rows, 6 heads of 32), in float32 38 ms against 44 ms.

B batch, T time, H query heads, K key heads, G = H / K, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 1024
"""Longest text that this is for: the probabilities kept grow with T * T."""
QUERIES = 128
SCORES = 3 << 18
"""Queries in a block, and scores that a block may have: 1.5 MB in bfloat16."""


class Blockwise(torch.autograd.Function):
    """softmax(q k' * scale + mask) v: q [B, H, T, D], k and v [B, K, T, D], mask [T, T] or [B, 1, T, T] or None.

    With `causal` keys behind a block are not looked at, whatever the mask says. Softmax statistics are float32.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, causal: bool
    ) -> Tensor:
        batch, n_heads, seq, width = queries.shape
        out = queries.new_empty(batch, seq, n_heads, width).transpose(1, 2)
        queries = queries * scale
        kept = []
        with torch.autocast(queries.device.type, enabled=False):
            for rows, at in _blocks(batch, n_heads, seq):
                end = at.stop if causal else seq
                query, (key, value) = _group(queries, keys, rows, at), _seen(keys, values, rows, end)
                scores = torch.bmm(query, key.transpose(1, 2))
                if mask is not None:
                    here = mask[at, :end] if mask.dim() == 2 else mask[rows, :, None, at, :end]
                    scores.view(-1, keys.shape[1], n_heads // keys.shape[1], *here.shape[-2:]).add_(here)
                share = torch.softmax(scores, -1)
                kept.append(share)
                out[rows, :, at] = torch.bmm(share, value).view(-1, n_heads, at.stop - at.start, width)
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.scale, ctx.causal = scale, causal
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        queries, keys, values, *kept = ctx.saved_tensors
        batch, n_heads, seq, width = queries.shape
        to_queries = queries.new_empty(batch, seq, n_heads, width).transpose(1, 2)
        to_keys, to_values = torch.zeros_like(keys), torch.zeros_like(values)
        for share, (rows, at) in zip(kept, _blocks(batch, n_heads, seq), strict=True):
            end = at.stop if ctx.causal else seq
            query, (key, value) = _group(queries, keys, rows, at), _seen(keys, values, rows, end)
            slope = _group(grad, keys, rows, at)
            shape = (-1, keys.shape[1], end, width)
            to_values[rows, :, :end] += torch.bmm(share.transpose(1, 2), slope).view(shape)
            to_share = torch.bmm(slope, value.transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_share, share, -1, share.dtype)
            to_queries[rows, :, at] = torch.bmm(to_scores, key).view(-1, n_heads, at.stop - at.start, width)
            to_keys[rows, :, :end] += torch.bmm(to_scores.transpose(1, 2), query).view(shape)
        return to_queries.mul_(ctx.scale), to_keys, to_values, None, None, None


def _blocks(batch: int, n_heads: int, seq: int) -> list[tuple[slice, slice]]:
    """Slices of rows and of queries that cover everything."""
    step = max(1, SCORES // (n_heads * min(seq, QUERIES) * seq))
    rows = [slice(start, min(start + step, batch)) for start in range(0, batch, step)]
    return [(row, slice(start, min(start + QUERIES, seq))) for row in rows for start in range(0, seq, QUERIES)]


def _group(x: Tensor, keys: Tensor, rows: slice, at: slice) -> Tensor:
    """A block of [B, H, T, D] as [rows * K, G * queries, D]: the heads that share a key head stand together."""
    return x[rows, :, at].unflatten(1, (keys.shape[1], -1)).flatten(0, 1).flatten(1, 2)


def _seen(keys: Tensor, values: Tensor, rows: slice, end: int) -> tuple[Tensor, Tensor]:
    """What a block of queries may see, each [rows * K, end, D]."""
    return keys[rows, :, :end].flatten(0, 1), values[rows, :, :end].flatten(0, 1)
