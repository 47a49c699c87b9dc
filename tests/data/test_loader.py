"""Packing and loading: every token accounted for, one order for all ranks and restarts, nothing empty to learn from."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base.errors import UserError
from modelworks.base.seeds import derive
from modelworks.data import order as ordering
from modelworks.data.loader import Documents, Examples, Loader
from modelworks.data.order import Order, shuffled
from modelworks.data.packing import IGNORED, pack
from modelworks.data.tokens import TokenData

EOS = 0
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def documents(lengths: list[int]) -> tuple[TokenData, list[list[int]]]:
    """Documents of distinct ids (so that every token can be told), each ending with eos."""
    ids = iter(range(1, 10**6))
    made = [[*(next(ids) for _ in range(n - 1)), EOS] for n in lengths]
    return TokenData.of(made), made


@given(lengths=st.lists(st.integers(1, 30), max_size=200), max_len=st.integers(30, 64))
def test_packing_holds_every_index_once_and_wastes_little(lengths: list[int], max_len: int) -> None:
    rows = pack(lengths, max_len)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in row) <= max_len for row in rows)
    assert rows == pack(lengths, max_len)
    # best-fit decreasing needs at most 11/9 of the least possible rows, and one (Johnson 1974)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // max_len) * (1 if not lengths else max_len / (max_len - 14)) + 2


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_packing_is_best_fit_decreasing(lengths: list[int]) -> None:
    """Against the plain quadratic algorithm."""
    room: list[int] = []
    for n in sorted(lengths, reverse=True):
        fitting = [i for i, r in enumerate(room) if r >= n]
        if fitting:
            best = min(fitting, key=lambda i: room[i])
            room[best] -= n
        else:
            room.append(12 - n)
    rows = pack(lengths, 12)
    assert sorted(12 - sum(lengths[i] for i in row) for row in rows) == sorted(room)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="does not fit"):
        pack([5, 11], 10)
    assert pack([], 10) == []


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, max_len=st.integers(2, 50), rows=st.integers(1, 4))
def test_every_token_of_every_document_is_a_label_once(lengths: list[int], max_len: int, rows: int) -> None:
    data, made = documents(lengths)
    loader = Loader(Documents(data, EOS, max_len), rows, max_len, seed=3)
    account = loader.account
    account.check()
    assert account.tokens == account.predicted == sum(lengths)
    assert account.positions == account.used + account.padded
    batches = list(loader.validation_batches())
    assert sum(batch.weight for batch in batches) == sum(lengths)
    labels: Counter[int] = Counter()
    follows = {a: b for d in made for a, b in pairwise(d)}
    begins = {d[0] for d in made}
    for batch in batches:
        tokens, targets, groups = (batch.inputs[n] for n in ("tokens", "labels", "documents"))
        assert tokens.shape == targets.shape == groups.shape and tokens.shape[1] == max_len
        labels.update(targets[targets != IGNORED].tolist())
        assert ((targets == IGNORED) == (groups == 0)).all()  # padding, and nothing else, is not learnt
        for row in range(len(tokens)):
            for t in range(max_len):
                token, target, group = int(tokens[row, t]), int(targets[row, t]), int(groups[row, t])
                if not group:
                    continue
                assert target in begins if token == EOS else target == follows[token]
                if t and int(groups[row, t - 1]) == group:  # inside a document the text goes on
                    assert int(targets[row, t - 1]) == token
    assert labels == Counter(i for d in made for i in d)


@settings(deadline=None, max_examples=40)
@given(
    examples=st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=30),
    max_len=st.integers(3, 40),
)
def test_masked_examples_and_their_account(examples: list[list[bool]], max_len: int) -> None:
    pairs = [(list(range(100 * n, 100 * n + len(mask))), [int(m) for m in mask]) for n, mask in enumerate(examples)]
    learnt = [i for ids, mask in pairs for i, m in list(zip(ids, mask))[1 : max_len + 1] if m]
    if not learnt:
        with pytest.raises(UserError, match="nothing to predict"):
            Loader(Examples(pairs, max_len), 2, max_len, seed=0)
        return
    loader = Loader(Examples(pairs, max_len), 2, max_len, seed=0)
    account = loader.account
    account.check()
    got = [i for b in loader.validation_batches() for i in b.inputs["labels"][b.inputs["labels"] != IGNORED].tolist()]
    assert sorted(got) == sorted(learnt) and account.predicted == len(learnt)
    assert account.tokens == sum(len(mask) for mask in examples)
    kept = [p for p in pairs if any(p[1][1 : max_len + 1])]
    assert account.truncated == sum(max(0, len(ids) - max_len - 1) for ids, _ in kept)
    assert account.dropped == sum(len(ids) for ids, _ in pairs) - sum(len(ids) for ids, _ in kept)


def take(loader: Loader, count: int) -> list[dict[str, torch.Tensor]]:
    return [batch.inputs for batch in islice(loader, count)]


def same(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(torch.equal(a[k], b[k]) for a, b in zip(left, right) for k in a)


@pytest.mark.parametrize("window", [7, 16384])
def test_ranks_read_one_order(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(ordering, "WINDOW", window)
    data, _ = documents([3, 17, 9, 30, 1, 2, 8, 8, 21, 40, 5, 6, 13] * 3)
    pieces = Documents(data, EOS, 16)
    alone = take(Loader(pieces, 8, 16, seed=5, rank=0, world=1), 12)
    for world in (2, 4):
        ranks = [take(Loader(pieces, 8 // world, 16, seed=5, rank=r, world=world), 12) for r in range(world)]
        joined = [{k: torch.cat([rank[s][k] for rank in ranks]) for k in alone[0]} for s in range(12)]
        assert same(joined, alone)


@pytest.mark.parametrize("window", [7, 16384])
def test_resumes_at_the_next_batch_from_anywhere(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(ordering, "WINDOW", window)
    data, _ = documents([3, 17, 9, 30, 1, 2, 8, 8, 21, 40, 5, 6, 13] * 2)
    pieces = Documents(data, EOS, 16)
    whole = take(Loader(pieces, 3, 16, seed=5), 40)  # several epochs
    for done in range(0, 30, 3):
        first = Loader(pieces, 3, 16, seed=5)
        take(first, done)
        again = Loader(pieces, 3, 16, seed=5)
        again.load_state_dict(first.state_dict())
        assert same(take(again, 10), whole[done : done + 10])
    assert not same(take(Loader(pieces, 3, 16, seed=6), 5), whole[:5])
    with pytest.raises(UserError, match="changed since"):
        Loader(pieces, 3, 16, seed=6).load_state_dict(Loader(pieces, 3, 16, seed=5).state_dict())


def test_an_epoch_holds_everything_once_and_the_next_is_shuffled_anew() -> None:
    data, made = documents([4, 7, 3, 9, 5, 5, 8, 2] * 4)
    loader = Loader(Documents(data, EOS, 16), 1, 16, seed=1)
    rows = loader.account.rows
    epochs = [[b["labels"] for b in take(loader, rows)] for _ in range(2)]
    for epoch in epochs:
        labels = torch.cat(epoch)
        assert Counter(labels[labels != IGNORED].tolist()) == Counter(i for d in made for i in d)
    assert not all(torch.equal(a, b) for a, b in zip(*epochs))
    state = loader.state_dict()
    list(loader.validation_batches())  # evaluating moves nothing
    assert loader.state_dict() == state and loader.stream.epoch == 2


def test_order_of_pairs() -> None:
    alone = [i for batch in islice(Order(7, 4, seed=2), 14) for i in batch]
    assert [sorted(alone[n : n + 7]) for n in range(0, 56, 7)] == [list(range(7))] * 8
    assert alone[:7] != alone[7:14]
    for world in (2, 4):
        ranks = [list(islice(Order(7, 4 // world, seed=2, rank=r, world=world), 14)) for r in range(world)]
        assert [i for step in zip(*ranks) for part in step for i in part] == alone
    order = Order(7, 4, seed=2)
    list(islice(order, 3))
    again = Order(7, 4, seed=2)
    again.load_state_dict(order.state_dict())
    assert [i for batch in islice(again, 11) for i in batch] == alone[12:]
    with pytest.raises(UserError):
        Order(0, 4, seed=2)
    with pytest.raises(UserError, match="changed"):
        Order(8, 4, seed=2).load_state_dict(order.state_dict())


def test_shuffled_is_splitmix_and_even() -> None:
    def mixed(i: int, seed: int) -> int:
        x = (i * 0x9E3779B97F4A7C15 + seed) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    seed = derive(1, "epoch", 0)
    assert shuffled(50, 1, "epoch", 0).tolist() == sorted(range(50), key=lambda i: mixed(i + 1, seed))
    assert shuffled(10, 1, "epoch", 0).tolist() == [1, 9, 8, 0, 5, 6, 2, 3, 7, 4]  # the order of data is for ever
    first = np.array([shuffled(5, seed)[0] for seed in range(2000)])
    assert np.bincount(first, minlength=5).min() > 320


def test_no_data_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to predict"):
        Loader(Documents(TokenData.of([]), EOS, 8), 1, 8, seed=0)
