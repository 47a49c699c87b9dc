"""Mixtures of experts against float64 written out token by token, and the balance loss against `transformers`'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modelworks.base.errors import UserError
from modelworks.nn.experts import Experts, Grouped, Router, Shares, imbalance, shares_of_all, shares_of_chosen
from modelworks.nn.layout import Layout

D, F, E, K = 12, 20, 5, 2


def make(shares: Shares = shares_of_chosen, bias: bool = False, dtype: torch.dtype = torch.float32) -> Experts:
    torch.manual_seed(0)
    part = Experts(
        Router(D, E, K, shares, bias), Grouped(E, D, F, bias), Grouped(E, D, F, bias), Grouped(E, F, D, bias),
        balance=0.5,
    )  # fmt: skip
    with torch.no_grad():
        for weight in part.parameters():
            weight.copy_(torch.randn_like(weight) * 0.4)
    return part.to(dtype)


def layout(x: Tensor, documents: Tensor | None = None) -> Layout:
    return Layout(torch.zeros(x.shape[:2], dtype=torch.long), documents=documents)


def by_hand(part: Experts, x: Tensor, renormalised: bool) -> Tensor:
    """One token and one expert at a time."""
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            here = x[row, t]
            scores = part.router.weight @ here + (0 if part.router.bias is None else part.router.bias)
            shares = scores.softmax(0)
            best = shares.argsort(descending=True)[:K]
            total = shares[best].sum() if renormalised else 1.0
            for e in best.tolist():
                step = lambda m, v, e=e: m.weight[e] @ v + (0 if m.bias is None else m.bias[e])  # noqa: E731
                out[row, t] = out[row, t] + shares[e] / total * step(
                    part.down, torch.nn.functional.silu(step(part.gate, here)) * step(part.up, here)
                )
    return out


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shares", [shares_of_all, shares_of_chosen])
def test_each_token_by_its_own_experts_forward_and_backward(shares: Shares, bias: bool) -> None:
    part = make(shares, bias, torch.float64)
    x = torch.randn(3, 7, D, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(3, 7, D, dtype=torch.float64)
    results = []
    for out in (part(x, layout(x)), by_hand(part, x, shares is shares_of_chosen)):
        found = torch.autograd.grad((out * slope).sum(), [x, *part.parameters()])
        results.append((out, *found))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)  # shares are float32


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_token_alone_is_served_as_among_others(bias: bool) -> None:
    part = make(bias=bias)
    x = torch.randn(1, 9, D)
    together = part(x, layout(x))
    for t in range(9):
        torch.testing.assert_close(part(x[:, t : t + 1], layout(x[:, :1])), together[:, t : t + 1])


def test_an_expert_that_nobody_was_sent_to_learns_nothing() -> None:
    part = make()
    x = torch.randn(1, 2, D)
    part(x, layout(x)).sum().backward()
    used = set(part.router(x[0])[2].flatten().tolist())
    for e in range(E):
        assert part.up.weight.grad[e].any() == part.down.weight.grad[e].any() == (e in used)


def test_frozen_experts_pass_slopes_on() -> None:
    part = make().requires_grad_(False)
    x = torch.randn(2, 3, D, requires_grad=True)
    part(x, layout(x)).sum().backward()
    assert x.grad is not None and x.grad.any() and part.up.weight.grad is None


def test_padding_is_served_by_nobody() -> None:
    part = make()
    x = torch.randn(2, 6, D)
    documents = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 2, 2, 0]])
    given = layout(x, documents)
    out = part(x, given)
    assert not out[documents == 0].any()
    real = x[documents != 0][None]
    alone = layout(real)
    assert torch.equal(out[documents != 0], part(real, alone)[0])
    assert torch.equal(given.balances[0], alone.balances[0])


@pytest.mark.parametrize("top", [1, 2, 3])
def test_imbalance_is_theirs(top: int) -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    scores = torch.randn(40, E, requires_grad=True)
    real = torch.arange(40).view(4, 10).remainder(10) < torch.tensor([[10], [4], [7], [1]])
    for kept, mask in ((torch.ones(40, dtype=torch.bool), None), (real.flatten(), real.long())):
        want = load_balancing_loss_func((scores,), E, top, mask)
        got = imbalance(scores[kept], shares_of_chosen(scores[kept], top)[1])
        torch.testing.assert_close(got, want)
        slopes = [torch.autograd.grad(loss, scores)[0] for loss in (got, want)]
        torch.testing.assert_close(*slopes)


def test_imbalance_of_an_even_router_is_the_number_of_choices() -> None:
    even = torch.eye(E).repeat(4, 1) * 1e-3
    assert imbalance(even, shares_of_all(even, 1)[1]).item() == pytest.approx(1.0, abs=1e-3)
    one_sided = torch.zeros(20, E)
    one_sided[:, 0] = 50.0
    assert imbalance(one_sided, shares_of_all(one_sided, 1)[1]).item() == pytest.approx(E)


def test_autocast_is_near_float32() -> None:
    part = make()
    x = torch.randn(2, 9, D)
    want = part(x, layout(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = part(x, layout(x))
    got.float().sum().backward()
    assert got.dtype == torch.bfloat16 and part.up.weight.grad.dtype == torch.float32
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.05)


def test_more_choices_than_experts_are_refused() -> None:
    with pytest.raises(UserError, match="6 of 5 experts"):
        Router(D, E, 6, shares_of_all)
