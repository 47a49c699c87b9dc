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
An expert's rows are gathered, multiplied and weighed while they are in the processor's cache, and only gate and up
are kept for the backward pass, which writes each expert's slope where it belongs and nothing else. torch's grouped
product was no quicker here in float32, and slower for the few rows of decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

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


class Mix(Protocol):
    """What an expert makes of gate and up, and how slopes come back through it; all [n, F]."""

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def slopes(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]: ...


class SwiGLU:
    """silu(gate) up (Shazeer 2020)."""

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate).mul_(up)

    def slopes(self, gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


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

    def idle(self) -> list[int]:
        """Experts that no token was sent to."""
        return [e for e, (start, end) in enumerate(zip((0, *self.ends), self.ends, strict=False)) if start == end]

    def groups(self) -> Iterator[tuple[int, slice]]:
        """Each expert that has rows, and which."""
        start = 0
        for expert, end in enumerate(self.ends):
            if end > start:
                yield expert, slice(start, end)
            start = end


class Grouped(nn.Module):
    """A matrix [E, out, in], and perhaps a bias [E, out], for each expert."""

    def __init__(self, n_experts: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(n_experts, outputs)) if bias else None

    def forward(self, rows: Tensor, expert: int) -> Tensor:
        """[n, in] -> [n, out] by one expert."""
        return F.linear(rows, self.weight[expert], None if self.bias is None else self.bias[expert])


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
        mix: Mix | None = None,
        balance: float = 0.0,
    ) -> None:
        super().__init__()
        self.router, self.gate, self.up, self.down = router, gate, up, down
        self.mix, self.balance = mix or SwiGLU(), balance

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
        if len(tokens) == 1 and not torch.is_grad_enabled():
            return self._serve_one(tokens, shares, chosen)
        sorting = Sorting.of(chosen, scores.shape[-1])
        gate, up, down = self.gate, self.up, self.down
        return Served.apply(
            tokens, shares, gate.weight, up.weight, down.weight, gate.bias, up.bias, down.bias, sorting, self.mix
        )

    def _serve_one(self, token: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:
        """One token of one text, as generation asks again and again: there is nothing to sort."""
        each = [self.down(self.mix(self.gate(token, e), self.up(token, e)), e) for e in chosen[0].tolist()]
        served = torch.cat(each)
        return shares.to(served.dtype) @ served


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


class Served(torch.autograd.Function):
    """Tokens [N, D] through their experts, weighed by shares [N, K] and added up: [N, D]. Biases may be None."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, shares: Tensor, gate: Tensor, up: Tensor, down: Tensor,
        gate_bias: Tensor | None, up_bias: Tensor | None, down_bias: Tensor | None, sorting: Sorting, mix: Mix,
    ) -> Tensor:  # fmt: skip
        ctx.given, dtype = tokens.dtype, matrix_dtype(tokens)
        x, weighs = tokens.to(dtype), _weighs(shares, sorting, dtype)
        gates, ups = (x.new_empty(len(sorting.order), gate.shape[1]) for _ in range(2))
        out = x.new_empty(len(sorting.order), x.shape[1])
        with torch.autocast(x.device.type, enabled=False):
            for e, here in sorting.groups():
                rows = x.index_select(0, sorting.source[here])
                _product(rows, gate[e], gate_bias, e, gates[here])
                _product(rows, up[e], up_bias, e, ups[here])
                _product(mix(gates[here], ups[here]), down[e], down_bias, e, out[here])
                out[here] *= weighs[here]
        ctx.save_for_backward(x, shares, gate, up, down, down_bias, gates, ups)
        ctx.sorting, ctx.mix = sorting, mix
        return _gathered(out, sorting, len(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, shares, gate, up, down, down_bias, gates, ups = ctx.saved_tensors
        sorting, dtype = ctx.sorting, x.dtype
        grad, weighs = grad.to(dtype), _weighs(shares, sorting, dtype)
        to_rows = x.new_empty(len(sorting.order), x.shape[1])
        to_weighs = torch.empty(len(sorting.order), dtype=torch.float32, device=x.device)
        wanted = ctx.needs_input_grad
        to_gate, to_up, to_down = (torch.empty_like(w) if on else None for w, on in zip((gate, up, down), wanted[2:5]))
        biases = [w.new_zeros(w.shape[:2]) if on else None for w, on in zip((gate, up, down), wanted[5:8], strict=True)]
        with torch.autocast(x.device.type, enabled=False):
            for e, here in sorting.groups():
                rows, slope = (t.index_select(0, sorting.source[here]) for t in (x, grad))
                inner = ctx.mix(gates[here], ups[here])
                to_inner = slope @ down[e].to(dtype)
                torch.sum(to_inner * inner, 1, dtype=torch.float32, out=to_weighs[here])
                if down_bias is not None:
                    to_weighs[here] += torch.mv(slope, down_bias[e].to(dtype))
                slope *= weighs[here]
                from_gate, from_up = ctx.mix.slopes(gates[here], ups[here], to_inner.mul_(weighs[here]))
                torch.mm(from_gate, gate[e].to(dtype), out=to_rows[here]).addmm_(from_up, up[e].to(dtype))
                for slopes, at, inputs in ((to_gate, from_gate, rows), (to_up, from_up, rows), (to_down, slope, inner)):
                    if slopes is not None:
                        _slope(at, inputs, slopes[e])
                for slopes, at in zip(biases, (from_gate, from_up, slope), strict=True):
                    if slopes is not None:
                        torch.sum(at, 0, dtype=slopes.dtype, out=slopes[e])
        for slopes in (to_gate, to_up, to_down):
            if slopes is not None and (idle := sorting.idle()):
                slopes[idle] = 0
        to_shares = to_weighs.index_select(0, sorting.place).view(shares.shape)
        to_tokens = _gathered(to_rows, sorting, len(x)).to(ctx.given)
        return to_tokens, to_shares, to_gate, to_up, to_down, *biases, None, None


def _weighs(shares: Tensor, sorting: Sorting, dtype: torch.dtype) -> Tensor:
    """Shares [N, K] in the order of experts, [N K, 1]."""
    return shares.flatten().index_select(0, sorting.order).to(dtype)[:, None]


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, expert: int, out: Tensor) -> None:
    """rows weight' + bias of the expert, into `out`."""
    torch.mm(rows, weight.to(rows.dtype).t(), out=out)
    if bias is not None:
        out += bias[expert]


def _slope(grad: Tensor, inputs: Tensor, out: Tensor) -> None:
    """The slope of a matrix whose product with `inputs` has the slope `grad`, into `out`."""
    if out.dtype == grad.dtype:
        torch.mm(grad.t(), inputs, out=out)
    else:
        out.copy_(grad.t() @ inputs)


def _gathered(rows: Tensor, sorting: Sorting, tokens: int) -> Tensor:
    """[N K, D] in the order of experts -> [N, D], what belongs to one token added up."""
    return rows.index_select(0, sorting.place).view(tokens, -1, rows.shape[1]).sum(1)
