"""One order of data for every combination of workers and ranks and every place to resume, against a plain oracle."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base.errors import UserError
from modelworks.base.protocols import Batch
from modelworks.data.ahead import Ahead
from modelworks.data.buckets import Buckets, alike, padded
from modelworks.data.loader import Documents, Examples, Loader
from modelworks.data.order import Order, Stream, shuffled
from modelworks.data.packing import IGNORED, pack
from modelworks.data.tokens import TokenData

LENGTHS = [3, 17, 9, 30, 1, 2, 8, 8, 21, 40, 5, 6, 13, 4, 4, 19, 7, 11, 2, 26]
SEED, MAX_LEN, POSITIONS = 5, 16, 48


def pieces() -> Any:
    ids = iter(range(1, 10**6))
    return Documents(TokenData.of([[*(next(ids) for _ in range(n - 1)), 0] for n in LENGTHS]), 0, MAX_LEN)


def examples() -> Any:
    make = random.Random(1)
    return Examples([([make.randrange(99) for _ in range(n)], None) for n in LENGTHS if n > 1], MAX_LEN)


def open_(kind: str, rows: int, rank: int, world: int, workers: int) -> Any:
    """One rank's batches. Laying takes a random time, so that workers overtake each other."""
    if kind == "buckets":
        data = examples()
        loader: Any = Buckets(data.lengths, padded(data, 0), POSITIONS, SEED, rank=rank, world=world, workers=workers)
    else:
        data = {"documents": pieces, "examples": examples}[kind]()
        loader = Loader(data, rows, MAX_LEN, SEED, rank=rank, world=world, workers=workers)
    make = loader._ahead.make

    def slow(groups: Any) -> Batch:
        if workers:
            time.sleep(int(groups[0][0]) % 4 * 3e-4)
        return make(groups)

    loader._ahead.make = slow
    return loader


def expected(kind: str, count: int) -> list[list[int]]:
    """The first `count` groups of the endless order, put together plainly: an epoch is one window here."""
    data = pieces() if kind == "documents" else examples()
    out: list[list[int]] = []
    epoch = 0
    while len(out) < count:
        order = shuffled(len(data.lengths), SEED, "epoch", epoch)
        sizes = data.lengths[order]
        groups = alike(sizes, POSITIONS) if kind == "buckets" else pack(sizes, MAX_LEN)
        out += [[int(order[i]) for i in groups[n]] for n in shuffled(len(groups), SEED, "rows", epoch, 0)]
        epoch += 1
    return out[:count]


def groups_of(batch: Batch, kind: str) -> list[list[int]]:
    rows = [list(row) for row in batch.source]
    return [[i for row in rows for i in row]] if kind == "buckets" else rows


segments = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(0, 4), st.integers(0, 6), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(["documents", "examples", "buckets"]), parts=segments, rows=st.integers(1, 3))
def test_one_order_for_all_workers_ranks_and_resume_points(kind: str, parts: list[Any], rows: int) -> None:
    """A run in several parts, each with its own ranks and workers, begun from the state of any rank before it."""
    state: dict[str, Any] | None = None
    got: list[list[int]] = []
    rows = 1 if kind == "buckets" else rows
    for world, workers, steps, keeper in parts:
        ranks = [open_(kind, rows, rank, world, workers) for rank in range(world)]
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(state)
        for _ in range(steps):
            got += [group for loader in ranks for group in groups_of(next(loader), kind)]
        states = [json.loads(json.dumps(loader.state_dict())) for loader in ranks]
        assert all(other == states[0] for other in states)
        state = states[keeper % world]
    assert got == expected(kind, len(got))


@pytest.mark.parametrize("kind", ["documents", "examples", "buckets"])
@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_same_tensors_for_every_count_of_workers_and_ranks(kind: str, workers: int, world: int) -> None:
    """What is laid, not only its order; and looking at a state, or going back to it, moves nothing."""
    rows = 1 if kind == "buckets" else 4 // world
    plain = open_(kind, 1, 0, 1, 0)
    ranks = [open_(kind, rows, rank, world, workers) for rank in range(world)]
    for _ in range(5):
        before = ranks[0].state_dict()
        batches = [next(loader) for loader in ranks]
        ranks[0].load_state_dict(before)
        assert all(torch.equal(a, b) for a, b in zip(next(ranks[0]).inputs.values(), batches[0].inputs.values()))
        for batch in batches:
            alone = [next(plain) for _ in range(rows)]
            assert batch.weight == sum(one.weight for one in alone)
            for name, tensor in batch.inputs.items():
                assert torch.equal(tensor, torch.cat([one.inputs[name] for one in alone]))


@given(count=st.integers(1, 9), parts=segments, rows=st.integers(1, 3))
def test_the_order_of_pairs_is_one_too(count: int, parts: list[Any], rows: int) -> None:
    state, got = Order(count, rows, SEED).state_dict(), []
    for world, _, steps, keeper in parts:
        ranks = [Order(count, rows, SEED, rank, world) for rank in range(world)]
        for order in ranks:
            order.load_state_dict(state)
        for _ in range(steps):
            got += [i for order in ranks for i in next(order)]
        state = ranks[keeper % world].state_dict()
    whole = [int(i) for epoch in range(len(got) // count + 1) for i in shuffled(count, SEED, "epoch", epoch)]
    assert got == whole[: len(got)]


def test_what_fails_while_made_ahead_fails_at_its_turn() -> None:
    def make(groups: list[list[int]]) -> Batch:
        if 7 in groups[0]:
            raise UserError("piece 7 is damaged")
        return Batch({}, 1, groups)

    stream = Stream(np.ones(20, np.int64), lambda sizes: [[i] for i in range(len(sizes))], SEED, 1, 0, 1)
    turn = [group[0] for group in stream.groups(0, 0)].index(7)
    ahead = Ahead(stream, make, 3)
    for _ in range(turn):
        ahead.next()
    for _ in range(2):  # and asking again does not step over it
        with pytest.raises(UserError, match="piece 7"):
            ahead.next()
    assert ahead.place()["row"] == turn


def test_workers_work_at_the_same_time_and_only_so_far_ahead() -> None:
    meeting, begun = threading.Barrier(3, timeout=20), []

    def make(groups: list[list[int]]) -> Batch:
        begun.append(groups)
        meeting.wait()  # passes only when three are at work at once
        return Batch({}, 1, groups)

    ahead = Ahead(Stream(np.ones(90, np.int64), lambda s: [[i] for i in range(len(s))], SEED, 1, 0, 1), make, 3)
    for _ in range(6):
        ahead.next()
    assert 6 <= len(begun) <= 12


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=150),
    positions=st.integers(20, 200),
    most=st.sampled_from([0, 1, 4, 16]),
)
def test_buckets_hold_every_example_once_within_their_limits(lengths: list[int], positions: int, most: int) -> None:
    sizes = np.array(lengths)
    groups = alike(sizes, positions, most)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert group and (len(group) * int(sizes[group].max()) <= positions or len(group) == 1)
        assert not most or len(group) <= most
    joined = [lengths[i] for group in groups for i in group]
    assert joined == sorted(lengths, reverse=True)
    if len(groups) > 1:
        assert 2 * len(groups[-1]) + 1 >= len(groups[-2])


def test_an_epoch_of_buckets_is_complete_wastes_little_and_the_next_is_another() -> None:
    make = np.random.default_rng(0)
    data = Examples([(make.integers(1, 99, n).tolist(), None) for n in make.integers(9, 42, 3000)], 64)
    buckets = Buckets(data.lengths, padded(data, 0), 1024, SEED, rank=0, world=1)
    assert buckets.stream.windows == 2 and buckets.padding < 0.02
    counts = [sum(len(buckets.stream.groups(epoch, window)) for window in range(2)) for epoch in range(2)]
    epochs = [list(islice(buckets, count)) for count in counts]
    assert buckets.stream.epoch == 2
    sources = [[tuple(i for row in batch.source for i in row) for batch in epoch] for epoch in epochs]
    for epoch in sources:
        assert Counter(i for group in epoch for i in group) == Counter(range(3000))
    assert not set(map(frozenset, sources[0])) & set(map(frozenset, sources[1]))  # other neighbours
    lengths = [max(data.lengths[i] for i in group) for group in sources[0]]
    assert np.corrcoef(lengths[:-1], lengths[1:])[0, 1] < 0.5  # the short ones do not come in a row
    for batch in epochs[0]:
        tokens, labels, documents = (batch.inputs[name] for name in ("tokens", "labels", "documents"))
        assert tokens.numel() <= 1024 and batch.weight == int((labels != IGNORED).sum())
        for row, (i,) in enumerate(batch.source):
            ids, targets = data.piece(i)
            assert torch.equal(tokens[row, : len(ids)], torch.from_numpy(ids))
            assert torch.equal(labels[row, : len(ids)], torch.from_numpy(targets))
            assert documents[row].tolist() == [1] * len(ids) + [0] * (tokens.shape[1] - len(ids))
    once = Counter(row[0] for batch in buckets.validation_batches() for row in batch.source)
    assert once == Counter(range(3000))


def test_buckets_refuse_other_data() -> None:
    data = examples()
    state = Buckets(data.lengths, padded(data, 0), POSITIONS, SEED).state_dict()
    for positions, seed in ((POSITIONS + 1, SEED), (POSITIONS, SEED + 1)):
        with pytest.raises(UserError, match="changed since"):
            Buckets(data.lengths, padded(data, 0), positions, seed).load_state_dict(state)
    with pytest.raises(UserError, match="no example"):
        Buckets(np.zeros(0, np.int64), padded(data, 0), POSITIONS, SEED)


def test_a_piece_reads_its_own_ids_only() -> None:
    """Documents over shards: any part of any of them, whatever shard it is in."""
    shards = [np.arange(10, dtype=np.uint16), np.arange(10, 25, dtype=np.uint16)]
    data = TokenData(shards, np.array([[4, 0], [10, 0], [11, 0], [25, 0]]))
    for i, (first, last) in enumerate([(0, 4), (4, 10), (10, 11), (11, 25)]):
        whole = list(range(first, last))
        assert data.document(i).tolist() == whole
        for start in range(len(whole)):
            for end in range(start, len(whole) + 3):
                assert data.document(i, start, end).tolist() == whole[start:end]
