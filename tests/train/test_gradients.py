"""How a batch is cut, packed or padded never changes the gradient: accumulated = whole, packed = padded = alone.

The oracle is every example by itself: one row, nothing packed, nothing padded. Differences are of whole gradients,
relative to their norm. (Ranks: `test_parallel.py`; data order: `tests/data/test_order.py`.)
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelworks.base.protocols import Batch
from modelworks.data.buckets import Buckets, padded
from modelworks.data.loader import Documents, Examples, Loader
from modelworks.data.pairs import Pair, Pairs
from modelworks.data.tokens import TokenData
from modelworks.objectives.causal_lm import CausalLM
from modelworks.objectives.chat import Chat
from modelworks.objectives.dpo import DPO, Config
from modelworks.train.loop import backward

from ..contracts.kinds import Case, build, cases

LIMIT = 1e-6
NARROW = {"gemma2", "gemma3", "gpt_oss"}  # some of their parts are float32 in any format; the others are exact to 1e-12
WORDS, MAX_LEN = 97, 32
LENGTHS = [3, 31, 9, 5, 14, 2, 8, 22, 12, 6, 27, 4, 17, 10]
DTYPES = [torch.float64, torch.float32]

# a mixture's balance loss looks at a batch as a whole, so it is no sum of parts
DECODERS = [
    case
    for case in cases("decoder")
    if case.variant not in ("headless", "classes") and "moe" not in case.name and case.name not in ("mixtral",)
]
FIRST = list({case.name: case for case in reversed(DECODERS)}.values())
ENCODERS = [case for case in cases("encoder") if case.variant in ("masked_lm", "untied")]
CLASSES = [
    case for case in cases("decoder", "encoder") if case.variant in ("classes", "mean") and "gpt_oss" not in case.name
]


class Filling:
    """Masked words: some labels, each at its own place (the shape of BERT's objective)."""

    splittable = True

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        inputs = batch.inputs
        return {"loss": model(inputs["tokens"], documents=inputs["documents"], labels=inputs["labels"]).losses.sum()}


def gradient(model: nn.Module, objective: Any, batches: Sequence[Batch]) -> Tensor:
    """What the loop would give the optimiser for these micro-batches, as one vector."""
    model.zero_grad()
    run = SimpleNamespace(model=model, objective=objective, step=0)
    total = sum(batch.weight for batch in batches)
    for batch in batches:
        backward(run, batch, total)  # type: ignore[arg-type]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([g.detach().flatten() for g in gradients])


def check(one: Tensor, other: Tensor, name: str) -> None:
    difference, size = (one.double() - other.double()).norm(), other.double().norm()
    assert size > 1e-3  # not the equality of nothing with nothing
    assert float(difference / size) <= (1e-12 if other.dtype == torch.float64 and name not in NARROW else LIMIT)


def examples(masked: bool) -> Examples:
    """Uneven lengths, and uneven shares of them to learn."""
    make = random.Random(3)
    out = []
    for n in LENGTHS:
        mask = [int(make.random() < make.choice([0.2, 0.9])) for _ in range(n - 1)] + [1]
        out.append(([make.randrange(3, WORDS) for _ in range(n)], mask if masked else None))
    return Examples(out, MAX_LEN)


def alone(pieces: Any) -> list[Batch]:
    """Every piece as a batch of its own without padding."""
    return [padded(pieces, 0)([i]) for i in range(len(pieces.lengths))]


def packed(pieces: Any, rows: int) -> list[Batch]:
    return list(Loader(pieces, rows, MAX_LEN, 0, rank=0, world=1).validation_batches())


def parts(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """The rows of a batch in micro-batches of these sizes."""
    out, at = [], 0
    for size in sizes:
        inputs = {name: tensor[at : at + size] for name, tensor in batch.inputs.items()}
        out.append(Batch(inputs, int((inputs["labels"] != -100).sum())))
        at += size
    return [part for part in out if part.weight]


def model_of(case: Case, dtype: torch.dtype) -> nn.Module:
    return build(case).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*FIRST, *ENCODERS], ids=str)
def test_packed_padded_bucketed_and_accumulated_are_alone(case: Case, dtype: torch.dtype) -> None:
    """Masked examples; every decoder's and encoder's own masks, positions and heads."""
    objective: Any = Filling() if case.kind == "encoder" else Chat(None, None)  # type: ignore[arg-type]
    model, pieces = model_of(case, dtype), examples(masked=True)
    wanted = gradient(model, objective, alone(pieces))
    everything = packed(pieces, 99)
    assert len(everything) == 1 and max(int(row.max()) for row in everything[0].inputs["documents"]) > 2
    check(gradient(model, objective, everything), wanted, case.name)  # packed = separate
    rows = len(everything[0].inputs["tokens"])
    check(gradient(model, objective, parts(everything[0], [1, rows - 1])), wanted, case.name)  # accumulated = one batch
    whole = padded(pieces, 5)(list(range(len(pieces.lengths))))
    assert float((whole.inputs["documents"] == 0).float().mean()) > 0.4
    check(gradient(model, objective, [whole]), wanted, case.name)  # padded = unpadded
    buckets = Buckets(pieces.lengths, padded(pieces, 0), 48, 0, rank=0, world=1)
    epoch = list(islice(buckets, len(buckets.stream.groups(0, 0))))
    assert len(epoch) > 2
    check(gradient(model, objective, epoch), wanted, case.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(2,) * 4, (1,) * 8, (1, 7), (3, 5)])
def test_documents_cut_in_any_way(sizes: Sequence[int], dtype: torch.dtype) -> None:
    """Pre-training: long documents go on in other pieces; k x b micro-batches = one batch of k b rows."""
    make = random.Random(5)
    data = TokenData.of([[make.randrange(3, WORDS) for _ in range(n)] for n in [70, 3, 40, 9, 33, 8, 90, 5]])
    pieces = Documents(data, 0, MAX_LEN)
    model = model_of(next(case for case in FIRST if case.name == "qwen3"), dtype)
    loader = Loader(pieces, 8, MAX_LEN, 1, rank=0, world=1)
    objective = CausalLM(loader, None)
    whole = next(objective.batches(model))
    wanted = gradient(model, objective, [whole])
    check(gradient(model, objective, parts(whole, sizes)), wanted, "qwen3")
    if len(set(sizes)) == 1:  # the same through the loader: the same rows in smaller batches
        small = CausalLM(Loader(pieces, sizes[0], MAX_LEN, 1, rank=0, world=1), None)
        check(gradient(model, objective, list(islice(small.batches(model), len(sizes)))), wanted, "qwen3")
    pieces_of = [i for row in whole.source for i in row]
    check(gradient(model, objective, [padded(pieces, 0)([i]) for i in pieces_of]), wanted, "qwen3")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("settings", [{}, {"length_normalised": True, "sft_weight": 0.3, "label_smoothing": 0.1}])
def test_preference_pairs(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """A batch of pairs padded to the longest = the pairs alone = in micro-batches."""
    make = random.Random(7)
    words = lambda n: [make.randrange(3, WORDS) for _ in range(n)]  # noqa: E731
    pairs = Pairs([Pair(str(n), words(n), words(20 - 2 * n), words(1 + n)) for n in range(1, 9)], MAX_LEN, 0)
    model = model_of(next(case for case in FIRST if case.name == name), dtype)
    start = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.05)  # it has gone some way from its start
    objective = DPO(Config(**settings), lambda: start, pairs, None, 4, 0)
    one = gradient(model, objective, [objective._batch(pairs, list(range(8)))])
    check(gradient(model, objective, [objective._batch(pairs, [i]) for i in range(8)]), one, name)
    check(
        gradient(model, objective, [objective._batch(pairs, part) for part in ([7, 0, 3], [1], [2, 4, 5, 6])]),
        one,
        name,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CLASSES, ids=str)
def test_classes_of_rows_padded_or_not(case: Case, dtype: torch.dtype) -> None:
    """One label a row: whatever reads a row out (first, last, mean) does not read its padding."""

    class Naming:
        def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
            inputs = batch.inputs
            return {"loss": model(inputs["tokens"], documents=inputs["documents"], labels=inputs["class"]).losses.sum()}

    model, pieces = model_of(case, dtype), examples(masked=False)

    def batch(group: list[int]) -> Batch:
        made = padded(pieces, 5)(group)
        made.inputs["class"] = torch.tensor([i % 3 for i in group])
        return Batch(made.inputs, len(group))

    everything = list(range(len(pieces.lengths)))
    wanted = gradient(model, Naming(), [batch([i]) for i in everything])
    check(gradient(model, Naming(), [batch(everything)]), wanted, case.name)
    buckets = Buckets(pieces.lengths, batch, 60, 0, rank=0, world=1)
    check(gradient(model, Naming(), list(islice(buckets, len(buckets.stream.groups(0, 0))))), wanted, case.name)
