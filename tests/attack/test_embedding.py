"""Embedding noise against closed forms: the best linear attack, projection, and rows that do not matter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelworks.attack import embedding
from modelworks.base.errors import UserError


def test_fgm_on_a_linear_loss_is_the_closed_form():
    weights = torch.randn(3, 5, 7)
    delta = embedding.perturb(lambda d: (d * weights).sum(), (3, 5, 7), 0.8)
    expected = 0.8 * weights / weights.norm(dim=-1, keepdim=True)
    assert torch.allclose(delta, expected, atol=1e-6)


def test_pgd_reaches_the_maximum_of_a_quadratic():
    """max of |x + d|^2 over |d| <= r is (|x| + r)^2, reached along x."""
    points = torch.randn(4, 6)
    delta = embedding.perturb(lambda d: ((points + d) ** 2).sum(), (4, 6), 0.5, steps=40, seed=3)
    assert torch.allclose((points + delta).norm(dim=-1), points.norm(dim=-1) + 0.5, atol=0.01)


def test_pgd_beats_or_equals_fgm_on_a_curved_loss():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
    points = torch.randn(50, 6)

    def loss(delta):
        return net(points + delta).sum()

    fgm = embedding.perturb(loss, (50, 6), 2.0)
    pgd = embedding.perturb(loss, (50, 6), 2.0, steps=20)
    assert loss(pgd) > loss(fgm) > loss(torch.zeros(50, 6))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_token_without_influence_gets_no_noise_and_tiny_gradients_still_count():
    weights = torch.tensor([[0.0, 0.0], [3e-30, 4e-30], [float("nan"), 1.0]])
    step = embedding.ascent(weights, 2.0)
    assert torch.equal(step[0], torch.zeros(2))
    assert torch.allclose(step[1], torch.tensor([1.2, 1.6]))
    assert torch.isfinite(step).all()


def test_projection_keeps_what_is_inside():
    delta = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0]])
    assert torch.allclose(embedding.project(delta, 1.0), torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0]]))


def test_works_where_gradients_are_off():
    with torch.no_grad():
        delta = embedding.perturb(lambda d: d.sum(), (2, 3), 1.0)
    assert torch.allclose(delta.norm(dim=-1), torch.ones(2)) and not delta.requires_grad


def test_the_unit_is_the_mean_norm_of_the_token_table():
    model = nn.ModuleDict({"positions": nn.Embedding(4, 2), "tokens": nn.Embedding(9, 2)})
    with torch.no_grad():
        model["tokens"].weight.copy_(torch.tensor([[3.0, 4.0]]).repeat(9, 1))
    assert embedding.norm(model) == pytest.approx(5.0)
    with pytest.raises(UserError, match="no token embeddings"):
        embedding.norm(nn.Linear(2, 2))


def test_bad_budgets_are_refused():
    for radius, steps in [(-1.0, 1), (float("inf"), 1), (1.0, 0)]:
        with pytest.raises(UserError, match="radius"):
            embedding.perturb(lambda d: d.sum(), (2, 3), radius, steps=steps)
