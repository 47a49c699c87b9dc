"""The chunked cross-entropy against torch's own in float64, under any weights on the losses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from modelworks.nn.heads import CrossEntropy, LanguageHead


def oracle(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor):
    """Losses, and the slopes of sum(scale * losses), in float64."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logits = hidden.flatten(0, 1) @ weight.t()
    losses = F.cross_entropy(logits, labels.flatten(), reduction="none").view(labels.shape)
    return losses.detach(), *torch.autograd.grad((losses * scale).sum(), (hidden, weight))


@pytest.mark.parametrize("keep", [True, False])
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(2, 30), st.integers(1, 200), st.integers(0, 10**6))
def test_losses_and_slopes(keep: bool, batch: int, seq: int, words: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    head = LanguageHead(nn.Linear(6, words, bias=False))
    hidden = torch.randn(batch, seq, 6, requires_grad=True)
    labels = torch.randint(words, (batch, seq)).masked_fill(torch.rand(batch, seq) < 0.3, -100)
    scale = torch.randn(batch, seq)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrossEntropy, "at_once", lambda words: max(1, rows // words))
        if not keep:
            patch.setattr(CrossEntropy, "KEEP", -1)
        losses = head.losses(hidden, labels)
        (losses * scale).sum().backward()
    want, to_hidden, to_weight = oracle(hidden, head.projection.weight, labels, scale)
    assert torch.allclose(losses.double(), want, atol=1e-5)
    assert torch.allclose(hidden.grad.double(), to_hidden, atol=1e-5)
    assert torch.allclose(head.projection.weight.grad.double(), to_weight, atol=1e-5)


def test_nothing_to_predict_is_zero_not_nan() -> None:
    head, hidden = LanguageHead(nn.Linear(4, 9, bias=False)), torch.randn(2, 3, 4, requires_grad=True)
    losses = head.losses(hidden, torch.full((2, 3), -100))
    assert losses.tolist() == [[0.0] * 3] * 2
    losses.sum().backward()
    assert not hidden.grad.any() and not head.projection.weight.grad.any()


def test_bfloat16_statistics_are_float32() -> None:
    torch.manual_seed(0)
    head, hidden = LanguageHead(nn.Linear(64, 500, bias=False)), torch.randn(1, 40, 64, requires_grad=True)
    labels = torch.randint(500, (1, 40))
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.losses(hidden, labels)
    losses.sum().backward()
    want, to_hidden, to_weight = oracle(hidden, head.projection.weight, labels, torch.ones(1, 40))
    assert losses.dtype == torch.float32 and (losses - want).abs().max() < 0.02
    for got, exact in ((hidden.grad, to_hidden), (head.projection.weight.grad, to_weight)):
        assert got.dtype == torch.float32
        assert (got - exact).norm() / exact.norm() < 0.01


def test_the_full_logits_never_exist() -> None:
    """With nothing kept, the largest tensor of forward and backward is a chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    hidden, weight = torch.randn(256, 8, requires_grad=True), torch.randn(512, 8, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch, Largest() as largest:
        patch.setattr(CrossEntropy, "at_once", lambda words: 4096 // words)
        patch.setattr(CrossEntropy, "KEEP", 0)
        CrossEntropy.apply(hidden, weight, torch.randint(512, (256,))).sum().backward()
    assert largest.size <= 4096
