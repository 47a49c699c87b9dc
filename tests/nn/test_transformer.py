"""The call itself: what comes out, and what is refused."""

from __future__ import annotations

import pytest
import torch

from modelworks.models import qwen3


@pytest.fixture
def model():
    config = qwen3.PRESETS["qwen3-nano"].model_copy(update={"vocab_size": 50, "n_layers": 2})
    return qwen3.build(config).eval()


def test_last_only_is_the_last_that_is_no_padding(model) -> None:
    tokens = torch.randint(50, (2, 6))
    documents = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
    whole = model(tokens, documents=documents).logits
    last = model(tokens, documents=documents, last_only=True).logits
    assert last.shape == (2, 1, 50)
    assert torch.allclose(last[:, 0], torch.stack([whole[0, 2], whole[1, 5]]), atol=1e-6)


def test_a_fresh_model_predicts_almost_evenly(model) -> None:
    """It leans a little to the token at hand, which the head reads with its own embedding: 0.2 at this width."""
    losses = model(torch.randint(50, (40, 16)), labels=torch.randint(50, (40, 16))).losses
    assert losses.mean().item() == pytest.approx(torch.tensor(50.0).log().item() + 0.2, abs=0.1)


def test_documents_need_an_empty_cache(model) -> None:
    tokens, cache = torch.zeros(1, 2, dtype=torch.long), model.new_cache(1, 8)
    model(tokens, cache=cache)
    with pytest.raises(ValueError, match="documents can only be given while the cache is empty"):
        model(tokens, cache=cache, documents=torch.ones(1, 2, dtype=torch.long))


def test_it_learns_a_sentence_by_heart() -> None:
    torch.manual_seed(0)
    model = qwen3.build(qwen3.PRESETS["qwen3-nano"].model_copy(update={"vocab_size": 50, "n_layers": 2}))
    text = torch.randint(50, (1, 24))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = model(text[:, :-1], labels=text[:, 1:]).losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
