"""What a decoder owes: a cache that changes nothing, padding and neighbours that leak nothing, no look ahead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from .kinds import Case, build, cases, gap, scramble

CLOSE = 1e-5
WRITERS = [case for case in cases("decoder") if getattr(case.config, "head", "language") == "language"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=WRITERS, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def model(case: Case) -> Any:
    return build(case)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(97, (3, 17), generator=torch.Generator().manual_seed(1))


def test_cached_is_uncached_step_by_step(model: Any, tokens: Tensor) -> None:
    whole = model(tokens).logits
    cache = model.new_cache(3, 20)
    steps = [model(tokens[:, :6], cache=cache).logits]  # a prompt, then a few at once, then one at a time
    steps.append(model(tokens[:, 6:9], cache=cache).logits)
    steps += [model(tokens[:, t : t + 1], cache=cache, last_only=True).logits for t in range(9, 17)]
    assert gap(torch.cat(steps, 1), whole) <= CLOSE
    assert cache.lengths.tolist() == [17, 17, 17]


def test_cached_rows_of_different_lengths(model: Any, tokens: Tensor) -> None:
    lengths = torch.tensor([9, 2, 5])
    whole = model(tokens).logits
    cache = model.new_cache(3, 20)
    prompt = torch.where(torch.arange(9) < lengths[:, None], tokens[:, :9], 0)
    real = (torch.arange(9) < lengths[:, None]).long()
    first = model(prompt, cache=cache, documents=real, last_only=True).logits[:, 0]
    assert gap(first, whole[torch.arange(3), lengths - 1]) <= CLOSE
    cache.truncate(lengths)
    for step in range(4):
        at = lengths + step
        got = model(tokens[torch.arange(3), at][:, None], cache=cache).logits[:, 0]
        assert gap(got, whole[torch.arange(3), at]) <= CLOSE
    cache.rows(torch.tensor([2, 0]))
    at = (lengths + 4)[[2, 0]]
    next_two = torch.stack([tokens[[2, 0], at], tokens[[2, 0], at + 1]], 1)
    got = model(next_two, cache=cache).logits
    assert gap(got, torch.stack([whole[[2, 0], at], whole[[2, 0], at + 1]], 1)) <= CLOSE
    assert cache.lengths.tolist() == [11, 15]


def test_packed_documents_are_separate_documents(model: Any, tokens: Tensor) -> None:
    documents = torch.tensor([[1] * 4 + [2] * 8 + [3] * 5, [1] * 17, [5] * 1 + [2] * 9 + [0] * 7])
    packed = model(tokens, documents=documents).logits
    for row, start, end in [(0, 0, 4), (0, 4, 12), (0, 12, 17), (1, 0, 17), (2, 0, 1), (2, 1, 10)]:
        alone = model(tokens[row : row + 1, start:end]).logits[0]
        assert gap(packed[row, start:end], alone) <= CLOSE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaks_nothing(model: Any, tokens: Tensor, side: str) -> None:
    real = torch.ones(3, 17, dtype=torch.long)
    for row, length in enumerate((17, 4, 9)):
        real[row, length:] = 0
    if side == "left":
        real = real.flip(1)
    other = torch.where(real == 1, tokens, (tokens + 13) % 97)
    one, two = model(tokens, documents=real), model(other, documents=real)
    assert torch.equal(one.logits[real == 1], two.logits[real == 1])
    assert torch.isfinite(one.logits).all()
    for row in range(3):
        alone = model(tokens[row][real[row] == 1][None]).logits[0]
        assert gap(one.logits[row][real[row] == 1], alone) <= CLOSE


def test_the_future_is_not_seen(case: Case, model: Any, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 97
    # An expert's product rounds a row by how many others it has; what leaks is far larger than the last bits.
    rounding = 2e-6 if hasattr(case.config, "n_experts") else 0.0
    assert gap(model(tokens).logits[:, :10], model(changed).logits[:, :10]) <= rounding


def test_losses_are_cross_entropy_of_the_logits(model: Any, tokens: Tensor) -> None:
    labels = tokens.roll(-1, 1)
    labels[1, :9] = -100
    out = model(tokens, labels=labels)
    want = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert out.logits is None and out.losses.dtype == torch.float32
    assert gap(out.losses.flatten(), want) <= CLOSE


def test_perturb_is_added_to_the_embeddings(model: Any, tokens: Tensor) -> None:
    perturb = torch.zeros(3, 17, model(tokens).hidden.shape[-1], requires_grad=True)
    out = model(tokens, perturb=perturb, labels=tokens)
    assert torch.equal(out.hidden, model(tokens).hidden)
    out.losses.sum().backward()
    assert perturb.grad.abs().sum(-1).gt(0).all()


def test_autocast_stays_near_float32(model: Any, tokens: Tensor) -> None:
    with torch.no_grad():
        exact = model(tokens, labels=tokens).losses
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(tokens, labels=tokens).losses
    assert rounded.dtype == torch.float32
    assert gap(rounded, exact) <= 0.05 * exact.abs().max().item()


def test_dropout_only_while_training(case: Case, tokens: Tensor) -> None:
    model = case.family.build(case.config.model_copy(update={"dropout": 0.3}))
    scramble(model)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)
