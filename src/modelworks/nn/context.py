"""Context parallelism: ranks that share the length of the same rows. Applied to a built decoder from outside.

    row      | 0 | 1 | 2 | 3 |        each of two ranks has one early and one late part, so that causal attention
    rank 0   | 0 |       | 3 |        costs both the same (zigzag, as in Llama 3's training, section 3.3.2)
    rank 1       | 1 | 2 |

Queries stay where they are and keys and values are gathered in each layer, which grouped heads make small; everything
else in a model is done position by position. Torch's own ring attention (`context_parallel`) takes the place of its
CUDA kernels only and knows no documents. B batch, T the whole row, t a rank's part of it, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import UserError
from ..base.protocols import Output
from .attention import Attention
from .heads import IGNORED
from .layout import Layout, document_positions
from .masks import Causal

_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
Group = Any
"""A process group of torch's."""


class Part:
    """Which positions of a row this rank has, int64 [t], and how the parts of all ranks make a row again."""

    def __init__(self, seq: int, group: Group, device: torch.device) -> None:
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        pieces = torch.arange(seq, device=device).chunk(2 * size)
        self.by_rank = torch.cat([torch.cat((pieces[r], pieces[-1 - r])) for r in range(size)])
        self.at = self.by_rank.chunk(size)[rank]
        self.back = self.by_rank.argsort()
        self.group = group


class Spread:
    """The pass that is running: what a model's layers must know of the whole row."""

    part: Part | None = None
    documents: Tensor | None = None

    def mask(self, mask: Any, dtype: torch.dtype) -> Tensor:
        """Additive, [t, T] or [B, 1, t, T]: what this rank's queries see of all keys."""
        assert self.part is not None
        at, whole = self.part.at, torch.arange(len(self.part.back), device=self.part.at.device)
        allowed = mask.visible(at[:, None] - whole)
        if self.documents is not None:
            query, key = self.documents[:, at, None], self.documents[:, None, :]
            allowed = (allowed & (query == key) & (query != 0)) | (at[:, None] == whole)
        hidden = torch.zeros(allowed.shape, dtype=dtype, device=at.device).masked_fill_(~allowed, float("-inf"))
        return hidden[:, None] if hidden.dim() == 3 else hidden


class Seen(nn.Module):
    """Stands for a mask while a row is spread."""

    causal, fixed = False, False

    def __init__(self, mask: nn.Module, spread: Spread) -> None:
        super().__init__()
        self.mask, self.spread = mask, spread

    def forward(self, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, bool]:
        return layout.once((self.mask, dtype, "spread"), lambda: self.spread.mask(self.mask, dtype)), False


class Gathering(nn.Module):
    """A mixer whose queries are a part of the row and whose keys and values are gathered from all parts."""

    def __init__(self, mixer: nn.Module, spread: Spread) -> None:
        super().__init__()
        self.mixer, self.spread = mixer, spread

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: nn.Module, layout: Layout) -> Tensor:
        """[B, H, t, D], [B, K, t, D] twice -> [B, H, t, D]."""
        part = self.spread.part
        if part is None:
            return self.mixer(queries, keys, values, mask, layout)  # type: ignore[no-any-return]
        keys, values = Gather.apply(torch.stack((keys, values)), part, 3, True).unbind()
        return self.mixer(queries, keys, values, Seen(mask, self.spread), layout)  # type: ignore[no-any-return]


class Gather(torch.autograd.Function):
    """The parts of all ranks in the row's order, along `axis`.

    Backward each rank has its part of the slope: of the sum over ranks where they did different things with the whole
    (`summed`), else of its own, which is everybody's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: Part, axis: int, summed: bool) -> Tensor:
        ctx.part, ctx.axis, ctx.summed = part, axis, summed
        mine = x.movedim(axis, 0).contiguous()
        whole = mine.new_empty(len(part.back), *mine.shape[1:])
        _gather(whole, mine, group=part.group)
        return whole[part.back].movedim(0, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        part: Part = ctx.part
        grad = grads[0].movedim(ctx.axis, 0)
        if not ctx.summed:
            return grad[part.at].movedim(0, ctx.axis), None, None, None
        mine = grad.new_empty(len(part.at), *grad.shape[1:])
        _scatter(mine, grad[part.by_rank].contiguous(), group=part.group)
        return mine.movedim(0, ctx.axis), None, None, None


def spread_context(model: Any, group: Group) -> None:
    """Let the ranks of `group`, which are given the same rows, each work on a part of their length.

    What the model returns is whole again on each of them. Parameters get the slope of the rank's own part: the sum
    over the ranks is that of the row. A pass with a cache, or of the last position only, is done by each alone.
    Raises UserError for a model that is no causal decoder with a language head, or balances experts.
    """
    attentions = [part for part in model.modules() if isinstance(part, Attention)]
    if not attentions or not all(isinstance(part.mask, Causal) for part in attentions):
        raise UserError("parallel: only a causal decoder can be spread over the length of its rows; set context to 1.")
    spread = Spread()
    for attention in attentions:
        attention.mixer = Gathering(attention.mixer, spread)
    model.forward = _forward(model.forward, spread, group)


def _forward(inner: Callable[..., Output], spread: Spread, group: Group) -> Callable[..., Output]:
    size = 2 * dist.get_world_size(group)

    def forward(
        tokens: Tensor,
        *,
        documents: Tensor | None = None,
        positions: Tensor | None = None,
        perturb: Tensor | None = None,
        labels: Tensor | None = None,
        last_only: bool = False,
        **others: Any,
    ) -> Output:
        alone = last_only or any(value is not None for value in others.values())
        if alone:
            spread.part = None
            return inner(
                tokens, documents=documents, positions=positions, perturb=perturb, labels=labels,
                last_only=last_only, **others,
            )  # fmt: skip
        seq = tokens.shape[1]
        more = (0, -seq % size)
        if positions is None:
            ones = torch.ones_like(tokens)
            positions = document_positions(ones if documents is None else documents)
        tokens, positions = F.pad(tokens, more), F.pad(positions.expand(tokens.shape), more)
        spread.documents = None if documents is None else F.pad(documents, more)
        spread.part = part = Part(tokens.shape[1], group, tokens.device)
        at = part.at
        out = inner(
            tokens[:, at],
            documents=None if spread.documents is None else spread.documents[:, at],
            positions=positions[:, at],
            perturb=None if perturb is None else F.pad(perturb, (0, 0, *more))[:, at],
            labels=None if labels is None else F.pad(labels, more, value=IGNORED)[:, at],
        )
        if out.balance is not None or out.pooled is not None:
            raise UserError("parallel: experts and heads for classes need whole rows; set context to 1.")
        whole = {
            name: Gather.apply(tensor, part, 1, False)[:, :seq]
            for name in ("hidden", "logits", "losses")
            if (tensor := getattr(out, name)) is not None
        }
        return replace(out, **whole)

    return forward
