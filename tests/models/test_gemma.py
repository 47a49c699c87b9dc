"""Gemma's own parts against their formulas, and the sizes of the presets against the technical reports."""

from __future__ import annotations

import pytest
import torch

from modelworks.models import gemma2, gemma3
from modelworks.models._gemma_shaped import Capped, CappedCrossEntropy
from modelworks.nn.arithmetic import parameters
from modelworks.nn.layout import Layout
from modelworks.nn.masks import Causal


@pytest.mark.parametrize("chunk", [1 << 20, 100])
def test_capped_losses_and_slopes_are_those_of_the_full_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CappedCrossEntropy, "CHUNK", chunk)
    torch.manual_seed(0)
    rows, table = torch.randn(23, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    labels, weights = torch.randint(31, (23,)), torch.randn(23)
    got = CappedCrossEntropy.apply(rows, table, labels, 1.5)
    logits = 1.5 * torch.tanh(rows.double() @ table.double().t() / 1.5)
    want = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad((loss * weights).sum(), (rows, table)) for loss in (got, want)]
    for mine, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_long_text_in_blocks_of_queries_is_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(2, 4, 19, 8), torch.randn(2, 2, 19, 8), torch.randn(2, 2, 19, 8)
    documents = torch.tensor([[1] * 9 + [2] * 10, [1] * 15 + [0] * 4])
    for given in (None, documents):
        layout = Layout(torch.zeros(2, 19, dtype=torch.long), documents=given)
        part = Capped(2.0, 0.7)
        whole = part(queries, keys, values, Causal(6), layout)
        monkeypatch.setattr(Capped, "SCORES", 2 * 4 * 19 * 5)
        torch.testing.assert_close(part(queries, keys, values, Causal(6), layout), whole)
        monkeypatch.undo()


EXACT = {"gemma2-2b": 2_024_517_888, "gemma2-9b": 8_324_201_984, "gemma2-27b": 26_047_480_320}
"""Parameters outside the embedding: Gemma 2 technical report (arXiv 2408.00118), table 2."""
MILLIONS = {"gemma3-1b": (302, 698), "gemma3-4b": (675, 3209), "gemma3-12b": (1012, 10759), "gemma3-27b": (1416, 25600)}
"""Millions in the embedding and outside of it: Gemma 3 technical report (arXiv 2503.19786), table 1."""


@pytest.mark.parametrize("name", EXACT)
def test_gemma2_has_the_published_size(name: str) -> None:
    config = gemma2.PRESETS[name]
    assert parameters(gemma2.shape(config)) - config.vocab_size * config.d_model == EXACT[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_gemma3_has_the_published_size(name: str) -> None:
    config = gemma3.PRESETS[name]
    table = config.vocab_size * config.d_model
    published = MILLIONS[name]
    assert table / 1e6 == pytest.approx(published[0], rel=6e-3)  # checkpoints have 0.5 % fewer rows than the report
    assert (parameters(gemma3.shape(config)) - table) / 1e6 == pytest.approx(published[1], abs=1)


def test_the_smallest_gemma3_has_the_published_size() -> None:
    """'170 million embedding parameters, 100 million for our transformer blocks' (Google, 14 August 2025)."""
    config = gemma3.PRESETS["gemma3-270m"]
    table = config.vocab_size * config.d_model
    assert round(table / 1e7) == 17 and round((parameters(gemma3.shape(config)) - table) / 1e7) == 10
