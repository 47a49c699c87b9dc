"""Rotary tables against float64, and positions that restart with documents."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from modelworks.nn.layout import Layout, document_positions
from modelworks.nn.position import Rotary, frequencies


def turned_in_float64(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """The definition: pair (i, i + D/2) as a complex number times e^(i * position * theta^(-2i/D))."""
    half = x.shape[-1] // 2
    angle = positions.double()[..., None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    z = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), -1)


def test_exact_at_128k_positions() -> None:
    torch.manual_seed(0)
    rotary, positions = Rotary(frequencies(64, 10_000.0)), torch.tensor([[0, 1, 4095, 65_536, 131_000, 131_071]])
    x = torch.randn(1, 6, 3, 64)
    got = rotary(x, Layout(torch.zeros(1, 6, dtype=torch.long), positions=positions))
    want = turned_in_float64(x.transpose(1, 2), positions[:, None], 10_000.0).transpose(1, 2)
    assert (got.double() - want).abs().max() <= 1e-6


def test_scores_depend_on_distance_only() -> None:
    rotary, x = Rotary(frequencies(32, 10_000.0)), torch.randn(1, 2, 1, 32)

    def score(start: int) -> float:
        at = torch.tensor([[start, start + 5]])
        turned = rotary(x, Layout(torch.zeros(1, 2, dtype=torch.long), positions=at))
        return (turned[0, 0] * turned[0, 1]).sum().item()

    assert abs(score(0) - score(131_000)) <= 1e-4


def test_the_table_stays_float32_in_a_bfloat16_model() -> None:
    rotary = Rotary(frequencies(8, 10_000.0))
    rotary.table(4, torch.device("cpu"))
    assert rotary.to(torch.bfloat16).table(4, torch.device("cpu")).dtype == torch.float32
    assert not rotary.state_dict()


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=1, max_size=3))
def test_positions_restart(rows: list[list[int]]) -> None:
    seq = max(sum(row) for row in rows)
    documents, want = torch.zeros(len(rows), seq, dtype=torch.long), []
    for number, row in enumerate(rows):
        at, places = 0, []
        for label, length in enumerate(row, 1):
            documents[number, at : at + length] = label
            places += range(length)
            at += length
        want.append(places + list(range(seq - at)))
    assert document_positions(documents).tolist() == want
