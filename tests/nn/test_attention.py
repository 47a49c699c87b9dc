"""Attention by blocks, and on the other roads, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelworks.nn import blockwise
from modelworks.nn.blockwise import Blockwise
from modelworks.nn.layout import Layout
from modelworks.nn.masks import Bidirectional, Causal, Mask


def definition(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, scale: float) -> Tensor:
    group = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = queries @ keys.transpose(-1, -2) * scale
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ values


def seen(documents: Tensor, mask: Mask) -> Tensor:
    """Who sees whom, by the rule in words: [B, T] -> bool [B, 1, T, T]."""
    batch, seq = documents.shape
    out = torch.zeros(batch, 1, seq, seq, dtype=torch.bool)
    for b in range(batch):
        for q in range(seq):
            for k in range(q + 1 if mask.causal else seq):
                near = mask.window is None or abs(q - k) < mask.window + (not mask.causal)
                out[b, 0, q, k] = q == k or (near and documents[b, q] == documents[b, k] != 0)
    return out


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 1), (4, 4)]), st.integers(2, 40),
    st.booleans(), st.sampled_from([Causal(), Causal(3), Bidirectional(), Bidirectional(2)]),
    st.integers(1, 20), st.integers(1, 400), st.integers(0, 10**6),
)  # fmt: skip
def test_blocks_and_their_slopes(batch, heads, seq, with_documents, mask, queries_a_block, scores, seed) -> None:
    torch.manual_seed(seed)
    shape = lambda n: torch.randn(batch, seq, n, 8).transpose(1, 2).requires_grad_()  # noqa: E731
    parts = [shape(heads[0]), shape(heads[1]), shape(heads[1])]
    documents = torch.randint(0, 3, (batch, seq)).sort(1).values if with_documents else torch.ones(batch, seq)
    layout = Layout(torch.zeros(batch, seq), documents=documents.long() if with_documents else None)
    grad = torch.randn(parts[0].shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "QUERIES", queries_a_block)
        patch.setattr(blockwise, "SCORES", scores)
        out = Blockwise.apply(*parts, mask.square(layout, torch.float32), 0.3, mask.causal)
        got = torch.autograd.grad(out, parts, grad)
    exact = [part.detach().double().requires_grad_() for part in parts]
    want = definition(*exact, seen(documents, mask), 0.3)
    assert torch.allclose(out.double(), want, atol=1e-5)
    for left, right in zip(got, torch.autograd.grad(want, exact, grad.double()), strict=True):
        assert torch.allclose(left.double(), right, atol=1e-5)


def test_training_and_inference_take_different_roads_to_the_same_place() -> None:
    """With gradients by blocks, without them by torch's kernel, longer than `LONGEST` by torch's kernel."""
    from modelworks.models import qwen3

    torch.manual_seed(0)
    model = qwen3.build(qwen3.PRESETS["qwen3-nano"].model_copy(update={"n_layers": 2, "vocab_size": 50}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    tokens = torch.randint(50, (2, 300))
    documents = torch.where(torch.arange(300) < 170, 1, 2).expand(2, -1)
    for given_documents in (None, documents):
        by_blocks = model(tokens, documents=given_documents).hidden
        with torch.no_grad():
            by_kernel = model(tokens, documents=given_documents).hidden
        assert (by_blocks - by_kernel).abs().max() <= 2e-5


def test_plain_causality_needs_no_mask() -> None:
    assert Causal()(Layout(torch.zeros(2, 5)), torch.float32) == (None, True)


def test_the_mask_is_built_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    causal, layout = Causal(), Layout(torch.zeros(1, 4), documents=torch.tensor([[1, 1, 2, 0]]))
    first, _ = causal(layout, torch.float32)
    assert causal(layout, torch.float32)[0] is first
    assert torch.equal(first.isfinite()[0, 0], seen(torch.tensor([[1, 1, 2, 0]]), causal)[0, 0])
