"""Mixture of experts: each token passes through the few feed-forward parts that a router picks for it.

          x [N, D] --- router ---> shares [N, K], chosen [N, K]
             |                        |
             v sorted by expert       |      Tokens of one expert stand together, so that each expert is one
          rows [N K, D]               |      product over its own rows, whatever the number of experts. No
             | gate, up, down         |      expert has a capacity: every token is served by all K that were
             v of each one's expert   |      picked for it. Padding is no token: nobody serves it, and it
          rows [N K, D]               |      cannot change what others get.
             |                        v
             '--> back in order, weighed and added up --> [N, D]

N tokens, E experts, K of them for each token, D width, F inner width of an expert.
On a processor the loop over experts was as quick as torch's grouped product in float32 and quicker for the few
rows of decoding; its own backward pass writes each expert's slope where it belongs and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..base.errors import UserError
from .layout import Layout
from .precision import matrix_dtype
from .stack import Block

Shares = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Scores [N, E] and K -> float32 shares [N, K] and the experts that they belong to, int64 [N, K]."""


def shares_of_all(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The best K shares of a softmax over all experts: they add up to less than 1 (Fedus et al. 2021)."""
    return torch.topk(torch.softmax(scores, -1, dtype=torch.float32), top)


def shares_of_chosen(scores: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """A softmax over the best K scores: shares add up to 1 (Jiang et al. 2024, Mixtral)."""
    best, chosen = torch.topk(scores, top)
    return torch.softmax(best, -1, dtype=torch.float32), chosen


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up (Shazeer 2020)."""
    return F.silu(gate) * up


class Router(nn.Module):
    """Scores every expert for every token and picks the best `top` (K) of them. [N, D] -> scores, shares, chosen.

    No nn.Linear, so that what quantises or adapts matrices leaves it alone: a rounding here sends tokens elsewhere.
    Raises UserError when there are fewer experts than a token passes through.
    """

    def __init__(self, d_model: int, n_experts: int, top: int, shares: Shares, bias: bool = False) -> None:
        super().__init__()
        if not 0 < top <= n_experts:
            raise UserError(
                f"a token cannot pass through {top} of {n_experts} experts; set n_active to 1 or more of them."
            )
        self.weight = nn.Parameter(torch.empty(n_experts, d_model))
        self.bias = nn.Parameter(torch.zeros(n_experts)) if bias else None
        self.top, self.shares = top, shares

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = F.linear(x, self.weight, self.bias)
        return scores, *self.shares(scores, self.top)


@dataclass(frozen=True, slots=True)
class Sorting:
    """Tokens in the order of their experts: row r of [N K, ...] is token source[r], and goes back to place[n K + k].

    `order` [N K] are the pairs n K + k in that order, `place` its inverse; expert e has rows ends[e - 1] : ends[e].
    """

    order: Tensor
    place: Tensor
    source: Tensor
    ends: list[int]

    @staticmethod
    def of(chosen: Tensor, n_experts: int) -> Sorting:
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        ends = flat.bincount(minlength=n_experts).cumsum(0).tolist()
        return Sorting(order, place, order // chosen.shape[1], ends)

    def groups(self) -> Iterator[tuple[int, slice]]:
        """Each expert that has rows, and which."""
        start = 0
        for expert, end in enumerate(self.ends):
            if end > start:
                yield expert, slice(start, end)
            start = end


class Grouped(nn.Module):
    """A matrix (and perhaps a bias) for each expert: rows [N K, in] in the order of experts -> [N K, out]."""

    def __init__(self, n_experts: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(n_experts, outputs)) if bias else None

    def forward(self, rows: Tensor, sorting: Sorting) -> Tensor:
        return Product.apply(rows, self.weight, self.bias, sorting)


class Experts(nn.Module):
    """The feed-forward part: down(mix(gate(x), up(x))) of K experts, weighed by their shares. [B, T, D] -> [B, T, D].

    Outside generation it adds to `layout.balances` how unevenly it routed (`imbalance`), times `balance`.
    """

    def __init__(
        self,
        router: Router,
        gate: Grouped,
        up: Grouped,
        down: Grouped,
        mix: Callable[[Tensor, Tensor], Tensor] = swiglu,
        balance: float = 0.0,
    ) -> None:
        super().__init__()
        self.router, self.gate, self.up, self.down, self.mix = router, gate, up, down, mix
        self.balance = balance

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        real = layout.once("real tokens", lambda: _real(layout))
        tokens = x.flatten(0, 1)
        if real is None:
            return self._serve(tokens, layout).view(x.shape)
        served = self._serve(tokens.index_select(0, real), layout)
        return served.new_zeros(tokens.shape).index_copy(0, real, served).view(x.shape)

    def _serve(self, tokens: Tensor, layout: Layout) -> Tensor:
        scores, shares, chosen = self.router(tokens)
        if layout.cache is None:
            layout.balances.append(self.balance * imbalance(scores, chosen))
        sorting = Sorting.of(chosen, scores.shape[-1])
        rows = Spread.apply(tokens, sorting)
        return Gather.apply(
            self.down(self.mix(self.gate(rows, sorting), self.up(rows, sorting)), sorting), shares, sorting
        )


def _real(layout: Layout) -> Tensor | None:
    """Which of the B T places hold tokens, int64; None where all do."""
    if layout.documents is None:
        return None
    real = layout.documents.flatten().nonzero().squeeze(1)
    return None if len(real) == layout.documents.numel() else real


def imbalance(scores: Tensor, chosen: Tensor) -> Tensor:
    """E sum_e (tokens sent to e / N) (mean share of e in a softmax over all): K where all is even, up to E.

    The load-balancing loss of Fedus et al. 2021, equations 4 to 6, for K choices a token, as in `transformers`.
    """
    tokens, n_experts = scores.shape
    sent = chosen.flatten().bincount(minlength=n_experts)
    meant = torch.softmax(scores, -1, dtype=torch.float32).sum(0)
    return n_experts * (sent * meant).sum() / max(tokens, 1) ** 2


class MixtureBlock(Block):
    """Pre-norm block whose feed-forward part also needs to know where tokens stand: which are none, and what to add."""

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = x + self._drop(self.attention(self.attention_norm(x), layout))
        return x + self._drop(self.feedforward(self.feedforward_norm(x), layout))


class Product(torch.autograd.Function):
    """Each expert's rows by its own matrix. rows [R, in], weight [E, out, in], bias [E, out] or None -> [R, out].

    Autograd's own would fill a tensor of all experts with zeros for each of them.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, sorting: Sorting) -> Tensor:
        ctx.given, dtype = rows.dtype, matrix_dtype(rows)
        rows = rows.to(dtype)
        ctx.save_for_backward(rows, weight)
        ctx.sorting, ctx.biased = sorting, bias is not None
        out = rows.new_empty(len(rows), weight.shape[1])
        with torch.autocast(rows.device.type, enabled=False):
            for expert, here in sorting.groups():
                torch.mm(rows[here], weight[expert].to(dtype).t(), out=out[here])
                if bias is not None:
                    out[here] += bias[expert]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        grad = grad.to(rows.dtype)
        to_rows = torch.empty_like(rows)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = weight.new_zeros(weight.shape[:2]) if ctx.biased else None
        with torch.autocast(rows.device.type, enabled=False):
            for expert, here in ctx.sorting.groups():
                torch.mm(grad[here], weight[expert].to(rows.dtype), out=to_rows[here])
                if to_weight is not None and weight.dtype == rows.dtype:
                    torch.mm(grad[here].t(), rows[here], out=to_weight[expert])
                elif to_weight is not None:
                    to_weight[expert] = grad[here].t() @ rows[here]
                if to_bias is not None:
                    to_bias[expert] = grad[here].sum(0)
        return to_rows.to(ctx.given), to_weight, to_bias, None


class Spread(torch.autograd.Function):
    """Each token once for each of its experts, in the order of experts: [N, D] -> [N K, D]."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, sorting: Sorting) -> Tensor:
        ctx.sorting, ctx.size = sorting, len(tokens)
        return tokens.index_select(0, sorting.source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _in_order(grad, ctx.sorting, ctx.size).sum(1), None


class Gather(torch.autograd.Function):
    """Back in the order of tokens, weighed and added up: rows [N K, D], shares [N, K] -> [N, D]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shares: Tensor, sorting: Sorting) -> Tensor:
        ctx.save_for_backward(rows, shares)
        ctx.sorting = sorting
        weighed = rows * shares.flatten().index_select(0, sorting.order)[:, None]
        return _in_order(weighed, sorting, len(shares)).sum(1).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, shares = ctx.saved_tensors
        sorting = ctx.sorting
        slopes = grad.index_select(0, sorting.source)
        to_shares = (rows * slopes).sum(1, dtype=torch.float32).index_select(0, sorting.place).view(shares.shape)
        return slopes * shares.flatten().index_select(0, sorting.order)[:, None].to(slopes.dtype), to_shares, None


def _in_order(rows: Tensor, sorting: Sorting, tokens: int) -> Tensor:
    """[N K, D] in the order of experts -> [N, K, D] in that of tokens."""
    return rows.index_select(0, sorting.place).view(tokens, -1, rows.shape[1])
