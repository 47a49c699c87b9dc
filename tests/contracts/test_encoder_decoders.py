"""What an encoder-decoder owes: a cache that changes nothing, padding and neighbours that leak nothing on either side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from .kinds import Case, build, cases, gap, inputs

CLOSE = 1e-5
WRITERS = [case for case in cases("encoder_decoder") if case.config.head == "language"]
READERS = [case for case in WRITERS if case.name != "whisper"]
"""Those that read text: Whisper's sound has neither padding nor neighbours."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=WRITERS, ids=str)
def any_case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=READERS, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def words(*shape: int) -> Tensor:
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(5))


def test_cached_is_uncached_step_by_step(any_case: Case) -> None:
    model, given = build(any_case), inputs(any_case)
    whole = model(**given).logits
    with torch.no_grad():
        memory, cache = model.encode(given["inputs"]), model.new_cache(3, 12)
        steps = [model(given["tokens"][:, :4], memory=memory, cache=cache).logits]
        steps += [model(given["tokens"][:, t : t + 1], memory=memory, cache=cache).logits for t in range(4, 8)]
        cache.rows(torch.tensor([2, 0]))
        memory = memory.rows(torch.tensor([2, 0]))  # two rows go on, in another order
        after = [model(given["tokens"][[2, 0], t : t + 1], memory=memory, cache=cache).logits for t in range(8, 11)]
    assert gap(torch.cat(steps, 1), whole[:, :8]) <= CLOSE
    assert gap(torch.cat(after, 1), whole[[2, 0], 8:]) <= CLOSE


def test_the_future_is_not_seen(any_case: Case) -> None:
    model, given = build(any_case), inputs(any_case)
    before = model(**given).logits
    given["tokens"] = torch.cat((given["tokens"][:, :6], (given["tokens"][:, 6:] + 1) % 97), 1)
    assert torch.equal(model(**given).logits[:, :6], before[:, :6])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaks_nothing(case: Case, side: str) -> None:
    model: Any = build(case)
    source, target = words(3, 9), words(3, 7)
    real = torch.arange(9) < torch.tensor([[9], [4], [6]])
    real_target = torch.arange(7) < torch.tensor([[3], [7], [5]])
    if side == "left":
        real, real_target = real.flip(1), real_target.flip(1)
    marks = {"input_documents": real.long(), "documents": real_target.long()}
    one = model(target, inputs=source, **marks).logits
    other = (torch.where(real, source, (source + 13) % 97), torch.where(real_target, target, (target + 5) % 97))
    two = model(other[1], inputs=other[0], **marks).logits
    assert torch.equal(one[real_target], two[real_target]) and torch.isfinite(one).all()
    for row in range(3):
        alone = model(target[row][real_target[row]][None], inputs=source[row][real[row]][None]).logits[0]
        assert gap(one[row][real_target[row]], alone) <= CLOSE


def test_packed_pairs_are_separate_pairs(case: Case) -> None:
    model = build(case)
    source, target = words(1, 12), words(1, 10)
    packed = model(
        target,
        inputs=source,
        input_documents=torch.tensor([[1] * 4 + [2] * 7 + [0]]),
        documents=torch.tensor([[1] * 6 + [2] * 3 + [0]]),
    ).logits
    assert gap(packed[:, :6], model(target[:, :6], inputs=source[:, :4]).logits) <= CLOSE
    assert gap(packed[:, 6:9], model(target[:, 6:9], inputs=source[:, 4:11]).logits) <= CLOSE


def test_losses_are_cross_entropy_of_the_logits(any_case: Case) -> None:
    model, given = build(any_case), inputs(any_case)
    for buffer in model.buffers():
        buffer.normal_()  # the vector that moves the logits counts too
    labels = given["tokens"].roll(-1, 1)
    labels[1, :4] = -100
    logits = model(**given).logits
    losses = model(**given, labels=labels).losses
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert gap(losses.flatten(), want) <= CLOSE
    losses.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
