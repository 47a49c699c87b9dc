"""Sampling against references written in NumPy float64, and against its own distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from modelworks.infer.sampling import Picker, Sampling, generators, penalise, pick


def reference(logits: np.ndarray, seen: np.ndarray, s: Sampling) -> np.ndarray:
    """The distribution that a request asks for, word by word in float64: the filters as their papers say."""
    z = logits.astype(np.float64)
    for word in np.flatnonzero(seen):
        z[word] = z[word] / s.repetition_penalty if z[word] > 0 else z[word] * s.repetition_penalty
    if s.temperature == 0:
        return np.eye(len(z))[z.argmax()]
    z = z / s.temperature
    order = np.argsort(-z, kind="stable")
    if s.top_k:
        order = order[: s.top_k]
    p = np.exp(z[order] - z[order].max())
    p /= p.sum()
    kept = int(np.searchsorted(np.cumsum(p), s.top_p, side="left")) + 1 if s.top_p < 1 else len(p)
    order, p = order[:kept], p[:kept]
    order, p = order[p >= s.min_p * p[0]], p[p >= s.min_p * p[0]]
    out = np.zeros(len(z))
    out[order] = p / p.sum()
    return out


def ours(logits: torch.Tensor, seen: torch.Tensor, s: list[Sampling]) -> torch.Tensor:
    picker = Picker(s)
    if picker.penalty is not None:
        logits = penalise(logits, seen, picker.penalty)
    p = picker.distribution(logits)
    return p / p.sum(-1, keepdim=True)


SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.6]),
    top_k=st.sampled_from([0, 1, 3, 10, 500]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(SETTINGS, min_size=1, max_size=5), st.integers(0, 2**31))
def test_filters_equal_the_float64_reference_whatever_stands_in_the_batch(many: list[Sampling], seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(len(many), 37)) * 3).astype(np.float32)
    seen = rng.random((len(many), 37)) < 0.2
    got = ours(torch.from_numpy(logits), torch.from_numpy(seen), many).numpy()
    for row, s in enumerate(many):
        np.testing.assert_allclose(got[row], reference(logits[row], seen[row], s), atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(SETTINGS, min_size=2, max_size=5), st.integers(0, 2**31))
def test_a_row_picks_the_same_alone_and_in_a_batch(many: list[Sampling], seed: int) -> None:
    rng = np.random.default_rng(seed)
    many = [many[0].model_copy(update={"temperature": 0.0}), Sampling(), *many[1:]]
    logits = torch.from_numpy(rng.normal(size=(len(many), 50)).astype(np.float32))
    seen = torch.from_numpy(rng.random((len(many), 50)) < 0.2)
    draws = rng.random(len(many)).tolist()
    together = pick(logits, many, draws, seen).tolist()
    alone = [int(pick(logits[i : i + 1], [many[i]], [draws[i]], seen[i : i + 1])) for i in range(len(many))]
    assert together == alone


@pytest.mark.parametrize("s", [Sampling(), Sampling(temperature=0.7, top_k=8), Sampling(top_p=0.8, min_p=0.02)])
def test_drawn_frequencies_follow_the_distribution(s: Sampling) -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(3)) * 2
    draws = generators([[1]], 0)[0]
    n = 20_000
    chosen = pick(logits.expand(n, -1), [s] * n, [draws.random() for _ in range(n)])
    want = reference(logits[0].numpy(), np.zeros(20, bool), s)
    got = np.bincount(chosen.numpy(), minlength=20) / n
    assert np.all(got[want == 0] == 0)
    assert np.abs(got - want).sum() < 0.04  # total variation of 20,000 draws


def test_the_highest_and_lowest_draw_stay_among_the_kept_words() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0, -torch.inf]])
    for draw in (0.0, 1 - 2**-53, 0.999999999999):
        assert int(pick(logits, [Sampling(top_k=2)], [draw])) in (1, 2)
        assert int(pick(logits, [Sampling()], [draw])) != 3
    assert int(pick(logits, [Sampling(top_p=0.0)], [0.9])) == 1


def test_greedy_takes_the_first_of_equals_also_beside_sampled_rows() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0]])
    greedy = Sampling(temperature=0)
    assert pick(logits, [greedy, Sampling(top_k=3)], [0.5, 0.99]).tolist()[0] == 1
    assert pick(logits, [greedy, greedy], [0, 0]).tolist() == [1, 1]


def test_copies_of_a_prompt_draw_different_numbers_and_company_changes_nothing() -> None:
    alone = [g.random() for g in generators([[1, 2]], 7)]
    crowd = [g.random() for g in generators([[5], [1, 2], [1, 2], [9, 9]], 7)]
    assert crowd[1] == alone[0]
    assert len(set(crowd)) == 4
    assert [g.random() for g in generators([[1, 2]], 8)] != alone


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 1.1}, {"top_k": -1}, {"max_new_tokens": 0},
     {"min_p": 2}, {"repetition_penalty": 0}, {"stop": [""]}, {"stop": ["x"] * 17}, {"seed": 2**64}, {"tempratur": 1}],
)  # fmt: skip
def test_values_out_of_range_are_refused(bad: dict) -> None:
    with pytest.raises(ValidationError):
        Sampling(**bad)


def test_a_single_stop_may_be_a_string() -> None:
    assert Sampling(stop="\n").stop == ["\n"]
